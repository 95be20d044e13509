"""Loop IR: what a kernel does, as loops over vector expressions; one tree for every target.

Semantics, which every emitter and pass keeps:

* Integers wrap (two's complement); signed division truncates towards zero, `mod` has the sign of the dividend; shifts
  by the width or more are undefined. Index arithmetic is i64 and never overflows.
* Floats are IEEE 754, round to nearest even. `Fma(a, b, c)` is a*b + c and may be one rounding or two: contraction is
  the target's choice. Nothing else is re-associated, so that results are equal for every thread count.
* min/max: `min(a, b)` is `a < b ? a : b`, `max(a, b)` is `a > b ? a : b` (so a NaN in `a` gives `b`).
* Comparisons give bool lanes and are ordered (false with NaN), but for `ne`, which is true with NaN.
* float -> int casts truncate; out of range is undefined. bool in memory is one byte, 0 or 1.
* Different buffers of one kernel do not alias, but for an output that a step binds to the same memory as an input
  (in-place), in which case element i is read before element i is written and the kernel is marked `inplace`.
* A buffer's base is aligned to `align` bytes, 0 meaning one element: parameters may be views into a larger tensor or
  an app's pointers. Loads and stores of vectors promise the alignment of one element only.
* `For("parallel")` may stand only as the outermost statement of a kernel; iterations are independent and the variable
  `worker` (i64, below the compiled number of threads) names who runs them.
* Register-space buffers hold vectors (`lanes`) and are indexed by constants once unrolled: emitters keep them in
  registers or local variables. Stack buffers are zero-filled never, at most a few KB.
* Vector values have 1..64 lanes; scalars have lanes 1. A scalar operand of a vector operation must be broadcast
  explicitly (the operators on `Expr` do it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from .types import DType

Space: TypeAlias = Literal["param", "constant", "stack", "register", "shared", "matrix"]
ForKind: TypeAlias = Literal["serial", "parallel", "unroll", "grid", "thread"]

BINARY = ("add", "sub", "mul", "div", "mod", "min", "max", "and", "or", "xor", "shl", "shr",
          "eq", "ne", "lt", "le", "gt", "ge")  # fmt: skip
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
_FOLDED = ("add", "sub", "mul", "div", "mod")
UNARY = ("neg", "abs", "sqrt", "floor", "ceil", "round", "trunc", "not")
"""`round` is to nearest even; `not` is bitwise on integers, logical on bool."""
CALLS = ("exp", "log", "log1p", "expm1", "pow", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh",
         "asinh", "acosh", "atanh", "erf", "fmod")  # fmt: skip
"""Scalar libm functions, f32 or f64 by their result type (`expf` or `exp`)."""


MATRIX, MATRIX_THREADS = 8, 32
"""Rows and columns of a matrix in matrix space, and the threads of the subgroup that holds it: those of the innermost
thread loop."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of a kernel. `size`: elements (of `lanes` scalars each); space param: bound by a step's argument; matrix:
    matrices row by row, each held by a subgroup."""

    name: str
    dtype: DType
    size: int
    space: Space = "param"
    lanes: int = 1
    align: int = 0


@dataclass(frozen=True, slots=True)
class Expr:
    """A value of `lanes` elements of `dtype`. Immutable; share one through a `Let` where it is used twice."""

    dtype: DType
    lanes: int

    def __add__(self, o: Operand) -> Expr:
        return binary("add", self, o)

    def __radd__(self, o: Operand) -> Expr:
        return binary("add", o, self)

    def __sub__(self, o: Operand) -> Expr:
        return binary("sub", self, o)

    def __rsub__(self, o: Operand) -> Expr:
        return binary("sub", o, self)

    def __mul__(self, o: Operand) -> Expr:
        return binary("mul", self, o)

    def __rmul__(self, o: Operand) -> Expr:
        return binary("mul", o, self)

    def __truediv__(self, o: Operand) -> Expr:
        return binary("div", self, o)

    def __rtruediv__(self, o: Operand) -> Expr:
        return binary("div", o, self)

    def __floordiv__(self, o: Operand) -> Expr:
        return binary("div", self, o)

    def __mod__(self, o: Operand) -> Expr:
        return binary("mod", self, o)

    def __neg__(self) -> Expr:
        return unary("neg", self)

    def __lt__(self, o: Operand) -> Expr:
        return binary("lt", self, o)

    def __le__(self, o: Operand) -> Expr:
        return binary("le", self, o)

    def __gt__(self, o: Operand) -> Expr:
        return binary("gt", self, o)

    def __ge__(self, o: Operand) -> Expr:
        return binary("ge", self, o)

    def __and__(self, o: Operand) -> Expr:
        return binary("and", self, o)

    def __or__(self, o: Operand) -> Expr:
        return binary("or", self, o)

    def __invert__(self) -> Expr:
        return unary("not", self)


@dataclass(frozen=True, slots=True)
class Const(Expr):
    """A number, the same in every lane."""

    value: int | float | bool


@dataclass(frozen=True, slots=True)
class Var(Expr):
    """A loop variable (i64), a `Let` name, or `worker`."""

    name: str


@dataclass(frozen=True, slots=True)
class Load(Expr):
    """Contiguous `lanes` elements from element `index` (i64 scalar); a vector `index` (i64, same lanes) gathers."""

    buffer: Buffer
    index: Expr


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    op: str
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    op: str
    a: Expr


@dataclass(frozen=True, slots=True)
class Fma(Expr):
    """a*b + c."""

    a: Expr
    b: Expr
    c: Expr


@dataclass(frozen=True, slots=True)
class Dot(Expr):
    """c[i] + Σ_j a[i*g + j] * b[i*g + j] for j below g = a.lanes / lanes, in i32 that wraps; a, b of 8 or 16 bits.

    Of bytes it may be i16, for whoever knows that no sum leaves it: such a sum is unspecified. Of pairs of bf16 it is
    f32, each product and each sum rounded in any way.
    """

    a: Expr
    b: Expr
    c: Expr


@dataclass(frozen=True, slots=True)
class Lookup(Expr):
    """table[index[i] mod table.lanes]; an index is an integer as wide as an element of the table, taken as unsigned."""

    table: Expr
    index: Expr


@dataclass(frozen=True, slots=True)
class Cast(Expr):
    """Conversion of value; to bool: != 0."""

    a: Expr


@dataclass(frozen=True, slots=True)
class Bitcast(Expr):
    """Same bits as elements of another type: of the same width, or more or fewer lanes, the lowest bits first."""

    a: Expr


@dataclass(frozen=True, slots=True)
class Select(Expr):
    """Lane by lane: cond ? a : b; both are evaluated."""

    cond: Expr
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Broadcast(Expr):
    """A scalar in every lane."""

    a: Expr


@dataclass(frozen=True, slots=True)
class Ramp(Expr):
    """base + stride * lane, i64."""

    base: Expr
    stride: int


@dataclass(frozen=True, slots=True)
class Shuffle(Expr):
    """Lanes `lanes_of` of the concatenation of a and b (b may be None); one index gives a scalar."""

    a: Expr
    b: Expr | None
    lanes_of: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reduce(Expr):
    """Horizontal add, min or max as a balanced tree (lane i with lane i + lanes/2): one fixed order."""

    op: str
    a: Expr


@dataclass(frozen=True, slots=True)
class SubgroupXor(Expr):
    """a as the thread computed it whose number in the work-group differs in the bits of `mask`. A scalar, the whole
    value of a Let; all threads come to it, as to a barrier, but memory is not ordered by it."""

    a: Expr
    mask: int


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """A function of `CALLS`, lane by lane."""

    name: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class For:
    """var from begin (inclusive) to end (exclusive) by step > 0; var is i64 and lives in the body only."""

    var: str
    begin: Expr
    end: Expr
    step: int
    kind: ForKind
    body: Block


@dataclass(frozen=True, slots=True)
class If:
    cond: Expr
    then: Block
    other: Block | None = None


@dataclass(frozen=True, slots=True)
class Let:
    """Name a value until the end of the block."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Alloc:
    """A stack, register or shared buffer until the end of the block; contents undefined."""

    buffer: Buffer


@dataclass(frozen=True, slots=True)
class Store:
    """value into `index` (element; contiguous for vectors; a vector index scatters lane by lane in order)."""

    buffer: Buffer
    index: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class Block:
    body: tuple[Stmt, ...] = ()


@dataclass(frozen=True, slots=True)
class Barrier:
    """All threads of a work-group (GPU targets)."""


@dataclass(frozen=True, slots=True)
class MatrixLoad:
    """Matrix `index` of a matrix buffer from shared memory: element (r, c) from place + r * stride + c, or transposed
    from place + c * stride + r. Threads of a subgroup do it together, as the other statements on matrices: all threads
    come to them, as to a barrier, and those of a subgroup with the same places and indices."""

    matrix: Buffer
    index: Expr
    buffer: Buffer
    place: Expr
    stride: int
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class MatrixStore:
    """Matrix `index` into shared memory, rows `stride` elements apart."""

    buffer: Buffer
    place: Expr
    stride: int
    matrix: Buffer
    index: Expr


@dataclass(frozen=True, slots=True)
class MatrixMultiply:
    """sums[at] + a[a_at] · b[b_at] into sums[at]: each element by one `Fma` after the other along the depth; a target
    may take them in another order and round as it likes."""

    sums: Buffer
    at: Expr
    a: Buffer
    a_at: Expr
    b: Buffer
    b_at: Expr


@dataclass(frozen=True, slots=True)
class Prefetch:
    """A hint that the cache line of a parameter's element is used soon; no effect where `index` is outside.

    near: into the first-level cache, where it is wanted within some hundred instructions; else into the second.
    """

    buffer: Buffer
    index: Expr
    near: bool = False


OnMatrices: TypeAlias = MatrixLoad | MatrixStore | MatrixMultiply
Stmt: TypeAlias = For | If | Let | Alloc | Store | Block | Prefetch | Barrier | OnMatrices
Operand: TypeAlias = Expr | int | float


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function over its parameter buffers. `shaped`: hand-shaped, LLVM's vectoriser and unroller stay out."""

    name: str
    params: tuple[Buffer, ...]
    body: Block
    shaped: bool = True
    inplace: bool = False

    @property
    def parallel(self) -> For | None:
        """The outermost parallel loop, if there is one (its bounds are constants, begin 0, step 1)."""
        first = self.body.body[0] if len(self.body.body) == 1 else None
        return first if isinstance(first, For) and first.kind == "parallel" else None


def const(value: float, dtype: DType = DType.I64, lanes: int = 1) -> Const:
    return Const(dtype, lanes, value)


def as_expr(x: Operand, like: Expr) -> Expr:
    """A Python number in the type of `like`; a scalar broadcast to its lanes."""
    if not isinstance(x, Expr):
        return Const(like.dtype, like.lanes, float(x) if like.dtype.is_float else x)
    return broadcast(x, like.lanes)


def broadcast(x: Expr, lanes: int) -> Expr:
    if x.lanes == lanes or lanes == 1:
        return x
    if isinstance(x, Const):
        return Const(x.dtype, lanes, x.value)
    return Broadcast(x.dtype, lanes, x)


def binary(op: str, a: Operand, b: Operand) -> Expr:
    """A binary operation; numbers take the other side's type, scalars its lanes, constant i64 index terms fold."""
    if isinstance(a, Expr):
        b = as_expr(b, a)
        a = as_expr(a, b)
    else:
        assert isinstance(b, Expr)
        a = as_expr(a, b)
    dtype, lanes = a.dtype, a.lanes
    assert dtype is b.dtype and lanes == b.lanes, f"{op}: {a.dtype}x{a.lanes} with {b.dtype}x{b.lanes}"
    if dtype is DType.I64 and op in _FOLDED and (type(a) is Const or type(b) is Const):
        folded = _fold_index(op, a, b)
        if folded is not None:
            return folded
    return Binary(DType.BOOL if op in COMPARE else dtype, lanes, op, a, b)


def _fold_index(op: str, a: Expr, b: Expr) -> Expr | None:
    if isinstance(a, Const) and isinstance(b, Const):
        x, y = int(a.value), int(b.value)
        if op in ("div", "mod"):
            if y == 0:
                return None
            q = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
            return Const(a.dtype, a.lanes, q if op == "div" else x - q * y)
        return Const(a.dtype, a.lanes, x + y if op == "add" else x - y if op == "sub" else x * y)
    if isinstance(b, Const):
        if b.value == 0 and op in ("add", "sub"):
            return a
        if b.value == 1 and op in ("mul", "div"):
            return a
        if b.value == 0 and op == "mul" or b.value == 1 and op == "mod":
            return Const(a.dtype, a.lanes, 0)
        if op == "add" and isinstance(a, Binary) and a.op == "add" and isinstance(a.b, Const):
            return binary("add", a.a, Const(a.dtype, a.lanes, int(a.b.value) + int(b.value)))
    if isinstance(a, Const):
        if a.value == 0 and op == "add" or a.value == 1 and op == "mul":
            return b
        if a.value == 0 and op in ("mul", "div", "mod"):
            return Const(a.dtype, a.lanes, 0)
        if op in ("add", "mul"):
            return binary(op, b, a)
    return None


def unary(op: str, a: Expr) -> Expr:
    return Unary(a.dtype, a.lanes, op, a)


def fma(a: Operand, b: Operand, c: Expr) -> Expr:
    return Fma(c.dtype, c.lanes, as_expr(a, c), as_expr(b, c), c)


def dot(a: Expr, b: Expr, c: Expr) -> Expr:
    """Groups of neighbouring products, added to c: of small integers in i32, of bytes in i16 where no sum leaves that,
    of pairs of bf16 in f32."""
    return Dot(c.dtype, c.lanes, a, b, c)


def lookup(table: Expr, index: Expr) -> Expr:
    """Elements of a table in registers (2^n of them), by integers of their width, of which n bits count."""
    return Lookup(table.dtype, index.lanes, table, index)


def cast(a: Expr, dtype: DType) -> Expr:
    return a if a.dtype is dtype else Cast(dtype, a.lanes, a)


def bitcast(a: Expr, dtype: DType) -> Expr:
    """The same bits as elements of `dtype`, in as many lanes as they make."""
    return a if a.dtype is dtype else Bitcast(dtype, a.lanes * a.dtype.bits // dtype.bits, a)


def select(cond: Expr, a: Operand, b: Operand) -> Expr:
    like = a if isinstance(a, Expr) else b
    assert isinstance(like, Expr)
    lanes = max(cond.lanes, like.lanes, b.lanes if isinstance(b, Expr) else 1)
    model = Const(like.dtype, lanes, 0)
    return Select(like.dtype, lanes, broadcast(cond, lanes), as_expr(a, model), as_expr(b, model))


def minimum(a: Operand, b: Operand) -> Expr:
    return binary("min", a, b)


def maximum(a: Operand, b: Operand) -> Expr:
    return binary("max", a, b)


def call(name: str, *args: Expr) -> Expr:
    return Call(args[0].dtype, args[0].lanes, name, args)


def lane(a: Expr, index: int) -> Expr:
    """Lane `index` of a vector, as a scalar."""
    return Shuffle(a.dtype, 1, a, None, (index,))


def shuffle(a: Expr, b: Expr | None, lanes_of: tuple[int, ...]) -> Expr:
    return Shuffle(a.dtype, len(lanes_of), a, b, lanes_of)


def ramp(base: Operand, stride: int, lanes: int) -> Expr:
    base = as_expr(base, Const(DType.I64, 1, 0))
    return Ramp(DType.I64, lanes, base, stride) if lanes > 1 else base


def subgroup_xor(a: Expr, mask: int) -> Expr:
    """The value of the thread whose number differs in the bits of `mask`; to be named by a Let."""
    return SubgroupXor(a.dtype, a.lanes, a, mask)


def reduce(op: str, a: Expr) -> Expr:
    return Reduce(a.dtype, 1, op, a) if a.lanes > 1 else a
