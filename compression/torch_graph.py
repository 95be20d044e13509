"""A graph computed in PyTorch, so that gradients of its weights are had: one function an operator.

A graph has static shapes, of one sample; `run` maps it over a batch (torch.func.vmap), so that a batch dimension that
is fixed in the file, in a Reshape say, does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..ir.errors import UnsupportedOpError
from ..ir.graph import Graph, Node, Value
from .layers import Layer

Tensors = dict[Value, Tensor]
Operator = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Given:
    """What a layer computes with: its tensor, and its bias a channel."""

    weight: Tensor
    bias: Tensor | None


def run(graph: Graph, feeds: Mapping[str, Tensor], given: Mapping[Layer, Given], result: Value) -> Tensor:
    """`result` [samples, …] for feeds [samples, …] by input name."""
    nodes = _needed(graph, result)
    layers = {layer.node: layer for layer in given}

    def one(*inputs: Tensor) -> Tensor:
        known: Tensors = dict(zip(graph.inputs, inputs, strict=True))
        for node in nodes:
            if node in layers:
                layer = layers[node]
                known[layer.output] = _layer(layer, given[layer], known)
            elif node.output not in known:  # the Add of a layer's bias
                known[node.output] = OPERATORS[node.op](
                    node, *(None if v is None else _tensor(v, known) for v in node.inputs)
                )
        return known[result]

    found: Tensor = torch.func.vmap(one)(*(feeds[v.name] for v in graph.inputs))
    return found


def _layer(layer: Layer, given: Given, known: Tensors) -> Tensor:
    node = layer.node
    if layer.kind == "embedding":
        index = node.inputs[1]
        assert index is not None
        return OPERATORS[node.op](node, given.weight, _tensor(index, known))
    x = node.inputs[0]
    assert x is not None
    if node.op == "MatMul":
        y = _tensor(x, known) @ given.weight
        return y if given.bias is None else y + given.bias
    return OPERATORS[node.op](node, _tensor(x, known), given.weight, given.bias)


def check(graph: Graph, result: Value) -> None:
    """Raises UnsupportedOpError where a node that `result` needs has no counterpart here."""
    for node in _needed(graph, result):
        if node.op not in OPERATORS:
            raise UnsupportedOpError(
                f"fine-tuning does not know the operator {node.op}", where=node.where,
                remedy="compress without --fine-tune",
            )  # fmt: skip


def logits(value: Value) -> Value:
    """What a Softmax at the end of a network reads: classes are trained on that."""
    producer = value.producer
    if producer is None or producer.op not in ("Softmax", "LogSoftmax"):
        return value
    return producer.inputs[0] or value


def _tensor(v: Value, known: Tensors) -> Tensor:
    if v not in known:
        assert v.data is not None, v.name
        known[v] = torch.from_numpy(np.array(v.data))
    return known[v]


def _needed(graph: Graph, result: Value) -> list[Node]:
    wanted = {result}
    kept = []
    for node in reversed(graph.nodes):
        if any(o in wanted for o in node.outputs):
            kept.append(node)
            wanted.update(v for v in node.inputs if v is not None)
    return kept[::-1]


def _convolution(node: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    n = w.ndim - 2
    attrs = node.attrs
    stride, dilation = (tuple(attrs.get(k) or (1,) * n) for k in ("strides", "dilations"))
    x = _padded(node, x, tuple(w.shape[2:]), stride, dilation, 0.0)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[n - 1]
    return function(x, w, bias, stride, 0, dilation, int(attrs.get("group", 1)))


def _padded(
    node: Node, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], fill: float
) -> Tensor:
    """Padding by `pads` or `auto_pad`, and what a ceil mode reads beyond the end."""
    n = len(kernel)
    pads = list(node.attrs.get("pads") or (0,) * 2 * n)
    mode = node.attrs.get("auto_pad") or "NOTSET"
    lasting = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    around = []
    for i, (size, out) in enumerate(zip(x.shape[2:], node.output.type.dims[2:], strict=True)):
        needed = max((out - 1) * stride[i] + lasting[i] - size, 0)
        if mode.startswith("SAME"):
            before = needed // 2 if mode == "SAME_UPPER" else needed - needed // 2
        else:
            before = pads[i] if mode == "NOTSET" else 0
        after = max(needed - before, pads[n + i] if mode == "NOTSET" else 0)
        around.append((before, after))
    flat = [p for pair in reversed(around) for p in pair]
    return functional.pad(x, flat, value=fill) if any(flat) else x


def _windows(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    kernel = tuple(node.attrs["kernel_shape"])
    ones = (1,) * len(kernel)
    return kernel, tuple(node.attrs.get("strides") or ones), tuple(node.attrs.get("dilations") or ones)


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel, stride, dilation = _windows(node)
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    return function(_padded(node, x, kernel, stride, dilation, -torch.inf), kernel, stride, 0, dilation)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    """Sums of the windows over the numbers of what counts in them."""
    kernel, stride, dilation = _windows(node)
    ones = torch.ones_like(x)
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    padded, present = (_padded(node, t, kernel, stride, dilation, 0.0) for t in (x, ones))
    if padded is x or (node.attrs.get("count_include_pad") and not node.attrs.get("ceil_mode")):
        return function(padded, kernel, stride)
    return function(padded, kernel, stride) / function(present, kernel, stride)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.attrs.get("transA") else a
    b = b.T if node.attrs.get("transB") else b
    y = a @ b * node.attrs.get("alpha", 1.0)
    return y if c is None else y + c * node.attrs.get("beta", 1.0)


def _batch_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    factor = scale / torch.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    shape = (-1, *(1,) * (x.ndim - 2))
    return x * factor.reshape(shape) + (shift - mean * factor).reshape(shape)


def _layer_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    axis = node.attrs.get("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], scale, shift, node.attrs.get("epsilon", 1e-5))


def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _reduced(function: Callable[..., Tensor]) -> Operator:
    def apply(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = node.constant(1)
        chosen = range(x.ndim) if dims is None or not dims.size else (int(a) for a in dims)
        return function(x, dim=tuple(chosen), keepdim=bool(node.attrs.get("keepdims", 1)))

    return apply


def _gathered(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.attrs.get("axis", 0) % x.ndim
    places = torch.where(index < 0, index + x.shape[axis], index).long()
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(torch.from_numpy(np.zeros(1, node.output.type.dtype.numpy)).dtype)


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda node, *x: function(*x)


def _reshaped(node: Node, x: Tensor, *_: Any) -> Tensor:
    return x.reshape(node.output.type.dims)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda node, x: function(x, dim=node.attrs.get("axis", -1))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(x * node.attrs.get("alpha", 0.2) + node.attrs.get("beta", 0.5), 0, 1)


OPERATORS: dict[str, Operator] = {
    "Conv": _convolution, "Gemm": _gemm, "MatMul": _elementwise(torch.matmul), "MaxPool": _max_pool,
    "AveragePool": _average_pool, "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm,
    "GlobalAveragePool": lambda node, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda node, x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "Flatten": _reshaped, "Reshape": _reshaped, "Squeeze": _reshaped, "Unsqueeze": _reshaped,
    "Transpose": lambda node, x: x.permute(node.attrs.get("perm") or tuple(range(x.ndim))[::-1]),
    "Concat": lambda node, *x: torch.cat(x, node.attrs["axis"]), "Gather": _gathered, "Cast": _cast,
    "Identity": _elementwise(lambda x: x), "Dropout": lambda node, x, *_: x, "Clip": _clip,
    "Add": _elementwise(torch.add), "Sub": _elementwise(torch.sub), "Mul": _elementwise(torch.mul),
    "Div": _elementwise(torch.div), "Pow": _elementwise(torch.pow), "Sqrt": _elementwise(torch.sqrt),
    "Exp": _elementwise(torch.exp), "Log": _elementwise(torch.log), "Erf": _elementwise(torch.erf),
    "Neg": _elementwise(torch.neg), "Abs": _elementwise(torch.abs), "Relu": _elementwise(torch.relu),
    "Sigmoid": _elementwise(torch.sigmoid), "Tanh": _elementwise(torch.tanh),
    "Softplus": _elementwise(functional.softplus), "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(functional.hardswish),
    "Gelu": lambda node, x: functional.gelu(x, approximate=node.attrs.get("approximate", "none")),
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.attrs.get("alpha", 0.01)),
    "Elu": lambda node, x: functional.elu(x, node.attrs.get("alpha", 1.0)),
    "PRelu": lambda node, x, slope: torch.where(x >= 0, x, x * slope),
    "ReduceMean": _reduced(torch.mean), "ReduceSum": _reduced(torch.sum), "ReduceMax": _reduced(torch.amax),
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
}  # fmt: skip
"""Of float tensors, in ONNX's newest semantics."""
