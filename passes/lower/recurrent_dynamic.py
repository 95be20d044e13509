"""c2c.DynamicLSTM: LSTM whose recurrent product is one of 8-bit levels, with exact 32-bit sums.

In each step every row of the state becomes levels by its own range (`dynamic_levels`). Weights are packed
`[direction][hidden / lanes][c / together][gate][lanes][together]`. Of bytes Σ (h - zero) r = Σ h r - zero Σ r, and the
last term is where the sums begin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, broadcast, cast, const
from ...ir.types import DType
from .activations import activations
from .context import KernelBuilder, Lowering, lowers
from .dynamic_levels import found_range, level
from .micro import Rows, multiply, packed, products_together
from .packing import spans
from .product import multiply_add, tree_sum
from .recurrence import Memory, Sequence
from .recurrent import run_lstm
from .recurrent_step import Gates, Moment, input_part

GATES = 4


@lowers("c2c.DynamicLSTM")
def lower_dynamic_lstm(ctx: Lowering) -> None:
    """Inputs: the inputs' part of all gates, scale of R, R, nothing, then from lengths on those of LSTM."""
    seq = Sequence(ctx, GATES, activations(ctx, ("Sigmoid", "Tanh", "Tanh")))
    size = seq.directions * seq.dims[1] * seq.padded
    product = _Product.of(seq)
    hidden, cell = ctx.scratch("hidden", DType.F32, 2 * size), ctx.scratch("cell", DType.F32, size)
    memory = Memory(_inputs(seq), product.weights, hidden, cell)
    run_lstm(seq, memory, lambda now: product.of_moment(memory, now))


def _inputs(seq: Sequence) -> Value:
    """The inputs' part, with a vector of padding where the last block reads beyond it."""
    x, ctx = seq.operand(0), seq.ctx
    assert x is not None
    if seq.hidden == seq.padded:
        return x
    out = ctx.scratch("inputs", DType.F32, x.type.size + seq.lanes)
    k = ctx.kernel()
    for i, width in spans(k, x.type.size, seq.lanes):
        k.store(k.tensor(out), i, k.load(k.tensor(x), i, width))
    k.done("padded")
    return out


@dataclass(frozen=True, slots=True)
class _Product:
    """Levels of the state `[direction][batch][length]` of type `form`, packed weights, and `[direction][block][gate]
    [lanes]` the weights' scales and, for bytes, sums over c."""

    seq: Sequence
    form: DType
    together: int
    length: int
    levels: Value
    weights: Value
    steps: Value
    sums: Value | None

    @staticmethod
    def of(seq: Sequence) -> _Product:
        ctx, r, scale = seq.ctx, seq.operand(2), seq.operand(1)
        assert r is not None and r.data is not None and scale is not None and scale.data is not None
        form = ctx.target.byte_levels if r.type.dtype is DType.I8 else None
        form = form or DType.I16
        together = products_together(ctx.target, form)
        length = -(-seq.hidden // together) * together
        placed = np.zeros((seq.directions, GATES, seq.padded, length), r.data.dtype)
        placed[:, :, : seq.hidden, : seq.hidden] = r.data.reshape(seq.directions, GATES, seq.hidden, seq.hidden)
        split = placed.reshape(seq.directions, GATES, seq.blocks, seq.lanes, length // together, together)
        weights = ctx.pack("recurrent", np.ascontiguousarray(split.transpose(0, 2, 4, 1, 3, 5)).reshape(-1))
        steps = np.broadcast_to(scale.data, (seq.directions, GATES * seq.hidden)).astype(np.float32)
        sums = placed.astype(np.int32).sum(-1, dtype=np.int32)
        return _Product(
            seq, form, together, length,
            ctx.scratch("levels", form, seq.directions * seq.dims[1] * length), weights,
            _by_block(seq, "steps", steps.reshape(seq.directions, GATES, seq.hidden)),
            None if form is DType.I16 else _by_block(seq, "sums", sums[:, :, : seq.hidden]),
        )  # fmt: skip

    def of_moment(self, memory: Memory, now: Moment) -> Callable[[Expr], list[Gates]]:
        """Makes levels of the rows of the state; then the gates of a block."""
        k = now.k
        places = [k.let((b + now.direction * self.seq.dims[1]) * self.length, "q") for b in now.batch]
        ranges = [
            self._quantise(k, memory, now.old + self.seq.own_at(now.direction, b), at)
            for b, at in zip(now.batch, places, strict=True)
        ]
        return lambda block: self._gates(memory, now, block, places, ranges)

    def _quantise(self, k: KernelBuilder, memory: Memory, source: Expr, at: Expr) -> tuple[Expr, Expr]:
        """Levels of one row from `at` on; their scale and zero point."""
        hidden, state, levels = self.seq.hidden, k.tensor(memory.hidden), k.tensor(self.levels)
        source = k.let(source, "h")
        scale, zero = found_range(k, state, source, hidden)
        for i, width in spans(k, hidden, self.seq.lanes):
            k.store(levels, at + i, level(k.load(state, source + i, width), scale, zero, self.form))
        for rest in range(hidden, self.length):
            k.store(levels, at + rest, const(0, self.form))
        return scale, zero

    def _gates(
        self, memory: Memory, now: Moment, block: Expr, places: list[Expr], ranges: list[tuple[Expr, Expr]]
    ) -> list[Gates]:
        k, seq, lanes, total = now.k, self.seq, self.seq.lanes, GATES * len(places)
        unit = k.let((block + now.direction * seq.blocks) * (GATES * lanes), "unit")
        sets = min(seq.sums(seq.plan, GATES, len(places)), self.length // self.together)
        acc = k.registers("acc", DType.I32, total * sets, lanes)
        for i in range(total, total * sets):
            k.store(acc, i, const(0, DType.I32, lanes))
        for row, (_, zero) in enumerate(ranges):
            for gate in range(GATES):
                k.store(acc, row * GATES + gate, self._first(k, unit + gate * lanes, zero))
        x = Rows(k.tensor(self.levels), tuple((at, 0) for at in places))
        w = packed(k.tensor(self.weights), k.let(unit * self.length, "w"), GATES, lanes)
        unroll = self.together * sets
        multiply(k, x, w, self.length, acc, sets=sets, unroll=unroll, together=self.together)
        found: list[Gates] = []
        for row, (scale, _) in enumerate(ranges):
            gates = []
            for gate in range(GATES):
                value = tree_sum([k.load(acc, s * total + row * GATES + gate) for s in range(sets)])
                step = broadcast(scale, lanes) * k.load(k.tensor(self.steps), unit + gate * lanes, lanes)
                part = input_part(seq, memory, now, now.inputs[row], gate, block)
                gates.append(k.let(multiply_add(cast(value, DType.F32), step, part), "gate"))
            found.append(gates)
        return found

    def _first(self, k: KernelBuilder, at: Expr, zero: Expr) -> Expr:
        """Where a gate's sums begin."""
        lanes = self.seq.lanes
        if self.sums is None:
            return const(0, DType.I32, lanes)
        taken = cast(zero, DType.I32) - (128 if self.form is DType.I8 else 0)
        return const(0, DType.I32, lanes) - broadcast(taken, lanes) * k.load(k.tensor(self.sums), at, lanes)


def _by_block(seq: Sequence, hint: str, rows: np.ndarray) -> Value:
    """[directions, gates, hidden] as [direction][block][gate][lanes]."""
    padded = np.pad(rows, ((0, 0), (0, 0), (0, seq.padded - seq.hidden)))
    split = padded.reshape(seq.directions, GATES, seq.blocks, seq.lanes).transpose(0, 2, 1, 3)
    return seq.ctx.pack(hint, np.ascontiguousarray(split).reshape(-1))
