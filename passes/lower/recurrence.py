"""Recurrent operators' shapes, options and operands in the order in which the time loop reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, const
from ...ir.types import DType
from .activations import Activation
from .context import KernelBuilder, Lowering
from .grid.recurrent_sharing import Launches, Recurrence, share
from .grid.team import Team
from .matmul import multiply
from .packing import gathered, to_whole_vectors
from .product import Matrix, Product
from .schedule import Schedule, choose
from .tile import LATENCY

ALONE_MACS = 14 << 20
"""Work of fewer multiply-adds beside a long serial part, through which threads sleep: waking one takes 70 us."""

DOUBT = 0.03
"""What a plan that the rules did not make is expected to cost more."""


@dataclass(frozen=True, slots=True)
class Held:
    """Rows of the batch whose accumulators are held at once, and how many accumulators are wanted in flight."""

    rows: int
    flight: int


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
        device = self.ctx.target.device
        return self.ctx.lanes(self.dtype) if device is None else device.lanes

    @cached_property
    def sharing(self) -> Team | Launches | None:
        """How threads of a graphics processor share the work; None where one makes it."""
        attrs, (steps, batch, _) = self.ctx.node.attrs, self.dims
        phases = 2 if self.ctx.node.op == "GRU" and not attrs.get("linear_before_reset", 0) else 1
        return share(self.ctx, Recurrence(steps, batch, self.directions, self.gates, self.hidden, phases, self.dtype))

    @property
    def team(self) -> Team | None:
        return self.sharing if isinstance(self.sharing, Team) else None

    @property
    def launches(self) -> Launches | None:
        return self.sharing if isinstance(self.sharing, Launches) else None

    @property
    def half(self) -> int:
        """Elements of one of the two hidden states that take turns."""
        return self.padded if self.team is not None else self.directions * self.dims[1] * self.padded

    @property
    def blocks(self) -> int:
        return -(-self.hidden // self.lanes)

    @property
    def padded(self) -> int:
        return self.blocks * self.lanes

    @cached_property
    def plan(self) -> Held:
        """The register tile of the recurrent product."""
        steps, batch, _ = self.dims
        problem = f"{self.ctx.node.op} {steps} of {batch}x{self.directions}x{self.hidden} {self.dtype}"
        if self.operand(4) is not None:
            problem += " of own lengths"
        return choose(self.ctx, "recurrent", f"{problem} threads {self.ctx.threads}", self._schedules())

    @property
    def rows(self) -> int:
        return self.plan.rows

    def _schedules(self) -> list[Schedule[Held]]:
        """What fits the registers: the most rows and sums enough to hide a multiply-add's latency first."""
        target, (steps, batch, _) = self.ctx.target, self.dims
        most = 1 if self.operand(4) is not None else max(1, min(batch, self._fit(), 4))
        needed = LATENCY * target.fma_per_cycle
        found: dict[tuple[int, int], Schedule[Held]] = {}
        for rows in range(most, 0, -1):
            for flight in (needed, 2 * needed, needed // 2):
                tile = Held(rows, flight)
                sums = self.sums(tile, self.gates, rows)
                parts = ((rows, batch // rows), (batch % rows, 1))
                cycles = sum(n * self._step(r, self.sums(tile, self.gates, r)) for r, n in parts if r)
                cycles *= steps * self.directions * self.blocks * self.hidden * (1 + DOUBT * bool(found))
                found.setdefault((rows, sums), Schedule(f"rows={rows} sums={sums}", cycles, tile))
        return list(found.values())

    def _step(self, rows: int, sums: int) -> float:
        """Cycles of one step of the sum of a block's gates."""
        n = self.gates * rows
        return max(n / self.ctx.target.fma_per_cycle, (self.gates + rows) / 2, LATENCY / sums)

    def _fit(self) -> int:
        """Rows whose accumulators fit the registers beside the weights of all gates and an element of the state."""
        return (self._registers - self.gates - 1) // self.gates

    @property
    def _registers(self) -> int:
        """That hold a block of units."""
        target = self.ctx.target
        return target.registers if target.device is None else target.registers // self.lanes

    def sums(self, tile: Held, gates: int, rows: int) -> int:
        """Sums by turns of each gate of `rows` rows."""
        fit = (self._registers - gates - 1) // (gates * rows)
        return max(1, min(tile.flight // (gates * rows), self.hidden, fit))

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

    def own_at(self, direction: int | Expr, b: Expr) -> Expr:
        """Offset in the padded state kept during the loop; a team has its own."""
        if self.team is not None:
            return const(0)
        return b * self.padded + direction * (self.dims[1] * self.padded)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the time loop reads and keeps. `hidden` is double-buffered; `extra`: an operator's own padded rows."""

    inputs: Value
    weights: Value
    hidden: Value
    cell: Value | None
    extra: tuple[Value, ...] = ()


def allocate(
    seq: Sequence, gates: range, cell: Value | None, extra: tuple[Value, ...] = (), recurrent_bias: int = -1
) -> Memory:
    """The input product's call, packed weights of the first phase, and state."""
    size = 2 * seq.directions * seq.dims[1] * seq.padded
    inputs = _input_product(seq, recurrent_bias)
    hidden = seq.ctx.scratch("hidden", seq.dtype, size)
    return Memory(inputs, recurrent_weights(seq, gates), hidden, cell, extra)


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
    tiles = seq.directions * -(-batch // seq.rows)
    threads = ctx.threads
    ctx.threads = 1 if tiles == 1 and product.macs < ALONE_MACS else threads
    multiply(ctx, product, "inputs")
    ctx.threads = threads
    return out


def recurrent_weights(seq: Sequence, gates: range) -> Value:
    """R as [direction][block][c][gate][lane], blocks of as many units as lanes, threads of a team or units of a
    work-group; units beyond the last are zero."""
    r, h = seq.operand(2), seq.hidden
    assert r is not None
    lanes = seq.team.threads if seq.team is not None else seq.launches.units if seq.launches is not None else seq.lanes
    unit = np.arange(-(-h // lanes) * lanes).reshape(-1, 1, 1, lanes)
    direction = np.arange(seq.directions).reshape(-1, 1, 1, 1, 1)
    gate = np.array(gates).reshape(1, -1, 1)
    c = np.arange(h).reshape(1, h, 1, 1)
    index = np.where(unit < h, ((direction * seq.gates + gate) * h + unit) * h + c, -1)
    return gathered(seq.ctx, "recurrent", r, index.reshape(1, -1))


def padded_rows(seq: Sequence, operand: int, rows: range | tuple[int, ...], of: int = 3) -> Value:
    """Rows of `hidden` elements out of [directions, of · hidden], each padded to whole vectors."""
    source = seq.operand(operand)
    assert source is not None
    unit = np.arange(seq.padded)
    row = np.array(rows).reshape(-1, 1) + of * np.arange(seq.directions).reshape(-1, 1, 1)
    index = np.where(unit < seq.hidden, row * seq.hidden + unit, -1)
    return gathered(seq.ctx, "rows", source, index.reshape(1, -1))


def padded_row(seq: Sequence, k: KernelBuilder, rows: Value, row: int, block: Expr) -> Expr:
    return k.load(k.tensor(rows), block * seq.lanes + row * seq.padded, seq.lanes)
