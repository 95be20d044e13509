"""Which loops may run their iterations in any order, or all at once.

Two iterations are independent where neither writes what the other reads or writes. Indices are taken apart into sums of
loop counters; an iteration's elements are apart from another's where its counter can be told from every index, as a
digit in a mixed radix: what varies faster spans less than the counter's step, what varies slower moves by multiples of
more than all the counter's range. This is sufficient, not necessary (Banerjee, Dependence Analysis, 1997, has more).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd

from ...ir.loops import Alloc, Binary, Block, Buffer, Const, Expr, For, Let, Load, Stmt, Store, Var, binary
from ...ir.loops_ranges import Interval, interval, loop_interval
from ...ir.loops_visit import blocks, expressions, rewrite, walk
from ...ir.types import DType
from .simplify import linear_terms


@dataclass(frozen=True, slots=True)
class Access:
    """One access inside the loop in question: `own` elements for each of its iterations; inner counters by elements and
    iterations; what is the same in all iterations; a constant; lanes. known: the rest holds."""

    stores: bool
    known: bool = False
    own: int = 0
    inner: tuple[tuple[int, int], ...] = ()
    outer: frozenset[tuple[Expr, int]] = frozenset()
    constant: int = 0
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Scope:
    """What is known around a loop: values of names, and ranges of loop variables."""

    lets: Mapping[str, Expr]
    ranges: Mapping[str, Interval]

    def entering(self, stmt: Stmt) -> Scope:
        """The scope behind a Let, or inside a loop."""
        match stmt:
            case Let() if stmt.value.dtype is DType.I64:
                value = expand(stmt.value, self.lets)
                known = interval(value, self.ranges)
                ranges = self.ranges if known is None else {**self.ranges, stmt.name: known}
                return Scope({**self.lets, stmt.name: value}, ranges)
            case For():
                known = loop_interval(stmt, self.ranges)
                return self if known is None else Scope(self.lets, {**self.ranges, stmt.var: known})
        return self


def expand(e: Expr, lets: Mapping[str, Expr]) -> Expr:
    """An expression with names replaced by what they stand for."""
    return rewrite(e, lambda x: lets.get(x.name, x) if isinstance(x, Var) else x)


def is_independent(loop: For, scope: Scope) -> bool:
    """Whether the loop's iterations may run in any order; a parallel loop's may by definition."""
    if loop.kind == "parallel":
        return True
    count = _count(loop, scope)
    if count is None:
        return False
    known = _counting(loop, count, scope)
    found: dict[str, list[Access]] = {}
    local: set[str] = set()
    for buffer, access in _accesses(loop.body, loop.var, {}, known, local):
        if buffer.name not in local:
            outside = buffer.space in ("param", "constant")
            found.setdefault(buffer.name, []).append(access if outside else Access(access.stores))
    written = [items for items in found.values() if any(a.stores for a in items)]
    return all(_apart(items, count) for items in written)


def _counting(loop: For, count: int, scope: Scope) -> Scope:
    """The scope inside a loop: its variable is begin + step · counter; the counter keeps the variable's name."""
    counter = binary("mul", Var(DType.I64, 1, loop.var), loop.step)
    position = binary("add", counter, expand(loop.begin, scope.lets))
    bounds = Interval(0, max(0, count - 1), True, frozenset((loop.var,)))
    return Scope({**scope.lets, loop.var: position}, {**scope.ranges, loop.var: bounds})


def _count(loop: For, scope: Scope) -> int | None:
    """Iterations at most; None where that is not known."""
    first, last = expand(loop.begin, scope.lets), expand(loop.end, scope.lets)
    terms, span = linear_terms(binary("sub", last, first))
    if any(terms.values()):
        begin, end = interval(first, scope.ranges), interval(last, scope.ranges)
        if begin is None or end is None:
            return None
        span = end.hi - begin.lo
    return max(0, -(-span // loop.step))


def _accesses(
    block: Block, own: str, inner: Mapping[str, int], scope: Scope, local: set[str]
) -> Iterator[tuple[Buffer, Access]]:
    """Every load and store in the block; adds buffers that the block makes to `local`."""
    for stmt in block.body:
        for e in expressions(stmt):
            for node in walk(e):
                if isinstance(node, Load):
                    yield node.buffer, _access(node.index, node.lanes, own, inner, scope, stores=False)
        match stmt:
            case Store():
                yield stmt.buffer, _access(stmt.index, stmt.value.lanes, own, inner, scope, stores=True)
            case For():
                count = _count(stmt, scope)
                if count is None:
                    yield from ((b, Access(True)) for b in _stored(stmt.body))
                    count = 0
                within = _counting(stmt, count, scope)
                yield from _accesses(stmt.body, own, {**inner, stmt.var: count}, within, local)
            case Alloc():
                local.add(stmt.buffer.name)
            case Let():
                scope = scope.entering(stmt)
            case _:
                for b in blocks(stmt):
                    yield from _accesses(b, own, inner, scope, local)


def _stored(block: Block) -> Iterator[Buffer]:
    for stmt in block.body:
        if isinstance(stmt, Store):
            yield stmt.buffer
        for b in blocks(stmt):
            yield from _stored(b)


def _access(index: Expr, lanes: int, own: str, inner: Mapping[str, int], scope: Scope, *, stores: bool) -> Access:
    if index.lanes > 1:
        return Access(stores)
    terms, constant = linear_terms(rewrite(expand(index, scope.lets), _folded))
    step, digits, outer = 0, [], set()
    for term, factor in terms.items():
        if not factor:
            continue
        if isinstance(term, Var) and term.name == own:
            step = factor
        elif isinstance(term, Var) and term.name in inner:
            digits.append((factor, inner[term.name]))
        elif any(isinstance(x, Var) and (x.name == own or x.name in inner) or isinstance(x, Load) for x in walk(term)):
            return Access(stores)
        else:
            outer.add((term, factor))
    return Access(stores, True, step, tuple(digits), frozenset(outer), constant, lanes)


def _folded(e: Expr) -> Expr:
    """Index arithmetic on constants, which expanding names has brought together."""
    if isinstance(e, Binary) and e.dtype is DType.I64 and (isinstance(e.a, Const) or isinstance(e.b, Const)):
        return binary(e.op, e.a, e.b)
    return e


def _apart(items: list[Access], count: int) -> bool:
    """Whether the elements that different iterations access are different ones, of one buffer."""
    if count <= 1:
        return True
    first = items[0]
    step = abs(first.own)
    if not step or any(not a.known or a.own != first.own or a.outer != first.outer for a in items):
        return False
    slow = [abs(c) for a in items for c, n in a.inner if n > 1 and abs(c) * (n - 1) >= step]
    period = gcd(*slow) if slow else 0
    low = high = 0
    for a in items:
        at = a.constant - first.constant
        if period:
            at -= period * round(at / period)
        fast = [c * (n - 1) for c, n in a.inner if n > 1 and abs(c) * (n - 1) < step]
        low = min(low, at + sum(c for c in fast if c < 0))
        high = max(high, at + sum(c for c in fast if c > 0) + a.lanes - 1)
    span = high - low
    return span < step and (not period or step * (count - 1) + span < period)
