"""ConvTranspose of blocked images: a direct convolution for each phase of the outputs, writing every stride-th pixel.

Outputs q·stride + first of an axis are a convolution of stride 1 with the taps of their phase in reverse. All phases
write a strip of rows before the next strip, so that the lines which they share are still near.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from ...ir.loops import minimum
from ...ir.types import DType
from .conv_direct import DirectWriter, Raster
from .conv_kernel import ConvKernel, Convolution, pad_operands, unravel
from .conv_plan import row_plan
from .conv_transpose_facts import Axis, Transposed
from .tasks import tasks
from .window import Axis as WindowAxis
from .window import Window

NEAR = 0.5
"""Part of the second cache that a strip's inputs and results take."""


def is_blocked(t: Transposed) -> bool:
    """Whether a node is computed here: float32 images, constant weights, taps in all phases, whole blocks in groups."""
    node, x, y = t.ctx.node, t.x.type, t.ctx.output.type
    blocks = {x.layout.block, y.layout.block}
    if t.rank != 2 or blocks == {0} or not blocks <= {0, t.lanes} or not x.dtype is t.acc is DType.F32:
        return False
    if node.constant(1) is None or (node.input(2) is not None and node.constant(2) is None):
        return False
    ragged = t.groups > 1 and (t.channels % t.lanes or t.maps % t.lanes)
    return not ragged and all(phase.taps for axis in t.axes for phase in axis.phases)


def lower_blocked(t: Transposed) -> None:
    """Append the kernel of a node that `is_blocked`."""
    ctx, lanes = t.ctx, t.lanes
    whole = pad_operands(ctx, lanes) and (t.groups == 1 or t.maps % lanes == 0)
    k = ConvKernel(ctx)
    _, h, w = t.axes
    rows = _rows(t)
    height = -(-h.out // h.stride)
    writers: list[tuple[DirectWriter, int]] = []
    for i, j in product(range(len(h.phases)), range(len(w.phases))):
        plan = row_plan(ctx, _phase(t, i, j), whole, rows)
        writers.append((DirectWriter(ctx, plan, k, Raster((i, j), (h.stride, w.stride))), plan.conv.window.h.out))
    for task in tasks(k, t.macs, t.batch * -(-height // rows)):
        n, strip = unravel(k, task, (t.batch, -(-height // rows)))
        first = k.let(strip * rows, "first")
        for writer, count in writers:
            last = first + rows if count % rows == 0 and count == height else minimum(first + rows, count)
            writer.write_rows(n, first, k.let(last, "last"))
    k.done("conv_transpose")


def _rows(t: Transposed) -> int:
    """Rows of each phase in a strip: as many as stay near, and enough strips for all threads."""
    _, h, w = t.axes
    row = 4 * t.groups * (t.channels * w.size + t.maps * w.out * h.stride)
    height = -(-h.out // h.stride)
    most = height if t.ctx.threads == 1 else max(1, height // (4 * t.ctx.threads))
    return int(min(most, max(1, t.ctx.target.l2_bytes * NEAR // row)))


def _phase(t: Transposed, i: int, j: int) -> Convolution:
    """The convolution that gives outputs i, i + stride, … of the rows and j, j + stride, … of the columns."""
    x, w = t.ctx.node.inputs[:2]
    bias = t.ctx.node.constant(2)
    assert x is not None and w is not None and w.data is not None
    _, ah, aw = t.axes
    weights = w.data.reshape(t.groups, t.channels, t.maps, ah.kernel, aw.kernel)
    weights = weights[:, :, :, ah.phases[i].taps[::-1]][..., aw.phases[j].taps[::-1]].swapaxes(1, 2)
    weights = np.ascontiguousarray(weights).reshape(t.groups * t.maps, t.channels, 1, *weights.shape[3:])
    window = Window(2, WindowAxis(), _axis(ah, i), _axis(aw, j))
    return Convolution(x, t.ctx.output.type, weights, bias, t.groups, window)


def _axis(axis: Axis, first: int) -> WindowAxis:
    phase = axis.phases[first]
    count = -(-(axis.out - first) // axis.stride)
    return WindowAxis(axis.size, count, len(phase.taps), 1, phase.step, (len(phase.taps) - 1) * phase.step - phase.at)
