"""LSTM, GRU and RNN: one matrix product for the inputs of all steps, then a serial loop over time.

The recurrent weights are packed `[direction][hidden / lanes][c][gate][lanes]`, so that all gates of a block of hidden
units end in registers together and the gate arithmetic runs right there.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.loops import Expr, const, maximum, minimum
from ...ir.types import DType
from .activations import activations
from .context import Lowering, lowers
from .product import multiply_add
from .recurrence import Memory, Sequence, allocate, padded_row, padded_rows, recurrent_weights
from .recurrence_loop import run_steps
from .recurrent_step import Gates, Moment, Phase, input_part


@lowers("LSTM")
def lower_lstm(ctx: Lowering) -> None:
    """Gates in order i, o, f, c; peepholes P in order i, o, f."""
    seq = Sequence(ctx, 4, activations(ctx, ("Sigmoid", "Tanh", "Tanh")))
    _check(seq)
    cell = ctx.scratch("cell", seq.dtype, seq.directions * seq.dims[1] * seq.padded)
    memory = allocate(seq, range(4), cell)
    run_lstm(seq, memory)


def run_lstm(
    seq: Sequence, memory: Memory, sums: Callable[[Moment], Callable[[Expr], list[Gates]]] | None = None
) -> None:
    """The time loop; `sums` of a moment gives the gates of a block of units, a list a row, where their product is
    another one."""
    cell = memory.cell
    assert cell is not None
    peephole = padded_rows(seq, 7, range(3)) if seq.operand(7) is not None else None
    forgets = bool(seq.ctx.node.attrs.get("input_forget", 0))

    def update(now: Moment, row: int, block: Expr, gates: Gates) -> None:
        k, (f, g, h), (i, o, forget, c) = now.k, seq.functions[now.direction], gates
        at = k.let(seq.own_at(now.direction, now.batch[row]) + block * seq.lanes, "at")
        old = k.let(k.load(k.tensor(cell), at, seq.lanes), "c")
        if peephole:
            weights = [padded_row(seq, k, peephole, now.direction * 3 + j, block) for j in range(3)]
            i, forget = i + weights[0] * old, forget + weights[2] * old
        gate = k.let(f(k, _clip(seq, i)), "i")
        kept = 1.0 - gate if forgets else f(k, _clip(seq, forget))
        new = k.let(multiply_add(kept, old, gate * g(k, _clip(seq, c))), "c")
        if peephole:
            o = o + weights[1] * new
        k.store(k.tensor(cell), at, new)
        k.store(k.tensor(memory.hidden), now.new + at, f(k, _clip(seq, o)) * h(k, new))

    run_steps(seq, memory, (Phase(memory, range(4), update, sums=sums),), "lstm")


@lowers("RNN")
def lower_rnn(ctx: Lowering) -> None:
    """H = f(X·Wᵀ + H·Rᵀ + b)."""
    seq = Sequence(ctx, 1, activations(ctx, ("Tanh",)))
    _check(seq)
    memory = allocate(seq, range(1), None)

    def update(now: Moment, row: int, block: Expr, gates: Gates) -> None:
        (f,), (total,) = seq.functions[now.direction], gates
        at = now.new + seq.own_at(now.direction, now.batch[row]) + block * seq.lanes
        now.k.store(now.k.tensor(memory.hidden), at, f(now.k, _clip(seq, total)))

    run_steps(seq, memory, (Phase(memory, range(1), update),), "rnn")


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
    bias = padded_rows(seq, 3, (5,), 6) if seq.operand(3) is not None else None
    memory = allocate(seq, range(3), None, (bias,) if bias else (), recurrent_bias=2)

    def begin(now: Moment, block: Expr) -> Expr:
        return padded_row(seq, now.k, bias, now.direction, block) if bias else const(0, seq.dtype, seq.lanes)

    def update(now: Moment, row: int, block: Expr, gates: Gates) -> None:
        k, (f, g), (z, r, h) = now.k, seq.functions[now.direction], gates
        x = input_part(seq, memory, now, now.inputs[row], 2, block)
        reset = f(k, _clip(seq, r))
        new = g(k, _clip(seq, multiply_add(reset, h, x)))
        _gru_update(seq, memory, now, row, block, f(k, _clip(seq, z)), new)

    run_steps(seq, memory, (Phase(memory, range(3), update, begin),), "gru")


def _gru_reset_before(seq: Sequence) -> None:
    size = seq.directions * seq.dims[1] * seq.padded
    update, gated = seq.ctx.scratch("update", seq.dtype, size), seq.ctx.scratch("gated", seq.dtype, size)
    memory = allocate(seq, range(2), None)
    last = recurrent_weights(seq, range(2, 3))
    second = Memory(memory.inputs, last, gated, None)

    def gate(now: Moment, row: int, block: Expr, gates: Gates) -> None:
        k, (f, _), (z, r) = now.k, seq.functions[now.direction], gates
        at = k.let(seq.own_at(now.direction, now.batch[row]) + block * seq.lanes, "at")
        k.store(k.tensor(update), at, f(k, _clip(seq, z)))
        old = k.load(k.tensor(memory.hidden), now.old + at, seq.lanes)
        k.store(k.tensor(gated), at, f(k, _clip(seq, r)) * old)

    def renew(now: Moment, row: int, block: Expr, gates: Gates) -> None:
        k, (_, g), (h,) = now.k, seq.functions[now.direction], gates
        at = seq.own_at(now.direction, now.batch[row]) + block * seq.lanes
        z = k.load(k.tensor(update), at, seq.lanes)
        _gru_update(seq, memory, now, row, block, z, g(k, _clip(seq, h)))

    phases = Phase(memory, range(2), gate), Phase(second, range(2, 3), renew, once=True)
    run_steps(seq, memory, phases, "gru", (update, gated))


def _gru_update(seq: Sequence, memory: Memory, now: Moment, row: int, block: Expr, z: Expr, h: Expr) -> None:
    """H = (1 - z) · h + z · H_old = h + z · (H_old - h)."""
    k, state = now.k, now.k.tensor(memory.hidden)
    at = k.let(seq.own_at(now.direction, now.batch[row]) + block * seq.lanes, "at")
    h = k.let(h, "h")
    k.store(state, now.new + at, multiply_add(k.let(z, "z"), k.load(state, now.old + at, seq.lanes) - h, h))


def _check(seq: Sequence) -> None:
    if seq.dtype not in (DType.F32, DType.F64):
        raise seq.ctx.unsupported(f"{seq.ctx.node.op} of element type {seq.dtype} is not supported", "cast to float32")


def _clip(seq: Sequence, x: Expr) -> Expr:
    limit = seq.ctx.node.attrs.get("clip")
    return minimum(maximum(x, -float(limit)), float(limit)) if limit else x
