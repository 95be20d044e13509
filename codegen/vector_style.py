"""Values of 2, 4, 8 or 16 lanes in the vector types of OpenCL C; others, and what has no form there, lane by lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from ..ir.loops import (
    COMPARE,
    Binary,
    Bitcast,
    Broadcast,
    Buffer,
    Call,
    Cast,
    Const,
    Expr,
    Fma,
    Load,
    Lookup,
    Select,
    Shuffle,
    Store,
    Unary,
    Var,
)
from ..ir.types import DType
from .c_expressions import COMPARISON, TERNARY, Code, apply, cast_to, infix
from .grid_style import GridStyle

WIDTHS = (2, 4, 8, 16)
ELEMENTS = {
    DType.F32: "float", DType.F64: "double", DType.I8: "char", DType.I16: "short", DType.I32: "int", DType.I64: "long",
    DType.U8: "uchar", DType.U16: "ushort", DType.U32: "uint", DType.U64: "ulong",
}  # fmt: skip
"""Element types by the language's own names."""

_ARITHMETIC = ("add", "sub", "mul", "div", "and", "or", "xor", "shl", "shr")
_FUNCTIONS = {"sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "round": "rint", "trunc": "trunc", "abs": "fabs"}


class VectorStyle(GridStyle):
    """Writes one kernel with vector types."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        native = {DType.F16: self.operators.types[DType.F16]} if DType.F16 not in self.operators.as_bits else {}
        self.elements: dict[DType, str] = {**ELEMENTS, **native}
        self.vectors: set[str] = set()
        """Names of variables and buffers that hold vectors; others of several lanes are arrays."""

    # --- statements

    def define(self, name: str, value: Expr) -> None:
        code = self.vector(value) if value.lanes > 1 else None
        if code is None:
            super().define(name, value)
            return
        self.vectors.add(name)
        self.line(f"const {self._type(value)} {name} = {code.text};")

    def alloc(self, buffer: Buffer) -> None:
        if buffer.lanes not in WIDTHS or buffer.dtype not in self.elements:
            super().alloc(buffer)
            return
        name = self.names[buffer.name]
        self.vectors.add(name)
        self.line(
            f"{self.spaces[buffer.space]}{self.elements[buffer.dtype]}{buffer.lanes} {name}[{max(buffer.size, 1)}];"
        )

    def store(self, s: Store) -> None:
        code = self.vector(s.value) if s.value.lanes > 1 and s.index.lanes == 1 else None
        name = self.names[s.buffer.name]
        if code is None and (half := self._rounded(s)) is not None:
            where = self._address(s.buffer, s.index)
            self.line(f"vstore_half{s.value.lanes}_rte({half.text}, 0, (__global half *)({where}));")
        elif code is None:
            super().store(s)
        elif s.buffer.lanes > 1:
            self.line(f"{name}[{self.value(s.index).text}] = {code.text};")
        else:
            self.line(f"vstore{s.value.lanes}({code.text}, 0, {self._address(s.buffer, s.index)});")

    def _rounded(self, s: Store) -> Code | None:
        """What a store of halves rounds as a whole."""
        value = s.value
        if not isinstance(value, Cast) or value.dtype is not DType.F16 or value.a.dtype is not DType.F32:
            return None
        return self.vector(value.a) if s.index.lanes == 1 and s.buffer.space == "param" else None

    # --- lanes of vectors

    def element(self, buffer: Buffer, index: Expr, at: str) -> str:
        name = self.names[buffer.name]
        if buffer.lanes > 1 and name in self.vectors:
            return self._lane_of(f"{name}[{self.value(index).text}]", buffer.dtype, at)
        return super().element(buffer, index, at)

    def _var(self, e: Var, at: str) -> Code:
        name = self.names[e.name]
        if e.lanes > 1 and name in self.vectors:
            return Code(self._lane_of(name, e.dtype, at))
        return super()._var(e, at)

    def _lane_of(self, name: str, dtype: DType, at: str) -> str:
        return f"{name}.s{int(at):x}" if at.isdigit() else f"((__private {self.elements[dtype]} *)&{name})[{at}]"

    def _lookup(self, e: Lookup, at: str) -> Code:
        table = self.names[e.table.name] if isinstance(e.table, Var) else ""
        if table not in self.vectors:
            array = self.fresh("t")
            super().define(array, e.table)
            self.names[array] = array
            e = replace(e, table=Var(e.table.dtype, e.table.lanes, array))
            return super()._lookup(e, at)
        place = infix(
            "and", cast_to(f"uint{e.index.dtype.bits}_t", self.value(e.index, at)), Code(str(e.table.lanes - 1))
        )
        return Code(self._lane_of(table, e.dtype, f" {place.text}"))

    def _regrouped(self, e: Bitcast, at: str) -> Code:
        """A whole vector as one integer by the language's own name of that."""
        made = self.vector(e.a) if e.lanes == 1 and e.dtype in ELEMENTS else None
        return super()._regrouped(e, at) if made is None else apply(f"as_{ELEMENTS[e.dtype]}", made)

    def _first(self, value: Var) -> str:
        name = self.names[value.name]
        return f"&{name}" if name in self.vectors else super()._first(value)

    def _address(self, buffer: Buffer, index: Expr) -> str:
        where = self.value(index)
        return self.names[buffer.name] + ("" if where.text == "0" else f" + {where.text}")

    # --- expressions

    def _type(self, e: Expr) -> str:
        return f"{self.elements[e.dtype]}{e.lanes}"

    def vector(self, e: Expr) -> Code | None:
        """The expression for all lanes; None where there is no such form."""
        if e.lanes not in WIDTHS or e.dtype not in self.elements:
            return None
        writer = self._vector_writers.get(type(e))
        return None if writer is None else writer(self, e)

    def _all(self, *values: Expr) -> list[Code] | None:
        made = [self.vector(v) for v in values]
        return None if any(m is None for m in made) else [m for m in made if m is not None]

    def _v_const(self, e: Const) -> Code:
        return Code(f"({self._type(e)})({self.operators.constant(e.dtype, e.value).text})")

    def _v_var(self, e: Var) -> Code | None:
        name = self.names[e.name]
        return Code(name) if name in self.vectors else None

    def _v_load(self, e: Load) -> Code | None:
        name = self.names[e.buffer.name]
        if e.buffer.lanes > 1:
            return Code(f"{name}[{self.value(e.index).text}]") if name in self.vectors else None
        if e.index.lanes > 1:
            return None
        return Code(f"vload{e.lanes}(0, {self._address(e.buffer, e.index)})")

    def _v_binary(self, e: Binary) -> Code | None:
        made = self._all(e.a, e.b)
        if made is None:
            return None
        a, b = made
        if e.op in ("min", "max"):
            sign = "<" if e.op == "min" else ">"
            test = f"{a.within(COMPARISON + 1)} {sign} {b.within(COMPARISON + 1)}"
            return Code(f"{test} ? {a.within(TERNARY + 1)} : {b.within(TERNARY + 1)}", TERNARY)
        if e.op not in _ARITHMETIC or e.op == "div" and not e.dtype.is_float:
            return None
        return infix(e.op, a, b)

    def _v_unary(self, e: Unary) -> Code | None:
        made = self._all(e.a)
        if made is None or not e.dtype.is_float:
            return None
        if e.op == "neg":
            return Code(f"(-{made[0].within(15)})")
        return apply(_FUNCTIONS[e.op], made[0]) if e.op in _FUNCTIONS else None

    def _v_fma(self, e: Fma) -> Code | None:
        made = self._all(e.a, e.b, e.c)
        return None if made is None else self.operators.fma(e.dtype, *made)

    def _v_select(self, e: Select) -> Code | None:
        made, mask = self._all(e.a, e.b), self._mask(e.cond, e.dtype)
        if made is None or mask is None:
            return None
        return Code(
            f"{mask.within(TERNARY + 1)} ? {made[0].within(TERNARY + 1)} : {made[1].within(TERNARY + 1)}", TERNARY
        )

    def _mask(self, e: Expr, dtype: DType) -> Code | None:
        """A condition as the language's comparisons give it: integers as wide as what is chosen by them."""
        if not isinstance(e, Binary):
            return None
        if e.op in ("and", "or"):
            parts = [self._mask(x, dtype) for x in (e.a, e.b)]
            return None if parts[0] is None or parts[1] is None else infix(e.op, parts[0], parts[1])
        made = self._all(e.a, e.b) if e.op in COMPARE and e.a.dtype.bits == dtype.bits else None
        return None if made is None else infix(e.op, *made)

    def _v_cast(self, e: Cast) -> Code | None:
        x = e.a
        bits = DType.F16 not in self.elements
        halves = (
            bits and isinstance(x, Load) and x.dtype is DType.F16 and x.buffer.space == "param" and x.index.lanes == 1
        )
        if halves and isinstance(x, Load) and e.dtype is DType.F32:
            return Code(f"vload_half{e.lanes}(0, (const __global half *)({self._address(x.buffer, x.index)}))")
        made = self._all(e.a)
        rounding = "_rte" if e.dtype is DType.F16 else ""
        return None if made is None else apply(f"convert_{self._type(e)}{rounding}", made[0])

    def _v_bitcast(self, e: Bitcast) -> Code | None:
        made = self._all(e.a) if e.a.lanes == e.lanes else None
        return None if made is None else apply(f"as_{self._type(e)}", made[0])

    def _v_broadcast(self, e: Broadcast) -> Code:
        return Code(f"({self._type(e)})({self.value(e.a).text})")

    def _v_shuffle(self, e: Shuffle) -> Code | None:
        name = self.names.get(e.a.name) if isinstance(e.a, Var) else None
        if e.b is not None or name not in self.vectors:
            return None
        return Code(f"{name}.s{''.join(f'{i:x}' for i in e.lanes_of)}")

    def _v_call(self, e: Call) -> Code | None:
        made = self._all(*e.args)
        return None if made is None else apply(self.operators.function(e.name, e.dtype), *made)

    _writers: ClassVar[dict[type, Callable[..., Code]]] = {**GridStyle._writers, Var: _var, Lookup: _lookup}
    _vector_writers: ClassVar[dict[type, Callable[..., Code | None]]] = {
        Const: _v_const, Var: _v_var, Load: _v_load, Binary: _v_binary, Unary: _v_unary, Fma: _v_fma,
        Select: _v_select, Cast: _v_cast, Bitcast: _v_bitcast, Broadcast: _v_broadcast, Shuffle: _v_shuffle,
        Call: _v_call,
    }  # fmt: skip
