"""Simplify index arithmetic and what it decides.

Before: `if i < 8 { store y[(i * 8 + 4) / 4] = … }`, i below 8.  After: `store y[i * 2 + 1] = …`.
Sums become linear forms (each term once, constant last); div, mod, min, max and comparisons are decided where loop
bounds allow; branches and loops that never run go, loops that run once become their body; names of constants and of
names are replaced by what they stand for.  Preserves: every float operation and all stores, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...ir.loops import (
    Binary,
    Block,
    Broadcast,
    Cast,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Ramp,
    Select,
    Stmt,
    Var,
    binary,
)
from ...ir.loops_ranges import Interval, interval, loop_interval, truncating_div
from ...ir.loops_visit import blocks, expressions, rewrite, walk, with_blocks, with_expressions
from ...ir.types import DType

_LEAST, _MOST = -(1 << 62), 1 << 62


def simplify(kernel: Kernel) -> Kernel:
    """The same kernel with simpler indices and control flow."""
    body = _Simplifier().block(kernel.body)
    body = drop_unused(body)
    return kernel if body is kernel.body else replace(kernel, body=body)


@dataclass
class _Simplifier:
    ranges: dict[str, Interval] = field(default_factory=lambda: {"worker": Interval(0, 1 << 31)})
    values: dict[str, Expr] = field(default_factory=dict)

    def block(self, block: Block) -> Block:
        body: list[Stmt] = []
        for stmt in block.body:
            body.extend(self.statement(stmt))
        same = len(body) == len(block.body) and all(a is b for a, b in zip(body, block.body, strict=True))
        return block if same else Block(tuple(body))

    def statement(self, stmt: Stmt) -> tuple[Stmt, ...]:
        """What a statement becomes: itself, several or none."""
        found = expressions(stmt)
        if found:
            stmt = with_expressions(stmt, tuple(self.expr(e) for e in found))
        match stmt:
            case Let():
                return self.let(stmt)
            case For():
                return self.loop(stmt)
            case If():
                return self.branch(stmt)
            case Block():
                inner = self.block(stmt)
                return (inner,) if inner.body else ()
        return (stmt,)

    def let(self, stmt: Let) -> tuple[Stmt, ...]:
        if isinstance(stmt.value, Const | Var):
            self.values[stmt.name] = stmt.value
            return ()
        known = interval(stmt.value, self.ranges)
        if known is not None:
            self.ranges[stmt.name] = known
        return (stmt,)

    def loop(self, loop: For) -> tuple[Stmt, ...]:
        known = loop_interval(loop, self.ranges)
        if loop.kind in ("serial", "unroll") and known is not None and known.hi < known.lo:
            return ()
        once = known is not None and known.exact and known.single is not None
        if once and loop.kind in ("serial", "unroll"):
            assert known is not None
            self.values[loop.var] = Const(DType.I64, 1, known.lo)
            return self.block(loop.body).body
        if known is not None:
            self.ranges[loop.var] = known
        body = self.block(loop.body)
        if not body.body and loop.kind != "parallel":
            return ()
        return (loop if body is loop.body else replace(loop, body=body),)

    def branch(self, stmt: If) -> tuple[Stmt, ...]:
        if isinstance(stmt.cond, Const):
            taken = stmt.then if stmt.cond.value else stmt.other
            return self.block(taken).body if taken is not None else ()
        then = self.block(stmt.then)
        other = None if stmt.other is None else self.block(stmt.other)
        if other is not None and not other.body:
            other = None
        if not then.body and other is None:
            return ()
        return (stmt if then is stmt.then and other is stmt.other else If(stmt.cond, then, other),)

    # --- expressions

    def expr(self, e: Expr) -> Expr:
        return rewrite(e, self.rule)

    def rule(self, e: Expr) -> Expr:
        """One node whose operands are simple."""
        match e:
            case Var():
                return self.values.get(e.name, e)
            case Const() | Load():
                return e
            case Binary() if e.a.dtype is DType.I64:
                return self.index(e)
            case Binary() if e.dtype is DType.BOOL and e.op in ("and", "or"):
                return _logic(e)
            case Select() if isinstance(e.cond, Const):
                return e.a if e.cond.value else e.b
            case Broadcast() if isinstance(e.a, Const):
                return Const(e.dtype, e.lanes, e.a.value)
            case Ramp() if e.stride == 0:
                return self.rule(Broadcast(e.dtype, e.lanes, e.base))
            case Cast() if isinstance(e.a, Const) and e.dtype is DType.I64 and e.a.dtype.is_int:
                return Const(e.dtype, e.lanes, e.a.value)
        return e

    def index(self, e: Binary) -> Expr:
        """An operation on i64."""
        if isinstance(e.a, Const) and isinstance(e.b, Const):
            return _fold(e)
        if e.op in ("add", "sub", "mul"):
            return _linear(e)
        a, b = interval(e.a, self.ranges), interval(e.b, self.ranges)
        if e.op in ("div", "mod") and b is not None and b.single is not None and b.single > 0:
            return self.divide(e, a, b.single)
        if a is None or b is None:
            return e
        if e.op in ("min", "max"):
            first, second = (e.a, e.b) if e.op == "min" else (e.b, e.a)  # the smaller one wins for min
            return first if a.hi <= b.lo else second if b.hi <= a.lo else e
        decided = _decide(e.op, a, b)
        return e if decided is None else Const(DType.BOOL, e.lanes, decided)

    def divide(self, e: Binary, a: Interval | None, by: int) -> Expr:
        """Division or remainder by a positive constant, of a dividend whose bounds may be known."""
        if by == 1:
            return e.a if e.op == "div" else Const(e.dtype, e.lanes, 0)
        if a is None:
            return e
        if -by < a.lo and a.hi < by:  # division truncates
            return Const(e.dtype, e.lanes, 0) if e.op == "div" else e.a
        terms, constant = linear_terms(e.a)
        whole = {t: c for t, c in terms.items() if c % by == 0}
        q = constant // by
        if not whole and not q:
            return e
        rest = _rebuild({t: c for t, c in terms.items() if t not in whole}, constant - q * by, e.a)
        known = interval(rest, self.ranges)
        if known is None or known.lo < 0 or a.lo < 0:
            return e
        small = known.hi < by
        if e.op == "mod":
            return rest if small else Binary(e.dtype, e.lanes, "mod", rest, e.b)
        quotient = _rebuild({t: c // by for t, c in whole.items()}, q, e.a)
        return quotient if small else _linear_sum(quotient, Binary(e.dtype, e.lanes, "div", rest, e.b))


def _fold(e: Binary) -> Expr:
    assert isinstance(e.a, Const) and isinstance(e.b, Const)
    x, y = int(e.a.value), int(e.b.value)
    point = _decide(e.op, Interval(x, x), Interval(y, y))
    if point is not None:
        return Const(DType.BOOL, e.lanes, point)
    if e.op in ("min", "max"):
        return Const(e.dtype, e.lanes, min(x, y) if e.op == "min" else max(x, y))
    if e.op in ("and", "or", "xor", "shl", "shr") or (e.op in ("div", "mod") and y == 0):
        return e
    q = truncating_div(x, y) if e.op in ("div", "mod") else 0
    value = {"add": x + y, "sub": x - y, "mul": x * y, "div": q, "mod": x - q * y}[e.op]
    return Const(e.dtype, e.lanes, value) if _LEAST < value < _MOST else e


def _decide(op: str, a: Interval, b: Interval) -> bool | None:
    """The result of a comparison of any value in `a` with any in `b`, where it is always the same."""
    match op:
        case "lt":
            return True if a.hi < b.lo else False if a.lo >= b.hi else None
        case "le":
            return True if a.hi <= b.lo else False if a.lo > b.hi else None
        case "gt" | "ge":
            return _decide("lt" if op == "gt" else "le", b, a)
        case "eq" | "ne":
            apart = a.hi < b.lo or b.hi < a.lo
            same = a.single is not None and a.single == b.single
            return (op == "ne") if apart else (op == "eq") if same else None
    return None


def _logic(e: Binary) -> Expr:
    for known, other in ((e.a, e.b), (e.b, e.a)):
        if isinstance(known, Const):
            absorbing = bool(known.value) == (e.op == "or")
            return known if absorbing else other
    return e


def linear_terms(e: Expr) -> tuple[dict[Expr, int], int]:
    """e as Σ coefficient · term + constant; arithmetic modulo 2^64, so this holds for wrapping integers as well."""
    match e:
        case Const():
            return {}, int(e.value)
        case Binary(op="add" | "sub"):
            terms, constant = linear_terms(e.a)
            more, also = linear_terms(e.b)
            sign = 1 if e.op == "add" else -1
            for term, c in more.items():
                terms[term] = terms.get(term, 0) + sign * c
            return terms, constant + sign * also
        case Binary(op="mul") if isinstance(e.b, Const) or isinstance(e.a, Const):
            factor, other = (e.b, e.a) if isinstance(e.b, Const) else (e.a, e.b)
            assert isinstance(factor, Const)
            f = int(factor.value)
            terms, constant = linear_terms(other)
            return {t: c * f for t, c in terms.items()}, constant * f
    return {e: 1}, 0


def _linear(e: Binary) -> Expr:
    if isinstance(e.a, Var) and isinstance(e.b, Const) and e.b.value > (e.op == "mul"):
        return e
    terms, constant = linear_terms(e)
    if not all(_LEAST < c < _MOST for c in (*terms.values(), constant)):
        return e
    new = _rebuild(terms, constant, e)
    return e if new == e else new


def _linear_sum(a: Expr, b: Expr) -> Expr:
    return a if isinstance(b, Const) and b.value == 0 else binary("add", a, b)


def _rebuild(terms: dict[Expr, int], constant: int, like: Expr) -> Expr:
    """Σ coefficient · term + constant, terms in their order; a negative one is subtracted."""
    total: Expr | None = None
    for term, c in sorted(terms.items(), key=lambda item: item[1] < 0):
        if c == 0:
            continue
        size = abs(c) if total is not None else c
        part = term if size == 1 else binary("mul", term, Const(like.dtype, like.lanes, size))
        total = part if total is None else binary("add" if c > 0 else "sub", total, part)
    if total is None:
        return Const(like.dtype, like.lanes, constant)
    if constant < 0:
        return binary("sub", total, Const(like.dtype, like.lanes, -constant))
    return binary("add", total, Const(like.dtype, like.lanes, constant))


def drop_unused(block: Block) -> Block:
    """Without lets that nothing reads."""
    return _needed(block, set())


def _needed(block: Block, used: set[str]) -> Block:
    """The block without lets that are not in `used`; adds what it reads itself. Last statement first."""
    body: list[Stmt] = []
    for stmt in reversed(block.body):
        if isinstance(stmt, Let) and stmt.name not in used:
            continue
        inner = blocks(stmt)
        if inner:
            stmt = with_blocks(stmt, tuple(_needed(b, used) for b in inner))
        for e in expressions(stmt):
            used.update(x.name for x in walk(e) if isinstance(x, Var))
        body.append(stmt)
    same = len(body) == len(block.body) and all(a is b for a, b in zip(reversed(body), block.body, strict=True))
    return block if same else Block(tuple(reversed(body)))
