"""A whole program's kernels in the Metal Shading Language 2.2, with matrices 2.3 (Apple, Metal Shading Language
Specification).

A parameter is a pointer to its first element, since Metal binds buffers at any element's place; `docs/gpu.md` says how
the text is checked without Apple's compiler.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..ir.errors import CodegenError
from ..ir.loops import MATRIX, Buffer, Call, Const, Expr, Kernel, MatrixLoad, MatrixMultiply, OnMatrices, Store
from ..ir.loops_visit import uses, uses_type
from ..ir.program import Program
from ..ir.types import DType
from .c_expressions import Code, Operators, apply, cast_to, infix
from .devices import Device
from .dots import dot_helper
from .grid_style import GridStyle, node_of

_PREAMBLE = """\
#include <metal_stdlib>
using namespace metal;
#if __METAL_VERSION__ >= 320 /* before, by fastMathEnabled = NO */
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#endif
#ifndef INT64_C
#define INT64_C(x) x##L
#define UINT64_C(x) x##UL
#endif
"""

_HELPERS = {
    "float_f16": "static inline float c2c_float_f16(uint16_t h) { return float(as_type<half>(h)); }\n",
    "f16": "static inline uint16_t c2c_f16(float x) { return as_type<uint16_t>(half(x)); }\n",
    "float_bf16": "static inline float c2c_float_bf16(uint16_t h) { return as_type<float>(uint32_t(h) << 16); }\n",
    "bf16": """\
static inline uint16_t c2c_bf16(float x)
{
    const uint32_t bits = as_type<uint32_t>(x);
    return isnan(x) ? uint16_t(bits >> 16 | 64) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
""",
    "f32_of_u32": "static inline float c2c_f32_of_u32(uint32_t x) { return as_type<float>(x); }\n",
    "u32_of_f32": "static inline uint32_t c2c_u32_of_f32(float x) { return as_type<uint32_t>(x); }\n",
    "shuffle_xor_64": """\
static inline uint64_t c2c_shuffle_xor_64(uint64_t x, ushort mask)
{
    const uint low = simd_shuffle_xor(uint(x), mask), high = simd_shuffle_xor(uint(x >> 32), mask);
    return uint64_t(high) << 32 | low;
}
""",
}

MISSING = ("erf", "expm1", "log1p")
"""Functions of `ir.loops.CALLS` that <metal_math> lacks; those of f32 are polynomials of our own by then."""

_RESERVED = frozenset(
    """
    alignas alignof and and_eq asm bitand bitor bool catch char16_t char32_t class compl const_cast constexpr decltype
    delete dynamic_cast explicit export false friend mutable namespace new noexcept not not_eq nullptr operator or
    or_eq private protected public reinterpret_cast static_assert static_cast template this thread_local throw true try
    typeid typename using virtual wchar_t xor xor_eq kernel vertex fragment device constant thread threadgroup
    threadgroup_imageblock metal half bfloat uchar ushort uint ulong size_t ptrdiff_t uint3 group_at thread_at grid_at
    as_type mem_flags threadgroup_barrier simdgroup_barrier vec matrix packed sampler texture1d texture2d texture3d
    atomic_int atomic_uint atomic_bool array fma min max clamp mix step smoothstep sign dot cross distance length
    normalize select fract modf frexp ldexp rsqrt exp2 exp10 log2 log10 powr sinpi cospi tanpi sincos isnan isinf
    isfinite signbit popcount clz ctz rotate mulhi mad24 absdiff hadd reverse_bits any all median3 saturate trunc
    simd_shuffle_xor simdgroup_at lane_at make_filled_simdgroup_matrix simdgroup_load simdgroup_store
    simdgroup_multiply_accumulate simdgroup_float8x8 simdgroup_half8x8 ulong2
    """.split()
)


_IN_SIMDGROUP = ("uint simdgroup_at [[simdgroup_index_in_threadgroup]]", "uint lane_at [[thread_index_in_simdgroup]]")


class MetalOperators(Operators):
    """Functions by one name for all types, and bits by `as_type`."""

    has_half: ClassVar[bool] = True

    def helper(self, name: str) -> tuple[str, tuple[str, ...]]:
        if name.startswith("dot_"):
            return dot_helper(name, "metal"), ()
        return (_HELPERS[name], ()) if name in _HELPERS else super().helper(name)

    def function(self, name: str, dtype: DType) -> str:
        return name

    def fma(self, dtype: DType, a: Code, b: Code, c: Code) -> Code:
        return super().fma(dtype, a, b, c) if dtype in self.as_bits else apply("fma", a, b, c)

    def _float(self, dtype: DType, value: float) -> Code:
        if dtype is DType.F16:  # as SPIRV-Cross writes them
            with np.errstate(over="ignore"):
                return apply("half", super()._float(DType.F32, float(np.float16(value))))
        return super()._float(dtype, value)

    def bitcast(self, dtype: DType, source: DType, a: Code) -> Code:
        to, of = self.types[dtype], self.types[source]
        return a if to == of else apply(f"as_type<{to}>", Code(f"{of}({a.text})"))


class MetalStyle(GridStyle):
    """One kernel."""

    function: ClassVar[str] = "kernel void"
    restrict: ClassVar[str] = ""
    private: ClassVar[str] = "thread "
    spaces: ClassVar[dict[str, str]] = {
        "param": "device ", "constant": "device ", "stack": "", "register": "", "shared": "threadgroup ",
    }  # fmt: skip
    reserved: ClassVar[frozenset[str]] = GridStyle.reserved | _RESERVED

    def head(self, params: list[str]) -> str:
        x, y, z = self.launch.group
        numbers: tuple[str, ...] = ("uint3 grid_at [[thread_position_in_grid]]",)
        if self.has_threads:
            own = ("uint3 thread_at [[thread_position_in_threadgroup]]",)
            numbers = ("uint3 group_at [[threadgroup_position_in_grid]]", *(_IN_SIMDGROUP if self.exchanges else own))
        bound = [f"{p} [[buffer({i})]]" for i, p in enumerate(params)]
        rows = ",\n    ".join([*bound, *numbers])
        return f"[[max_total_threads_per_threadgroup({x * y * z})]]\n{self.function} {self.kernel.name}(\n    {rows})"

    def group_number(self, dimension: int) -> str:
        return f"group_at.{'xyz'[dimension]}"

    def thread_number(self, dimension: int) -> str:
        return f"thread_at.{'xyz'[dimension]}"

    def global_number(self, dimension: int) -> str:
        return f"grid_at.{'xyz'[dimension]}"

    def flat_number(self) -> str | None:
        return f"simdgroup_at * {self.device.subgroup} + lane_at"

    def exchange(self, dtype: DType, value: Code, mask: int) -> Code:
        if dtype.bits == 64:
            return cast_to(self.operators.types[dtype], self.operators.help("shuffle_xor_64", value, Code(str(mask))))
        word = self.operators.types[dtype] not in ("float", "half") and dtype.bits < 32
        found = apply("simd_shuffle_xor", cast_to("int", value) if word else value, Code(str(mask)))
        return cast_to(self.operators.types[dtype], found) if word else found

    def alloc(self, buffer: Buffer) -> None:
        if buffer.space != "matrix":
            super().alloc(buffer)
            return
        self.line(f"simdgroup_{self._matrix(buffer)} {self.names[buffer.name]}[{max(buffer.size, 1)}];")

    def store(self, s: Store) -> None:
        if s.buffer.space != "matrix":
            super().store(s)
            return
        assert isinstance(s.value, Const)
        type_ = f"{self.operators.types[s.buffer.dtype]}, {MATRIX}, {MATRIX}"
        value = self.operators.constant(s.buffer.dtype, s.value.value).text
        self.line(f"{self._held(s.buffer, s.index)} = make_filled_simdgroup_matrix<{type_}>({value});")

    def on_matrices(self, stmt: OnMatrices) -> None:
        if not self.device.matrices:
            super().on_matrices(stmt)
        if isinstance(stmt, MatrixMultiply):
            total, a, b = (
                self._held(*x) for x in ((stmt.sums, stmt.at), (stmt.a, stmt.a_at), (stmt.b, stmt.b_at))
            )  # fmt: skip
            self.line(f"simdgroup_multiply_accumulate({total}, {a}, {b}, {total});")
            return
        where = infix("add", Code(self.names[stmt.buffer.name]), self.value(stmt.place)).text
        name, turned = ("load", ", ulong2(0, 0), true") if isinstance(stmt, MatrixLoad) else ("store", "")
        if isinstance(stmt, MatrixLoad) and not stmt.transposed:
            turned = ""
        self.line(f"simdgroup_{name}({self._held(stmt.matrix, stmt.index)}, {where}, {stmt.stride}{turned});")

    def _matrix(self, buffer: Buffer) -> str:
        return f"{self.operators.types[buffer.dtype]}{MATRIX}x{MATRIX}"

    def _held(self, matrix: Buffer, index: Expr) -> str:
        return f"{self.names[matrix.name]}[{self.value(index).text}]"

    def barrier(self) -> None:
        self.line("threadgroup_barrier(mem_flags::mem_threadgroup);")


def emit_metal(program: Program, device: Device) -> str:
    """Metal of all kernels; the program must have been verified. Raises CodegenError for what Metal cannot do."""
    for kernel in program.kernels_of(host=False).values():
        _check(program, kernel, device)
    operators = MetalOperators(halves=device.fp16)
    styles = [MetalStyle(k, operators, device) for k in program.kernels_of(host=False).values()]
    kernels = [s.text() for s in styles]
    version = "2.3" if any(s.matrices for s in styles) else "2.2"
    return "\n".join(
        [
            f"/* {program.name}: a compiled network in Metal {version}; {program.name}_plan.h says how it runs. */",
            _PREAMBLE,
            *operators.helpers.values(),
            *kernels,
        ]
    )


def _check(program: Program, kernel: Kernel, device: Device) -> None:
    if uses_type(kernel, DType.F64):
        raise CodegenError(
            "Metal has no 64-bit floats", where=node_of(program, kernel),
            remedy="cast to float32 in the model, or compile for opencl or a processor",
        )  # fmt: skip
    for name in MISSING:
        if uses(kernel, lambda e: isinstance(e, Call) and e.name == name):
            raise CodegenError(f"Metal has no {name}", where=node_of(program, kernel), remedy="compile for opencl")
    if device.tensors is not None and len(kernel.params) > device.tensors:
        raise CodegenError(
            f"a kernel with {len(kernel.params)} tensors: Metal binds {device.tensors}", where=node_of(program, kernel),
            remedy="split the node into several, or compile for opencl",
        )  # fmt: skip
