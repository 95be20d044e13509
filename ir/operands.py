"""Operands that must fit each other, where ONNX's inference does not look: channels, gates, indices, paddings.

`check_operands` is asked at import and by the verifier, so that no lowering meets a node that has no meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .errors import ShapeError
from .graph import Node
from .tree_ensemble import TreeEnsemble
from .types import Dim


def check_operands(node: Node) -> None:
    """Raises ShapeError where the operands of a node do not fit; nodes with open dimensions are let pass."""
    check = _CHECKS.get(node.op)
    if check is not None and all(v is None or v.type.is_static for v in (*node.inputs, *node.outputs)):
        check(node)


def _require(condition: bool, what: str, node: Node) -> None:
    if not condition:
        raise ShapeError(f"inputs do not fit operator {node.op}: {what}", where=node.where)


def _shape(node: Node, index: int) -> tuple[int, ...]:
    value = node.input(index)
    return () if value is None else value.type.dims


def _spatial_results(node: Node) -> None:
    found = node.output.type.dims[2:]
    _require(min(found, default=1) > 0, f"the window is larger than the padded input (result {list(found)})", node)


def _auto_pad(node: Node) -> None:
    mode = node.attrs.get("auto_pad", "NOTSET")
    _require(mode in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"), f"auto_pad '{mode}' does not exist", node)


def _convolution(node: Node) -> None:
    """x [N, C, …], w [K, C/group, …], b [K]."""
    x, w, group = _shape(node, 0), _shape(node, 1), node.attrs.get("group", 1)
    _require(len(x) == len(w) >= 3, "input and weights differ in rank", node)
    _require(group >= 1 and w[0] % group == 0, f"{w[0]} filters in {group} groups", node)
    _require(x[1] == w[1] * group, f"{x[1]} channels, the weights take {w[1]} in {group} groups", node)
    _kernel(node, w, w[0])
    _spatial_results(node)


def _transposed_convolution(node: Node) -> None:
    """x [N, C, …], w [C, K/group, …], b [K]."""
    x, w, group = _shape(node, 0), _shape(node, 1), node.attrs.get("group", 1)
    _require(len(x) == len(w) >= 3, "input and weights differ in rank", node)
    _require(group >= 1 and w[0] % group == 0, f"{w[0]} channels in {group} groups", node)
    _require(x[1] == w[0], f"{x[1]} channels, the weights take {w[0]}", node)
    _kernel(node, w, w[1] * group)
    _spatial_results(node)


def _kernel(node: Node, w: Sequence[int], filters: int) -> None:
    kernel = node.attrs.get("kernel_shape", tuple(w[2:]))
    _require(tuple(kernel) == tuple(w[2:]), f"kernel_shape {list(kernel)}, the weights have {list(w[2:])}", node)
    _require(node.input(2) is None or _shape(node, 2) == (filters,), f"a bias of {filters} values is needed", node)
    _auto_pad(node)


def _pool(node: Node) -> None:
    """Every window touches the input: paddings are smaller than the (dilated) window."""
    kernel = node.attrs.get("kernel_shape", ())
    dilations = node.attrs.get("dilations", (1,) * len(kernel))
    pads = node.attrs.get("pads", (0,) * (2 * len(kernel)))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    _require(len(pads) == 2 * len(kernel), f"{len(pads)} pads for {len(kernel)} axes", node)
    _require(
        all(p < e for p, e in zip(pads, extents * 2, strict=True)), f"pads {list(pads)} reach the window's size", node
    )
    _auto_pad(node)
    _spatial_results(node)


def _broadcasts_to(shape: Sequence[Dim], result: Sequence[Dim]) -> bool:
    """Unidirectional broadcasting."""
    padded = (1,) * (len(result) - len(shape)) + tuple(shape)
    return len(padded) == len(result) and all(a in (1, b) for a, b in zip(padded, result, strict=True))


def _same_size(node: Node) -> None:
    a, b = node.inputs[0], node.output
    _require(a is not None and a.type.size == b.type.size, f"{_shape(node, 0)} cannot become {b.type.dims}", node)


def _instance_normalization(node: Node) -> None:
    channels = _shape(node, 0)[1:2]
    _require(_shape(node, 1) == _shape(node, 2) == channels, "one scale and bias for each channel is needed", node)


def _layer_normalization(node: Node) -> None:
    for index in (1, 2):
        if node.input(index) is not None:
            _require(_broadcasts_to(_shape(node, index), _shape(node, 0)), f"input {index} does not broadcast", node)


def _prelu(node: Node) -> None:
    _require(_broadcasts_to(_shape(node, 1), _shape(node, 0)), "the slope does not broadcast to the input", node)


def _clip(node: Node) -> None:
    for value in node.inputs[1:]:
        _require(value is None or value.type.size == 1, "a bound is one value", node)


def _gemm(node: Node) -> None:
    _require(_broadcasts_to(_shape(node, 2), node.output.type.shape), "C does not broadcast to the product", node)


_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _recurrent(node: Node) -> None:
    """x [S, B, I], w [D, gH, I], r [D, gH, H], b [D, 2gH], lengths [B], initial [D, B, H], peepholes [D, 3H]."""
    gates, x, r = _GATES[node.op], _shape(node, 0), _shape(node, 2)
    _require(len(x) == 3 and len(r) == 3, "input and recurrent weights have three axes", node)
    directions = 2 if node.attrs.get("direction", "forward") == "bidirectional" else 1
    hidden, batch_first = node.attrs.get("hidden_size", r[2]), node.attrs.get("layout", 0) == 1
    batch = x[0] if batch_first else x[1]
    state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    expected: list[tuple[int, tuple[int, ...]]] = [
        (1, (directions, gates * hidden, x[2])), (2, (directions, gates * hidden, hidden)),
        (3, (directions, 2 * gates * hidden)), (4, (batch,)), (5, state), (6, state), (7, (directions, 3 * hidden)),
    ]  # fmt: skip
    for index, shape in expected:
        found = node.input(index)
        _require(found is None or found.type.dims == shape, f"input {index} must have shape {list(shape)}", node)


def _dynamic_lstm(node: Node) -> None:
    """x [S, B, D·4H], the scale of r [D, 1 or 4H], constant r [D, 4H, H], lengths [B], initial [D, B, H]."""
    x, r = _shape(node, 0), _shape(node, 2)
    _require(len(x) == 3 and len(r) == 3, "input and recurrent weights have three axes", node)
    hidden, state = r[2], (r[0], x[1], r[2])
    _require(r[1] == 4 * hidden and x[2] == r[0] * r[1], f"gates {list(x)} and recurrent weights {list(r)}", node)
    _require(_shape(node, 1) in ((r[0], 1), (r[0], r[1])), "one scale for each direction or column is needed", node)
    for index, shape in ((4, (x[1],)), (5, state), (6, state)):
        found = node.input(index)
        _require(found is None or found.type.dims == shape, f"input {index} must have shape {list(shape)}", node)


def _in_range(node: Node, indices: np.ndarray, length: int) -> None:
    """Indices of an axis, negative ones counted from its end."""
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        _require(-length <= low and high < length, f"indices from {low} to {high} into {length} entries", node)


def _axis(node: Node, rank: int) -> int:
    return int(node.attrs.get("axis", 0)) % max(rank, 1)


def _gather(node: Node) -> None:
    data, indices = _shape(node, 0), node.constant(1)
    if indices is not None and data:
        _in_range(node, indices, data[_axis(node, len(data))])


def _elements(node: Node) -> None:
    """GatherElements, ScatterElements: indices [≤ data but along the axis], updates of the indices' shape."""
    data, shape, indices = _shape(node, 0), _shape(node, 1), node.constant(1)
    axis = _axis(node, len(data))
    fits = len(shape) == len(data) and all(
        i <= d for k, (i, d) in enumerate(zip(shape, data, strict=True)) if k != axis
    )
    _require(fits, f"indices {list(shape)} into {list(data)} along axis {axis}", node)
    if indices is not None and data:
        _in_range(node, indices, data[axis])
    if node.op == "ScatterElements":
        _require(_shape(node, 2) == shape, "updates and indices differ in shape", node)


def _nd(node: Node) -> None:
    """GatherND, ScatterND: the last axis of the indices holds coordinates of the leading axes of the data."""
    data, shape, indices = _shape(node, 0), _shape(node, 1), node.constant(1)
    batch = node.attrs.get("batch_dims", 0)
    depth = shape[-1] if shape else 0
    _require(bool(shape) and batch >= 0 and batch + depth <= len(data), "coordinates do not fit the data", node)
    if indices is not None:
        for k in range(depth):
            _in_range(node, indices[..., k], data[batch + k])
    if node.op == "ScatterND":
        _require(_shape(node, 2) == (*shape[:-1], *data[depth:]), "updates do not fit indices and data", node)


def _pad(node: Node) -> None:
    """A reflection takes at most what is there."""
    shape, pads, axes = _shape(node, 0), node.constant(1), node.constant(3)
    mode = node.attrs.get("mode", "constant")
    _require(mode in ("constant", "reflect", "edge", "wrap"), f"mode '{mode}' does not exist", node)
    if mode == "constant" or pads is None or (axes is None and node.input(3) is not None):
        return
    of = [int(a) % len(shape) for a in axes] if axes is not None else [*range(len(shape))]
    for amount, axis in zip(pads.tolist(), of * 2, strict=True):
        most = shape[axis] - 1 if mode == "reflect" else shape[axis] if mode == "wrap" else amount
        _require(amount <= most and (shape[axis] > 0 or amount <= 0), f"{amount} added to {shape[axis]} entries", node)


def _depth_to_space(node: Node) -> None:
    block, x = node.attrs.get("blocksize", 0), _shape(node, 0)
    _require(block > 0 and len(x) == 4 and x[1] % (block * block) == 0, f"shape {list(x)} in blocks of {block}", node)


def _space_to_depth(node: Node) -> None:
    block, x = node.attrs.get("blocksize", 0), _shape(node, 0)
    fits = block > 0 and len(x) == 4 and x[2] % block == 0 and x[3] % block == 0
    _require(fits, f"shape {list(x)} in blocks of {block}", node)


def _reverse_sequence(node: Node) -> None:
    x, lengths = _shape(node, 0), node.constant(1)
    time, batch = node.attrs.get("time_axis", 0), node.attrs.get("batch_axis", 1)
    _require({time, batch} == {0, 1} and len(x) >= 2, f"time axis {time} and batch axis {batch}", node)
    _require(_shape(node, 1) == (x[batch],), "one length for each sequence is needed", node)
    if lengths is not None and lengths.size:
        _require(lengths.min() >= 0 and lengths.max() <= x[time], f"lengths outside of 0 to {x[time]}", node)


_CHECKS: dict[str, Callable[[Node], object]] = {
    "AveragePool": _pool,
    "Clip": _clip,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "DepthToSpace": _depth_to_space,
    "GRU": _recurrent,
    "Gather": _gather,
    "GatherElements": _elements,
    "GatherND": _nd,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_normalization,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_normalization,
    "LpPool": _pool,
    "MaxPool": _pool,
    "PRelu": _prelu,
    "Pad": _pad,
    "RNN": _recurrent,
    "Reshape": _same_size,
    "ReverseSequence": _reverse_sequence,
    "ScatterElements": _elements,
    "ScatterND": _nd,
    "SpaceToDepth": _space_to_depth,
    "c2c.DynamicLSTM": _dynamic_lstm,
    "c2c.TreeEnsemble": TreeEnsemble.of,
    "c2c.IntegerConv": _convolution,
    "c2c.WinogradConv": _convolution,
}
