"""Loads of several registers at once, and the pointers that step along them (AArch64's LD1 with post-increment).

Such a load has no offset: its address is a register, which it may advance by what another register holds. From a base
and constants LLVM would compute every address anew, so a loop carries one pointer for each run of wide loads, and the
distances between them are constants that LLVM cannot see through.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.loops import Binary, Buffer, Const, Expr, For, Let, Load, Prefetch, Store, Var, binary, const
from ..ir.loops_visit import expressions, walk
from ..ir.types import DType
from .target import Target

Terms = dict[Expr, int]


def registers_loaded(e: Load, target: Target) -> int:
    """How many whole registers, at most four, one instruction loads; 0 where it is not several."""
    if not target.loads_several or e.buffer.lanes > 1 or e.index.lanes > 1 or e.dtype is DType.BOOL:
        return 0
    count, rest = divmod(e.lanes, target.lanes(e.dtype))
    return count if rest == 0 and 2 <= count <= 4 else 0


@dataclass(eq=False, slots=True)
class Stream:
    """Wide loads from one buffer, `offsets` elements from a place that moves by `step` each iteration.

    `start`: index of the first one in the first iteration; `pointer` and `at`: where the pointer stands.
    """

    buffer: Buffer
    start: Expr
    step: int
    first: int
    pointer: str = ""
    at: int = 0


def streams(loop: For, target: Target) -> dict[Load, tuple[Stream, int]]:
    """The vector loads of an innermost loop beside wide ones: the stream of each and its offset there."""
    if not target.loads_several or any(not isinstance(s, Let | Store | Prefetch) for s in loop.body.body):
        return {}
    lets = {s.name: s.value for s in loop.body.body if isinstance(s, Let)}
    found: dict[Load, tuple[Stream, int]] = {}
    known: dict[tuple[Buffer, frozenset[tuple[Expr, int]]], Stream] = {}
    for e, is_wide in _vector_loads(loop, target):
        terms, constant = _terms(e.index, lets)
        coefficient = terms.pop(Var(DType.I64, 1, loop.var), 0)
        names = {x.name for term in terms for x in walk(term) if isinstance(x, Var)}
        if names & {loop.var, *lets}:
            continue
        key = (e.buffer, frozenset({**terms, const(0): coefficient}.items()))
        if is_wide and key not in known:
            start = _start(terms, coefficient, loop.begin, constant)
            known[key] = Stream(e.buffer, start, coefficient * loop.step, constant)
        if key in known:
            found[e] = known[key], constant
    return found


def _vector_loads(loop: For, target: Target) -> list[tuple[Load, bool]]:
    """Loads of whole vectors, those of several registers (True) first: a pointer begins at the first of them."""
    loads = [
        x
        for s in loop.body.body
        for e in expressions(s)
        for x in walk(e)
        if isinstance(x, Load) and x.buffer.lanes == 1 and x.index.lanes == 1 < x.lanes
    ]
    marked = [(e, registers_loaded(e, target) > 0) for e in loads]
    return sorted(marked, key=lambda pair: not pair[1])


def _start(terms: Terms, coefficient: int, begin: Expr, constant: int) -> Expr:
    total: Expr = const(0)
    for term, c in (*terms.items(), (begin, coefficient)):
        total = binary("add", total, binary("mul", term, const(c)))
    return binary("add", total, const(constant))


def _terms(e: Expr, lets: dict[str, Expr]) -> tuple[Terms, int]:
    """An index as Σ coefficient · term + constant, with the names in `lets` replaced by what they stand for."""
    match e:
        case Const():
            return {}, int(e.value)
        case Var() if e.name in lets and e.dtype is DType.I64:
            return _terms(lets[e.name], lets)
        case Binary(op="add" | "sub"):
            terms, constant = _terms(e.a, lets)
            more, also = _terms(e.b, lets)
            sign = 1 if e.op == "add" else -1
            for term, c in more.items():
                terms[term] = terms.get(term, 0) + sign * c
            return terms, constant + sign * also
        case Binary(op="mul", b=Const(value=factor)):
            terms, constant = _terms(e.a, lets)
            return {t: c * int(factor) for t, c in terms.items()}, constant * int(factor)
    return {e: 1}, 0
