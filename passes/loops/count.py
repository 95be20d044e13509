"""How much a kernel does: operations and bytes, counted from its loops' bounds.

Bounds that outer loops decide are taken as the mean of those at the outer loops' beginnings, middles and ends; a loop
whose bounds are computed counts the mean of its fewest and most iterations where the computation limits them, else
`UNKNOWN`; the longer side of a condition is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...ir.loops import (
    MATRIX,
    MATRIX_THREADS,
    Binary,
    Block,
    Call,
    Const,
    Dot,
    Expr,
    Fma,
    For,
    If,
    Kernel,
    Let,
    Load,
    MatrixMultiply,
    OnMatrices,
    Ramp,
    Stmt,
    Store,
    Unary,
    Var,
)
from ...ir.loops_ranges import Interval, interval
from ...ir.loops_visit import expressions, walk
from ...ir.types import DType

UNKNOWN = 64
CALL = 16
"""Operations that a function of `ir.loops.CALLS` is worth."""

Moments = tuple[Mapping[str, Interval], ...]
"""Values of index variables at the beginnings, middles and ends of the loops around."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What all threads do together, and one of them."""

    total: float
    thread: float


def effort(kernel: Kernel) -> Effort:
    """Operations of any kind that one run of the kernel takes; those on a vector count once."""
    return counted(kernel, lambda stmt: float(sum(_operations(e) for e in expressions(stmt))) + _on_matrices(stmt))


def flops(kernel: Kernel, dtype: DType | None = None) -> float:
    """Operations on floats, a multiply-add being two, of all threads in one run; those on one type alone."""

    def measure(stmt: Stmt) -> float:
        found = (x for e in expressions(stmt) for x in walk(e) if dtype is None or x.dtype is dtype)
        own = isinstance(stmt, MatrixMultiply) and (dtype is None or stmt.sums.dtype is dtype)
        return float(sum(_on_floats(x) for x in found) + (2 * _on_matrices(stmt) if own else 0))

    return counted(kernel, measure).total


def dot_flops(kernel: Kernel) -> float:
    """Operations in dot products of integers, two for each product, of all threads in one run."""

    def measure(stmt: Stmt) -> float:
        found = (x for e in expressions(stmt) for x in walk(e) if isinstance(x, Dot) and x.dtype.is_int)
        return float(sum(2 * x.a.lanes for x in found))

    return counted(kernel, measure).total


def traffic(kernel: Kernel) -> float:
    """Bytes that all threads in one run ask memory for or give it: those of a work-group count, no cache does."""
    return counted(kernel, _bytes).total


def counted(kernel: Kernel, measure: Callable[[Stmt], float]) -> Effort:
    """What `measure` tells of a statement's own expressions, over one run of the kernel. Loops of a grid multiply what
    all threads do, not what one does."""
    return _block(kernel.body, ({}, {}, {}), measure)


def _block(block: Block, moments: Moments, measure: Callable[[Stmt], float]) -> Effort:
    total = thread = 0.0
    for stmt in block.body:
        own = measure(stmt)
        match stmt:
            case For():
                count, within = _entering(stmt, moments)
                inner = _block(stmt.body, within, measure)
                apart = stmt.kind in ("grid", "thread")
                part = Effort(own + inner.total * count, own + inner.thread * (1 if apart else count))
            case If():
                sides = [_block(b, moments, measure) for b in (stmt.then, stmt.other) if b is not None]
                part = Effort(own + max(s.total for s in sides), own + max(s.thread for s in sides))
            case Block():
                part = _block(stmt, moments, measure)
            case Let():
                moments = tuple(_known(m, stmt.name, interval(stmt.value, m)) for m in moments)
                part = Effort(own, own)
            case _:
                part = Effort(own, own)
        total, thread = total + part.total, thread + part.thread
    return Effort(total, thread)


def _entering(loop: For, moments: Moments) -> tuple[float, Moments]:
    """How often a loop runs, and the moments in its body."""
    counts, within = [], []
    for i, moment in enumerate(moments):
        begin, end = interval(loop.begin, moment), interval(loop.end, moment)
        if begin is None or end is None:
            return UNKNOWN, tuple(_known(m, loop.var, None) for m in moments)
        fewest, most = (max(0, -(-length // loop.step)) for length in (end.lo - begin.hi, end.hi - begin.lo))
        counts.append((fewest + most) / 2)
        last = max(0, fewest - 1)
        at = begin.lo + loop.step * (0, last // 2, last)[i]
        within.append(_known(moment, loop.var, Interval(at, at) if fewest == most else None))
    return sum(counts) / len(counts), tuple(within)


def _known(moment: Mapping[str, Interval], name: str, value: Interval | None) -> Mapping[str, Interval]:
    others = {n: v for n, v in moment.items() if n != name}
    return others if value is None else {**others, name: value}


def _operations(e: Expr) -> int:
    return sum(CALL if isinstance(x, Call) else not isinstance(x, Const | Var | Ramp) for x in walk(e))


def _on_matrices(stmt: Stmt) -> int:
    """A thread's share of a statement of its subgroup: multiply-adds, or elements that move."""
    if isinstance(stmt, MatrixMultiply):
        return MATRIX**3 // MATRIX_THREADS
    return MATRIX**2 // MATRIX_THREADS if isinstance(stmt, OnMatrices) else 0


def _on_floats(e: Expr) -> int:
    if not e.dtype.is_float:
        return 0
    match e:
        case Fma():
            return 2 * e.lanes
        case Dot():
            return 2 * e.a.lanes
        case Call():
            return CALL * e.lanes
        case Binary() | Unary():
            return e.lanes
    return 0


def _bytes(stmt: Stmt) -> float:
    loads = [x for e in expressions(stmt) for x in walk(e) if isinstance(x, Load) and x.buffer.space == "param"]
    total = sum(x.lanes * x.dtype.nbytes for x in loads)
    if isinstance(stmt, Store) and stmt.buffer.space == "param":
        total += stmt.value.lanes * stmt.value.dtype.nbytes
    return float(total)
