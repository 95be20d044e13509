"""Runs loop IR on numpy arrays, one statement after the other: the definition of its semantics, and slow.

Vector values are arrays of `lanes` elements, scalars arrays of one. `Fma` rounds twice. Workers run one after another,
threads of a work-group as well, from one place where they meet to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .errors import RunError
from .loops import (
    MATRIX,
    MATRIX_THREADS,
    Alloc,
    Barrier,
    Block,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    MatrixLoad,
    MatrixMultiply,
    MatrixStore,
    OnMatrices,
    Prefetch,
    Ramp,
    Stmt,
    Store,
    SubgroupXor,
    Var,
)
from .loops_values import Array, call, combine
from .loops_visit import expressions, operands, statements
from .program import Program


def run_program(program: Program, inputs: Sequence[Array], fill: int = 0) -> list[Array]:
    """Outputs of a whole program for inputs in the order of its ports; raises RunError on an index out of bounds.
    fill: bytes of memory that nothing has been written to."""
    arena, prepared = (np.full(n, fill, np.uint8) for n in (program.arena_bytes, program.prepared_bytes))
    weights = np.frombuffer(bytes(program.weights), np.uint8)
    given = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in inputs]
    results = [np.zeros(p.shape, p.dtype.numpy) for p in program.outputs]
    made = [r.reshape(-1).view(np.uint8) for r in results]
    bases = {"arena": [arena], "weights": [weights], "input": given, "output": made, "prepared": [prepared]}
    for step in (*program.prepare, *program.steps):
        kernel = program.kernels[step.kernel]
        args = []
        for slot, p in zip(step.args, kernel.params, strict=True):
            memory = bases[slot.base][slot.index]
            window = memory[slot.offset : slot.offset + p.size * p.dtype.nbytes]
            args.append(window.view(p.dtype.numpy))
        run_kernel(kernel, args)
    return results


def run_kernel(kernel: Kernel, args: Sequence[Array]) -> None:
    """Run one kernel on flat arrays, one a parameter, which it changes; raises RunError on an index out of bounds."""
    memory = {p.name: a for p, a in zip(kernel.params, args, strict=True)}
    with np.errstate(all="ignore"):
        _Run(kernel.name, memory).block(kernel.body)


class _Run:
    """Memory of buffers and values of names."""

    def __init__(self, name: str, memory: Mapping[str, Array]) -> None:
        self.name = name
        self.memory = dict(memory)
        self.values: dict[str, Array] = {"worker": np.zeros(1, np.int64)}
        self.shared: dict[str, Array] = {}
        """Memory of the work-group that is running."""

    def block(self, block: Block) -> None:
        for stmt in block.body:
            self.statement(stmt)

    def team(self, loop: For, counters: Mapping[str, int]) -> Iterator[_Run]:
        """Runs of the threads below a thread loop, each with its own names and memory of its own."""
        for i in range(int(self.value(loop.begin)[0]), int(self.value(loop.end)[0]), loop.step):
            here = {**counters, loop.var: i}
            first = loop.body.body[0] if len(loop.body.body) == 1 else None
            if isinstance(first, For) and first.kind == "thread":
                yield from self.team(first, here)
                continue
            run = _Run(self.name, self.memory)
            run.values = {**self.values, **{name: np.array([at], np.int64) for name, at in here.items()}}
            run.shared = self.shared
            yield run

    def together(self, loop: For) -> None:
        """A work-group: its threads one after another from one place where they meet to the next."""
        self.shared = {}
        runs = list(self.team(loop, {}))
        body = loop.body
        while len(body.body) == 1 and isinstance(body.body[0], For) and body.body[0].kind == "thread":
            body = body.body[0].body
        steps = [run.steps(body) for run in runs]
        while True:
            places = [next(s, None) for s in steps]
            first = places[0] if places else None
            if any(place is not first for place in places):
                kind = "a barrier" if isinstance(first, Barrier | None) else "an exchange"
                raise RunError(f"not all threads of a work-group reach {kind}", where=f"kernel {self.name}")
            if first is None:
                return
            if isinstance(first, Let):
                _exchange(runs, first)
            elif isinstance(first, OnMatrices):
                for i in range(0, len(runs), MATRIX_THREADS):
                    _on_matrices(runs[i : i + MATRIX_THREADS], first)

    def steps(self, block: Block) -> Iterator[Stmt]:
        """Runs a thread's block; comes back with each statement for which all threads meet, before it has run."""
        for stmt in block.body:
            if not any(_meets(s) for s in statements(Block((stmt,)))):
                self.statement(stmt)
            elif _meets(stmt):
                yield stmt
            elif isinstance(stmt, For):
                for i in range(int(self.value(stmt.begin)[0]), int(self.value(stmt.end)[0]), stmt.step):
                    self.values[stmt.var] = np.array([i], np.int64)
                    yield from self.steps(stmt.body)
            elif isinstance(stmt, If):
                if self.value(stmt.cond)[0]:
                    yield from self.steps(stmt.then)
                elif stmt.other is not None:
                    yield from self.steps(stmt.other)
            else:
                assert isinstance(stmt, Block)
                yield from self.steps(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case For() if stmt.kind == "thread":
                self.together(stmt)
            case For():
                for i in range(int(self.value(stmt.begin)[0]), int(self.value(stmt.end)[0]), stmt.step):
                    self.values[stmt.var] = np.array([i], np.int64)
                    self.block(stmt.body)
            case If():
                if self.value(stmt.cond)[0]:
                    self.block(stmt.then)
                elif stmt.other is not None:
                    self.block(stmt.other)
            case Let():
                self.values[stmt.name] = self.value(stmt.value)
            case Alloc():
                self.memory[stmt.buffer.name] = self.made(stmt.buffer)
            case Store():
                where = self.where(stmt.buffer, self.value(stmt.index), stmt.value.lanes)
                value = self.value(stmt.value)
                for at, x in zip(where, value, strict=True):  # one by one: a scatter may hit an element twice
                    self.memory[stmt.buffer.name][at] = x
            case Block():
                self.block(stmt)
            case Prefetch() | Barrier() | MatrixLoad() | MatrixStore() | MatrixMultiply():
                pass

    def made(self, buffer: Buffer) -> Array:
        """Memory of a buffer: undefined, but the same in every run; of a shared one what another thread has made."""
        if buffer.space == "shared" and buffer.name in self.shared:
            return self.shared[buffer.name]
        memory: Array = np.full(buffer.size * buffer.lanes, 77).astype(buffer.dtype.numpy)
        if buffer.space == "shared":
            self.shared[buffer.name] = memory
        return memory

    def matrix(self, buffer: Buffer, index: int) -> Array:
        """A matrix of the thread's subgroup, to be changed."""
        where = self.where(buffer, np.array([index]), MATRIX * MATRIX)
        return self.memory[buffer.name][where[0] : where[0] + MATRIX * MATRIX].reshape(MATRIX, MATRIX)

    def where(self, buffer: Buffer, index: Array, lanes: int) -> Array:
        """Scalar element numbers of an access, in the flat memory of the buffer."""
        if buffer.lanes > 1:
            found = int(index[0]) * buffer.lanes + np.arange(lanes)
        else:
            found = index if len(index) == lanes and lanes > 1 else int(index[0]) + np.arange(lanes)
        if found.min() < 0 or found.max() >= len(self.memory[buffer.name]):
            raise RunError(f"index {index.tolist()} is outside '{buffer.name}'", where=f"kernel {self.name}")
        return found

    def value(self, e: Expr) -> Array:
        match e:
            case Const():
                return np.full(e.lanes, e.value).astype(e.dtype.numpy)
            case Var():
                return self.values[e.name]
            case Load():
                return self.memory[e.buffer.name][self.where(e.buffer, self.value(e.index), e.lanes)].copy()
            case Ramp():
                return self.value(e.base) + np.arange(e.lanes) * e.stride
            case Call():
                return call(e.name, e.dtype, [self.value(a) for a in e.args])
        return combine(e, [self.value(x) for x in operands(e)])


def _meets(stmt: Stmt) -> bool:
    """Whether all threads of a work-group run a statement together."""
    exchanges = isinstance(stmt, Let) and isinstance(stmt.value, SubgroupXor)
    return exchanges or isinstance(stmt, Barrier | OnMatrices)


def _exchange(runs: Sequence[_Run], let: Let) -> None:
    """Each thread's name for the value of another one."""
    assert isinstance(let.value, SubgroupXor)
    given = [run.value(let.value.a) for run in runs]
    for number, run in enumerate(runs):
        run.values[let.name] = given[number ^ let.value.mask]


def _on_matrices(runs: Sequence[_Run], stmt: OnMatrices) -> None:
    """A statement of a subgroup, whose matrices are those of its first thread."""
    first = runs[0]
    places = [int(first.value(e)[0]) for e in expressions(stmt)]
    if any([int(run.value(e)[0]) for e in expressions(stmt)] != places for run in runs[1:]):
        raise RunError("threads of a subgroup differ in a statement on matrices", where=f"kernel {first.name}")
    if isinstance(stmt, MatrixMultiply):
        total, a, b = (first.matrix(m, i) for m, i in zip((stmt.sums, stmt.a, stmt.b), places, strict=True))
        for d in range(MATRIX):
            left, right = a[:, d : d + 1].astype(np.float32), b[d].astype(np.float32)
            total[:] = left * right + total.astype(np.float32)
        return
    index, place = places
    span = first.where(stmt.buffer, np.array([place]), (MATRIX - 1) * stmt.stride + MATRIX)
    at = span[0] + np.arange(MATRIX)[:, None] * stmt.stride + np.arange(MATRIX)
    memory, matrix = first.memory[stmt.buffer.name], first.matrix(stmt.matrix, index)
    if isinstance(stmt, MatrixStore):
        memory[at] = matrix
    else:
        matrix[:] = memory[at].T if stmt.transposed else memory[at]
