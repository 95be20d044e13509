"""Canonical forms of operators with a sliding window: explicit pads, pads merged in, global pooling by its name."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Node, Value
from .base import GraphRewriter, Rule
from .pattern import int_list, made_by, reduced_axes, required, scalar
from .rules_movement import reshape

WINDOWED = ("Conv", "MaxPool", "AveragePool", "LpPool")


def kernel_shape(node: Node) -> tuple[int, ...]:
    """Spatial size of the window."""
    given = node.attrs.get("kernel_shape")
    return int_list(given) if given is not None else required(node, 1).type.dims[2:]


def _explicit_window(rw: GraphRewriter, node: Node) -> Value | None:
    """auto_pad as numbers, defaults written out."""
    x = required(node)
    if not x.type.is_static or not node.output.type.is_static or x.type.rank < 3:
        return None
    spatial = x.type.dims[2:]
    n = len(spatial)
    kernel = kernel_shape(node)
    strides = int_list(node.attrs.get("strides", (1,) * n))
    dilations = int_list(node.attrs.get("dilations", (1,) * n))
    pads = int_list(node.attrs.get("pads", (0,) * 2 * n))
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        total = [
            max((o - 1) * s + (k - 1) * d + 1 - i, 0)
            for i, o, s, k, d in zip(spatial, node.output.type.dims[2:], strides, kernel, dilations, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = (*small, *large) if mode == "SAME_UPPER" else (*large, *small)
    elif mode == "VALID":
        pads = (0,) * 2 * n
    attrs = {k: v for k, v in node.attrs.items() if k != "auto_pad"}
    attrs |= {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
    if node.op == "Conv":
        attrs.setdefault("group", 1)
    if attrs == node.attrs:
        return None
    types = [v.type for v in node.outputs]
    new = rw.emit(node.op, node.inputs, types, attrs, origin=node.origin, hint=node.output.name)
    return new.output


def _merge_pad(rw: GraphRewriter, node: Node) -> Value | None:
    """Zeros written around the operand of a convolution, or of an average that counts them."""
    pad = made_by(required(node), "Pad")
    if pad is None or "pads" not in node.attrs or node.attrs.get("ceil_mode", 0):
        return None
    if node.op == "AveragePool" and not _counts_pads(node):
        return None
    value = scalar(pad.input(2)) if pad.input(2) is not None else 0.0
    amounts = spatial_pads(pad)
    if amounts is None or value != 0.0 or pad.attrs.get("mode", "constant") != "constant" or min(amounts) < 0:
        return None
    pads = tuple(a + b for a, b in zip(int_list(node.attrs["pads"]), amounts, strict=True))
    attrs = node.attrs | {"pads": pads}
    if node.op == "AveragePool":
        attrs["count_include_pad"] = 1
    origin = tuple(dict.fromkeys((*pad.origin, *node.origin)))
    operands = [required(pad), *node.inputs[1:]]
    return rw.emit(node.op, operands, [node.output.type], attrs, origin=origin, hint=node.output.name).output


def _counts_pads(node: Node) -> bool:
    return bool(node.attrs.get("count_include_pad", 0)) or not any(int_list(node.attrs["pads"]))


def spatial_pads(pad: Node) -> tuple[int, ...] | None:
    """Begin and end amounts of a Pad along the spatial axes; None where they are computed or touch others."""
    amounts, rank = pad.constant(1), required(pad).type.rank
    if amounts is None or rank < 3 or (pad.input(3) is not None and pad.constant(3) is None):
        return None
    axes = pad.constant(3)
    order = [int(a) % rank for a in (range(rank) if axes is None else axes.reshape(-1))]
    flat = amounts.reshape(-1)
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(order):
        begin[axis], end[axis] = int(flat[i]), int(flat[i + len(order)])
    if any((*begin[:2], *end[:2])):
        return None
    return (*begin[2:], *end[2:])


_GLOBAL = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}


def _global_pool(rw: GraphRewriter, node: Node) -> Value | None:
    """A mean or maximum over all spatial axes of an image or a volume."""
    x = required(node)
    axes = reduced_axes(node)
    if x.type.rank < 4 or axes != tuple(range(2, x.type.rank)) or not x.type.is_static or not x.type.dtype.is_float:
        return None
    pooled = x.type.with_shape((*x.type.shape[:2], *(1 for _ in axes)))
    result = rw.emit(_GLOBAL[node.op], [x], [pooled], origin=node.origin, hint=node.output.name).output
    return reshape(rw, node, result, node.output.type)


_WHOLE = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}


def _whole_window(rw: GraphRewriter, node: Node) -> Value | None:
    """Pooling by a window that covers exactly the whole image."""
    x = required(node)
    if len(node.outputs) > 1 or "pads" not in node.attrs or any(int_list(node.attrs["pads"])):
        return None
    dilations = int_list(node.attrs.get("dilations", (1,)))
    whole = x.type.is_static and kernel_shape(node) == x.type.dims[2:] and all(d == 1 for d in dilations)
    pixels = int(np.prod(node.output.type.dims[2:])) if node.output.type.is_static else 0
    return rw.emit_like(node, _WHOLE[node.op], [x]) if whole and pixels == 1 else None


def _floor_mode(rw: GraphRewriter, node: Node) -> Value | None:
    """A maximum with ceil_mode: the window that sticks out gets end pads (they never win)."""
    if not node.attrs.get("ceil_mode", 0) or "pads" not in node.attrs or not required(node).type.is_static:
        return None
    n = required(node).type.rank - 2
    pads = int_list(node.attrs["pads"])
    window = zip(
        required(node).type.dims[2:],
        node.output.type.dims[2:],
        node.attrs["strides"],
        kernel_shape(node),
        node.attrs["dilations"],
        pads[:n],
        pads[n:],
        strict=True,
    )
    ends = [max(end, (o - 1) * s + (k - 1) * d + 1 - i - begin) for i, o, s, k, d, begin, end in window]
    attrs = {k: v for k, v in node.attrs.items() if k != "ceil_mode"} | {"pads": (*pads[:n], *ends)}
    if len(node.outputs) > 1:
        return None
    return rw.emit_like(node, node.op, node.inputs, **attrs)


WINDOW_RULES = (
    Rule("explicit-window", "auto_pad and defaults as numbers", WINDOWED, _explicit_window),
    Rule("merge-pad", "conv(pad(x, p), q) = conv(x, p + q)", ("Conv", "AveragePool"), _merge_pad),
    Rule("floor-mode", "max_pool(x, ceil) = max_pool(x, longer end pads)", ("MaxPool",), _floor_mode),
    Rule("global-pool", "mean(x, spatial) = global_average_pool(x)", tuple(_GLOBAL), _global_pool),
    Rule("whole-window", "pool(x, window = image) = global_pool(x)", tuple(_WHOLE), _whole_window),
)
