"""Recurrences as a kernel a step: all units of all rows of the batch and both directions at once, with the state in the
arena. Each unit has some threads, which share the depth of its sums."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Series
from dataclasses import dataclass, replace

import numpy as np

from ....ir.graph import Value
from ....ir.loops import Buffer, Expr, cast, const, maximum, minimum
from ....ir.types import DType
from ..context import Call, KernelBuilder
from ..product import multiply_add
from ..recurrence import Memory, Sequence
from ..recurrent_step import Moment, Phase, beginnings
from ..tasks import guarded


def launch_steps(seq: Sequence, memory: Memory, phases: Series[Phase], family: str) -> None:
    """Append the kernel that begins the state, those of the steps, which tell by a constant which step they are, and
    the one that gives the last state."""
    ctx = seq.ctx
    _begin(seq, memory)
    first = len(ctx.calls)
    number = ctx.pack("step", np.zeros(1, np.int64))
    for phase in phases:
        _Step(seq, memory, phase, number, phase is phases[-1]).write(family)
    once = ctx.calls[first:]
    for step in range(1, seq.dims[0]):
        other = ctx.pack("step", np.full(1, step, np.int64))
        ctx.calls += [_bound(call, number, other) for call in once]
    _end(seq, memory)


def _bound(call: Call, value: Value, other: Value) -> Call:
    """The call with another value in place of one."""
    return replace(call, args=tuple(other if v is value else v for v in call.args))


def _rows(seq: Sequence, k: KernelBuilder) -> Iterator[tuple[int, Expr, Expr]]:
    """(direction, row of the batch, unit) of all units."""
    for direction in range(seq.directions):
        for b in k.loop("b", seq.dims[1]):
            for unit in k.loop("unit", seq.hidden):
                yield direction, b, unit


def _begin(seq: Sequence, memory: Memory) -> None:
    for value, initial in ((memory.hidden, seq.operand(5)), (memory.cell, seq.operand(6))):
        if value is None:
            continue
        k = seq.ctx.kernel()
        for direction, b, unit in _rows(seq, k):
            given: Expr = const(0, seq.dtype)
            if initial is not None:
                given = k.load(k.tensor(initial), seq.state_at(direction, b) + unit)
            k.store(k.tensor(value), seq.own_at(direction, b) + unit, given)
        k.done("state")


def _end(seq: Sequence, memory: Memory) -> None:
    for index, value in ((1, memory.hidden), (2, memory.cell)):
        out = seq.result(index)
        if value is None or out is None:
            continue
        k = seq.ctx.kernel()
        for direction, b, unit in _rows(seq, k):
            last = _length(seq, k, b) % 2 * seq.half if value is memory.hidden else const(0)
            at = last + seq.own_at(direction, b) + unit
            k.store(k.tensor(out), seq.state_at(direction, b) + unit, k.load(k.tensor(value), at))
        k.done("state")


def _length(seq: Sequence, k: KernelBuilder, b: Expr) -> Expr:
    """Steps of a row of the batch."""
    steps, lengths = const(seq.dims[0]), seq.operand(4)
    if lengths is None:
        return steps
    return maximum(minimum(cast(k.load(k.tensor(lengths), b), DType.I64), steps), const(0))


@dataclass(frozen=True, slots=True)
class _Step:
    """Writes the kernel of a phase; the last one gives the results, too. number: of the step, a constant."""

    seq: Sequence
    memory: Memory
    phase: Phase
    number: Value
    is_last: bool

    def write(self, family: str) -> None:
        seq, launches, n = self.seq, self.seq.launches, len(self.phase.gates)
        assert launches is not None
        k, blocks = seq.ctx.kernel(), -(-seq.hidden // launches.units)
        for row in k.loop("row", seq.directions * seq.dims[1], kind="grid"):
            for block in k.loop("block", blocks, kind="grid"):
                partial = k.alloc("partial", seq.dtype, launches.parts * n * launches.units, "shared")
                for part in k.loop("part", launches.parts, kind="thread"):
                    for lane in k.loop("lane", launches.units, kind="thread"):
                        self._thread(k, (row, block), (part, lane), partial)
        k.done(family)

    def _thread(self, k: KernelBuilder, group: tuple[Expr, Expr], thread: tuple[Expr, Expr], partial: Buffer) -> None:
        seq, launches, n, (row, block), (part, lane) = self.seq, self.seq.launches, len(self.phase.gates), group, thread
        assert launches is not None
        units, blocks = launches.units, -(-seq.hidden // launches.units)
        t = k.let(k.load(k.tensor(self.number, "step"), 0), "t")
        odd = k.let(t % 2, "odd")
        old = k.let(odd * seq.half, "old")
        direction, b = k.let(row / seq.dims[1], "direction"), k.let(row % seq.dims[1], "b")
        state, weights = k.tensor(self.phase.memory.hidden), k.tensor(self.phase.memory.weights)
        source = k.let(seq.own_at(direction, b) + (0 if self.phase.once else old), "h")
        base = k.let((block + direction * blocks) * (seq.hidden * n * units) + lane, "w")
        acc = k.alloc("acc", seq.dtype, n, "register")
        for i in range(n):
            k.store(acc, i, const(0, seq.dtype))
        for c in k.loop("c", seq.hidden, part, launches.parts):
            value = k.let(k.load(state, source + c), "value")
            for i in range(n):
                weight = k.load(weights, base + c * (n * units) + i * units)
                k.store(acc, i, multiply_add(value, weight, k.load(acc, i)))
        for i in range(n):
            k.store(partial, (part * n + i) * units + lane, k.load(acc, i))
        k.barrier()
        unit = k.let(block * units + lane, "unit")
        for _ in k.when((part < 1) & (unit < seq.hidden)):
            sums = [self._total(k, partial, i, lane) for i in range(n)]
            for d in range(seq.directions):
                for _ in guarded(k, direction < 1 if d == 0 else direction >= d, seq.directions > 1):
                    self._unit(k, d, b, (t, odd, old), unit, sums)

    def _total(self, k: KernelBuilder, partial: Buffer, gate: int, lane: Expr) -> Expr:
        """A gate's sum of all parts."""
        launches, n = self.seq.launches, len(self.phase.gates)
        assert launches is not None
        total = k.load(partial, gate * launches.units + lane)
        for part in range(1, launches.parts):
            total = total + k.load(partial, (part * n + gate) * launches.units + lane)
        return k.let(total, "total")

    def _unit(
        self, k: KernelBuilder, d: int, b: Expr, step: tuple[Expr, Expr, Expr], unit: Expr, sums: list[Expr]
    ) -> None:
        """What a unit makes of its sums, and its result: zero beyond the end of its sequence. step: its number, whether
        it is odd, and where the old state begins."""
        seq, (t, odd, old) = self.seq, step
        end = k.let(_length(seq, k, b), "length")
        now = k.let(end - 1 - t, "now") if seq.reversed[d] else t
        width = seq.gates * seq.hidden
        inputs = k.let(seq.input_row(now, b) * (seq.directions * width) + d * width, "row")
        new = k.let(seq.half - old, "new")
        active = k.let(t < end, "active") if seq.operand(4) is not None else None
        moment = Moment(k, d, (b,), old, new, (inputs,), odd, None, active)
        y = seq.result(0) if self.is_last else None
        for _ in moment.while_active():
            begin = beginnings(seq, self.phase, moment, 0, unit)
            self.phase.update(moment, 0, unit, [k.let(s + x, "gate") for s, x in zip(sums, begin, strict=True)])
            if y is not None:
                hidden = k.load(k.tensor(self.memory.hidden), new + seq.own_at(d, b) + unit)
                k.store(k.tensor(y), seq.y_at(now, d, b) + unit, hidden)
        if y is not None and active is not None:
            for _ in k.when(t >= end):
                k.store(k.tensor(y), seq.y_at(t, d, b) + unit, const(0, seq.dtype))
