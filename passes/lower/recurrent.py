"""LSTM, GRU and RNN: one matrix product for the inputs of all steps, then a serial loop over time.

The recurrent weights are packed `[direction][hidden / lanes][c][gate][lanes]`, so that all gates of a block of hidden
units end in registers together and the gate arithmetic runs right there. State lies padded to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, broadcast, cast, const, lane, maximum, minimum
from ...ir.types import DType
from .activations import Activation, activations
from .context import KernelBuilder, Lowering, lowers
from .gemm_kernel import (
    PARALLEL_MACS,
    Matrix,
    Product,
    guard,
    multiply,
    multiply_add,
    splats_lanes,
    tree_sum,
    whole_and_rest,
)
from .packing import gathered, spans, to_whole_vectors

Gates: TypeAlias = list[Expr]


@dataclass(frozen=True)
class Sequence:
    """Shapes, operands and options of one node. X is [steps, batch, inputs], or [batch, steps, inputs] (`by_batch`)."""

    ctx: Lowering
    gates: int
    functions: tuple[tuple[Activation, ...], ...]

    @cached_property
    def by_batch(self) -> bool:
        return bool(self.ctx.node.attrs.get("layout", 0))

    @cached_property
    def dims(self) -> tuple[int, int, int]:
        """(steps, batch, inputs)."""
        x = self.operand(0)
        assert x is not None
        first, second, inputs = x.type.dims
        return (second, first, inputs) if self.by_batch else (first, second, inputs)

    @cached_property
    def dtype(self) -> DType:
        x = self.operand(0)
        assert x is not None
        return x.type.dtype

    @cached_property
    def hidden(self) -> int:
        r = self.operand(2)
        assert r is not None
        return r.type.dims[2]

    @cached_property
    def reversed(self) -> tuple[bool, ...]:
        """One flag a direction."""
        direction = self.ctx.node.attrs.get("direction", "forward")
        return {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]

    @property
    def directions(self) -> int:
        return len(self.reversed)

    @cached_property
    def lanes(self) -> int:
        return self.ctx.lanes(self.dtype)

    @property
    def blocks(self) -> int:
        return -(-self.hidden // self.lanes)

    @property
    def padded(self) -> int:
        return self.blocks * self.lanes

    @cached_property
    def rows(self) -> int:
        """Rows of the batch whose accumulators are held at once."""
        if self.operand(4) is not None:
            return 1
        fit = (self.ctx.target.registers - self.gates - 1) // self.gates
        return max(1, min(self.dims[1], fit, 4))

    def operand(self, index: int) -> Value | None:
        return self.ctx.node.input(index)

    def result(self, index: int) -> Value | None:
        """Output `index`, None where it is left out."""
        outputs = self.ctx.node.outputs
        return outputs[index] if index < len(outputs) and outputs[index].name else None

    def input_row(self, step: Expr, b: Expr) -> Expr:
        """Row of X, counted over steps and batch in memory order."""
        steps, batch, _ = self.dims
        return b * steps + step if self.by_batch else step * batch + b

    def y_at(self, step: Expr, direction: int, b: Expr) -> Expr:
        """Offset of the hidden units in Y."""
        steps, batch, _ = self.dims
        d, h = self.directions, self.hidden
        if self.by_batch:
            return (b * steps + step) * (d * h) + direction * h
        return step * (d * batch * h) + b * h + direction * batch * h

    def state_at(self, direction: int, b: Expr) -> Expr:
        """Offset of the hidden units in initial_h, initial_c, Y_h and Y_c."""
        if self.by_batch:
            return b * (self.directions * self.hidden) + direction * self.hidden
        return b * self.hidden + direction * self.dims[1] * self.hidden

    def own_at(self, direction: int, b: Expr) -> Expr:
        """Offset in the padded state kept during the loop."""
        return b * self.padded + direction * self.dims[1] * self.padded


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of a few rows of the batch in one direction, inside the time loop."""

    k: KernelBuilder
    direction: int
    batch: tuple[Expr, ...]
    old: Expr
    new: Expr
    inputs: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What the time loop reads and keeps. `hidden` is double-buffered; `extra`: an operator's own padded rows."""

    inputs: Value
    weights: Value
    hidden: Value
    cell: Value | None
    extra: tuple[Value, ...] = ()


Step: TypeAlias = Callable[[Moment], None]


@lowers("LSTM")
def lower_lstm(ctx: Lowering) -> None:
    """Gates in order i, o, f, c; peepholes P in order i, o, f."""
    seq = Sequence(ctx, 4, activations(ctx, ("Sigmoid", "Tanh", "Tanh")))
    _check(seq)
    cell = ctx.scratch("cell", seq.dtype, seq.directions * seq.dims[1] * seq.padded)
    peephole = _padded_rows(seq, 7, range(3)) if seq.operand(7) is not None else None
    memory = _memory(seq, range(4), cell, (peephole,) if peephole else ())
    forgets = bool(ctx.node.attrs.get("input_forget", 0))

    def step(now: Moment) -> None:
        k, (f, g, h) = now.k, seq.functions[now.direction]
        for block in k.loop("block", seq.blocks):
            sums = _block(seq, memory, now, block, range(4))
            for b, (i, o, forget, c) in zip(now.batch, sums, strict=True):
                at = k.let(seq.own_at(now.direction, b) + block * seq.lanes, "at")
                old = k.let(k.load(k.tensor(cell), at, seq.lanes), "c")
                if peephole:
                    weights = [_padded_row(seq, k, peephole, now.direction * 3 + j, block) for j in range(3)]
                    i, forget = i + weights[0] * old, forget + weights[2] * old
                gate = k.let(f(k, _clip(seq, i)), "i")
                kept = 1.0 - gate if forgets else f(k, _clip(seq, forget))
                new = k.let(multiply_add(kept, old, gate * g(k, _clip(seq, c))), "c")
                if peephole:
                    o = o + weights[1] * new
                k.store(k.tensor(cell), at, new)
                k.store(k.tensor(memory.hidden), now.new + at, f(k, _clip(seq, o)) * h(k, new))

    _run(seq, memory, step, "lstm")


@lowers("RNN")
def lower_rnn(ctx: Lowering) -> None:
    """H = f(X·Wᵀ + H·Rᵀ + b)."""
    seq = Sequence(ctx, 1, activations(ctx, ("Tanh",)))
    _check(seq)
    memory = _memory(seq, range(1), None)

    def step(now: Moment) -> None:
        (f,) = seq.functions[now.direction]
        for block in now.k.loop("block", seq.blocks):
            for b, (total,) in zip(now.batch, _block(seq, memory, now, block, range(1)), strict=True):
                at = now.new + seq.own_at(now.direction, b) + block * seq.lanes
                now.k.store(now.k.tensor(memory.hidden), at, f(now.k, _clip(seq, total)))

    _run(seq, memory, step, "rnn")


@lowers("GRU")
def lower_gru(ctx: Lowering) -> None:
    """Gates in order z, r, h. The reset gate acts after the matrix product if `linear_before_reset`, else before it."""
    seq = Sequence(ctx, 3, activations(ctx, ("Sigmoid", "Tanh")))
    _check(seq)
    if ctx.node.attrs.get("linear_before_reset", 0):
        _gru_reset_after(seq)
    else:
        _gru_reset_before(seq)


def _gru_reset_after(seq: Sequence) -> None:
    bias = _padded_rows(seq, 3, (5,), 6) if seq.operand(3) is not None else None
    memory = _memory(seq, range(3), None, (bias,) if bias else (), recurrent_bias=2)

    def step(now: Moment) -> None:
        k, (f, g) = now.k, seq.functions[now.direction]
        for block in k.loop("block", seq.blocks):
            inputs = [_input(seq, memory, now, row, 2, block) for row in now.inputs]
            begin = _padded_row(seq, k, bias, now.direction, block) if bias else const(0, seq.dtype, seq.lanes)
            sums = _block(seq, memory, now, block, range(3), begin)
            for b, x, (z, r, h) in zip(now.batch, inputs, sums, strict=True):
                reset = f(k, _clip(seq, r))
                _gru_update(
                    seq, memory, now, b, block, f(k, _clip(seq, z)), g(k, _clip(seq, multiply_add(reset, h, x)))
                )

    _run(seq, memory, step, "gru")


def _gru_reset_before(seq: Sequence) -> None:
    size = seq.directions * seq.dims[1] * seq.padded
    update, gated = seq.ctx.scratch("update", seq.dtype, size), seq.ctx.scratch("gated", seq.dtype, size)
    memory = _memory(seq, range(2), None)
    last = _recurrent_weights(seq, range(2, 3))
    second = Memory(memory.inputs, last, gated, None)

    def step(now: Moment) -> None:
        k, (f, g) = now.k, seq.functions[now.direction]
        for block in k.loop("block", seq.blocks):
            for b, (z, r) in zip(now.batch, _block(seq, memory, now, block, range(2)), strict=True):
                at = k.let(seq.own_at(now.direction, b) + block * seq.lanes, "at")
                k.store(k.tensor(update), at, f(k, _clip(seq, z)))
                old = k.load(k.tensor(memory.hidden), now.old + at, seq.lanes)
                k.store(k.tensor(gated), at, f(k, _clip(seq, r)) * old)
        then = Moment(k, now.direction, now.batch, const(0), now.new, now.inputs)
        for block in k.loop("block", seq.blocks):
            for b, (h,) in zip(now.batch, _block(seq, second, then, block, range(2, 3)), strict=True):
                at = seq.own_at(now.direction, b) + block * seq.lanes
                z = k.load(k.tensor(update), at, seq.lanes)
                _gru_update(seq, memory, now, b, block, z, g(k, _clip(seq, h)))

    _run(seq, memory, step, "gru")


def _gru_update(seq: Sequence, memory: Memory, now: Moment, b: Expr, block: Expr, z: Expr, h: Expr) -> None:
    """H = (1 - z) · h + z · H_old = h + z · (H_old - h)."""
    k, state = now.k, now.k.tensor(memory.hidden)
    at = k.let(seq.own_at(now.direction, b) + block * seq.lanes, "at")
    h = k.let(h, "h")
    k.store(state, now.new + at, multiply_add(k.let(z, "z"), k.load(state, now.old + at, seq.lanes) - h, h))


def _check(seq: Sequence) -> None:
    if seq.dtype not in (DType.F32, DType.F64):
        raise seq.ctx.unsupported(f"{seq.ctx.node.op} of element type {seq.dtype} is not supported", "cast to float32")


def _clip(seq: Sequence, x: Expr) -> Expr:
    limit = seq.ctx.node.attrs.get("clip")
    return minimum(maximum(x, -float(limit)), float(limit)) if limit else x


# --- operands in the order in which the loop reads them


def _memory(
    seq: Sequence, gates: range, cell: Value | None, extra: tuple[Value, ...] = (), recurrent_bias: int = -1
) -> Memory:
    """The input product's call, packed weights of the first phase, and state."""
    size = 2 * seq.directions * seq.dims[1] * seq.padded
    inputs = _input_product(seq, recurrent_bias)
    hidden = seq.ctx.scratch("hidden", seq.dtype, size)
    return Memory(inputs, _recurrent_weights(seq, gates), hidden, cell, extra)


def _input_product(seq: Sequence, recurrent_bias: int) -> Value:
    """X·Wᵀ + Wb + Rb for all steps and directions: [rows of X, directions · gates · hidden] and a vector of padding.

    The recurrent bias of gate `recurrent_bias` is left out.
    """
    ctx, (steps, batch, inputs), h = seq.ctx, seq.dims, seq.hidden
    x, w, bias = seq.operand(0), seq.operand(1), seq.operand(3)
    assert x is not None and w is not None
    n = seq.directions * seq.gates * h
    out = ctx.scratch("inputs", seq.dtype, steps * batch * n + seq.lanes)
    start = None
    if bias is not None:
        column = np.arange(n)
        direction, gate = column // (seq.gates * h), column // h % seq.gates
        first = direction * 2 * seq.gates * h + column % (seq.gates * h)
        second = np.where(gate == recurrent_bias, -1, first + seq.gates * h)
        index = to_whole_vectors(np.stack([first, second]), seq.lanes)
        start = gathered(ctx, "bias", bias, index)

    def finish(k: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
        k.store(k.tensor(out), coords[0] * n + coords[1], value)

    product = Product(
        (), steps * batch, n, inputs, Matrix(x, (), inputs, 1), Matrix(w, (), 1, inputs), seq.dtype, finish, start
    )
    multiply(ctx, product, "inputs")
    return out


def _recurrent_weights(seq: Sequence, gates: range) -> Value:
    """R as [direction][block][c][gate][lane]; units beyond the last are zero."""
    r, h = seq.operand(2), seq.hidden
    assert r is not None
    unit = np.arange(seq.padded).reshape(seq.blocks, 1, 1, seq.lanes)
    direction = np.arange(seq.directions).reshape(-1, 1, 1, 1, 1)
    gate = np.array(gates).reshape(1, -1, 1)
    c = np.arange(h).reshape(1, h, 1, 1)
    index = np.where(unit < h, ((direction * seq.gates + gate) * h + unit) * h + c, -1)
    return gathered(seq.ctx, "recurrent", r, index.reshape(1, -1))


def _padded_rows(seq: Sequence, operand: int, rows: range | tuple[int, ...], of: int = 3) -> Value:
    """Rows of `hidden` elements out of [directions, of · hidden], each padded to whole vectors."""
    source = seq.operand(operand)
    assert source is not None
    unit = np.arange(seq.padded)
    row = np.array(rows).reshape(-1, 1) + of * np.arange(seq.directions).reshape(-1, 1, 1)
    index = np.where(unit < seq.hidden, row * seq.hidden + unit, -1)
    return gathered(seq.ctx, "rows", source, index.reshape(1, -1))


def _padded_row(seq: Sequence, k: KernelBuilder, rows: Value, row: int, block: Expr) -> Expr:
    return k.load(k.tensor(rows), block * seq.lanes + row * seq.padded, seq.lanes)


# --- the time loop


def _run(seq: Sequence, memory: Memory, step: Step, family: str) -> None:
    """The kernel over directions and rows of the batch; time runs inside."""
    steps, batch, _ = seq.dims
    tiles = -(-batch // seq.rows)
    count = seq.directions * tiles
    macs = steps * batch * seq.directions * seq.gates * seq.hidden * seq.hidden
    k = seq.ctx.kernel()
    spread = seq.ctx.threads > 1 and count > 1 and macs >= PARALLEL_MACS
    for t in k.parallel("t", count) if spread else k.loop("t", count):
        tile = k.let(t % tiles, "tile")
        for d in range(seq.directions):
            mine = (t >= d * tiles) & (t < (d + 1) * tiles) if seq.directions > 1 else t < count
            for _ in guard(k, mine, seq.directions > 1):
                for rows, here in whole_and_rest(k, tile, batch, seq.rows):
                    for _ in here:
                        _walk(seq, memory, step, k, d, tuple(tile * seq.rows + r for r in range(rows)))
    k.done(family)


def _walk(seq: Sequence, memory: Memory, step: Step, k: KernelBuilder, direction: int, batch: tuple[Expr, ...]) -> None:
    """All steps of some rows of the batch in one direction."""
    steps = seq.dims[0]
    batch = tuple(k.let(b, "b") for b in batch)
    half = seq.directions * seq.dims[1] * seq.padded
    _begin(seq, k, memory.hidden, seq.operand(5), direction, batch)
    if memory.cell is not None:
        _begin(seq, k, memory.cell, seq.operand(6), direction, batch)
    lengths = seq.operand(4)
    end: Expr = const(steps)
    if lengths is not None:
        end = k.let(minimum(cast(k.load(k.tensor(lengths), batch[0]), DType.I64), const(steps)), "length")
    for t in k.loop("step", end):
        now = k.let(end - 1 - t, "now") if seq.reversed[direction] else t
        old = k.let(t % 2 * half, "old")
        width = seq.gates * seq.hidden
        inputs = tuple(
            k.let(seq.input_row(now, b) * (seq.directions * width) + direction * width, "row") for b in batch
        )
        new = k.let(half - old, "new")
        step(Moment(k, direction, batch, old, new, inputs))
        if (y := seq.result(0)) is not None:
            for b in batch:
                sink, source = k.let(seq.y_at(now, direction, b), "y"), k.let(new + seq.own_at(direction, b), "h")
                _copy(seq, k, y, sink, memory.hidden, source)
    if lengths is not None and (y := seq.result(0)) is not None:
        for t in k.loop("step", steps, end):
            sink = k.let(seq.y_at(t, direction, batch[0]), "y")
            for h, lanes in spans(k, seq.hidden, seq.lanes):
                k.store(k.tensor(y), sink + h, const(0, seq.dtype, lanes))
    last = k.let(end % 2 * half, "last")
    for index, value, base in ((1, memory.hidden, last), (2, memory.cell, const(0))):
        if value is not None and (out := seq.result(index)) is not None:
            for b in batch:
                _copy(seq, k, out, seq.state_at(direction, b), value, base + seq.own_at(direction, b))


def _begin(
    seq: Sequence, k: KernelBuilder, state: Value, initial: Value | None, direction: int, batch: tuple[Expr, ...]
) -> None:
    for b in batch:
        own = k.let(seq.own_at(direction, b), "own")
        for block in k.loop("block", seq.blocks):
            k.store(k.tensor(state), own + block * seq.lanes, const(0, seq.dtype, seq.lanes))
        if initial is not None:
            _copy(seq, k, state, own, initial, seq.state_at(direction, b))


def _copy(seq: Sequence, k: KernelBuilder, sink: Value, to: Expr, source: Value, at: Expr) -> None:
    """The hidden units of one row."""
    for h, lanes in spans(k, seq.hidden, seq.lanes):
        k.store(k.tensor(sink), to + h, k.load(k.tensor(source), at + h, lanes))


def _input(seq: Sequence, memory: Memory, now: Moment, row: Expr, gate: int, block: Expr) -> Expr:
    """The input's part of a gate for a block of units."""
    return now.k.load(now.k.tensor(memory.inputs), row + block * seq.lanes + gate * seq.hidden, seq.lanes)


def _block(
    seq: Sequence, memory: Memory, now: Moment, block: Expr, gates: range, last: Expr | None = None
) -> list[Gates]:
    """Sums of `gates` for a block of units, a list a row; the last gate begins from `last` instead of the input."""
    k, n, lanes, rows = now.k, len(gates), seq.lanes, len(now.batch)
    needed = 4 if seq.ctx.target.vector_bits >= 512 else 8
    sets = max(1, min(needed // (n * rows), seq.hidden, (seq.ctx.target.registers - n - 1) // (n * rows)))
    total = n * rows
    acc = k.registers("acc", seq.dtype, total * sets, lanes)
    for i in range(total * sets):
        gate = gates[i % n]
        begin: Expr = const(0, seq.dtype, lanes)
        if i < total:
            from_input = last is None or gate != gates[-1]
            begin = _input(seq, memory, now, now.inputs[i // n], gate, block) if from_input else last or begin
        k.store(acc, i, begin)
    weights, state = k.tensor(memory.weights), k.tensor(memory.hidden)
    base = k.let((block + now.direction * seq.blocks) * (seq.hidden * n * lanes), "w")
    sources = [k.let(now.old + seq.own_at(now.direction, b), "h") for b in now.batch]
    wide = splats_lanes(seq.ctx.target) and lanes == 4

    def columns(c: Expr, steps: int) -> None:
        lined = [k.let(k.load(state, s + c, steps), "x") for s in sources] if wide and steps % 4 == 0 else []
        for j in range(steps):
            at = base + c * (n * lanes)
            ws = [k.let(k.load(weights, at + (j * n + g) * lanes, lanes), "w") for g in range(n)]
            for r, source in enumerate(sources):
                x = k.let(broadcast(lane(lined[r], j) if lined else k.load(state, source + c + j), lanes), "x")
                for g in range(n):
                    i = j % sets * total + r * n + g
                    k.store(acc, i, multiply_add(x, ws[g], k.load(acc, i)))

    unroll = max(sets, 4 if wide else 2)
    main = seq.hidden // unroll * unroll
    if main:
        for c in k.loop("c", main, step=unroll):
            columns(c, unroll)
    for c in k.loop("c", seq.hidden, main) if main < seq.hidden else ():
        columns(c, 1)
    sums = [k.let(tree_sum([k.load(acc, s * total + i) for s in range(sets)]), "gate") for i in range(total)]
    return [sums[r * n : (r + 1) * n] for r in range(rows)]
