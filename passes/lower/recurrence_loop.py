"""The serial loop over time: a block of hidden units has all its gates in registers; state lies in whole vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from ...ir.graph import Value
from ...ir.loops import Const, Expr, ForKind, cast, const, maximum, minimum
from ...ir.types import DType
from .context import KernelBuilder
from .grid.recurrent_launches import launch_steps
from .micro import Rows, multiply, packed, splats_lanes
from .packing import spans
from .product import multiply_add, tree_sum, whole_and_rest
from .recurrence import Memory, Sequence
from .recurrent_step import Gates, Moment, Phase, beginnings
from .tasks import guarded, tasks


def run_steps(
    seq: Sequence, memory: Memory, phases: tuple[Phase, ...], family: str, kept: tuple[Value, ...] = ()
) -> None:
    """The kernel over directions and rows of the batch; time runs inside. `kept`: rows of state of the step's own. Or a
    kernel a step."""
    if seq.launches is not None:
        launch_steps(seq, memory, phases, family)
        return
    step = partial(_step, seq, phases)
    steps, batch, _ = seq.dims
    if seq.team is not None:
        for direction in range(seq.directions):
            _by_teams(seq, memory, step, family, direction, kept)
        return
    tiles = -(-batch // seq.rows)
    count = seq.directions * tiles
    macs = steps * batch * seq.directions * seq.gates * seq.hidden * seq.hidden
    k = seq.ctx.kernel()
    for t in tasks(k, macs, count):
        tile = k.let(t % tiles, "tile")
        for d in range(seq.directions):
            mine = (t >= d * tiles) & (t < (d + 1) * tiles) if seq.directions > 1 else t < count
            for _ in guarded(k, mine, seq.directions > 1):
                for rows, here in whole_and_rest(k, tile, batch, seq.rows):
                    for _ in here:
                        _walk(seq, memory, step, k, d, tuple(tile * seq.rows + r for r in range(rows)))
    k.done(family)


def _by_teams(
    seq: Sequence, memory: Memory, step: Callable[[Moment], None], family: str, direction: int, kept: tuple[Value, ...]
) -> None:
    """One direction: a work-group makes a row of the batch, its state in shared memory."""
    k, team = seq.ctx.kernel(), seq.team
    assert team is not None
    rows = (*kept, *((memory.cell,) if memory.cell is not None else ()))
    for b in k.loop("batch", seq.dims[1], kind="grid"):
        k.near[memory.hidden] = k.alloc("hidden", seq.dtype, 2 * seq.padded, "shared")
        for value in rows:
            k.near[value] = k.alloc("state", seq.dtype, seq.padded, "shared")
        for t in k.loop("thread", team.threads, kind="thread"):
            team.thread = t
            _walk(seq, memory, step, k, direction, (b,))
    k.done(family)


def _units(seq: Sequence, k: KernelBuilder) -> Iterator[tuple[Expr, int]]:
    """(first unit, lanes) of all that a row has, or of the thread's part of it."""
    if seq.team is None:
        yield from spans(k, seq.hidden, seq.lanes)
    else:
        yield from ((unit, 1) for unit in seq.team.along(k, seq.hidden))


def _step(seq: Sequence, phases: tuple[Phase, ...], now: Moment) -> None:
    for number, phase in enumerate(phases):
        if number:
            now.together()
        sums = _sums(seq, phase, now)
        for block in now.blocks(seq.blocks):
            for row, gates in enumerate(sums(block)):
                phase.update(now, row, block, gates)


def _walk(
    seq: Sequence,
    memory: Memory,
    step: Callable[[Moment], None],
    k: KernelBuilder,
    direction: int,
    batch: tuple[Expr, ...],
) -> None:
    """All steps of some rows of the batch in one direction."""
    steps = seq.dims[0]
    batch = tuple(k.let(b, "b") for b in batch)
    half = seq.half
    _begin(seq, k, memory.hidden, seq.operand(5), direction, batch)
    if memory.cell is not None:
        _begin(seq, k, memory.cell, seq.operand(6), direction, batch)
    if seq.team is not None:
        k.barrier()
    lengths, count = seq.operand(4), const(steps)
    end: Expr = count
    if lengths is not None:
        length = cast(k.load(k.tensor(lengths), batch[0]), DType.I64)
        end = k.let(maximum(minimum(length, count), const(0)), "length")
    # A team comes to every barrier, whatever the length of its sequence.
    for t in k.loop("step", end if seq.team is None else count, kind=_kind(seq, count)):
        now = k.let(end - 1 - t, "now") if seq.reversed[direction] else t
        odd = k.let(t % 2, "odd")
        old = k.let(odd * half, "old")
        width = seq.gates * seq.hidden
        inputs = tuple(
            k.let(seq.input_row(now, b) * (seq.directions * width) + direction * width, "row") for b in batch
        )
        new = k.let(half - old, "new")
        active = k.let(t < end, "active") if seq.team is not None and lengths is not None else None
        moment = Moment(k, direction, batch, old, new, inputs, odd, seq.team, active)
        step(moment)
        moment.together()
        if (y := seq.result(0)) is not None:
            for b in batch:
                sink, source = k.let(seq.y_at(now, direction, b), "y"), k.let(new + seq.own_at(direction, b), "h")
                for _ in moment.while_active():
                    _copy(seq, k, y, sink, memory.hidden, source)
    if lengths is not None and (y := seq.result(0)) is not None:
        for t in k.loop("step", steps, end):
            sink = k.let(seq.y_at(t, direction, batch[0]), "y")
            for h, lanes in _units(seq, k):
                k.store(k.tensor(y), sink + h, const(0, seq.dtype, lanes))
    last = k.let(end % 2 * half, "last")
    for index, value, base in ((1, memory.hidden, last), (2, memory.cell, const(0))):
        if value is not None and (out := seq.result(index)) is not None:
            for b in batch:
                _copy(seq, k, out, seq.state_at(direction, b), value, base + seq.own_at(direction, b))


def _kind(seq: Sequence, end: Const) -> ForKind:
    """Two steps of a team are unrolled: PoCL's compiler (3.1) stops at an assertion on a loop of two iterations with a
    barrier in it and threads that sit out."""
    return "unroll" if seq.team is not None and int(end.value) == 2 else "serial"


def _begin(
    seq: Sequence, k: KernelBuilder, state: Value, initial: Value | None, direction: int, batch: tuple[Expr, ...]
) -> None:
    for b in batch:
        own = k.let(seq.own_at(direction, b), "own")
        blocks = k.loop("block", seq.blocks) if seq.team is None else seq.team.along(k, seq.blocks)
        for block in blocks:
            k.store(k.tensor(state), own + block * seq.lanes, const(0, seq.dtype, seq.lanes))
        if initial is not None:
            _copy(seq, k, state, own, initial, seq.state_at(direction, b))


def _copy(seq: Sequence, k: KernelBuilder, sink: Value, to: Expr, source: Value, at: Expr) -> None:
    """The hidden units of one row."""
    for h, lanes in _units(seq, k):
        k.store(k.tensor(sink), to + h, k.load(k.tensor(source), at + h, lanes))


def _sums(seq: Sequence, phase: Phase, now: Moment) -> Callable[[Expr], list[Gates]]:
    """Makes a phase's sums for a block of units, a list a row."""
    if phase.sums is not None:
        return phase.sums(now)
    then = replace(now, old=const(0)) if phase.once else now
    return lambda block: _gate_sums(seq, phase, then, block)


def _gate_sums(seq: Sequence, phase: Phase, now: Moment, block: Expr) -> list[Gates]:
    if now.team is not None:
        return [_team_sums(seq, phase, now, block)]
    k, n, lanes, rows = now.k, len(phase.gates), seq.lanes, len(now.batch)
    sets = seq.sums(seq.plan, n, rows)
    total = n * rows
    acc = k.registers("acc", seq.dtype, total * sets, lanes)
    begin = [value for row in range(rows) for value in beginnings(seq, phase, now, row, block)]
    for i in range(total * sets):
        k.store(acc, i, begin[i] if i < total else const(0, seq.dtype, lanes))
    weights, state = k.tensor(phase.memory.weights), k.tensor(phase.memory.hidden)
    base = k.let((block + now.direction * seq.blocks) * (seq.hidden * n * lanes), "w")
    sources = [k.let(now.old + seq.own_at(now.direction, b), "h") for b in now.batch]
    x = Rows(state, tuple((source, 0) for source in sources))
    unroll = max(sets, 4 if splats_lanes(seq.ctx.target) else 2)
    multiply(k, x, packed(weights, base, n, lanes), seq.hidden, acc, sets=sets, unroll=unroll)
    sums = [k.let(tree_sum([k.load(acc, s * total + i) for s in range(sets)]), "gate") for i in range(total)]
    return [sums[r * n : (r + 1) * n] for r in range(rows)]


def _team_sums(seq: Sequence, phase: Phase, now: Moment, unit: Expr) -> Gates:
    """The same for one unit of a team's thread, whose neighbours read neighbouring weights."""
    k, n, team = now.k, len(phase.gates), now.team
    assert team is not None
    acc = k.alloc("acc", seq.dtype, n, "register")
    for i, begin in enumerate(beginnings(seq, phase, now, 0, unit)):
        k.store(acc, i, begin)
    weights, state = k.tensor(phase.memory.weights), k.tensor(phase.memory.hidden)
    blocks = -(-seq.hidden // team.threads)
    block = k.let(unit / team.threads + now.direction * blocks, "block")
    base = k.let(block * (seq.hidden * n * team.threads) + team.thread, "w")
    for c in k.loop("c", seq.hidden):
        value = k.let(k.load(state, now.old + c), "h")
        for i in range(n):
            weight = k.load(weights, base + c * (n * team.threads) + i * team.threads)
            k.store(acc, i, multiply_add(value, weight, k.load(acc, i)))
    return [k.let(k.load(acc, i), "gate") for i in range(n)]
