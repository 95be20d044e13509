"""Expressions of the loop IR as LLVM IR text: one method a node class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..ir.errors import CodegenError
from ..ir.loops import (
    COMPARE,
    Binary,
    Bitcast,
    Broadcast,
    Buffer,
    Call,
    Cast,
    Const,
    Dot,
    Expr,
    Fma,
    Load,
    Lookup,
    Ramp,
    Reduce,
    Select,
    Shuffle,
    Unary,
    Var,
    binary,
)
from ..ir.types import DType
from .llvm_convert import HALVES, convert, from_f32, to_f32
from .llvm_dot import dot
from .llvm_lookup import lookup
from .llvm_rounding import rounded, rounded_to_i32
from .llvm_streams import Stream, registers_loaded
from .llvm_types import constant, memory_type, value_type, vector
from .llvm_writer import Writer
from .target import Target

_FLOAT_OPS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv", "mod": "frem"}
_SIGNED_OPS = {"add": "add", "sub": "sub", "mul": "mul", "div": "sdiv", "mod": "srem", "and": "and", "or": "or",
               "xor": "xor", "shl": "shl", "shr": "ashr"}  # fmt: skip
_UNSIGNED_OPS = {**_SIGNED_OPS, "div": "udiv", "mod": "urem", "shr": "lshr"}
_FLOAT_TESTS = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_TESTS = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
_INDEX_OPS = {"add": "add nsw", "sub": "sub nsw", "mul": "mul nsw", "div": "sdiv", "mod": "srem"}

LIBM = " nounwind willreturn memory(none) nobuiltin"
"""Attributes of mathematical functions: pure, and never evaluated at compile time by the compiling machine's own."""

MAX_INTERLEAVE = 4
"""Largest stride read by whole vectors and shuffles instead of element by element."""


WORD = 32
"""Bits of a group of small lanes that instructions repeat as a whole."""


class Values:
    """Prints expressions into a writer. `names`: what variables are; `pointers`: where buffers are."""

    def __init__(self, w: Writer, target: Target, shaped: bool) -> None:
        self.w, self.target, self.shaped = w, target, shaped
        self.names: dict[str, str] = {}
        self.defined: dict[str, Expr] = {}
        """What variables of rounded values were defined as."""
        self.indices: set[str] = set()
        self.pointers: dict[Buffer, str] = {}
        self.parts: dict[str, list[str]] = {}
        """Values wider than a register that were loaded at once, as the registers that hold them."""
        self.streams: dict[Load, tuple[Stream, int]] = {}

    def value(self, e: Expr) -> str:
        """The operand that holds `e`."""
        return self.TABLE[type(e)](self, e)

    # --- leaves

    def _const(self, e: Const) -> str:
        return constant(e.dtype, e.lanes, e.value)

    def _var(self, e: Var) -> str:
        found = self.names.get(e.name)
        if found is None:
            raise CodegenError(f"loop IR reads '{e.name}', which has no value here")
        return found

    # --- indices: i64 that never overflows

    def is_index(self, e: Expr) -> bool:
        """Whether a scalar is computed from loop variables and constants only."""
        if e.dtype is not DType.I64 or e.lanes != 1:
            return False
        if isinstance(e, Binary):
            return (e.op in _INDEX_OPS or e.op in ("min", "max")) and self.is_index(e.a) and self.is_index(e.b)
        return isinstance(e, Const) or isinstance(e, Var) and e.name in self.indices

    def index(self, e: Expr) -> str:
        """A scalar index or bound."""
        if isinstance(e, Const):
            return str(int(e.value))
        if isinstance(e, Binary) and e.op in _INDEX_OPS and e.lanes == 1:
            return self.w.op(f"{_INDEX_OPS[e.op]} i64 {self.index(e.a)}, {self.index(e.b)}")
        if isinstance(e, Binary) and e.op in ("min", "max"):
            return self._minmax(e, self.index(e.a), self.index(e.b))
        return self.value(e)

    # --- memory

    def address(self, buffer: Buffer, index: Expr, lanes: int = 1) -> str:
        """Address of an element; `lanes` > 1 where elements of the buffer are vectors of their own.

        Hand-shaped kernels add constant terms last: addresses that differ by a constant share their register.
        """
        base = self.pointers.get(buffer)
        if base is None:
            raise CodegenError(f"loop IR uses buffer '{buffer.name}', which is not allocated here")
        type_ = memory_type(buffer.dtype, lanes)
        if isinstance(index, Const):
            return (
                self.w.op(f"getelementptr inbounds {type_}, ptr {base}, i64 {int(index.value)}")
                if index.value
                else base
            )
        if self.shaped and isinstance(index, Binary) and index.op == "add" and isinstance(index.b, Const):
            start = self.w.op(f"getelementptr {type_}, ptr {base}, i64 {self.index(index.a)}")
            return self.w.op(f"getelementptr {type_}, ptr {start}, i64 {int(index.b.value)}")
        return self.w.op(f"getelementptr inbounds {type_}, ptr {base}, i64 {self.index(index)}")

    def _load(self, e: Load) -> str:
        buffer = e.buffer
        if buffer.lanes > 1:
            return self.load_at(self.address(buffer, e.index, buffer.lanes), e.dtype, e.lanes, vector_align(buffer))
        if self.shaped and (count := registers_loaded(e, self.target)):
            return self._wide_load(e, count)
        if found := self.streams.get(e):
            return self.load_at(self.beside(*found), e.dtype, e.lanes, e.buffer.dtype.nbytes)
        if e.index.lanes == 1:
            return self.load_at(self.address(buffer, e.index), e.dtype, e.lanes, buffer.dtype.nbytes)
        line = affine(e.index)
        if line is None:
            return self._gather(buffer, e)
        base, stride = line
        if stride == 1:
            return self.load_at(self.address(buffer, base), e.dtype, e.lanes, buffer.dtype.nbytes)
        if stride == 0:
            one = self.load_at(self.address(buffer, base), e.dtype, 1, buffer.dtype.nbytes)
            return self.w.broadcast(value_type(e.dtype), one, e.lanes)
        if 1 < stride <= MAX_INTERLEAVE and e.lanes >= 4:
            return self._interleaved(buffer, base, stride, e)
        return self.w.build(value_type(e.dtype), [
            self.load_at(self.address(buffer, binary("add", base, stride * i)), e.dtype, 1, buffer.dtype.nbytes)
            for i in range(e.lanes)
        ])  # fmt: skip

    def load_at(self, pointer: str, dtype: DType, lanes: int, align: int) -> str:
        type_ = memory_type(dtype, lanes)
        value = self.w.op(f"load {type_}, ptr {pointer}, align {align}")
        return (
            self.w.op(f"icmp ne {type_} {value}, zeroinitializer")
            if dtype is DType.BOOL and lanes > 1
            else (self.w.op(f"icmp ne {type_} {value}, 0") if dtype is DType.BOOL else value)
        )

    def _wide_load(self, e: Load, count: int) -> str:
        """Several registers by one instruction, along the loop's pointer where it has one."""
        lanes = e.lanes // count
        type_ = value_type(e.dtype, lanes)
        result = "{" + ", ".join([type_] * count) + "}"
        suffix = f"v{lanes}{ {'float': 'f32', 'double': 'f64'}.get(value_type(e.dtype), value_type(e.dtype)) }"
        found = self.streams.get(e)
        pointer = self.advance(*found) if found else self.address(e.buffer, e.index)
        made = self.w.call(f"llvm.aarch64.neon.ld1x{count}.{suffix}.p0", result, ("ptr", pointer))
        parts = [self.w.op(f"extractvalue {result} {made}, {i}") for i in range(count)]
        whole = parts[0]
        for i, part in enumerate(parts[1:], 1):
            part = self._padded(part, value_type(e.dtype), lanes, i * lanes)
            whole = self.w.shuffle(value_type(e.dtype, i * lanes), whole, part, tuple(range((i + 1) * lanes)))
        self.parts[whole] = parts
        return whole

    def beside(self, stream: Stream, offset: int) -> str:
        """An address at a constant distance from the stream's pointer."""
        distance = (offset - stream.at) * stream.buffer.dtype.nbytes
        return self.w.op(f"getelementptr i8, ptr {stream.pointer}, i64 {distance}") if distance else stream.pointer

    def advance(self, stream: Stream, offset: int) -> str:
        """The stream's pointer, moved to an offset."""
        if offset != stream.at:
            step = self.w.opaque((offset - stream.at) * stream.buffer.dtype.nbytes)
            stream.pointer = self.w.op(f"getelementptr i8, ptr {stream.pointer}, i64 {step}")
            stream.at = offset
        return stream.pointer

    def _gather(self, buffer: Buffer, e: Load) -> str:
        positions, scalar = self.value(e.index), value_type(e.dtype)
        type_ = memory_type(buffer.dtype)
        base, parts = self.pointers[buffer], []
        for i in range(e.lanes):
            at = self.w.extract("i64", e.lanes, positions, i)
            pointer = self.w.op(f"getelementptr inbounds {type_}, ptr {base}, i64 {at}")
            parts.append(self.load_at(pointer, e.dtype, 1, buffer.dtype.nbytes))
        return self.w.build(scalar, parts)

    def _interleaved(self, buffer: Buffer, base: Expr, stride: int, e: Load) -> str:
        """Every `stride`-th element: whole vectors, the last one ending at the last element, then shuffles."""
        lanes, type_ = e.lanes, value_type(e.dtype, e.lanes)
        starts = [j * lanes for j in range(stride - 1)] + [(lanes - 1) * stride + 1 - lanes]
        made, valid = "poison", 0
        for start in starts:
            piece = self.load_at(self.address(buffer, binary("add", base, start)), e.dtype, lanes, buffer.dtype.nbytes)
            end = valid
            while end < lanes and end * stride < start + lanes:
                end += 1
            taken = tuple(i if i < valid else lanes + i * stride - start if i < end else 0 for i in range(lanes))
            made, valid = self.w.shuffle(type_, made, piece, taken), end
        return made

    # --- arithmetic

    def _binary(self, e: Binary) -> str:
        if e.op in ("min", "max"):
            return self._minmax(e, self.value(e.a), self.value(e.b))
        if e.op in COMPARE:
            return self.compare(e.op, e.a.dtype, e.lanes, self.value(e.a), self.value(e.b))
        if self.is_index(e):
            return self.index(e)
        a, b = self.value(e.a), self.value(e.b)
        if not e.dtype.is_float:
            table = _SIGNED_OPS if e.dtype.is_signed else _UNSIGNED_OPS
            return self.w.op(f"{table[e.op]} {value_type(e.dtype, e.lanes)} {a}, {b}")
        return self.in_float(e.dtype, e.lanes, lambda t, x, y: self.w.op(f"{_FLOAT_OPS[e.op]} {t} {x}, {y}"), a, b)

    def in_float(self, dtype: DType, lanes: int, make: Callable[..., str], *operands: str) -> str:
        """A floating-point operation on values; f16 and bf16 in f32, or natively where the target can."""
        if dtype not in HALVES:
            return make(value_type(dtype, lanes), *operands)
        if dtype is DType.F16 and self.target.has_fp16:
            half, bits = vector("half", lanes), vector("i16", lanes)
            made = make(half, *(self.w.op(f"bitcast {bits} {v} to {half}") for v in operands))
            return self.w.op(f"bitcast {half} {made} to {bits}")
        wide = [to_f32(self.w, self.target, v, dtype, lanes) for v in operands]
        return from_f32(self.w, self.target, make(vector("float", lanes), *wide), dtype, lanes)

    def compare(self, op: str, dtype: DType, lanes: int, a: str, b: str) -> str:
        type_ = value_type(dtype, lanes)
        if dtype is DType.F16 and self.target.has_fp16:
            half = vector("half", lanes)
            a, b = (self.w.op(f"bitcast {type_} {v} to {half}") for v in (a, b))
            type_ = half
        elif dtype in HALVES:
            a, b = (to_f32(self.w, self.target, v, dtype, lanes) for v in (a, b))
            dtype, type_ = DType.F32, value_type(DType.F32, lanes)
        if dtype.is_float:
            return self.w.op(f"fcmp {_FLOAT_TESTS[op]} {type_} {a}, {b}")
        sign = "" if op in ("eq", "ne") else "s" if dtype.is_signed else "u"
        return self.w.op(f"icmp {sign}{_TESTS[op]} {type_} {a}, {b}")

    def _minmax(self, e: Binary, a: str, b: str) -> str:
        if self.target.passes_nan and e.dtype.is_float and isinstance(e.a, Const) and e.a.value == e.a.value:
            return self.in_float(e.dtype, e.lanes, lambda t, x, y: self._extreme(e.op, t, x, y), a, b)
        return self.minmax(e.op, e.dtype, e.lanes, a, b)

    def _extreme(self, op: str, type_: str, a: str, b: str) -> str:
        return self.w.call(f"llvm.{op}imum.{mangled(type_)}", type_, (type_, a), (type_, b))

    def minmax(self, op: str, dtype: DType, lanes: int, a: str, b: str) -> str:
        test = self.compare("lt" if op == "min" else "gt", dtype, lanes, a, b)
        return self._choose(dtype, lanes, test, a, b)

    def _choose(self, dtype: DType, lanes: int, cond: str, a: str, b: str) -> str:
        type_ = value_type(dtype, lanes)
        return self.w.op(f"select {vector('i1', lanes)} {cond}, {type_} {a}, {type_} {b}")

    def _fma(self, e: Fma) -> str:
        a, b, c = self.value(e.a), self.value(e.b), self.value(e.c)
        return self.in_float(e.dtype, e.lanes, self._multiply_add, a, b, c)

    def _multiply_add(self, type_: str, a: str, b: str, c: str) -> str:
        if not self.target.has_fma:
            return self.w.op(f"fadd {type_} {self.w.op(f'fmul {type_} {a}, {b}')}, {c}")
        return self.w.call(f"llvm.fma.{mangled(type_)}", type_, (type_, a), (type_, b), (type_, c))

    def _dot(self, e: Dot) -> str:
        return dot(self.w, self.target, e, *(self.value(x) for x in (e.a, e.b, e.c)))

    def _lookup(self, e: Lookup) -> str:
        return lookup(self.w, self.target, e, self.value(e.table), self.value(e.index))

    def _unary(self, e: Unary) -> str:
        a, type_ = self.value(e.a), value_type(e.dtype, e.lanes)
        if e.op == "not":
            return self.w.op(f"xor {type_} {a}, {constant(e.dtype, e.lanes, -1)}")
        if e.dtype in HALVES and e.op in ("neg", "abs"):
            sign, word = (-0x8000, "xor") if e.op == "neg" else (0x7FFF, "and")
            return self.w.op(f"{word} {type_} {a}, {constant(DType.I16, e.lanes, sign)}")
        if not e.dtype.is_float:
            return self._int_unary(e, a, type_)
        if e.op == "neg":
            return self.w.op(f"fneg {type_} {a}")
        if e.op in ("abs", "sqrt"):
            name = {"abs": "fabs", "sqrt": "sqrt"}[e.op]
            return self.in_float(e.dtype, e.lanes, lambda t, x: self.w.call(f"llvm.{name}.{mangled(t)}", t, (t, x)), a)
        wide = DType.F32 if e.dtype in HALVES else e.dtype
        a = convert(self.w, self.target, a, e.dtype, wide, e.lanes)
        made = rounded(self.w, self.target, e.op, a, wide, e.lanes)
        return convert(self.w, self.target, made, wide, e.dtype, e.lanes)

    def _int_unary(self, e: Unary, a: str, type_: str) -> str:
        if e.op == "neg":
            return self.w.op(f"sub {type_} {constant(e.dtype, e.lanes, 0)}, {a}")
        if e.op == "abs" and e.dtype.is_signed:
            zero = constant(e.dtype, e.lanes, 0)
            negative = self.w.op(f"sub {type_} {zero}, {a}")
            return self._choose(e.dtype, e.lanes, self.w.op(f"icmp slt {type_} {a}, {zero}"), negative, a)
        if e.op in ("abs", "floor", "ceil", "round", "trunc"):
            return a
        raise CodegenError(f"{e.op} of {e.dtype} has no meaning")

    def _cast(self, e: Cast) -> str:
        if (made := self._rounded(e)) is not None:
            return convert(self.w, self.target, made, DType.I32, e.dtype, e.lanes)
        return convert(self.w, self.target, self.value(e.a), e.a.dtype, e.dtype, e.lanes)

    def _rounded(self, e: Cast) -> str | None:
        """The i32 that a cast rounds an f32 to."""
        a = self.defined.get(e.a.name, e.a) if isinstance(e.a, Var) else e.a
        if not isinstance(a, Unary) or a.op != "round" or a.dtype is not DType.F32 or e.dtype is not DType.I32:
            return None
        return rounded_to_i32(self.w, self.target, self.value(a.a), e.lanes)

    def _bitcast(self, e: Bitcast) -> str:
        a, source, to = self.value(e.a), value_type(e.a.dtype, e.a.lanes), value_type(e.dtype, e.lanes)
        if source == to:
            return a
        if e.a.dtype is DType.BOOL:
            return self.w.op(f"zext {source} {a} to {to}")
        if e.dtype is DType.BOOL:
            return convert(self.w, self.target, a, e.a.dtype, DType.BOOL, e.lanes)
        return self.w.op(f"bitcast {source} {a} to {to}")

    def _select(self, e: Select) -> str:
        return self._choose(e.dtype, e.lanes, self.value(e.cond), self.value(e.a), self.value(e.b))

    # --- vectors

    def _broadcast(self, e: Broadcast) -> str:
        return self.w.broadcast(value_type(e.dtype), self.value(e.a), e.lanes)

    def _ramp(self, e: Ramp) -> str:
        type_ = vector("i64", e.lanes)
        base = self.w.broadcast("i64", self.index(e.base) if self.is_index(e.base) else self.value(e.base), e.lanes)
        steps = ", ".join(f"i64 {e.stride * i}" for i in range(e.lanes))
        return self.w.op(f"add nsw {type_} {base}, <{steps}>")

    def _shuffle(self, e: Shuffle) -> str:
        a, scalar, lanes = self.value(e.a), value_type(e.dtype), e.a.lanes
        if e.b is None and (parts := self.parts.get(a)):
            width = lanes // len(parts)
            part = parts[e.lanes_of[0] // width]
            if all(i // width == e.lanes_of[0] // width for i in e.lanes_of):
                return self._taken(part, scalar, width, tuple(i % width for i in e.lanes_of))
        b = "poison" if e.b is None else self.value(e.b)
        if len(e.lanes_of) == 1:
            at = e.lanes_of[0]
            if at < lanes:
                return self.w.extract(scalar, lanes, a, at)
            assert e.b is not None
            return self.w.extract(scalar, e.b.lanes, b, at - lanes)
        indices = e.lanes_of
        if e.b is None and lanes * e.dtype.bits == WORD and indices == tuple(range(lanes)) * (e.lanes // lanes):
            return self._repeated(a, e)
        if e.b is not None and e.b.lanes != lanes:
            width = max(lanes, e.b.lanes)
            a, b = self._padded(a, scalar, lanes, width), self._padded(b, scalar, e.b.lanes, width)
            indices = tuple(i if i < lanes else i - lanes + width for i in indices)
            lanes = width
        elif lanes == 1:
            a, b = (v if v == "poison" else self.w.op(f"insertelement <1 x {scalar}> poison, {scalar} {v}, i64 0")
                    for v in (a, b))  # fmt: skip
        return self.w.shuffle(f"<{lanes} x {scalar}>", a, b, indices)

    def _repeated(self, a: str, e: Shuffle) -> str:
        """A few small lanes again and again, as a word in every lane."""
        word = self.w.op(f"bitcast {value_type(e.dtype, e.a.lanes)} {a} to i{WORD}")
        count = e.lanes // e.a.lanes
        words = self.w.broadcast(f"i{WORD}", word, count)
        return self.w.op(f"bitcast {vector(f'i{WORD}', count)} {words} to {value_type(e.dtype, e.lanes)}")

    def _taken(self, value: str, scalar: str, lanes: int, indices: tuple[int, ...]) -> str:
        if indices == tuple(range(lanes)):
            return value
        if len(indices) == 1:
            return self.w.extract(scalar, lanes, value, indices[0])
        return self.w.shuffle(vector(scalar, lanes), value, "poison", indices)

    def _padded(self, value: str, scalar: str, lanes: int, width: int) -> str:
        """A vector widened by lanes of no meaning."""
        if lanes == width:
            return value
        if lanes == 1:
            return self.w.op(f"insertelement <{width} x {scalar}> poison, {scalar} {value}, i64 0")
        taken = tuple(min(i, lanes - 1) for i in range(width))
        return self.w.shuffle(f"<{lanes} x {scalar}>", value, "poison", taken)

    def _reduce(self, e: Reduce) -> str:
        """Lane i with lane i + half, until one is left; an odd lane in the middle waits for the next round."""
        value, lanes, scalar = self.value(e.a), e.a.lanes, value_type(e.dtype)
        while lanes > 1:
            half, rest = (lanes + 1) // 2, lanes // 2
            type_ = f"<{lanes} x {scalar}>"
            high = self._cut(value, type_, scalar, lanes, half, rest)
            low = self._cut(value, type_, scalar, lanes, 0, rest)
            made = self._combine(e.op, e.dtype, rest, low, high)
            if half > rest:
                middle = self.w.extract(scalar, lanes, value, rest)
                made = self._padded(made, scalar, rest, half)
                made = self.w.op(f"insertelement <{half} x {scalar}> {made}, {scalar} {middle}, i64 {rest}")
            value, lanes = made, half
        return value

    def _cut(self, value: str, type_: str, scalar: str, lanes: int, first: int, count: int) -> str:
        if count == 1:
            return self.w.extract(scalar, lanes, value, first)
        return self.w.shuffle(type_, value, "poison", tuple(range(first, first + count)))

    def _combine(self, op: str, dtype: DType, lanes: int, a: str, b: str) -> str:
        if op != "add":
            return self.minmax(op, dtype, lanes, a, b)
        if not dtype.is_float:
            return self.w.op(f"add {value_type(dtype, lanes)} {a}, {b}")
        return self.in_float(dtype, lanes, lambda t, x, y: self.w.op(f"fadd {t} {x}, {y}"), a, b)

    def _call(self, e: Call) -> str:
        """libm, lane by lane; f16 and bf16 through f32."""
        wide = DType.F32 if e.dtype in HALVES else e.dtype
        scalar, name = value_type(wide), e.name + ("" if wide is DType.F64 else "f")
        args = [convert(self.w, self.target, self.value(a), e.dtype, wide, e.lanes) for a in e.args]
        lanes = [
            self.w.call(name, scalar, *((scalar, self.w.extract(scalar, e.lanes, a, i)) for a in args), attributes=LIBM)
            for i in range(e.lanes)
        ]
        return convert(self.w, self.target, self.w.build(scalar, lanes), wide, e.dtype, e.lanes)

    TABLE: ClassVar[dict[type[Any], Callable[[Values, Any], str]]] = {
        Const: _const, Var: _var, Load: _load, Binary: _binary, Unary: _unary, Fma: _fma, Cast: _cast,
        Bitcast: _bitcast, Select: _select, Broadcast: _broadcast, Ramp: _ramp, Shuffle: _shuffle, Reduce: _reduce,
        Call: _call, Dot: _dot, Lookup: _lookup,
    }  # fmt: skip


def affine(index: Expr) -> tuple[Expr, int] | None:
    """(base, stride) where a vector index is base + stride · lane."""
    if isinstance(index, Ramp):
        return index.base, index.stride
    if isinstance(index, Broadcast):
        return index.a, 0
    if isinstance(index, Const):
        return Const(index.dtype, 1, index.value), 0
    if not isinstance(index, Binary) or index.op not in ("add", "sub", "mul"):
        return None
    a, b = affine(index.a), affine(index.b)
    if a is None or b is None:
        return None
    if index.op != "mul":
        stride = a[1] + b[1] if index.op == "add" else a[1] - b[1]
        return binary(index.op, a[0], b[0]), stride
    factor, line = (a, b) if isinstance(index.a, Const) else (b, a)
    if not isinstance(factor[0], Const) or factor[1]:
        return None
    return binary("mul", line[0], factor[0]), line[1] * int(factor[0].value)


def vector_align(buffer: Buffer) -> int:
    """Alignment of the elements of a buffer of vectors: that of the register, 64 at most."""
    size = buffer.lanes * buffer.dtype.nbytes
    return min(64, size & -size)


def mangled(type_: str) -> str:
    """An intrinsic's suffix for a floating-point type: float → f32, <8 x double> → v8f64."""
    lanes, _, scalar = type_.strip("<>").rpartition(" x ")
    return (f"v{lanes}" if lanes else "") + {"float": "f32", "double": "f64", "half": "f16"}[scalar]
