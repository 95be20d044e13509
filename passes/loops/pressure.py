"""How many registers a thread of a kernel needs, estimated: what is alive at a time, as the statements stand.

A compiler that reorders them needs fewer or more; `benchmarks/registers.py` compares with one that says how many.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.loops import (
    MATRIX_THREADS,
    Alloc,
    Block,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Load,
    MatrixLoad,
    MatrixMultiply,
    MatrixStore,
    Stmt,
    Store,
    Var,
)
from ...ir.loops_visit import expressions, statements, walk
from ...ir.types import DType

ADDRESSES = 8
"""For numbers of the thread, and what an expression holds while it is computed."""
POINTER = 2
"""For a tensor's address."""
WORD = 4


def registers(kernel: Kernel) -> int:
    """Registers of 32 bits. Buffers in `stack` memory count as if they were kept in registers."""
    return ADDRESSES + POINTER * len(kernel.params) + _peak(kernel.body)


def shared_bytes(kernel: Kernel) -> int:
    """Memory that the threads of a work-group share."""
    made = [s.buffer for s in statements(kernel.body) if isinstance(s, Alloc) and s.buffer.space == "shared"]
    return sum(max(b.size, 1) * b.lanes * b.dtype.nbytes for b in made)


def _peak(block: Block) -> int:
    """The most that is alive at a time in a block, beside what is alive around it."""
    last = {name: i for i, stmt in enumerate(block.body) for name in _names(stmt)}
    alive: dict[str, int] = {}
    most = 0
    for i, stmt in enumerate(block.body):
        most = max(most, sum(alive.values()) + _inside(stmt))
        match stmt:
            case Let():
                alive[stmt.name] = _words(stmt.value.dtype, stmt.value.lanes)
            case Alloc() if stmt.buffer.space in ("register", "stack", "matrix"):
                alive[stmt.buffer.name] = _share(stmt.buffer)
        most = max(most, sum(alive.values()))
        alive = _after(alive, last, i)
    return most


def _after(alive: Mapping[str, int], last: Mapping[str, int], place: int) -> dict[str, int]:
    return {name: size for name, size in alive.items() if last.get(name, -1) > place}


def _inside(stmt: Stmt) -> int:
    match stmt:
        case For():
            return (0 if stmt.kind == "unroll" else 1) + _peak(stmt.body)
        case If():
            return max(_peak(b) for b in (stmt.then, stmt.other) if b is not None)
        case Block():
            return _peak(stmt)
    return 0


def _names(stmt: Stmt) -> set[str]:
    """Variables and buffers that a statement and what is in it read or write."""
    found: set[str] = set()
    for s in statements(Block((stmt,))):
        match s:
            case Store():
                found.add(s.buffer.name)
            case MatrixLoad() | MatrixStore():
                found.add(s.matrix.name)
            case MatrixMultiply():
                found |= {s.sums.name, s.a.name, s.b.name}
        for x in (x for e in expressions(s) for x in walk(e)):
            found |= {x.name} if isinstance(x, Var) else {x.buffer.name} if isinstance(x, Load) else set()
    return found


def _share(buffer: Buffer) -> int:
    """Registers that a thread gives to a buffer."""
    words = max(buffer.size, 1) * _words(buffer.dtype, buffer.lanes)
    return -(-words // MATRIX_THREADS) if buffer.space == "matrix" else words


def _words(dtype: DType, lanes: int) -> int:
    return -(-dtype.nbytes * lanes // WORD)
