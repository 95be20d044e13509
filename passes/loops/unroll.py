"""Unroll loops of kind "unroll".

Before: `unroll i = 0 to 3 { let t = …i…; … }`.  After: the body three times, i replaced by 0, 1 and 2, names that a
body defines made new in every copy.  Preserves: order of all statements.  Needs: constant bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...ir.errors import PassError
from ...ir.loops import Alloc, Binary, Block, Buffer, Const, Expr, For, If, Kernel, Let, Load, Stmt, Store, Var, binary
from ...ir.loops_visit import blocks, expressions, rewrite, statements, with_blocks, with_expressions
from ...ir.types import DType

MAX_COPIES = 4096
"""Statements that one loop may become: above, code size is a mistake."""


@dataclass(frozen=True)
class _Scope:
    """What names stand for inside a copy of a body."""

    values: Mapping[str, Expr]
    buffers: Mapping[str, Buffer]


class _Unroller:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.taken = {p.name for p in kernel.params} | {n for s in statements(kernel.body) for n in defined(s)}
        self.counts: dict[str, int] = {}

    def fresh(self, name: str) -> str:
        count = self.counts.get(name, 0)
        while True:
            count += 1
            if f"{name}_{count}" not in self.taken:
                break
        self.counts[name] = count
        self.taken.add(f"{name}_{count}")
        return f"{name}_{count}"

    def block(self, block: Block, scope: _Scope, rename: bool) -> Block:
        """A copy of the block under `scope`; `rename`: what it defines gets new names."""
        body: list[Stmt] = []
        for stmt in block.body:
            scope = self.statement(stmt, scope, rename, body)
        same = len(body) == len(block.body) and all(a is b for a, b in zip(body, block.body, strict=True))
        return block if same else Block(tuple(body))

    def statement(self, stmt: Stmt, scope: _Scope, rename: bool, out: list[Stmt]) -> _Scope:
        """Append the statement's copies to `out`; returns the scope of what follows."""
        if isinstance(stmt, For) and stmt.kind == "unroll":
            self.copies(stmt, scope, rename, out)
            return scope
        found = expressions(stmt)
        if found and (scope.values or scope.buffers):
            stmt = with_expressions(stmt, tuple(substitute(e, scope.values, scope.buffers) for e in found))
        match stmt:
            case Let() if rename:
                name = self.fresh(stmt.name)
                out.append(replace(stmt, name=name))
                return _Scope({**scope.values, stmt.name: Var(stmt.value.dtype, stmt.value.lanes, name)}, scope.buffers)
            case Alloc() if rename:
                buffer = replace(stmt.buffer, name=self.fresh(stmt.buffer.name))
                out.append(Alloc(buffer))
                return _Scope(scope.values, {**scope.buffers, stmt.buffer.name: buffer})
            case For():
                inner = scope
                if rename:
                    name = self.fresh(stmt.var)
                    inner = _Scope({**scope.values, stmt.var: Var(DType.I64, 1, name)}, scope.buffers)
                    stmt = replace(stmt, var=name)
                out.append(with_blocks(stmt, (self.block(stmt.body, inner, rename),)))
            case If() | Block():
                out.append(with_blocks(stmt, tuple(self.block(b, scope, rename) for b in blocks(stmt))))
            case Store() if stmt.buffer.name in scope.buffers:
                out.append(replace(stmt, buffer=scope.buffers[stmt.buffer.name]))
            case _:
                out.append(stmt)
        return scope

    def copies(self, loop: For, scope: _Scope, rename: bool, out: list[Stmt]) -> None:
        begin, end = (substitute(e, scope.values, scope.buffers) for e in (loop.begin, loop.end))
        if not (isinstance(begin, Const) and isinstance(end, Const)):
            raise PassError(f"loop {loop.var} is marked unroll but its bounds are no constants", where=self.kernel.name)
        values = range(int(begin.value), int(end.value), loop.step)
        if len(values) * len(loop.body.body) > MAX_COPIES:
            raise PassError(f"unrolling loop {loop.var} makes {len(values)} copies", where=self.kernel.name)
        for n, value in enumerate(values):
            inner = _Scope({**scope.values, loop.var: Const(DType.I64, 1, value)}, scope.buffers)
            out.extend(self.block(loop.body, inner, rename or n > 0).body)


def unroll(kernel: Kernel) -> Kernel:
    """The kernel without loops of kind "unroll"."""
    if not any(isinstance(s, For) and s.kind == "unroll" for s in statements(kernel.body)):
        return kernel
    return replace(kernel, body=_Unroller(kernel).block(kernel.body, _Scope({}, {}), False))


def fresh_name(hint: str, taken: set[str]) -> str:
    """A name that is not taken yet, and then is."""
    name, n = hint, 0
    while name in taken:
        n += 1
        name = f"{hint}_{n}"
    taken.add(name)
    return name


def defined(stmt: Stmt) -> tuple[str, ...]:
    """The name that a statement defines."""
    match stmt:
        case For():
            return (stmt.var,)
        case Let():
            return (stmt.name,)
        case Alloc():
            return (stmt.buffer.name,)
    return ()


def substitute(e: Expr, values: Mapping[str, Expr], buffers: Mapping[str, Buffer]) -> Expr:
    """Variables replaced by values, buffers by others; index arithmetic on constants is folded."""

    def rule(x: Expr) -> Expr:
        match x:
            case Var() if x.name in values:
                return values[x.name]
            case Load() if x.buffer.name in buffers:
                return replace(x, buffer=buffers[x.buffer.name])
            case Binary() if x.dtype is DType.I64 and (isinstance(x.a, Const) or isinstance(x.b, Const)):
                return binary(x.op, x.a, x.b)
        return x

    return rewrite(e, rule)
