"""Loops whose counter is taken apart as nests of loops.

Before: `for t = 0 to 96 * 55 { … t / 55 … t % 55 … }`.  After: `for t_1 = 0 to 96 { for t = 0 to 55 { … t_1 … t … } }`.
Preserves: the order of all iterations.  Needs: divisors of which each divides the next, and the last the count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ...ir.loops import Binary, Block, Const, Expr, For, Kernel, Let, Stmt, Var, binary, const
from ...ir.loops_visit import blocks, expressions, statements, walk, with_blocks, with_expressions
from ...ir.types import DType
from .simplify import simplify
from .unroll import defined, fresh_name, substitute


def split_digits(kernel: Kernel) -> Kernel:
    """The kernel with a loop for each digit of its counters."""
    taken = {p.name for p in kernel.params} | {n for s in statements(kernel.body) for n in defined(s)}
    body = _block(kernel.body, taken)
    return kernel if body is kernel.body else simplify(replace(kernel, body=body))


def _block(block: Block, taken: set[str]) -> Block:
    body = tuple(_statement(stmt, taken) for stmt in block.body)
    return block if all(a is b for a, b in zip(body, block.body, strict=True)) else Block(body)


def _statement(stmt: Stmt, taken: set[str]) -> Stmt:
    inner = blocks(stmt)
    if inner:
        stmt = with_blocks(stmt, tuple(_block(b, taken) for b in inner))
    return _split(stmt, taken) if isinstance(stmt, For) and stmt.kind in ("serial", "parallel") else stmt


def _split(loop: For, taken: set[str]) -> For:
    """The loop, or a nest with the least digit innermost, which keeps its name."""
    if not isinstance(loop.end, Const) or loop.begin != const(0) or loop.step != 1:
        return loop
    count = int(loop.end.value)
    edges = sorted({1, *(d for d in _divisors(loop) if 1 < d < count)})
    above = [*edges[1:], count]
    if len(edges) < 2 or any(b % a for a, b in zip(edges, above, strict=True)):
        return loop
    names = [loop.var, *(fresh_name(loop.var, taken) for _ in edges[1:])]
    number: Expr = const(0)
    for name, edge in zip(names, edges, strict=True):
        number = binary("add", binary("mul", Var(DType.I64, 1, name), edge), number)
    body = substituted(loop.body, {loop.var: number})
    for name, low, high in zip(names, edges, above, strict=True):
        nest = For(name, const(0), const(high // low), 1, loop.kind, body)
        body = Block((nest,))
    return nest


def _divisors(loop: For) -> Iterator[int]:
    """Weights of the digits that the loop's body takes of its counter: t / d begins at d, t / d % m ends at d · m."""
    lets: dict[str, int] = {loop.var: 1}
    for stmt in statements(loop.body):
        for e in expressions(stmt):
            for node in walk(e):
                if (found := _digit(node, lets)) is not None:
                    yield from found
        if isinstance(stmt, Let) and (found := _digit(stmt.value, lets)) is not None and _op(stmt.value) == "div":
            lets[stmt.name] = found[0]


def _op(e: Expr) -> str:
    return e.op if isinstance(e, Binary) else ""


def _digit(e: Expr, weights: dict[str, int]) -> tuple[int, ...] | None:
    """(weight of the digit), or (weight, weight above it), of a quotient or remainder of a counter."""
    if not (isinstance(e, Binary) and e.op in ("div", "mod") and isinstance(e.b, Const) and int(e.b.value) > 0):
        return None
    by = int(e.b.value)
    if isinstance(e.a, Var) and e.a.name in weights:
        weight = weights[e.a.name]
    else:
        inner = _digit(e.a, weights)
        if inner is None or _op(e.a) != "div":
            return None
        weight = inner[0]
    return (weight * by,) if e.op == "div" else (weight, weight * by)


def substituted(block: Block, values: Mapping[str, Expr]) -> Block:
    """The block with names replaced by what they stand for."""
    body: list[Stmt] = []
    for stmt in block.body:
        stmt = with_expressions(stmt, tuple(substitute(e, values, {}) for e in expressions(stmt)))
        inner = blocks(stmt)
        body.append(with_blocks(stmt, tuple(substituted(b, values) for b in inner)) if inner else stmt)
    return Block(tuple(body))
