"""A whole program's kernels in CUDA C++ for NVRTC or nvcc (NVIDIA, CUDA C++ Programming Guide).

A parameter is a pointer to its first element. No header is needed: NVRTC finds none where no toolkit is installed.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..ir.program import Program
from ..ir.types import DType
from .c_expressions import Code, Operators, apply
from .c_helpers import SMALL_FLOATS
from .devices import Device
from .dots import dot_helper
from .grid_style import GridStyle
from .launch import GROUPS_ALONG

_PREAMBLE = """\
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INT64_C(x) x##LL
#define UINT64_C(x) x##ULL
#define INFINITY __int_as_float(0x7f800000)
#else
#include <math.h>
#include <stdint.h>
#endif
"""

_LINE = "static inline {to} c2c_{name}({source} x) {{ return {call}; }}\n"
_CONVERT = """\
static inline {to} c2c_{name}({source} x)
{{
    {to} y;
    asm("{instruction} %0, %1;" : "={o}"(y) : "{i}"(x));
    return y;
}}
"""

_HELPERS = {
    "float_f16": _CONVERT.format(
        name="float_f16", to="float", source="uint16_t", instruction="cvt.f32.f16", o="f", i="h"
    ),
    "f16": _CONVERT.format(name="f16", to="uint16_t", source="float", instruction="cvt.rn.f16.f32", o="h", i="f"),
    "f16_of_f64": _CONVERT.format(
        name="f16_of_f64", to="uint16_t", source="double", instruction="cvt.rn.f16.f64", o="h", i="d"
    ),
    "float_bf16": _LINE.format(
        name="float_bf16", to="float", source="uint16_t", call="__uint_as_float((uint32_t)x << 16)"
    ),
    "bf16": """\
static inline uint16_t c2c_bf16(float x)
{
    const uint32_t bits = __float_as_uint(x);
    return x != x ? (uint16_t)(bits >> 16 | 64) : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
""",
    "bf16_of_f64": """\
static inline uint16_t c2c_bf16_of_f64(double x) /* rounded to odd first, so that the second rounding is the only one */
{
    const float f = __double2float_rz(x);
    return c2c_bf16(x != x || (double)f == x ? f : __uint_as_float(__float_as_uint(f) | 1));
}
""",
    "f32_of_u32": _LINE.format(name="f32_of_u32", to="float", source="uint32_t", call="__uint_as_float(x)"),
    "u32_of_f32": _LINE.format(name="u32_of_f32", to="uint32_t", source="float", call="__float_as_uint(x)"),
    "f64_of_u64": _LINE.format(
        name="f64_of_u64", to="double", source="uint64_t", call="__longlong_as_double((int64_t)x)"
    ),
    "u64_of_f64": _LINE.format(
        name="u64_of_f64", to="uint64_t", source="double", call="(uint64_t)__double_as_longlong(x)"
    ),
}


def _half_arithmetic(name: str, operands: str) -> str:
    """A helper of one instruction on bits of f16 (NVIDIA, PTX ISA, half precision floating point instructions)."""
    parameters = ", ".join(f"uint16_t {x}" for x in operands)
    places = ", ".join(f"%{i}" for i in range(len(operands) + 1))
    inputs = ", ".join(f'"h"({x})' for x in operands)
    return f"""\
static inline uint16_t c2c_{name}_f16({parameters})
{{
    uint16_t y;
    asm("{name}.rn.f16 {places};" : "=h"(y) : {inputs});
    return y;
}}
"""


_HALVES = {
    f"{name}_f16": _half_arithmetic(name, operands)
    for name, operands in (("add", "ab"), ("sub", "ab"), ("mul", "ab"), ("fma", "abc"))
}
_NEEDS: dict[str, tuple[str, ...]] = {"bf16_of_f64": ("bf16",)}

_RESERVED = frozenset(
    """
    alignas alignof and and_eq asm bitand bitor bool catch char16_t char32_t class compl const_cast constexpr decltype
    delete dynamic_cast explicit export false friend mutable namespace new noexcept not not_eq nullptr operator or
    or_eq private protected public reinterpret_cast static_assert static_cast template this thread_local throw true try
    typeid typename using virtual wchar_t xor xor_eq threadIdx blockIdx blockDim gridDim warpSize dim3 float2 float4
    int2 int4 uint3 min max fma fmaf sqrtf floorf ceilf rintf truncf fabsf fmodf
    """.split()
)


class CudaOperators(Operators):
    """Multiply-adds that round once, and bits by CUDA's own functions."""

    def helper(self, name: str) -> tuple[str, tuple[str, ...]]:
        own = _HELPERS | _HALVES
        text, needs = (own[name], _NEEDS.get(name, ())) if name in own else self._shared(name)
        return text.replace("static inline", "static __device__ inline"), needs

    def _shared(self, name: str) -> tuple[str, tuple[str, ...]]:
        return (dot_helper(name, "cuda"), ()) if name.startswith("dot_") else super().helper(name)

    def fma(self, dtype: DType, a: Code, b: Code, c: Code) -> Code:
        if dtype is DType.F16 and self.halves:
            return self.help("fma_f16", a, b, c)
        return super().fma(dtype, a, b, c) if dtype in SMALL_FLOATS else apply(self.function("fma", dtype), a, b, c)

    def binary(self, op: str, dtype: DType, a: Code, b: Code, *, index: bool = False) -> Code:
        if dtype is DType.F16 and self.halves and f"{op}_f16" in _HALVES:
            return self.help(f"{op}_f16", a, b)
        return super().binary(op, dtype, a, b, index=index)

    def cast(self, dtype: DType, source: DType, a: Code) -> Code:
        if source is DType.F64 and dtype in SMALL_FLOATS:
            return self.help(f"{dtype}_of_f64", a)
        return super().cast(dtype, source, a)


class CudaStyle(GridStyle):
    """One kernel."""

    function: ClassVar[str] = 'extern "C" __global__ void'
    restrict: ClassVar[str] = "__restrict__ "
    spaces: ClassVar[dict[str, str]] = {
        "param": "", "constant": "", "stack": "", "register": "", "shared": "__shared__ ",
    }  # fmt: skip
    reserved: ClassVar[frozenset[str]] = GridStyle.reserved | _RESERVED

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.groups = tuple(t // g for t, g in zip(self.launch.threads, self.launch.group, strict=True))

    def head(self, params: list[str]) -> str:
        x, y, z = self.launch.group
        rows = ",\n    ".join(params)
        return f"{self.function} __launch_bounds__({x * y * z}) {self.kernel.name}(\n    {rows})"

    def group_number(self, dimension: int) -> str:
        if max(self.groups[1:]) <= GROUPS_ALONG:
            return f"blockIdx.{'xyz'[dimension]}"
        x, y, _ = self.groups  # all of them along x, as the driver launches them
        return (f"blockIdx.x % {x}", f"blockIdx.x / {x} % {y}", f"blockIdx.x / {x * y}")[dimension]

    def thread_number(self, dimension: int) -> str:
        return f"threadIdx.{'xyz'[dimension]}"

    def global_number(self, dimension: int) -> str:
        size, group = self.launch.group[dimension], self.group_number(dimension)
        if size == 1:
            return group
        group = f"({group})" if " " in group else group
        return f"{group} * {size} + {self.thread_number(dimension)}"

    def exchange(self, dtype: DType, value: Code, mask: int) -> Code:
        """Threads of a warp follow each other by their numbers (CUDA C++ Programming Guide, thread hierarchy)."""
        return apply("__shfl_xor_sync", Code("0xffffffff"), value, Code(str(mask)))

    def barrier(self) -> None:
        self.line("__syncthreads();")


def emit_cuda(program: Program, device: Device) -> str:
    """CUDA C++ of all kernels; the program must have been verified. Raises CodegenError for what CUDA cannot do."""
    operators = CudaOperators(halves=device.fp16)
    kernels = [CudaStyle(k, operators, device).text() for k in program.kernels_of(host=False).values()]
    return "\n".join(
        [
            f"/* {program.name}: a compiled network in CUDA C++; {program.name}_plan.h says how it runs. Build with\n"
            " * --fmad=false: multiply-adds are written out. */",
            _PREAMBLE,
            *operators.helpers.values(),
            *kernels,
        ]
    )
