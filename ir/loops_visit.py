"""Walking and rewriting loop IR. Rewriters keep identity: what does not change comes back as the same object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .loops import (
    Binary,
    Bitcast,
    Block,
    Broadcast,
    Call,
    Cast,
    Dot,
    Expr,
    Fma,
    For,
    If,
    Kernel,
    Let,
    Load,
    Lookup,
    MatrixLoad,
    MatrixMultiply,
    MatrixStore,
    Prefetch,
    Ramp,
    Reduce,
    Select,
    Shuffle,
    Stmt,
    Store,
    SubgroupXor,
    Unary,
)
from .types import DType

Rewrite = Callable[[Expr], Expr]


_OPERANDS: dict[type[Expr], Callable[[Any], tuple[Expr, ...]]] = {
    Binary: lambda e: (e.a, e.b),
    Load: lambda e: (e.index,),
    Fma: lambda e: (e.a, e.b, e.c),
    Dot: lambda e: (e.a, e.b, e.c),
    Lookup: lambda e: (e.table, e.index),
    Select: lambda e: (e.cond, e.a, e.b),
    Unary: lambda e: (e.a,),
    Cast: lambda e: (e.a,),
    Bitcast: lambda e: (e.a,),
    Broadcast: lambda e: (e.a,),
    Reduce: lambda e: (e.a,),
    SubgroupXor: lambda e: (e.a,),
    Ramp: lambda e: (e.base,),
    Shuffle: lambda e: (e.a,) if e.b is None else (e.a, e.b),
    Call: lambda e: e.args,
}
_REBUILD: dict[type[Expr], Callable[[Any, tuple[Any, ...]], Expr]] = {
    Binary: lambda e, x: Binary(e.dtype, e.lanes, e.op, x[0], x[1]),
    Load: lambda e, x: Load(e.dtype, e.lanes, e.buffer, x[0]),
    Fma: lambda e, x: Fma(e.dtype, e.lanes, *x),
    Dot: lambda e, x: Dot(e.dtype, e.lanes, *x),
    Lookup: lambda e, x: Lookup(e.dtype, e.lanes, *x),
    Select: lambda e, x: Select(e.dtype, e.lanes, *x),
    Unary: lambda e, x: Unary(e.dtype, e.lanes, e.op, x[0]),
    Cast: lambda e, x: Cast(e.dtype, e.lanes, x[0]),
    Bitcast: lambda e, x: Bitcast(e.dtype, e.lanes, x[0]),
    Broadcast: lambda e, x: Broadcast(e.dtype, e.lanes, x[0]),
    Reduce: lambda e, x: Reduce(e.dtype, e.lanes, e.op, x[0]),
    Ramp: lambda e, x: Ramp(e.dtype, e.lanes, x[0], e.stride),
    SubgroupXor: lambda e, x: SubgroupXor(e.dtype, e.lanes, x[0], e.mask),
    Shuffle: lambda e, x: Shuffle(e.dtype, e.lanes, x[0], x[1] if len(x) > 1 else None, e.lanes_of),
    Call: lambda e, x: Call(e.dtype, e.lanes, e.name, x),
}
"""Tables, not `match`: compile time is spent here."""


def operands(e: Expr) -> tuple[Expr, ...]:
    """The direct subexpressions, in the order of the node's fields."""
    get = _OPERANDS.get(type(e))
    return get(e) if get else ()


def walk(e: Expr) -> Iterator[Expr]:
    """The expression and everything in it, each node before its operands."""
    stack = [e]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(operands(node)))


def rewrite(e: Expr, rule: Rewrite) -> Expr:
    """Apply `rule` to every node, operands first."""
    get = _OPERANDS.get(type(e))
    if get is None:
        return rule(e)
    found = get(e)
    new = tuple([rewrite(x, rule) for x in found])
    for x, y in zip(found, new, strict=True):
        if x is not y:
            return rule(_REBUILD[type(e)](e, new))
    return rule(e)


def expressions(stmt: Stmt) -> tuple[Expr, ...]:
    """The expressions that stand directly in a statement (not in its blocks)."""
    match stmt:
        case For():
            return (stmt.begin, stmt.end)
        case If():
            return (stmt.cond,)
        case Let():
            return (stmt.value,)
        case Store():
            return (stmt.index, stmt.value)
        case Prefetch():
            return (stmt.index,)
        case MatrixLoad() | MatrixStore():
            return (stmt.index, stmt.place)
        case MatrixMultiply():
            return (stmt.at, stmt.a_at, stmt.b_at)
    return ()


def with_expressions(stmt: Stmt, new: tuple[Expr, ...]) -> Stmt:
    """The statement with other expressions; the same object where all are the same objects."""
    if all(x is y for x, y in zip(expressions(stmt), new, strict=True)):
        return stmt
    match stmt:
        case For():
            return replace(stmt, begin=new[0], end=new[1])
        case If():
            return replace(stmt, cond=new[0])
        case Let():
            return replace(stmt, value=new[0])
        case Store():
            return replace(stmt, index=new[0], value=new[1])
        case Prefetch():
            return replace(stmt, index=new[0])
        case MatrixLoad() | MatrixStore():
            return replace(stmt, index=new[0], place=new[1])
        case MatrixMultiply():
            return replace(stmt, at=new[0], a_at=new[1], b_at=new[2])
    raise AssertionError(f"{type(stmt).__name__} has no expressions")


def blocks(stmt: Stmt) -> tuple[Block, ...]:
    """The blocks of a statement; a Block is its own."""
    match stmt:
        case Block():
            return (stmt,)
        case For():
            return (stmt.body,)
        case If():
            return (stmt.then,) if stmt.other is None else (stmt.then, stmt.other)
    return ()


def with_blocks(stmt: Stmt, new: tuple[Block, ...]) -> Stmt:
    """The statement with other blocks; the same object where all are the same objects."""
    if all(x is y for x, y in zip(blocks(stmt), new, strict=True)):
        return stmt
    match stmt:
        case Block():
            return new[0]
        case For():
            return replace(stmt, body=new[0])
        case If():
            return replace(stmt, then=new[0], other=new[1] if len(new) > 1 else None)
    raise AssertionError(f"{type(stmt).__name__} has no blocks")


def statements(block: Block) -> Iterator[Stmt]:
    """Every statement in the block and below, each before what it contains."""
    for stmt in block.body:
        yield stmt
        for inner in blocks(stmt):
            yield from statements(inner)


def loads(kernel: Kernel) -> Iterator[Load]:
    """Every load of a kernel."""
    for stmt in statements(kernel.body):
        for e in expressions(stmt):
            for node in walk(e):
                if isinstance(node, Load):
                    yield node


def uses(kernel: Kernel, test: Callable[[Expr], bool]) -> bool:
    """Whether a kernel has an expression of a kind."""
    return any(test(x) for s in statements(kernel.body) for e in expressions(s) for x in walk(e))


def exchanges(kernel: Kernel) -> bool:
    """Whether threads of a subgroup exchange values, or hold matrices together."""
    found = any(isinstance(s, MatrixLoad | MatrixStore | MatrixMultiply) for s in statements(kernel.body))
    return found or uses(kernel, lambda e: isinstance(e, SubgroupXor))


def uses_type(kernel: Kernel, dtype: DType) -> bool:
    """Whether a kernel reads, computes or writes numbers of a type."""
    return any(p.dtype is dtype for p in kernel.params) or uses(kernel, lambda x: x.dtype is dtype)
