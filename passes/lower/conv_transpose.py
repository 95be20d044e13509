"""ConvTranspose in gather form: each output element sums the inputs that reach it.

Of plain tensors lanes run along the last axis: a tile holds output channels × phases (`conv_transpose_facts`) of that
axis, and stores them interleaved, as contiguous vectors. Most blocked ones are `conv_transpose_blocked`'s and
`conv_transpose_patches`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, broadcast, cast, const, lane, shuffle
from .context import KernelBuilder, Lowering, Site, lowers
from .conv_transpose_blocked import is_blocked, lower_blocked
from .conv_transpose_facts import Phase, Transposed, read_transposed
from .conv_transpose_patches import lower_patches, makes_patches
from .matmul import write
from .packing import bordered, gathered, to_whole_vectors
from .product import multiply_add, whole_and_rest
from .tasks import PARALLEL_MACS, guarded, pieces, tasks

MAX_PHASES = 32
"""Kernels have a piece of code for every phase of the outer axes; beyond this many the code would grow too large."""


@lowers("ConvTranspose")
def lower_conv_transpose(ctx: Lowering) -> None:
    """X [N, C, spatial], W [C, M / group, kernel], B [M]."""
    t = read_transposed(ctx)
    if makes_patches(t):
        lower_patches(t)
    elif is_blocked(t):
        lower_blocked(t)
    elif prod(len(a.phases) for a in t.axes[:2]) > MAX_PHASES or len(t.axes[2].phases) > MAX_PHASES:
        _scalar(t)
    else:
        x = ctx.node.inputs[0]
        assert x is not None
        (d, _), (h, _), (w, _) = (a.border for a in t.axes)
        _tiled(t, bordered(ctx, x, t.acc, (d, h, w), t.padded, t.macs >= PARALLEL_MACS))


@dataclass(frozen=True, slots=True)
class _Filters:
    """Packed weights [group][channel][tap][map] of one combination of phases, and where its taps are."""

    value: Value
    taps: tuple[tuple[int, int, int], ...]
    ranges: tuple[Phase, Phase, Phase]


def _filters(t: Transposed, phases: tuple[Phase, Phase, Phase]) -> _Filters:
    w = t.ctx.node.inputs[1]
    assert w is not None
    sizes = [a.kernel for a in t.axes]
    taps = [(p * sizes[1] + q) * sizes[2] + r for p, q, r in product(*(phase.taps for phase in phases))]
    group, channel = np.arange(t.groups).reshape(-1, 1, 1, 1), np.arange(t.channels).reshape(-1, 1, 1)
    index = ((group * t.channels + channel) * t.maps + np.arange(t.maps)) * prod(sizes) + np.array(
        taps, np.int64
    ).reshape(-1, 1)
    packed = gathered(t.ctx, "taps", w, to_whole_vectors(index.reshape(1, -1), t.lanes), t.acc)
    first, second, third = (range(len(p.taps)) for p in phases)
    return _Filters(packed, tuple(product(first, second, third)), phases)


def _tiled(t: Transposed, x: Value) -> None:
    """Parallel over images, blocks of output channels and rows of the output."""
    ctx = t.ctx
    depth, height, _ = (a.out for a in t.axes)
    blocks = -(-t.maps // t.rows)
    count = t.batch * t.groups * blocks * depth * height
    outer = list(product(enumerate(t.axes[0].phases), enumerate(t.axes[1].phases)))
    filters = [[_filters(t, (p, q, r)) for r in t.axes[2].phases] for (_, p), (_, q) in outer]
    k = ctx.kernel()
    for task in tasks(k, t.macs, count):
        h, rest = k.let(task % height, "h"), k.let(task / height, "rest")
        d, rest = k.let(rest % depth, "d"), k.let(rest / depth, "rest")
        block, rest = k.let(rest % blocks, "block"), k.let(rest / blocks, "rest")
        group, n = k.let(rest % t.groups, "g"), k.let(rest / t.groups, "n")
        for ((first_d, _), (first_h, _)), weights in zip(outer, filters, strict=True):
            sd, sh = t.axes[0].stride, t.axes[1].stride
            mine = _is(d % sd, first_d) & _is(h % sh, first_h)
            for _ in guarded(k, mine, len(outer) > 1):
                for rows, here in whole_and_rest(k, block, t.maps, t.rows):
                    for _ in here:
                        for q in k.loop("q", t.vectors):
                            _tile(t, k, x, weights, (n, group, block * t.rows, d, h, q), rows)
    k.done("conv_transpose")


def _is(a: Expr, value: int) -> Expr:
    return (a >= value) & (a <= value)


def _tile(t: Transposed, k: KernelBuilder, x: Value, filters: list[_Filters], at: tuple[Expr, ...], rows: int) -> None:
    """`rows` output channels × a vector of every phase of the last axis."""
    n, group, m, d, h, q = at
    (d0, _), (h0, _), (w0, _) = (a.border for a in t.axes)
    depth, height, width = t.padded
    acc = k.registers("acc", t.acc, rows * len(filters), t.lanes)
    bias = t.ctx.node.input(2)
    for r in range(rows):
        start = const(0, t.acc) if bias is None else cast(k.load(k.tensor(bias), group * t.maps + m + r), t.acc)
        for f in range(len(filters)):
            k.store(acc, r * len(filters) + f, broadcast(start, t.lanes))
    for c in k.loop("c", t.channels):
        channel = k.let((n * t.groups + group) * t.channels + c, "channel")
        for f, filt in enumerate(filters):
            if not filt.taps:
                continue
            pd, ph, pw = filt.ranges
            row = (d / t.axes[0].stride + (pd.at + d0)) * height + h / t.axes[1].stride + (ph.at + h0)
            base = k.let((channel * (depth * height) + row) * width + q * t.lanes + (pw.at + w0), "x")
            first = k.let((group * t.channels + c) * (len(filt.taps) * t.maps) + m, "w")
            for number, (i, j, s) in enumerate(filt.taps):
                back = (i * pd.step * height + j * ph.step) * width + s * pw.step
                value = k.let(k.load(k.tensor(x), base - back, t.lanes), "v")
                for r in range(rows):
                    factor = broadcast(k.load(k.tensor(filt.value), first + (number * t.maps + r)), t.lanes)
                    slot = r * len(filters) + f
                    k.store(acc, slot, multiply_add(factor, value, k.load(acc, slot)))
    for r in range(rows):
        sums = [k.load(acc, r * len(filters) + f) for f in range(len(filters))]
        _store_row(t, k, (n, group * t.maps + m + r, d, h, q), sums)


def _store_row(t: Transposed, k: KernelBuilder, at: tuple[Expr, ...], sums: list[Expr]) -> None:
    """Phases interleaved into contiguous elements; the last vector of a row is cut where the row ends."""
    n, m, d, h, q = at
    count = len(sums)
    whole = t.axes[2].out // (count * t.lanes)
    values = [k.let(s, "y") for s in sums]
    dtype = t.ctx.node.output.type.dtype

    def put(first: int, lanes: int) -> None:
        """Elements first .. first + lanes of the interleaved vectors."""
        part = _interleaved(values, first, lanes)
        site = Site((n, m, *t.coords(d, h, q * (count * t.lanes) + first)), -1, lanes)
        write(t.ctx, k, site, cast(part, dtype))

    if whole:
        for _ in guarded(k, q < whole, whole < t.vectors):
            for first in range(0, count * t.lanes, t.lanes):
                put(first, t.lanes)
    if whole < t.vectors:
        for _ in guarded(k, q >= whole, whole > 0):
            left = t.axes[2].out - whole * count * t.lanes
            for first in range(0, left, t.lanes):
                for inner, lanes in pieces(min(t.lanes, left - first)):
                    put(first + inner, lanes)


def _interleaved(values: list[Expr], first: int, lanes: int) -> Expr:
    """Elements first .. first + lanes of values[0][0], values[1][0], …, values[0][1], …"""
    count = len(values)
    wanted = [((first + i) % count, (first + i) // count) for i in range(lanes)]
    if lanes == 1:
        return lane(values[wanted[0][0]], wanted[0][1])
    used = sorted({v for v, _ in wanted})
    width = values[0].lanes
    if len(used) == 1:
        return shuffle(values[used[0]], None, tuple(i for _, i in wanted))
    result = shuffle(values[used[0]], values[used[1]], _picks(wanted, used[:2], width))
    for v in used[2:]:
        picks = [i if w < v else lanes + at if w == v else 0 for i, (w, at) in enumerate(wanted)]
        result = shuffle(_widened(result, width), values[v], tuple(_shifted(picks, lanes, width)))
    return result


def _picks(wanted: list[tuple[int, int]], pair: list[int], width: int) -> tuple[int, ...]:
    return tuple(at if v == pair[0] else width + at if v == pair[1] else 0 for v, at in wanted)


def _widened(value: Expr, width: int) -> Expr:
    """The same lanes in a vector of `width`."""
    if value.lanes == width:
        return value
    return shuffle(value, None, tuple(min(i, value.lanes - 1) for i in range(width)))


def _shifted(picks: list[int], lanes: int, width: int) -> list[int]:
    """Picks of the second operand, which begins at `width` rather than at `lanes`."""
    return [p if p < lanes else p - lanes + width for p in picks]


def _scalar(t: Transposed) -> None:
    """One output element at a time, for strides so large that code for every phase would not do."""
    ctx, (x, w) = t.ctx, t.ctx.node.inputs[:2]
    assert x is not None and w is not None
    bias, dtype = ctx.node.input(2), ctx.node.output.type.dtype
    maps = t.groups * t.maps
    k = ctx.kernel()
    acc = None
    for task in tasks(k, t.macs, t.batch * maps):
        n, m = k.let(task / maps, "n"), k.let(task % maps, "m")
        group = k.let(m / t.maps, "g")
        acc = k.registers("acc", t.acc, 1, 1)
        start = const(0, t.acc) if bias is None else k.let(cast(k.load(k.tensor(bias), m), t.acc), "bias")
        for d in k.loop("d", t.axes[0].out):
            for h in k.loop("h", t.axes[1].out):
                for o in k.loop("w", t.axes[2].out):
                    k.store(acc, 0, start)
                    for c in k.loop("c", t.channels):
                        for taps, inputs in _sources(t, k, (d, h, o)):
                            channel = group * t.channels + c
                            value = k.read(x, Site((n, channel, *t.coords(*inputs))))
                            factor = k.read(w, Site((channel, m % t.maps, *t.coords(*taps))))
                            k.store(acc, 0, multiply_add(cast(value, t.acc), cast(factor, t.acc), k.load(acc, 0)))
                    write(ctx, k, Site((n, m, *t.coords(d, h, o))), cast(k.load(acc, 0), dtype))
    k.done("conv_transpose")


def _sources(
    t: Transposed, k: KernelBuilder, out: tuple[Expr, ...]
) -> Iterator[tuple[tuple[Expr, ...], tuple[Expr, ...]]]:
    """Loops over the taps (and the inputs they read) of one output element."""
    names = ("r", "s", "t")
    loops = [k.loop(name, a.kernel) for name, a in zip(names, t.axes, strict=True)]
    for first in loops[0]:
        for second in loops[1]:
            for third in loops[2]:
                taps = (first, second, third)
                reach = [
                    k.let(o + a.pad - tap * a.dilation, "reach") for o, a, tap in zip(out, t.axes, taps, strict=True)
                ]
                fits = [
                    (r >= 0) & (r < a.size * a.stride) & (r % a.stride <= 0) for r, a in zip(reach, t.axes, strict=True)
                ]
                for _ in k.when(fits[0] & fits[1] & fits[2]):
                    yield taps, tuple(k.let(r / a.stride, "i") for r, a in zip(reach, t.axes, strict=True))
