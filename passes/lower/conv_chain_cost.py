"""What a chain of layers costs beside its layers one by one: bytes between them, weights and rows made again.

Measured with `benchmarks/pairs.py` on a core with 512 KB of second cache, where the third gives 50 GB/s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from math import inf
from typing import Protocol

from ...codegen.target import Target
from ...ir.graph import Value
from ...ir.types import DType, TensorType
from .conv_chain_plan import strip_rows
from .remap import Remap
from .schedule import Schedule
from .window import Window

EXPOSED = 0.56
"""Times that a byte which one kernel writes and the next reads passes at the rate of the third cache, beyond what stays
in the second and what goes on behind the arithmetic."""

RUN = 300
"""Cycles until a stream flows again: a depthwise first or last stage takes a large tensor in runs of a strip's rows."""

SHORT = 0.03
"""Part of the arithmetic that strips cost pointwise layers: their tiles do not pass from a row to the next."""

WEIGHTS_NEAR, WEIGHTS_FAR = 1 / 64, 1 / 16
"""Cycles for a byte of weights read once more: from the second cache, from beyond."""

ARENA = 0.2
"""Cycles that a byte of memory is worth where memory comes before speed."""

RINGS = 1 / 2
"""Part of the second cache that one worker's rings may take."""

COPIED_NEAR, COPIED_FAR = 1 / 32, 1 / 8
"""Cycles for a byte of a remapped image: into a small ring, and into one that takes half of the second cache; of one
that takes more, twice as many at most."""

CALL = 5000
"""Cycles that a kernel of its own takes to begin and end."""

STRIPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Rows of a strip."""


class Layer(Protocol):
    """A convolution or a pooling, as far as chains depend on it; macs: its operations on one element and one other."""

    @property
    def x(self) -> Value: ...

    @property
    def y(self) -> TensorType: ...

    @property
    def window(self) -> Window: ...

    @property
    def batch(self) -> int: ...

    @property
    def macs(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def reads_planes(self) -> bool: ...


def apart(target: Target, layers: Sequence[Layer], memory: bool) -> float:
    """Cycles of the tensors between the layers when each layer is a kernel."""
    copied = sum(CALL + 2 * COPIED_FAR * c.copied for c in layers if isinstance(c, Remap))
    made = (c.copied if isinstance(c, Remap) else c.y.nbytes for c in layers[:-1])
    return copied + sum(between(target, n, memory) for n in made)


def between(target: Target, nbytes: int, memory: bool) -> float:
    """Cycles of a tensor that one kernel writes and the next reads."""
    return EXPOSED / target.core.l3_bytes * max(0, nbytes - target.l2_bytes // 2) + (ARENA * nbytes if memory else 0)


def chained(target: Target, threads: int, layers: Sequence[Layer], strip: int, memory: bool) -> float | None:
    """Cycles that the chain takes beyond its arithmetic, in strips of `strip` rows; None: its rings are too large.

    The ring of a remapped image may be, since its tensor is larger.
    """
    total = layers[-1].window.h.out
    tasks = min(threads, total)
    rings = sum(r * _row_bytes(c) for r, c in zip(_kept(layers, strip), layers, strict=False))
    far = rings > RINGS * target.l2_bytes
    if far and not is_read_through(layers):
        return None
    weights = sum(c.weight_bytes for c in layers)
    stay = rings + weights <= target.l2_bytes
    again = layers[0].batch * max(-(-total // strip), tasks) - 1
    cost = again * weights * (WEIGHTS_NEAR if stay else WEIGHTS_FAR)
    if isinstance(layers[0], Remap):
        share = min(2.0, rings / (RINGS * target.l2_bytes))
        cost += layers[0].y.nbytes * (COPIED_NEAR + (COPIED_FAR - COPIED_NEAR) * share)
        cost += between(target, rings, False)
    cost += SHORT * sum(c.macs for c in layers if c.window.is_pointwise) / rate(target)
    for layer, halo in zip(layers, _halos(layers), strict=True):
        cost += (tasks - 1) * halo * layer.macs / layer.window.h.out / rate(target)
    for layer, type_ in ((layers[0], layers[0].x.type), (layers[-1], layers[-1].y)):
        runs_short = layer.reads_planes and not isinstance(layer, Remap)
        if runs_short and type_.nbytes > target.l2_bytes // 2:
            cost += RUN * (again + 1) * type_.dims[1] / max(1, type_.layout.block)
    return cost + (ARENA * rings * threads if memory else 0)


def is_read_through(layers: Sequence[Layer]) -> bool:
    """Whether the layers are one that reads a remapped image."""
    return len(layers) == 2 and isinstance(layers[0], Remap)


def rate(target: Target) -> int:
    """Multiply-adds in a cycle."""
    return target.fma_per_cycle * target.lanes(DType.F32)


def _row_bytes(layer: Layer) -> int:
    return layer.y.nbytes // (layer.batch * layer.window.h.out)


def _kept(layers: Sequence[Layer], strip: int) -> list[int]:
    """Rows kept of each stage but the last, as `conv_chain_plan.plan_rows` finds them for an image of many strips."""
    axes = [c.window.h for c in layers]
    first, later = strip_rows(axes, 0, 0, strip), strip_rows(axes, 0, strip, 2 * strip)
    return [max(a.last, b.last - c.need) for a, b, c in zip(first, later, later[1:], strict=False)]


def _halos(layers: Sequence[Layer]) -> list[int]:
    """Rows of each stage that a task makes although the task before it has made them."""
    axes = [c.window.h for c in layers]
    middle = max(1, axes[-1].out // 2)
    before = strip_rows(axes, 0, 0, middle)
    return [b.last - a.first for a, b in zip(strip_rows(axes, middle, middle, middle + 1), before, strict=True)]


def schedules(
    target: Target, threads: int, layers: Sequence[Layer], memory: bool = False
) -> list[Schedule[int | None]]:
    """The layers one by one (None), and chained in strips of some rows."""
    base = sum(c.macs for c in layers) / rate(target)
    found: list[Schedule[int | None]] = [Schedule("apart", base + apart(target, layers, memory), None)]
    total = max(1, layers[-1].window.h.out)
    whole = (total,) if is_read_through(layers) and total not in STRIPS else ()
    for strip in (*takewhile(lambda s: s <= total, STRIPS), *whole):
        cost = chained(target, threads, layers, strip, memory)
        if cost is None:
            break
        found.append(Schedule(f"strip={strip}", base + cost, strip))
    return found


def cut(target: Target, threads: int, layers: Sequence[Layer], memory: bool = False) -> list[range]:
    """The cheapest way to cut a row of convolutions into chains and single layers; of equal ones the most parts.

    A remapped image stays with the layer that reads it.
    """
    best: list[tuple[float, int]] = [(0.0, 0)]
    parts: list[range] = []
    for end in range(1, len(layers) + 1):
        options: list[tuple[float, int, int]] = []
        if isinstance(layers[end - 1], Remap):
            best.append((inf, 0))
            parts.append(range(end - 1, end))
            continue
        for begin in range(end - 1, -1, -1):
            cost, count = best[begin]
            if begin:
                cost += between(target, layers[begin - 1].y.nbytes, memory)
            if end - begin > 1:
                costs = [c.cycles for c in schedules(target, threads, layers[begin:end], memory)[1:]]
                if not costs:
                    break
                cost += min(costs) - sum(c.macs for c in layers[begin:end]) / rate(target)
            options.append((cost, -(count + 1), begin))
        cost, count, begin = min(options)
        best.append((cost, -count))
        parts.append(range(begin, end))
    found: list[range] = []
    at = len(layers)
    while at:
        found.append(parts[at - 1])
        at = found[-1].start
    return found[::-1]
