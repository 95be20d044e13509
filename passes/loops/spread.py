"""Kernels made for one processor's loops as kernels for a grid of threads.

Before: `for i { for j { y[i * 8 + j] = … } }`.  After: `grid i { grid j { y[i * 8 + j] = … } }`, one thread an element.
Loops become dimensions of the grid as far as they are independent and nothing stands between them; statements that
follow each other, and the iterations of a loop around several loops, are kernels of their own.  Preserves: every
operation and the order of those that depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from ...ir.loops import Alloc, Block, Const, Expr, For, Kernel, Let, Load, Stmt, Store, Var, binary
from ...ir.loops_verify import stored_buffers
from ...ir.loops_visit import expressions, statements, walk
from ...ir.types import DType
from .digits import split_digits, substituted
from .independent import Scope, is_independent
from .simplify import drop_unused, simplify
from .unroll import fresh_name

MAX_DIMENSIONS = 3


@dataclass(frozen=True, slots=True)
class _Piece:
    """A nest: loops around a body. Names that the loops' bodies define stand in the body."""

    loops: tuple[For, ...]
    body: tuple[Stmt, ...]


def spread(kernel: Kernel) -> tuple[Kernel, ...]:
    """Kernels that do in order what `kernel` does, each over a grid; a kernel that has one comes back as it is.

    Memory that each worker has of its own is that of one: iterations that use it are not independent."""
    if any(isinstance(s, For) and s.kind in ("grid", "thread") for s in statements(kernel.body)):
        return (kernel,)
    kernel = split_digits(_with_one_worker(kernel))
    pieces = _pieces(kernel.body, Scope({}, {}), stored_buffers(kernel))
    return tuple(_over_grid(kernel, piece) for piece in pieces)


def _with_one_worker(kernel: Kernel) -> Kernel:
    """Workers that have memory of their own as one: its iterations follow each other."""
    used = any(isinstance(x, Var) and x.name == "worker" for s in statements(kernel.body) for e in expressions(s)
               for x in walk(e))  # fmt: skip
    if not used:
        return kernel
    loop = kernel.parallel
    body = kernel.body if loop is None else Block((replace(loop, kind="serial"),))
    return replace(kernel, body=substituted(body, {"worker": Const(DType.I64, 1, 0)}))


def _pieces(block: Block, scope: Scope, written: set[str]) -> list[_Piece]:
    """The block's statements as nests, in order; as one where they cannot be told apart."""
    whole = [_Piece((), block.body)]
    if any(isinstance(s, Let) and _reads(s, written) for s in block.body):
        return whole
    own = _made(block.body)
    found: list[_Piece] = []
    lets: list[Stmt] = []
    plain: list[Stmt] = []
    for stmt in block.body:
        if isinstance(stmt, Let):
            scope = scope.entering(stmt)
            lets.append(stmt)
        elif isinstance(stmt, For) and _is_dimension(stmt) and is_independent(stmt, scope):
            found += [_Piece((), (*lets, *plain))] * bool(plain)
            plain = []
            for inner in _pieces(stmt.body, scope.entering(stmt), written):
                found.append(_Piece((replace(stmt, body=Block()), *inner.loops), (*lets, *inner.body)))
        elif isinstance(stmt, Block):
            return whole
        else:
            plain.append(stmt)
    found += [_Piece((), (*lets, *plain))] * bool(plain)
    apart = all(own & touched(Block(p.body)) <= _made(p.body) for p in found)
    return found if apart and any(p.loops for p in found) else whole


def _made(body: tuple[Stmt, ...]) -> set[str]:
    """Names of the buffers that statements make."""
    return {s.buffer.name for s in body if isinstance(s, Alloc)}


def touched(stmt: Stmt) -> set[str]:
    """Names of the buffers that a statement and what is in it read or write."""
    found: set[str] = set()
    for s in statements(Block((stmt,))):
        found |= {x.buffer.name for e in expressions(s) for x in walk(e) if isinstance(x, Load)}
        found |= {s.buffer.name} if isinstance(s, Store) else set()
    return found


def _is_dimension(loop: For) -> bool:
    """Whether a grid can count the loop's iterations."""
    return isinstance(loop.begin, Const) and isinstance(loop.end, Const) and loop.kind in ("serial", "parallel")


def _reads(stmt: Let, written: set[str]) -> bool:
    return any(isinstance(x, Load) and x.buffer.name in written for e in expressions(stmt) for x in walk(e))


def _over_grid(kernel: Kernel, piece: _Piece) -> Kernel:
    """A kernel whose grid counts the piece's iterations; Lets that loops stood around follow their variables."""
    taken = {p.name for p in kernel.params} | {s.var for s in piece.loops} | {"i"}
    body: list[Stmt] = []
    loops = piece.loops
    counts = [_iterations(loop) for loop in loops]
    lead = len(loops) - MAX_DIMENSIONS + 1 if len(loops) > MAX_DIMENSIONS else 0
    dims: list[tuple[str, int]] = []
    if lead:
        name = fresh_name("lead", taken)
        dims.append((name, prod(counts[:lead])))
        body += _coordinates(Var(DType.I64, 1, name), loops[:lead], counts[:lead])
    for loop, count in zip(loops[lead:], counts[lead:], strict=True):
        if loop.step == 1 and loop.begin == Const(DType.I64, 1, 0):
            dims.append((loop.var, count))
        else:
            name = fresh_name(f"{loop.var}_at", taken)
            dims.append((name, count))
            body.append(Let(loop.var, _value(loop, Var(DType.I64, 1, name))))
    inner = Block((*body, *piece.body))
    for name, count in reversed(dims or [(fresh_name("once", taken), 1)]):
        inner = Block((For(name, Const(DType.I64, 1, 0), Const(DType.I64, 1, count), 1, "grid", inner),))
    made = simplify(replace(kernel, body=drop_unused(inner)))
    used = touched(made.body)
    return replace(made, params=tuple(p for p in kernel.params if p.name in used))


def _coordinates(index: Expr, loops: Sequence[For], counts: Sequence[int]) -> list[Stmt]:
    below = prod(counts)
    found: list[Stmt] = []
    for axis, (loop, count) in enumerate(zip(loops, counts, strict=True)):
        below //= count
        at = binary("div", index, below)
        found.append(Let(loop.var, _value(loop, binary("mod", at, count) if axis else at)))
    return found


def _value(loop: For, counter: Expr) -> Expr:
    return binary("add", binary("mul", counter, loop.step), loop.begin)


def _iterations(loop: For) -> int:
    assert isinstance(loop.begin, Const) and isinstance(loop.end, Const)
    return max(0, -(-(int(loop.end.value) - int(loop.begin.value)) // loop.step))
