"""A whole program's kernels as OpenCL C 1.2 (Khronos, The OpenCL Specification 1.2, 2012)."""

from __future__ import annotations

from typing import ClassVar

from ..ir.loops import Buffer, Kernel
from ..ir.loops_visit import uses_type
from ..ir.program import Program
from ..ir.types import DType
from .c_expressions import Code, Operators, apply, cast_to
from .devices import Device
from .dots import dot_helper
from .grid_style import GridStyle
from .opencl_subgroups import subgroups
from .vector_style import ELEMENTS, VectorStyle

_PREAMBLE = """\
typedef char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
#define INT64_C(x) x##L
#define UINT64_C(x) x##UL
#pragma OPENCL FP_CONTRACT OFF
#if defined(FP_FAST_FMAF) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define c2c_fma(a, b, c) fma(a, b, c)
#else
#define c2c_fma(a, b, c) mad(a, b, c)
#endif
"""

_HALF = """\
#if defined(FP_FAST_FMA_HALF) || defined(FP_FAST_FMAF) || defined(__FMA__)
#define c2c_fma_half(a, b, c) fma(a, b, c)
#else
#define c2c_fma_half(a, b, c) mad(a, b, c)
#endif
"""

_TO_HALF = """\
static inline uint16_t c2c_{name}({source} x)
{{
    uint16_t h;
    vstore_half_rte(x, 0, (__private half *)&h);
    return h;
}}
"""

_HELPERS = {
    "float_f16": """\
static inline float c2c_float_f16(uint16_t h)
{
    return vload_half(0, (const __private half *)&h);
}
""",
    "float_bf16": """\
static inline float c2c_float_bf16(uint16_t h)
{
    return as_float((uint)h << 16);
}
""",
    "f16": _TO_HALF.format(name="f16", source="float"),
    "f16_of_f64": _TO_HALF.format(name="f16_of_f64", source="double"),
    "bf16_of_f64": """\
static inline uint16_t c2c_bf16_of_f64(double x) /* rounded to odd first, so that the second rounding is the only one */
{
    const float f = convert_float_rtz(x);
    return c2c_bf16(isnan(x) || (double)f == x ? f : as_float(as_uint(f) | 1));
}
""",
    "bf16": """\
static inline uint16_t c2c_bf16(float x)
{
    const uint bits = as_uint(x);
    return isnan(x) ? (uint16_t)(bits >> 16 | 64) : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
""",
}

_RESERVED = frozenset(
    """global local private constant generic kernel half bool true false uchar ushort uint ulong size_t ptrdiff_t
    event_t sampler_t image2d_t image3d_t read_only write_only read_write pipe vec_step dot cross distance length
    normalize clamp mix step smoothstep sign degrees radians max min mad fma select shuffle shuffle2 any all
    rotate hadd clz popcount isnan isinf signbit ceil fract frexp hypot ilogb ldexp lgamma logb modf nan nextafter
    pown powr remainder remquo rootn rsqrt sincos sinpi cospi tanpi tgamma
    """.split()
)


class OpenClOperators(Operators):
    """Functions by one name for all types, and bits as the language reads them."""

    has_half: ClassVar[bool] = True

    def __init__(self, *, halves: bool = False, arm_dots: bool = False) -> None:
        super().__init__(halves=halves)
        self.arm_dots = arm_dots

    def helper(self, name: str) -> tuple[str, tuple[str, ...]]:
        if name.startswith("dot_"):
            return dot_helper(name, "opencl", arm=self.arm_dots), ()
        needs = ("bf16",) if name == "bf16_of_f64" else ()
        return (_HELPERS[name], needs) if name in _HELPERS else super().helper(name)

    def function(self, name: str, dtype: DType) -> str:
        return name

    def fma(self, dtype: DType, a: Code, b: Code, c: Code) -> Code:
        if dtype in self.as_bits:
            return super().fma(dtype, a, b, c)
        return apply("c2c_fma_half" if dtype is DType.F16 else "c2c_fma", a, b, c)

    def cast(self, dtype: DType, source: DType, a: Code) -> Code:
        if source is DType.F64 and dtype in self.as_bits:
            return self.help(f"{dtype}_of_f64", a)
        if dtype is DType.F16 and dtype is not source and dtype not in self.as_bits:
            return apply("convert_half_rte", self.widen(source, a))
        return super().cast(dtype, source, a)

    def bitcast(self, dtype: DType, source: DType, a: Code) -> Code:
        if self.types[dtype] == self.types[source]:
            return a
        if any(d.is_float and d not in self.as_bits for d in (dtype, source)):
            return apply(f"as_{_word(dtype)}", a)
        return cast_to(self.types[dtype], a)

    def _float(self, dtype: DType, value: float) -> Code:
        if value != value:
            return Code("NAN") if dtype is DType.F32 else cast_to("double", Code("NAN"))
        return super()._float(dtype, value)


def _word(dtype: DType) -> str:
    """OpenCL's own name of a type of 16 bits or more."""
    names = {**ELEMENTS, DType.F16: "half", DType.BF16: "ushort"}
    return names[dtype]


class OpenClStyle(VectorStyle):
    """One kernel. A parameter is a base pointer and the place of its first element, so that all of a model's memory is
    a few allocations: OpenCL 1.2 has no arguments within buffers but at coarsely aligned places."""

    function: ClassVar[str] = "__kernel void"
    private: ClassVar[str] = "__private "
    spaces: ClassVar[dict[str, str]] = {
        "param": "__global ", "constant": "__global ", "stack": "", "register": "", "shared": "__local ",
    }  # fmt: skip
    reserved: ClassVar[frozenset[str]] = GridStyle.reserved | _RESERVED

    def __init__(self, kernel: Kernel, operators: Operators, device: Device) -> None:
        super().__init__(kernel, operators, device)
        self.places: dict[str, tuple[str, str]] = {}

    def head(self, params: list[str]) -> str:
        x, y, z = self.launch.group
        name = f"{self.function} {self.kernel.name}("
        rows = ",\n    ".join(params)
        size = " C2C_SUBGROUPS" if self.exchanges else ""
        return f"__attribute__((reqd_work_group_size({x}, {y}, {z}))){size}\n{name}\n    {rows})"

    def parameters(self, p: Buffer) -> tuple[str, ...]:
        base, at = self._place(p)
        return self.pointer(p, base), f"const uint {at}"

    def open(self, p: Buffer) -> None:
        base, at = self._place(p)
        self.line(f"{self.pointer(p, self.names[p.name])} = {base} + {at};")

    def _place(self, p: Buffer) -> tuple[str, str]:
        """Names of the memory that a buffer lies in, and of its first element's number there."""
        if p.name not in self.places:
            name = self.names[p.name]
            self.places[p.name] = self.fresh(f"{name}_base"), self.fresh(f"{name}_at")
        return self.places[p.name]

    def group_number(self, dimension: int) -> str:
        return f"get_group_id({dimension})"

    def thread_number(self, dimension: int) -> str:
        return f"get_local_id({dimension})"

    def global_number(self, dimension: int) -> str:
        return f"get_global_id({dimension})"

    def flat_number(self) -> str | None:
        x, y, z = self.launch.group
        self.line(f"C2C_NEAR({x * y * z})")
        return f"c2c_thread({x}, {y})"

    def exchange(self, dtype: DType, value: Code, mask: int) -> Code:
        """In words of 32 bits, the only type that all extensions have."""
        if dtype.bits == 64:
            bits = self.fresh("t")
            self.line(f"const ulong {bits} = {self.operators.bitcast(DType.U64, dtype, value).text};")
            low, high = (self._word(Code(f"(uint)({bits}{part})"), mask).text for part in ("", " >> 32"))
            return self.operators.bitcast(dtype, DType.U64, Code(f"((ulong){high} << 32 | {low})"))
        if not dtype.is_float:
            return cast_to(self.operators.types[dtype], self._word(cast_to("uint", value), mask))
        bits_of = DType.U32 if dtype is DType.F32 else DType.U16
        word = self._word(self.operators.bitcast(bits_of, dtype, value), mask)
        return self.operators.bitcast(dtype, bits_of, word if dtype is DType.F32 else cast_to("ushort", word))

    def _word(self, word: Code, mask: int) -> Code:
        return apply("c2c_shuffle_xor", Code("c2c_near"), Code(self.flat), word, Code(str(mask)))

    def barrier(self) -> None:
        self.line("barrier(CLK_LOCAL_MEM_FENCE);")


def emit_opencl(program: Program, device: Device) -> str:
    """OpenCL C of all kernels; the program must have been verified. Raises CodegenError for what OpenCL cannot do."""
    operators = OpenClOperators(halves=device.fp16, arm_dots=device.arm_dots)
    kernels_on_device = program.kernels_of(host=False)
    styles = [OpenClStyle(k, operators, device) for k in kernels_on_device.values()]
    kernels = [s.text() for s in styles]
    wide = any(uses_type(k, DType.F64) for k in kernels_on_device.values())
    half = device.fp16 and any(uses_type(k, DType.F16) for k in kernels_on_device.values())
    return "\n".join(
        [
            f"/* {program.name}: a compiled network in OpenCL C 1.2; {program.name}_plan.h says how it runs. */",
            *(["#pragma OPENCL EXTENSION cl_khr_fp64 : enable"] if wide else []),
            *(["#pragma OPENCL EXTENSION cl_khr_fp16 : enable"] if half else []),
            _PREAMBLE,
            *([_HALF] if half else []),
            *([subgroups(device)] if any(s.exchanges for s in styles) else []),
            *operators.helpers.values(),
            *kernels,
        ]
    )
