"""A layer: one constant matrix of a network that can be compressed, seen as rows of inner products.

Whatever the operator, its weights are [groups, rows, d]: each row gives one output channel from d inputs. Conv has
d = C/g · window, Gemm and MatMul d = inputs, an LSTM matrix [4H, I] d = I, an embedding table [V, D] rows of D.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..ir.graph import Graph, Node, Value, constant

MIN_WEIGHTS = 128
"""Smaller matrices stay as they are: a code book would cost as much as it saves."""


@dataclass(eq=False, slots=True)
class Layer:
    """weight: the constant; index: which input of `node` it is. bias: the constant added to the result, in the node
    or in the Add after it (`add`). channels: output channels, that is places for a scale and a bias."""

    weight: Value
    index: int
    node: Node
    kind: str
    groups: int = 1
    bias: Value | None = None
    add: Node | None = None

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def dense(self) -> np.ndarray:
        """The weights before compression."""
        assert self.weight.data is not None
        return self.weight.data

    @property
    def output(self) -> Value:
        """The result with the bias added."""
        return self.node.output if self.add is None else self.add.output

    @property
    def channels(self) -> int:
        shape: tuple[int, ...] = self.dense.shape
        if self.kind == "conv":
            return shape[0]
        if self.kind == "matmul":
            return shape[0] if self.transposed else shape[1]
        return shape[-1] if self.kind == "embedding" else shape[1]

    @property
    def channel_axis(self) -> int:
        """The weights' axis of output channels, of a convolution or a matrix."""
        return 0 if self.kind == "conv" or self.transposed else 1

    @property
    def transposed(self) -> bool:
        """Whether a Gemm's matrix lies as [outputs, inputs]."""
        return bool(self.node.attrs.get("transB", 0))

    @property
    def takes_scale(self) -> bool:
        """Whether a scale a channel can be multiplied to the result."""
        return self.kind in ("conv", "matmul", "embedding")

    @property
    def takes_bias(self) -> bool:
        return self.kind in ("conv", "matmul")

    def rows(self, tensor: np.ndarray) -> np.ndarray:
        """[groups, rows, d] of a tensor in the operator's own shape."""
        if self.kind == "conv":
            return tensor.reshape(self.groups, tensor.shape[0] // self.groups, -1)
        if self.kind == "matmul" and not self.transposed:
            tensor = tensor.T
        return tensor.reshape(1, -1, tensor.shape[-1])

    def tensor(self, rows: np.ndarray) -> np.ndarray:
        """The operator's own shape, of [groups, rows, d]."""
        shape = self.dense.shape
        if self.kind == "matmul" and not self.transposed:
            return np.ascontiguousarray(rows.reshape(shape[1], shape[0]).T)
        return np.ascontiguousarray(rows.reshape(shape))

    def bias_vector(self) -> np.ndarray:
        """The bias a channel, zeros where there is none."""
        if self.bias is None or self.bias.data is None:
            return np.zeros(self.channels, np.float32)
        return np.broadcast_to(self.bias.data.reshape(-1), self.channels).astype(np.float32)


def alone(layer: Layer, tensor: np.ndarray, bias: np.ndarray | None = None) -> Graph:
    """A convolution or product by itself, from x0 to y0, with these weights."""
    data = _value(layer.node, 0)
    x, y = Value("x0", data.type), Value("y0", layer.node.output.type)
    own = [] if bias is None else [constant("bias", bias)]
    node = Node(layer.node.op, (x, constant("w", tensor), *own), (y,), dict(layer.node.attrs), layer.node.origin)
    return Graph("segment", [x], [y], [node], ["y0"])


def find_layers(graph: Graph, least: int = MIN_WEIGHTS) -> list[Layer]:
    """Every compressible matrix, in the order of computation. A constant with two readers is left alone."""
    uses = graph.uses()
    outputs = set(graph.outputs)
    found = []
    for node in graph.nodes:
        for layer in _layers_of(node):
            value = layer.weight
            if value.data is None or value.data.size < least or value.data.dtype != np.float32:
                continue
            if len(uses[value]) > 1 or not np.isfinite(value.data).all():
                continue
            _find_bias(layer, uses, outputs)
            found.append(layer)
    return found


def _layers_of(node: Node) -> list[Layer]:
    if node.op == "Conv" and node.constant(1) is not None:
        bias = node.input(2)
        if bias is None or bias.is_constant:
            return [Layer(_value(node, 1), 1, node, "conv", int(node.attrs.get("group", 1)))]
    if node.op == "MatMul" and (w := node.constant(1)) is not None and w.ndim == 2 and node.constant(0) is None:
        return [Layer(_value(node, 1), 1, node, "matmul")]
    if node.op == "Gemm" and node.constant(1) is not None and _plain_gemm(node):
        return [Layer(_value(node, 1), 1, node, "matmul")]
    if node.op == "Gather" and (w := node.constant(0)) is not None and w.ndim == 2 and node.constant(1) is None:
        return [Layer(_value(node, 0), 0, node, "embedding")] if node.attrs.get("axis", 0) == 0 else []
    if node.op == "LSTM" and node.constant(1) is not None and node.constant(2) is not None:
        inputs = _value(node, 1)
        if inputs.type.dims[0] == 1 and node.attrs.get("layout", 0) == 0:
            return [Layer(inputs, 1, node, "recurrent"), Layer(_value(node, 2), 2, node, "recurrent")]
    return []


def _plain_gemm(node: Node) -> bool:
    bias = node.input(2)
    factors = (node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0))
    small = bias is None or (bias.data is not None and bias.data.size in (1, node.output.type.dims[1]))
    return not node.attrs.get("transA", 0) and factors == (1.0, 1.0) and small


def _value(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _find_bias(layer: Layer, uses: dict[Value, list[Node]], outputs: set[Value]) -> None:
    """The node's own bias, or a constant a channel that its only reader adds."""
    node = layer.node
    if not layer.takes_bias:
        return
    if node.op in ("Conv", "Gemm") and (own := node.input(2)) is not None:
        layer.bias = own
        return
    readers = uses.get(node.output, [])
    if len(readers) != 1 or readers[0].op != "Add" or node.output in outputs:
        return
    add = readers[0]
    other = add.inputs[1] if add.inputs[0] is node.output else add.inputs[0]
    if other is None or other.data is None or add.output.type != node.output.type:
        return
    rank, k = node.output.type.rank, layer.channels
    shape = (1,) * (rank - other.data.ndim) + other.data.shape
    axis = 1 if layer.kind == "conv" else rank - 1
    if prod(shape) == k and shape[axis] == k:
        layer.bias, layer.add = other, add
