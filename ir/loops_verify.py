"""Rules of loop IR, checked before emission: an error names kernel and statement.

Names are defined before use and unique in a kernel; operands agree in type and lanes; a parallel loop stands
outermost only; register buffers are indexed by constants and loop variables of unrolled loops; constant and affine
indices whose range is known stay inside their buffer; steps bind as many slots as their kernel has parameters, each
inside its base.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

from .errors import VerifyError
from .loops import (
    MATRIX,
    MATRIX_THREADS,
    Alloc,
    Barrier,
    Binary,
    Block,
    Buffer,
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
    Stmt,
    Store,
    SubgroupXor,
    Var,
)
from .loops_ranges import Interval, interval, loop_interval
from .loops_rules import const_problem, is_matrix, matrix_problem, node_problem
from .loops_visit import operands, statements, walk
from .program import Program, Slot, Step
from .types import DType

MAX_LANES = 64
STACK_BYTES = 1 << 16
"""Stack and register buffers of one kernel together; worker threads of an app may have small stacks."""

GRID_DIMENSIONS = 3
SUBGROUP = 128
"""Threads of a subgroup, at most."""

_NAME = re.compile(r"[A-Za-z_]\w*")


def verify_program(program: Program) -> None:
    """Check every kernel and step; raises VerifyError."""
    for name, kernel in program.kernels.items():
        if name != kernel.name:
            raise VerifyError(f"kernel '{kernel.name}' is filed under the name '{name}'")
        verify_kernel(kernel, program.threads)
    seen = set(program.kernels)
    for step in (*program.prepare, *program.steps):
        if step.symbol in seen or not _NAME.fullmatch(step.symbol):
            raise VerifyError(f"symbol '{step.symbol}' is used twice or is no identifier", where=_origin(step))
        seen.add(step.symbol)
        _verify_step(program, step)
    for step in program.prepare:
        if any(slot.base not in ("weights", "prepared") for slot in step.args):
            raise VerifyError("a step that prepares sees only weights and what is prepared", where=_origin(step))


def _origin(step: Step) -> str:
    return f"step {step.symbol}" + (f" of {', '.join(step.origin)}" if step.origin else "")


def _verify_step(program: Program, step: Step) -> None:
    where = _origin(step)
    kernel = program.kernels.get(step.kernel)
    if kernel is None:
        raise VerifyError(f"there is no kernel '{step.kernel}'", where=where)
    if len(step.args) != len(kernel.params):
        raise VerifyError(f"{len(step.args)} arguments for {len(kernel.params)} parameters", where=where)
    written = stored_buffers(kernel)
    for slot, param in zip(step.args, kernel.params, strict=True):
        limit = _base_bytes(program, slot, where)
        if slot.offset < 0 or slot.offset + param.size * param.dtype.nbytes > limit:
            raise VerifyError(
                f"'{param.name}' takes bytes {slot.offset} to {slot.offset + param.size * param.dtype.nbytes}"
                f" of {limit} of {slot.base} {slot.index}",
                where=where,
            )
        if slot.offset % max(param.align, param.dtype.nbytes):
            raise VerifyError(f"'{param.name}' at byte {slot.offset} of {slot.base} is not aligned", where=where)
        prepared = slot.base == "prepared" and all(step is not s for s in program.prepare)
        if param.name in written and (slot.base in ("input", "weights") or prepared):
            raise VerifyError(f"'{param.name}' is written but bound to {slot.base}", where=where)


def _base_bytes(program: Program, slot: Slot, where: str) -> int:
    if slot.base == "arena":
        return program.arena_bytes
    if slot.base == "weights":
        return len(program.weights)
    if slot.base == "prepared":
        return program.prepared_bytes
    ports = program.inputs if slot.base == "input" else program.outputs
    if not 0 <= slot.index < len(ports):
        raise VerifyError(f"there is no {slot.base} {slot.index}", where=where)
    port = ports[slot.index]
    return prod(port.shape) * port.dtype.nbytes


def stored_buffers(kernel: Kernel) -> set[str]:
    """Names of the buffers that a kernel writes."""
    return {s.buffer.name for s in statements(kernel.body) if isinstance(s, Store)}


def verify_kernel(kernel: Kernel, threads: int = 1) -> None:
    """Check one kernel; raises VerifyError."""
    _Checker(kernel, threads).run()


@dataclass(eq=False)
class _Checker:
    """Walks a kernel with what is in scope: buffers, types and (where known) ranges of names."""

    kernel: Kernel
    threads: int
    buffers: dict[str, Buffer] = field(default_factory=dict)
    names: dict[str, tuple[DType, int]] = field(default_factory=dict)
    ranges: dict[str, Interval] = field(default_factory=dict)
    unrolled: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    local_bytes: int = 0
    guards: int = 0
    around: list[str] = field(default_factory=list)
    """Kinds of the loops around a statement, outermost first."""
    group: int = 0
    """Threads of a work-group, inside of thread loops."""
    subgroup: int = 0
    """Threads of the innermost thread loop."""
    varying: set[str] = field(default_factory=set)
    """Names whose values differ among them, as far as can be told."""
    at: Stmt | None = None

    def run(self) -> None:
        for p in self.kernel.params:
            self.define(p.name)
            if p.space not in ("param", "constant") or p.lanes != 1:
                self.fail(f"parameter '{p.name}' is in {p.space} space with {p.lanes} lanes")
            self.buffers[p.name] = p
        self.define("worker")
        self.names["worker"] = (DType.I64, 1)
        self.ranges["worker"] = Interval(0, self.threads - 1, True, frozenset(("worker",)))
        self.block(self.kernel.body, outermost=True)

    def fail(self, what: str) -> None:
        raise VerifyError(what, where=f"kernel {self.kernel.name}" + (f", {_brief(self.at)}" if self.at else ""))

    def define(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            self.fail(f"'{name}' is no identifier")
        if name in self.used:
            self.fail(f"name '{name}' is defined twice")
        self.used.add(name)

    # --- statements

    def block(self, block: Block, outermost: bool = False) -> None:
        buffers, names, ranges = dict(self.buffers), dict(self.names), dict(self.ranges)
        for stmt in block.body:
            self.at = stmt
            self.statement(stmt, outermost and len(block.body) == 1)
        self.buffers, self.names, self.ranges = buffers, names, ranges

    def statement(self, stmt: Stmt, outermost: bool) -> None:
        match stmt:
            case For():
                self.loop(stmt, outermost)
            case If():
                self.typed(stmt.cond, DType.BOOL, "condition")
                self.guards += 1
                self.block(stmt.then)
                if stmt.other is not None:
                    self.block(stmt.other)
                self.guards -= 1
            case Let():
                self.exchange(stmt.value) if isinstance(stmt.value, SubgroupXor) else self.expr(stmt.value)
                self.define(stmt.name)
                self.names[stmt.name] = (stmt.value.dtype, stmt.value.lanes)
                known = interval(stmt.value, self.ranges)
                if known is not None:
                    self.ranges[stmt.name] = known
                if self.group and self.varies(stmt.value):
                    self.varying.add(stmt.name)
            case Alloc():
                self.alloc(stmt.buffer)
            case Store():
                self.store(stmt)
            case Block():
                self.block(stmt)
            case Prefetch():
                self.prefetch(stmt)
            case Barrier():
                self.for_all("a barrier")
            case MatrixLoad() | MatrixStore() | MatrixMultiply():
                self.on_matrices(stmt)

    def loop(self, loop: For, outermost: bool) -> None:
        self.typed(loop.begin, DType.I64, "begin")
        self.typed(loop.end, DType.I64, "end")
        if loop.step < 1:
            self.fail(f"step {loop.step} is not positive")
        if loop.kind == "parallel":
            constant = isinstance(loop.begin, Const) and isinstance(loop.end, Const)
            if not outermost:
                self.fail("a parallel loop must be the only statement of its kernel")
            if not constant or loop.begin != Const(DType.I64, 1, 0) or loop.step != 1:
                self.fail("a parallel loop runs from 0 to a constant by 1")
        if loop.kind in ("grid", "thread"):
            self.grid_loop(loop)
        self.define(loop.var)
        names, ranges, unrolled, group = dict(self.names), dict(self.ranges), set(self.unrolled), self.group
        if loop.kind == "thread":
            assert isinstance(loop.end, Const)
            self.subgroup, self.varying = int(loop.end.value), {loop.var}
            self.group = max(self.group, 1) * self.subgroup
        if self.group and (self.varies(loop.begin) or self.varies(loop.end)):
            self.varying.add(loop.var)
        self.names[loop.var] = (DType.I64, 1)
        known = loop_interval(loop, self.ranges)
        if known is not None:
            self.ranges[loop.var] = known
        if loop.kind == "unroll":
            if not (isinstance(loop.begin, Const) and isinstance(loop.end, Const)):
                self.fail("an unrolled loop needs constant bounds")
            self.unrolled.add(loop.var)
        may_not_run = known is None or not known.exact
        self.guards += may_not_run
        self.around.append(loop.kind)
        if known is None or known.lo <= known.hi:  # a loop that never runs has no indices to check
            self.block(loop.body)
        self.around.pop()
        self.guards -= may_not_run
        self.names, self.ranges, self.unrolled, self.group = names, ranges, unrolled, group

    def grid_loop(self, loop: For) -> None:
        """Grid loops are outermost, thread loops come next; at most three of each, counting from 0 to a constant."""
        constant = isinstance(loop.end, Const) and loop.begin == Const(DType.I64, 1, 0) and loop.step == 1
        if not constant:
            self.fail(f"a {loop.kind} loop runs from 0 to a constant by 1")
        outside = [kind for kind in self.around if kind != loop.kind]
        if outside != ["grid"] * len(outside) or (loop.kind == "grid" and outside):
            self.fail(f"a {loop.kind} loop stands inside of other loops")
        if self.around.count(loop.kind) == GRID_DIMENSIONS:
            self.fail(f"there are more than {GRID_DIMENSIONS} {loop.kind} loops")

    def for_all(self, what: str) -> None:
        """What all threads of a work-group take part in stands where they all come."""
        if not self.group or self.guards:
            self.fail(f"{what} stands where not all threads of a work-group must come")

    def together(self, what: str) -> None:
        """What subgroups do together, with a matrix."""
        self.for_all(what)
        if self.subgroup != MATRIX_THREADS:
            self.fail(f"{what} needs subgroups of {MATRIX_THREADS} threads, not of {self.subgroup}")

    def varies(self, e: Expr) -> bool:
        """Whether a value may differ among the threads of a subgroup."""
        return any(isinstance(x, Load | SubgroupXor) or isinstance(x, Var) and x.name in self.varying for x in walk(e))

    def on_matrices(self, s: OnMatrices) -> None:
        self.together("a statement on matrices")
        problem = matrix_problem(s)
        if problem:
            self.fail(problem)
        if isinstance(s, MatrixMultiply):
            held = [(s.sums, s.at), (s.a, s.a_at), (s.b, s.b_at)]
        else:
            held = [(s.matrix, s.index)]
            self.access(s.buffer, s.place, (MATRIX - 1) * s.stride + MATRIX)
            if s.place.lanes != 1 or self.varies(s.place):
                self.fail(f"place in '{s.buffer.name}' differs among the threads of a subgroup")
        for buffer, index in held:
            self.access(buffer, index, MATRIX * MATRIX)

    def exchange(self, e: SubgroupXor) -> None:
        self.for_all("subgroup_xor")
        self.expr(e.a)
        if e.lanes != 1 or e.a.dtype is not e.dtype or e.a.lanes != 1:
            self.fail(f"subgroup_xor of {e.a.dtype}x{e.a.lanes} to {e.dtype}x{e.lanes}")
        if not 0 < e.mask < SUBGROUP or self.group % (1 << e.mask.bit_length()):
            self.fail(f"subgroup_xor by {e.mask} in work-groups of {self.group} threads")

    def alloc(self, buffer: Buffer) -> None:
        self.define(buffer.name)
        known = buffer.space in ("stack", "register", "shared") or is_matrix(buffer)
        if not known or buffer.size < 0 or not 1 <= buffer.lanes <= MAX_LANES:
            self.fail(f"cannot allocate {buffer.size} of {buffer.lanes} lanes in {buffer.space} space")
        threads = MATRIX_THREADS if buffer.space == "matrix" else 1
        self.local_bytes += buffer.size * buffer.lanes * buffer.dtype.nbytes // threads
        if self.local_bytes > STACK_BYTES:
            self.fail(f"local buffers take {self.local_bytes} bytes, more than {STACK_BYTES}")
        self.buffers[buffer.name] = buffer

    def store(self, s: Store) -> None:
        self.expr(s.value)
        self.access(s.buffer, s.index, s.value.lanes)
        if s.value.dtype is not s.buffer.dtype:
            self.fail(f"stores {s.value.dtype} into {s.buffer.dtype} buffer '{s.buffer.name}'")
        if s.buffer.space == "constant":
            self.fail(f"stores into constant buffer '{s.buffer.name}'")
        if s.buffer.space == "matrix":
            self.together(f"a store into '{s.buffer.name}'")
            if not isinstance(s.value, Const):
                self.fail(f"stores into matrix '{s.buffer.name}' what is no constant")

    def prefetch(self, s: Prefetch) -> None:
        self.typed(s.index, DType.I64, f"index of '{s.buffer.name}'")
        if self.buffers.get(s.buffer.name) != s.buffer or s.buffer.space not in ("param", "constant"):
            self.fail(f"prefetches '{s.buffer.name}', which is no parameter")

    # --- expressions

    def typed(self, e: Expr, dtype: DType, what: str) -> None:
        self.expr(e)
        if e.dtype is not dtype or e.lanes != 1:
            self.fail(f"{what} is {e.dtype}x{e.lanes}, not a scalar {dtype}")

    def access(self, buffer: Buffer, index: Expr, lanes: int) -> None:
        """Rules of an index: its type, lanes, and that it stays in the buffer as far as can be shown."""
        if self.buffers.get(buffer.name) != buffer:
            self.fail(f"buffer '{buffer.name}' is not in scope")
        self.expr(index)
        if index.dtype is not DType.I64:
            self.fail(f"index of '{buffer.name}' is {index.dtype}")
        if buffer.lanes > 1 and (index.lanes != 1 or lanes != buffer.lanes):
            self.fail(f"'{buffer.name}' holds vectors of {buffer.lanes} lanes, accessed with {lanes}")
        if index.lanes not in (1, lanes):
            self.fail(f"index of '{buffer.name}' has {index.lanes} lanes, the value {lanes}")
        if buffer.space in ("register", "matrix") and not self.is_static(index):
            self.fail(f"{buffer.space} buffer '{buffer.name}' needs an index that is constant once unrolled")
        known = None if self.guards else interval(index, self.ranges)
        last = 0 if index.lanes > 1 or buffer.lanes > 1 else lanes - 1
        if known is not None and known.exact and (known.lo < 0 or known.hi + last >= buffer.size):
            self.fail(f"index {known.lo}..{known.hi + last} is outside '{buffer.name}' of {buffer.size} elements")

    def is_static(self, e: Expr) -> bool:
        match e:
            case Const():
                return True
            case Var():
                return e.name in self.unrolled
            case Binary():
                return self.is_static(e.a) and self.is_static(e.b)
        return False

    def expr(self, e: Expr) -> None:
        for x in operands(e):
            if not isinstance(e, Load):
                self.expr(x)
        if not 1 <= e.lanes <= MAX_LANES or e.dtype is DType.STRING:
            self.fail(f"value of {e.lanes} lanes of {e.dtype}")
        problem = self.problem(e)
        if problem:
            self.fail(f"{type(e).__name__}: {problem}")

    def problem(self, e: Expr) -> str:
        """What is wrong with one node, its operands being right; empty where nothing is."""
        match e:
            case Var():
                found = self.names.get(e.name)
                if found is None:
                    return f"'{e.name}' is not defined here"
                return "" if found == (e.dtype, e.lanes) else f"'{e.name}' is {found[0]}x{found[1]}"
            case Const():
                return const_problem(e)
            case Load():
                self.access(e.buffer, e.index, e.lanes)
                if e.buffer.space == "matrix":
                    return f"elements of '{e.buffer.name}' are no values"
                return "" if e.dtype is e.buffer.dtype else f"{e.dtype} from {e.buffer.dtype} '{e.buffer.name}'"
            case SubgroupXor():
                return "stands inside of another expression"
        return node_problem(e)


def _brief(stmt: Stmt) -> str:
    """A statement in a few words, for messages."""
    match stmt:
        case For():
            return f"{stmt.kind} loop {stmt.var}"
        case Let():
            return f"let {stmt.name}"
        case Alloc():
            return f"alloc {stmt.buffer.name}"
        case Store():
            return f"store to {stmt.buffer.name}"
    return type(stmt).__name__.lower()
