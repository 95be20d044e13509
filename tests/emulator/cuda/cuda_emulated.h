/* What our CUDA text uses of the language, for a C++ compiler and the emulator. */
#pragma once
#include "../emulator.h"

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __shared__ EMULATED_SHARED
#define __syncthreads() emulated_barrier(__LINE__)
#define __shfl_xor_sync(threads, x, mask) shuffle_xor(__LINE__, threads, x, mask)
#define threadIdx (emulated_at().in_group)
#define blockIdx (emulated_at().of_group)

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline double __longlong_as_double(long x) { return __builtin_bit_cast(double, x); }
inline long __double_as_longlong(double x) { return __builtin_bit_cast(long, x); }
inline float __double2float_rz(double x)
{
    const float f = (float)x;
    const double more = f < 0 ? -(double)f : (double)f, most = x < 0 ? -x : x;
    return more > most ? __uint_as_float(__float_as_uint(f) - 1) : f;
}

template <class T> inline T shuffle_xor(int line, unsigned threads, T x, unsigned mask)
{
    T y;
    if (threads != 0xffffffff)
        emulated_fault("a shuffle of a part of a warp");
    emulated_shuffle_xor(line, &x, sizeof x, mask, &y);
    return y;
}

#define __CUDA_ARCH__ 750
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c)
{
    for (int j = 0; j < 32; j += 8)
        c += (unsigned char)(a >> j) * (unsigned char)(b >> j);
    return c;
}
inline int __dp4a(int a, int b, int c)
{
    for (int j = 0; j < 32; j += 8)
        c = (int)((unsigned)c + (unsigned)((signed char)(a >> j) * (signed char)(b >> j)));
    return c;
}

/* Instructions of PTX. */
inline void cvt_f32_f16(float &y, unsigned short x) { y = (float)__builtin_bit_cast(_Float16, x); }
inline void cvt_rn_f16_f32(unsigned short &y, float x) { y = __builtin_bit_cast(unsigned short, (_Float16)x); }
inline float half_bits(unsigned short x) { return (float)__builtin_bit_cast(_Float16, x); }
inline void add_rn_f16(unsigned short &y, unsigned short a, unsigned short b)
{
    cvt_rn_f16_f32(y, half_bits(a) + half_bits(b));
}
inline void sub_rn_f16(unsigned short &y, unsigned short a, unsigned short b)
{
    cvt_rn_f16_f32(y, half_bits(a) - half_bits(b));
}
inline void mul_rn_f16(unsigned short &y, unsigned short a, unsigned short b)
{
    cvt_rn_f16_f32(y, half_bits(a) * half_bits(b));
}
inline void fma_rn_f16(unsigned short &y, unsigned short a, unsigned short b, unsigned short c)
{
    cvt_rn_f16_f32(y, __builtin_fmaf(half_bits(a), half_bits(b), half_bits(c)));
}
inline void cvt_rn_f16_f64(unsigned short &y, double x) { y = __builtin_bit_cast(unsigned short, (_Float16)x); }
