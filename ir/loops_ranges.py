"""Interval analysis of index expressions: the least and greatest value that loop bounds allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .loops import Binary, Broadcast, Const, Expr, For, Ramp, Select, Var
from .types import DType

LIMIT = 1 << 62
"""Bounds beyond it are as good as unknown: index arithmetic must not overflow."""


@dataclass(frozen=True, slots=True)
class Interval:
    """lo <= value <= hi. `exact`: both are reached, whatever variables outside `names` are."""

    lo: int
    hi: int
    exact: bool = False
    names: frozenset[str] = frozenset()

    @property
    def single(self) -> int | None:
        """The only value, if there is but one."""
        return self.lo if self.lo == self.hi else None


_UNBOUNDED = Interval(-LIMIT, LIMIT)
Ranges = Mapping[str, Interval]


def loop_interval(loop: For, ranges: Ranges) -> Interval | None:
    """Values of a loop's variable; lo > hi where the loop never runs; None where nothing is known."""
    begin, end = interval(loop.begin, ranges), interval(loop.end, ranges)
    if begin is None or end is None:
        return None
    if begin.single is not None and end.single is not None:
        last = begin.lo + (end.lo - 1 - begin.lo) // loop.step * loop.step
        return Interval(begin.lo, last, True, frozenset((loop.var,)))
    return Interval(begin.lo, end.hi - 1, False, frozenset((loop.var,)))


def interval(e: Expr, ranges: Ranges) -> Interval | None:
    """Bounds of an i64 expression, over all lanes; None where nothing is known."""
    if e.dtype is not DType.I64:
        return None
    found = _interval(e, ranges)
    return found if found is not None and found.lo > -LIMIT and found.hi < LIMIT else None


def _interval(e: Expr, ranges: Ranges) -> Interval | None:
    match e:
        case Const():
            return Interval(int(e.value), int(e.value), True)
        case Var():
            return ranges.get(e.name)
        case Broadcast():
            return interval(e.a, ranges)
        case Ramp():
            base, last = interval(e.base, ranges), e.stride * (e.lanes - 1)
            return base and replace(base, lo=base.lo + min(0, last), hi=base.hi + max(0, last))
        case Select():
            a, b = interval(e.a, ranges), interval(e.b, ranges)
            return Interval(min(a.lo, b.lo), max(a.hi, b.hi), False, a.names | b.names) if a and b else None
        case Binary() if e.op in ("min", "max") and e.dtype is DType.I64:
            return _combine(e.op, _interval(e.a, ranges) or _UNBOUNDED, _interval(e.b, ranges) or _UNBOUNDED)
        case Binary():
            a, b = interval(e.a, ranges), interval(e.b, ranges)
            if e.op == "mod" and a is None and b is not None and b.single:
                return Interval(1 - abs(b.lo), abs(b.lo) - 1)
            return _combine(e.op, a, b) if a and b else None
    return None


def _combine(op: str, a: Interval, b: Interval) -> Interval | None:
    exact = a.exact and b.exact and not a.names & b.names
    names = a.names | b.names
    match op:
        case "add":
            return Interval(a.lo + b.lo, a.hi + b.hi, exact, names)
        case "sub":
            return Interval(a.lo - b.hi, a.hi - b.lo, exact, names)
        case "mul":
            products = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
            return Interval(min(products), max(products), exact, names)
        case "min":
            return Interval(min(a.lo, b.lo), min(a.hi, b.hi), exact, names)
        case "max":
            return Interval(max(a.lo, b.lo), max(a.hi, b.hi), exact, names)
        case "div" if b.single is not None and b.lo > 0:
            return Interval(truncating_div(a.lo, b.lo), truncating_div(a.hi, b.lo), exact, names)
        case "mod" if b.single is not None and b.lo > 0:
            if a.lo >= 0 and a.hi < b.lo:
                return a
            return Interval(0 if a.lo >= 0 else 1 - b.lo, b.lo - 1, False, names)
    return None


def truncating_div(x: int, y: int) -> int:
    """Quotient towards zero."""
    q = abs(x) // abs(y)
    return q if (x < 0) == (y < 0) else -q
