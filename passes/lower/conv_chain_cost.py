"""What a chain of convolutions costs beside its layers one by one: bytes between them, weights and rows made again.

Measured with `benchmarks/pairs.py` on a core with 512 KB of second cache, where the third gives 50 GB/s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from ...codegen.target import Target
from ...ir.types import DType
from .conv_chain_plan import strip_rows
from .conv_kernel import Convolution
from .schedule import Schedule

EXPOSED = 0.035
"""Cycles for a byte that one kernel writes and the next reads, beyond what stays in the second cache."""

RUN = 300
"""Cycles until a stream flows again: a depthwise first or last stage takes a large tensor in runs of a strip's rows."""

SHORT = 0.03
"""Part of the arithmetic that strips cost: rows begin and end, tiles do not pass from one to the next."""

WEIGHTS_NEAR, WEIGHTS_FAR = 1 / 64, 1 / 16
"""Cycles for a byte of weights read once more: from the second cache, from beyond."""

ARENA = 0.2
"""Cycles that a byte of memory is worth where memory comes before speed."""

RINGS = 1 / 2
"""Part of the second cache that one worker's rings may take."""

STRIPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Rows of a strip."""


def apart(target: Target, convs: Sequence[Convolution], memory: bool) -> float:
    """Cycles of the tensors between the layers when each layer is a kernel."""
    return sum(between(target, c.y.nbytes, memory) for c in convs[:-1])


def between(target: Target, nbytes: int, memory: bool) -> float:
    """Cycles of a tensor that one kernel writes and the next reads."""
    return EXPOSED * max(0, nbytes - target.l2_bytes // 2) + (ARENA * nbytes if memory else 0)


def chained(target: Target, threads: int, convs: Sequence[Convolution], strip: int, memory: bool) -> float | None:
    """Cycles that the chain takes beyond its arithmetic, in strips of `strip` rows; None: its rings are too large."""
    total = convs[-1].window.h.out
    tasks = min(threads, total)
    rings = sum(r * _row_bytes(c) for r, c in zip(_kept(convs, strip), convs, strict=False))
    if rings > RINGS * target.l2_bytes:
        return None
    weights = sum(c.weights.nbytes for c in convs)
    stay = rings + weights <= target.l2_bytes
    again = convs[0].batch * max(-(-total // strip), tasks) - 1
    cost = again * weights * (WEIGHTS_NEAR if stay else WEIGHTS_FAR)
    cost += SHORT * sum(c.macs for c in convs) / rate(target)
    for conv, halo in zip(convs, _halos(convs), strict=True):
        cost += (tasks - 1) * halo * conv.macs / conv.window.h.out / rate(target)
    for conv, type_ in ((convs[0], convs[0].x.type), (convs[-1], convs[-1].y)):
        if conv.channels_in == 1 and type_.nbytes > target.l2_bytes // 2:
            cost += RUN * (again + 1) * type_.dims[1] / max(1, type_.layout.block)
    return cost + (ARENA * rings * threads if memory else 0)


def rate(target: Target) -> int:
    """Multiply-adds in a cycle."""
    return target.fma_per_cycle * target.lanes(DType.F32)


def _row_bytes(conv: Convolution) -> int:
    return conv.y.nbytes // (conv.batch * conv.window.h.out)


def _kept(convs: Sequence[Convolution], strip: int) -> list[int]:
    """Rows kept of each stage but the last, as `conv_chain_plan.plan_rows` finds them for an image of many strips."""
    axes = [c.window.h for c in convs]
    first, later = strip_rows(axes, 0, 0, strip), strip_rows(axes, 0, strip, 2 * strip)
    return [max(a.last, b.last - c.need) for a, b, c in zip(first, later, later[1:], strict=False)]


def _halos(convs: Sequence[Convolution]) -> list[int]:
    """Rows of each stage that a task makes although the task before it has made them."""
    axes = [c.window.h for c in convs]
    middle = max(1, axes[-1].out // 2)
    before = strip_rows(axes, 0, 0, middle)
    return [b.last - a.first for a, b in zip(strip_rows(axes, middle, middle, middle + 1), before, strict=True)]


def schedules(
    target: Target, threads: int, convs: Sequence[Convolution], memory: bool = False
) -> list[Schedule[int | None]]:
    """The layers one by one (None), and chained in strips of some rows."""
    base = sum(c.macs for c in convs) / rate(target)
    found: list[Schedule[int | None]] = [Schedule("apart", base + apart(target, convs, memory), None)]
    for strip in takewhile(lambda s: s <= max(1, convs[-1].window.h.out), STRIPS):
        cost = chained(target, threads, convs, strip, memory)
        if cost is None:
            break
        found.append(Schedule(f"strip={strip}", base + cost, strip))
    return found


def cut(target: Target, threads: int, convs: Sequence[Convolution], memory: bool = False) -> list[range]:
    """The cheapest way to cut a row of convolutions into chains and single layers; of equal ones the most parts."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    parts: list[range] = []
    for end in range(1, len(convs) + 1):
        options: list[tuple[float, int, int]] = []
        for begin in range(end - 1, -1, -1):
            cost, count = best[begin]
            if begin:
                cost += between(target, convs[begin - 1].y.nbytes, memory)
            if end - begin > 1:
                costs = [c.cycles for c in schedules(target, threads, convs[begin:end], memory)[1:]]
                if not costs:
                    break
                cost += min(costs) - sum(c.macs for c in convs[begin:end]) / rate(target)
            options.append((cost, -(count + 1), begin))
        cost, count, begin = min(options)
        best.append((cost, -count))
        parts.append(range(begin, end))
    found: list[range] = []
    at = len(convs)
    while at:
        found.append(parts[at - 1])
        at = found[-1].start
    return found[::-1]
