"""floor, ceil, trunc and round as LLVM IR text: intrinsics, or arithmetic where a target has no instruction."""

from __future__ import annotations

from ..ir.types import DType
from .llvm_types import constant, value_type, vector
from .llvm_writer import Writer
from .target import Target

_INTRINSIC = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven"}

_NEAREST: dict[int, tuple[str, tuple[tuple[str, str], ...]]] = {
    4: ("llvm.x86.sse2.cvtps2dq", ()),
    8: ("llvm.x86.avx.cvt.ps2dq.256", ()),
    16: (
        "llvm.x86.avx512.mask.cvtps2dq.512",
        (("<16 x i32>", "zeroinitializer"), ("i16", "-1"), ("i32", "4")),
    ),
}
"""By lanes: the intrinsic that rounds as the processor is set, to nearest even, and operands after the value."""


def rounded(w: Writer, target: Target, op: str, value: str, dtype: DType, lanes: int) -> str:
    """floor, ceil, trunc or round (to nearest even) of f32 or f64."""
    type_ = value_type(dtype, lanes)
    if target.rounds:
        suffix = f"f{dtype.bits}" if lanes == 1 else f"v{lanes}f{dtype.bits}"
        return w.call(f"llvm.{_INTRINSIC[op]}.{suffix}", type_, (type_, value))
    return _Rounding(w, dtype, lanes).apply(op, value)


def rounded_to_i32(w: Writer, target: Target, value: str, lanes: int) -> str | None:
    """f32 rounded to the nearest even i32 by one instruction; None where LLVM finds it by itself, or there is none."""
    if target.arch != "x86_64" or lanes not in _NEAREST or lanes * 32 > target.vector_bits:
        return None
    name, more = _NEAREST[lanes]
    sums, floats = vector("i32", lanes), vector("float", lanes)
    return w.call(name, sums, (floats, value), *((t, v) for t, v in more))


class _Rounding:
    """Adding and subtracting 2^23 (2^52) rounds at the units; sign and large values are put back."""

    def __init__(self, w: Writer, dtype: DType, lanes: int) -> None:
        self.w, self.dtype, self.lanes = w, dtype, lanes
        self.float = value_type(dtype, lanes)
        self.int = vector(f"i{dtype.bits}", lanes)
        self.magic = constant(dtype, lanes, 2.0**23 if dtype is DType.F32 else 2.0**52)
        self.one = constant(dtype, lanes, 1.0)

    def apply(self, op: str, x: str) -> str:
        if op == "round":
            return self.round(x)
        if op == "floor":
            return self.step(self.round(x), x, "ogt", "fsub")
        if op == "ceil":
            return self.with_sign(self.step(self.round(x), x, "olt", "fadd"), x)
        size = self.magnitude(x)
        return self.with_sign(self.step(self.round(size), size, "ogt", "fsub"), x)

    def step(self, r: str, x: str, compare: str, move: str) -> str:
        """r, moved by one where it lies on the wrong side of x."""
        wrong = self.w.op(f"fcmp {compare} {self.float} {r}, {x}")
        moved = self.w.op(f"{move} {self.float} {r}, {self.one}")
        return self.w.op(f"select {vector('i1', self.lanes)} {wrong}, {self.float} {moved}, {self.float} {r}")

    def round(self, x: str) -> str:
        size = self.magnitude(x)
        near = self.w.op(f"fadd {self.float} {size}, {self.magic}")
        near = self.w.op(f"fsub {self.float} {near}, {self.magic}")
        near = self.with_sign(near, x)
        small = self.w.op(f"fcmp olt {self.float} {size}, {self.magic}")
        return self.w.op(f"select {vector('i1', self.lanes)} {small}, {self.float} {near}, {self.float} {x}")

    def magnitude(self, x: str) -> str:
        bits = self.w.op(f"bitcast {self.float} {x} to {self.int}")
        bits = self.w.op(f"and {self.int} {bits}, {self.int_constant((1 << (self.dtype.bits - 1)) - 1)}")
        return self.w.op(f"bitcast {self.int} {bits} to {self.float}")

    def with_sign(self, value: str, x: str) -> str:
        sign = self.w.op(f"bitcast {self.float} {x} to {self.int}")
        sign = self.w.op(f"and {self.int} {sign}, {self.int_constant(1 << (self.dtype.bits - 1))}")
        bits = self.w.op(f"bitcast {self.float} {value} to {self.int}")
        bits = self.w.op(f"or {self.int} {bits}, {sign}")
        return self.w.op(f"bitcast {self.int} {bits} to {self.float}")

    def int_constant(self, value: int) -> str:
        return constant(DType.I32 if self.dtype is DType.F32 else DType.I64, self.lanes, value)
