/* What our OpenCL text calls, in OpenCL C, for the emulator: clang knows the language, and built-ins that are not here
 * are missing when the library is linked. Extensions are those that the command line defines, and cl_khr_fp16 and
 * cl_khr_fp64, which a text must enable. */
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#define OVERLOAD static inline __attribute__((overloadable, always_inline))

/* emulator.h, in this language */
struct emulated_uint3 {
    uint x, y, z;
};
struct emulated_position {
    struct emulated_uint3 of_group, in_group, in_grid;
    uint subgroup, lane;
};
struct emulated_position emulated_at(void) __attribute__((const));
void emulated_barrier(int line) __attribute__((noduplicate));
void emulated_shuffle_xor(int line, const void *mine, size_t bytes, uint mask, void *theirs) __attribute__((noduplicate));

static inline size_t emulated_number(struct emulated_uint3 of, uint dimension)
{
    return dimension == 0 ? of.x : dimension == 1 ? of.y : of.z;
}
#define get_group_id(dimension) emulated_number(emulated_at().of_group, dimension)
#define get_local_id(dimension) emulated_number(emulated_at().in_group, dimension)
#define get_global_id(dimension) emulated_number(emulated_at().in_grid, dimension)
#define barrier(flags) ((void)(flags), emulated_barrier(__LINE__))

#define ALL_TYPES(X)                                                                                      \
    X(char) X(uchar) X(short) X(ushort) X(int) X(uint) X(long) X(ulong) X(half) X(float) X(double)
#define ALL_WIDTHS(X, ...) X(2, __VA_ARGS__) X(4, __VA_ARGS__) X(8, __VA_ARGS__) X(16, __VA_ARGS__)
#define ALL_SPACES(X, ...) X(__global, __VA_ARGS__) X(__local, __VA_ARGS__) X(__private, __VA_ARGS__)

/* Memory, lane by lane, since watched accesses have 16 bytes at most. */
#define MOVE(space, n, T)                                                                                  \
    OVERLOAD T##n vload##n(size_t at, const space T *p)                                                    \
    {                                                                                                      \
        T##n x;                                                                                            \
        _Pragma("unroll") for (int i = 0; i < n; i++) x[i] = p[at * n + i];                                \
        return x;                                                                                          \
    }                                                                                                      \
    OVERLOAD void vstore##n(T##n x, size_t at, space T *p)                                                 \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < n; i++) p[at * n + i] = x[i];                                \
    }
#define MOVES(n, T) ALL_SPACES(MOVE, n, T)
#define MOVES_OF(T) ALL_WIDTHS(MOVES, T)
ALL_TYPES(MOVES_OF)

#define HALF_MOVE(space, _)                                                                                \
    OVERLOAD float vload_half(size_t at, const space half *p) { return (float)p[at]; }                     \
    OVERLOAD void vstore_half_rte(float x, size_t at, space half *p) { p[at] = (half)x; }                  \
    OVERLOAD void vstore_half_rte(double x, size_t at, space half *p) { p[at] = (half)x; }
#define HALF_MOVES(n, space)                                                                               \
    OVERLOAD float##n vload_half##n(size_t at, const space half *p)                                        \
    {                                                                                                      \
        return __builtin_convertvector(vload##n(at, p), float##n);                                         \
    }                                                                                                      \
    OVERLOAD void vstore_half##n##_rte(float##n x, size_t at, space half *p)                               \
    {                                                                                                      \
        vstore##n(__builtin_convertvector(x, half##n), at, p);                                             \
    }
ALL_SPACES(HALF_MOVE, _)
ALL_WIDTHS(HALF_MOVES, __global)
ALL_WIDTHS(HALF_MOVES, __local)
ALL_WIDTHS(HALF_MOVES, __private)

/* Conversions */
#define CONVERT(n, T)                                                                                      \
    OVERLOAD T##n convert_##T##n(char##n x) { return __builtin_convertvector(x, T##n); }                   \
    OVERLOAD T##n convert_##T##n(uchar##n x) { return __builtin_convertvector(x, T##n); }                  \
    OVERLOAD T##n convert_##T##n(short##n x) { return __builtin_convertvector(x, T##n); }                  \
    OVERLOAD T##n convert_##T##n(ushort##n x) { return __builtin_convertvector(x, T##n); }                 \
    OVERLOAD T##n convert_##T##n(int##n x) { return __builtin_convertvector(x, T##n); }                    \
    OVERLOAD T##n convert_##T##n(uint##n x) { return __builtin_convertvector(x, T##n); }                   \
    OVERLOAD T##n convert_##T##n(long##n x) { return __builtin_convertvector(x, T##n); }                   \
    OVERLOAD T##n convert_##T##n(ulong##n x) { return __builtin_convertvector(x, T##n); }                  \
    OVERLOAD T##n convert_##T##n(half##n x) { return __builtin_convertvector(x, T##n); }                   \
    OVERLOAD T##n convert_##T##n(float##n x) { return __builtin_convertvector(x, T##n); }                  \
    OVERLOAD T##n convert_##T##n(double##n x) { return __builtin_convertvector(x, T##n); }
#define CONVERTS(T) ALL_WIDTHS(CONVERT, T)
ALL_TYPES(CONVERTS)
OVERLOAD float convert_float_rtz(double x)
{
    const float f = (float)x;
    return __builtin_fabs((double)f) > __builtin_fabs(x) ? as_float(as_uint(f) - 1) : f;
}

#define HALF_OF(T) \
    OVERLOAD half convert_half_rte(T x) { return (half)x; }
ALL_TYPES(HALF_OF)
#define HALVES_OF(n, T) \
    OVERLOAD half##n convert_half##n##_rte(T##n x) { return __builtin_convertvector(x, half##n); }
#define VECTORS_OF(T) ALL_WIDTHS(HALVES_OF, T)
ALL_TYPES(VECTORS_OF)

/* Functions; those of half by way of float, which rounds the exact ones alike. */
#define LANES(n, T, name)                                                                                  \
    OVERLOAD T##n name(T##n x)                                                                             \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < n; i++) x[i] = name(x[i]);                                   \
        return x;                                                                                          \
    }
#define ONE(name)                                                                                          \
    OVERLOAD float name(float x) { return __builtin_##name##f(x); }                                        \
    OVERLOAD double name(double x) { return __builtin_##name(x); }                                         \
    OVERLOAD half name(half x) { return (half)__builtin_##name##f((float)x); }                             \
    ALL_WIDTHS(LANES, float, name)                                                                         \
    ALL_WIDTHS(LANES, double, name)                                                                        \
    ALL_WIDTHS(LANES, half, name)
ONE(sqrt) ONE(floor) ONE(ceil) ONE(rint) ONE(trunc) ONE(fabs) ONE(exp) ONE(log) ONE(log1p) ONE(expm1) ONE(sin) ONE(cos)
ONE(tan) ONE(asin) ONE(acos) ONE(atan) ONE(sinh) ONE(cosh) ONE(tanh) ONE(asinh) ONE(acosh) ONE(atanh) ONE(erf)
#define TWO(name)                                                                                          \
    OVERLOAD float name(float x, float y) { return __builtin_##name##f(x, y); }                            \
    OVERLOAD double name(double x, double y) { return __builtin_##name(x, y); }                            \
    OVERLOAD half name(half x, half y) { return (half)__builtin_##name##f((float)x, (float)y); }
TWO(pow) TWO(fmod)
OVERLOAD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
OVERLOAD double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
OVERLOAD half fma(half a, half b, half c) { return (half)__builtin_fmaf((float)a, (float)b, (float)c); }
#define FMA(n, T)                                                                                          \
    OVERLOAD T##n fma(T##n a, T##n b, T##n c)                                                              \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < n; i++) c[i] = fma(a[i], b[i], c[i]);                        \
        return c;                                                                                          \
    }
ALL_WIDTHS(FMA, half)
ALL_WIDTHS(FMA, float)
ALL_WIDTHS(FMA, double)
#define mad(a, b, c) fma(a, b, c)
OVERLOAD int isnan(float x) { return x != x; }
OVERLOAD int isnan(double x) { return x != x; }
OVERLOAD int isnan(half x) { return x != x; }
OVERLOAD int min(int a, int b) { return b < a ? b : a; }
OVERLOAD int max(int a, int b) { return a < b ? b : a; }

#ifdef cl_khr_integer_dot_product /* Khronos, The OpenCL Extension Specification 3.0, section 38 */
#define DOT(A, B, R)                                                                                       \
    OVERLOAD R dot(A##4 a, B##4 b)                                                                         \
    {                                                                                                      \
        return (R)a.s0 * (R)b.s0 + (R)a.s1 * (R)b.s1 + (R)a.s2 * (R)b.s2 + (R)a.s3 * (R)b.s3;              \
    }
DOT(char, char, int) DOT(uchar, uchar, uint) DOT(char, uchar, int) DOT(uchar, char, int)
#define dot_4x8packed_ss_int(a, b) dot(as_char4((uint)(a)), as_char4((uint)(b)))
#define dot_4x8packed_uu_uint(a, b) dot(as_uchar4((uint)(a)), as_uchar4((uint)(b)))
#define dot_4x8packed_su_int(a, b) dot(as_char4((uint)(a)), as_uchar4((uint)(b)))
#define dot_4x8packed_us_int(a, b) dot(as_uchar4((uint)(a)), as_char4((uint)(b)))
#endif

#ifdef cl_arm_integer_dot_product_accumulate_int8 /* Khronos registry, extensions/arm */
#define ARM_DOT(T, R)                                                                                      \
    OVERLOAD R arm_dot_acc(T##4 a, T##4 b, R c)                                                            \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < 4; i++) c = (R)((uint)c + (uint)(a[i] * b[i]));              \
        return c;                                                                                          \
    }
ARM_DOT(char, int) ARM_DOT(uchar, uint)
#endif

/* Subgroups: of the extensions that our text knows, the exchange of words. */
#define get_sub_group_id() (emulated_at().subgroup)
#define get_sub_group_local_id() (emulated_at().lane)
static inline uint emulated_word(int line, uint x, uint mask)
{
    uint y;
    emulated_shuffle_xor(line, &x, sizeof x, mask, &y);
    return y;
}
#ifdef cl_intel_subgroups
#define intel_sub_group_shuffle_xor(x, mask) emulated_word(__LINE__, x, mask)
#endif
#ifdef cl_qcom_subgroup_shuffle
#define CLK_SUB_GROUP_SHUFFLE_WIDTH_WAVE_SIZE_QCOM 0
#define qcom_sub_group_shuffle_xor(x, mask, width, other) ((void)(width), (void)(other), emulated_word(__LINE__, x, mask))
#endif

#pragma OPENCL EXTENSION cl_khr_fp16 : disable
#pragma OPENCL EXTENSION cl_khr_fp64 : disable
