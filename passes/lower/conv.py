"""Conv: which of the forms computes a convolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...ir.graph import Node
from ...ir.types import DType, TensorType
from ..pattern import required
from ..reading import around_of
from ..rules_windows import spatial_pads
from .context import Lowering, lowers
from .conv_direct import lower_direct
from .conv_kernel import Convolution
from .conv_phases import lower_phased, phased
from .conv_planar import PlanarConvolution, lower_planar
from .conv_sparse import lower_sparse, sparse_plan
from .conv_sparse_window import lower_window, window_plan
from .depthwise import is_depthwise, lower_depthwise
from .sparse import likely_pays
from .window import Window, window

MAX_WASTE = 4
"""Groups merged into one with zero weights may cost this many times the multiply-adds."""


@lowers("Conv")
def lower_conv(ctx: Lowering) -> None:
    """Conv in 1, 2 or 3 spatial dimensions."""
    found = read_convolution(ctx)
    if found is not None:
        if is_depthwise(ctx, found):
            return lower_depthwise(ctx, found)
        if (plan := sparse_plan(ctx, found)) is not None:
            return lower_sparse(ctx, found, plan)
        if found.around is None and (plan := window_plan(ctx, found)) is not None:
            return lower_window(ctx, found, plan)
        if found.around is None and (phases := phased(ctx, found)) is not None:
            return lower_phased(ctx, found, phases)
        dense = dense_or_planar(ctx, found)
        if isinstance(dense, Convolution):
            return lower_direct(ctx, dense)
    return lower_planar(ctx, _planar(ctx))


def dense_or_planar(ctx: Lowering, conv: Convolution) -> Convolution | PlanarConvolution:
    """The convolution for lanes along channels, its groups merged into whole blocks, or for lanes along the width."""
    merged = whole_blocks(ctx, conv)
    return _planar(ctx) if merged is None or _is_planar(ctx, conv) else merged


def read_convolution(ctx: Lowering) -> Convolution | None:
    """The node as a convolution with constant weights and bias and layouts of the target's lanes, or None.

    Behind a Pad at the head of its group, it reads that one's image and what goes on around it.
    """
    node, out = ctx.node, ctx.output.type
    x, w, b = node.input(0), node.input(1), node.input(2)
    assert x is not None and w is not None
    around = around_of(ctx.head[0], node) if node.op == "Conv" and len(ctx.head) == 1 else None
    blocks, sums = {x.type.layout.block, out.layout.block}, DType.F32 if x.type.dtype is DType.BF16 else x.type.dtype
    if w.data is None or not blocks <= {0, ctx.lanes(sums)} or not _is_computed_as_stored(ctx, x.type, blocks):
        return None
    if b is not None and b.data is None:
        return None
    kernel = w.type.dims[2:]
    view = window(node, x.type, node.output.type, kernel)
    weights = w.data.reshape(*w.data.shape[:2], *(a.kernel for a in view.axes))
    bias = None if b is None else b.data.astype(sums.numpy) if b.data is not None else None
    groups = node.attrs.get("group", 1)
    if around is None:
        return Convolution(x, out, weights, bias, groups, view)
    return Convolution(required(ctx.head[0]), out, weights, bias, groups, behind_pad(ctx.head[0], view), around=around)


def behind_pad(pad: Node, view: Window) -> Window:
    """The window over the image or line that is padded."""
    amounts = spatial_pads(pad)
    assert amounts is not None and view.rank <= 2
    inner = [
        replace(axis, size=axis.size - before - after, pad=before, pad_end=after)
        for axis, before, after in zip(
            view.axes[3 - view.rank :], amounts[: view.rank], amounts[view.rank :], strict=True
        )
    ]
    return replace(view, h=inner[0] if view.rank == 2 else view.h, w=inner[-1])


def reads_around(ctx: Lowering) -> bool:
    """Whether the node reads through the Pad at the head of its group without a copy, its weights one by one.

    Kernels of grids read tensors.
    """
    conv = read_convolution(ctx) if ctx.node.op == "Conv" and ctx.target.device is None else None
    if conv is None or conv.around is None or conv.dtype is not DType.F32 or likely_pays(conv.weights):
        return False
    return is_depthwise(ctx, conv) or isinstance(dense_or_planar(ctx, conv), Convolution)


def _is_computed_as_stored(ctx: Lowering, x: TensorType, blocks: set[int]) -> bool:
    """float32, or half precision where that is asked for: only then are its tensors blocked (`choose-layout`)."""
    has = {DType.F32: True, DType.F16: ctx.target.has_fp16 and blocks != {0}, DType.BF16: ctx.target.has_bf16}
    return has.get(x.dtype, False) and (x.dtype is not DType.BF16 or blocks != {0})


def whole_blocks(ctx: Lowering, conv: Convolution) -> Convolution | None:
    """The convolution with groups merged until each one has whole blocks; None where that wastes too much."""
    lanes, groups = ctx.lanes(conv.sums), conv.groups
    if groups == 1:
        return conv

    def is_whole(merge: int) -> bool:
        cin, cout = conv.channels_in * merge, conv.channels_out * merge
        fits_in = not conv.x.type.layout.block or cin % lanes == 0
        return fits_in and (not conv.y.layout.block or cout % lanes == 0)

    merge = next((m for m in range(1, groups) if groups % m == 0 and is_whole(m)), groups)
    return merged_groups(conv, merge) if merge <= MAX_WASTE else None


def merged_groups(conv: Convolution, merge: int) -> Convolution:
    """`merge` neighbouring groups as one, with zero weights between them."""
    if merge == 1:
        return conv
    cout, cin, groups = conv.channels_out, conv.channels_in, conv.groups // merge
    w = conv.weights.reshape(groups, merge, cout, cin, *conv.weights.shape[2:])
    full = np.zeros((groups, merge, cout, merge, cin, *conv.weights.shape[2:]), conv.weights.dtype)
    for i in range(merge):
        full[:, i, :, i] = w[:, i]
    weights = full.reshape(groups * merge * cout, merge * cin, *conv.weights.shape[2:])
    return replace(conv, weights=weights, groups=groups)


def _is_planar(ctx: Lowering, conv: Convolution) -> bool:
    """Whether lanes along the width pay: plain tensors, rows of whole vectors, few output channels in a group."""
    if conv.x.type.layout.block or conv.y.layout.block or conv.window.w.stride != 1:
        return False
    row = conv.window.pixels if conv.window.is_pointwise else conv.window.w.out
    lanes = ctx.lanes(conv.sums)
    return conv.channels_out <= lanes // 2 and row >= 2 * lanes


def _planar(ctx: Lowering) -> PlanarConvolution:
    node = ctx.node
    x, w = node.input(0), node.input(1)
    assert x is not None and w is not None
    view = window(node, x.type, node.output.type, w.type.dims[2:])
    return PlanarConvolution(x, ctx.output.type, w, node.input(2), node.attrs.get("group", 1), view)
