"""U of a Winograd convolution in the order in which its products read it: packed by the compiler, or once at load."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr
from ...ir.types import DType
from ..winograd_math import transform_weights, weight_matrix
from .context import KernelBuilder, Lowering
from .winograd_plan import Plan
from .winograd_transform import apply


def transformed_weights(ctx: Lowering, plan: Plan) -> Value:
    """U[n²][K / (V·b)][C][V·b], zero beyond the last output channel; a node with `prepared` makes it at load."""
    if not ctx.node.attrs.get("prepared"):
        return ctx.pack("winograd", pack_weights(plan))
    u = ctx.scratch("winograd", DType.F32, plan.n**2 * plan.stride_u)
    taps = ctx.pack("taps", _pack_taps(plan))
    k = ctx.kernel()
    for first, count, vectors in plan.groups:
        for g in k.loop("g", first + count, first):
            for c in k.loop("c", plan.conv.channels_in):
                for v in range(vectors):
                    _transform(k, plan, taps, u, g, c, v, vectors)
    k.done("winograd_weights", once=True)
    return u


def pack_weights(plan: Plan) -> np.ndarray:
    """U, transformed in float64."""
    conv, lanes = plan.conv, plan.lanes
    positions, cout, cin = plan.n**2, conv.channels_out, conv.channels_in
    packed = np.zeros((positions, plan.stride_u), conv.weights.dtype)
    for first, count, vectors in plan.groups:
        for block in range(count):
            width, at = vectors * lanes, (first + block) * plan.tile.vectors * lanes
            mine = conv.weights[at : min(at + width, cout), :, 0]
            room = packed[:, at * cin : (at + width) * cin].reshape(positions, cin, width)
            room[:, :, : mine.shape[0]] = transform_weights(mine, plan.m)
    return packed.reshape(-1)


def _pack_taps(plan: Plan) -> np.ndarray:
    """[K / b][C][9][b], zero beyond the last output channel."""
    conv, lanes = plan.conv, plan.lanes
    padded = np.zeros((plan.blocks_out * lanes, conv.channels_in, 9), np.float32)
    padded[: conv.channels_out] = conv.weights.reshape(conv.channels_out, conv.channels_in, 9)
    blocks = padded.reshape(plan.blocks_out, lanes, conv.channels_in, 9)
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1)).reshape(-1)


def _transform(
    k: KernelBuilder, plan: Plan, taps: Value, u: Value, group: Expr, c: Expr, vector: int, vectors: int
) -> None:
    """G g Gᵀ of one vector of filters for one input channel."""
    n, lanes, channels = plan.n, plan.lanes, plan.conv.channels_in
    matrix = weight_matrix(plan.m)
    at = k.let(((group * plan.tile.vectors + vector) * channels + c) * (9 * lanes), "at")
    rows = [[k.let(k.load(k.tensor(taps), at + (i * 3 + j) * lanes, lanes), "g") for i in range(3)] for j in range(3)]
    columns = [apply(k, matrix, column) for column in rows]
    to = k.let(group * (plan.tile.vectors * lanes * channels) + c * (vectors * lanes) + vector * lanes, "to")
    for i in range(n):
        for j, value in enumerate(apply(k, matrix, [columns[s][i] for s in range(3)])):
            k.store(k.tensor(u), to + (i * n + j) * plan.stride_u, value)
