"""How many operations and bytes a node is worth: counted from its operator and shapes, whatever the kernel does.

A multiply-add counts two, any other operation on an element one. Operators that only place elements are named as
such. Bytes are those that have to move: every operand read once, every result written once, what stays inside a fused
group not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log2, prod

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.ops import GROUPS, Kind, op
from ..passes.winograd_math import input_matrix, output_matrix


@dataclass(frozen=True, slots=True)
class Work:
    """flops: of the direct form; own_flops: of the algorithm used; weight_bytes: constants; bytes: all that moves."""

    flops: float
    own_flops: float
    weight_bytes: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.flops / self.bytes if self.bytes else 0.0


def stored(work: Work, constant_bytes: int) -> Work:
    """The work where constants lie in fewer bytes than those of their elements: lists, indices, 16-bit floats."""
    saved = max(0, work.weight_bytes - constant_bytes)
    return replace(work, weight_bytes=work.weight_bytes - saved, bytes=work.bytes - saved)


def work_of(node: Node) -> Work:
    """The work of a node of an optimised graph."""
    inputs = [v for v in dict.fromkeys(node.inputs) if v is not None]
    written = sum(v.type.nbytes for v in node.outputs)
    weights = sum(_weight_bytes(node, v) for v in inputs if v.is_constant)
    read = sum(v.type.nbytes for v in inputs if not v.is_constant)
    if op(node.op).kind is Kind.INJECTIVE:
        weights, read = min(weights, written), min(read, written)
    return Work(_sum(node, flops), _sum(node, own_flops), weights, weights + read + written)


def _sum(node: Node, count: Callable[[Node], float]) -> float:
    """The count of a node, of all nodes of its body where it is a group."""
    bodies = [a for a in node.attrs.values() if isinstance(a, Graph)]
    return sum(_sum(n, count) for body in bodies for n in body.nodes) if bodies else count(node)


def flops(node: Node) -> float:
    """Operations of the plain form of an operator."""
    if node.op in _COUNTS:
        return float(_COUNTS[node.op](node))
    if node.op in _PER_ELEMENT:
        return float(_PER_ELEMENT[node.op] * _size(node, 0))
    if op(node.op).kind is Kind.ELEMENTWISE:
        operands = sum(v is not None for v in node.inputs)
        return float(node.output.type.size * max(1, operands - 1 if op(node.op).commutative else 1))
    return 0.0


def is_counted(name: str) -> bool:
    """Whether an operator's operations are counted, or it is known to have none."""
    known = name in _COUNTS or name in _PER_ELEMENT or name in GROUPS or op(name).kind is Kind.ELEMENTWISE
    return known or name in NO_ARITHMETIC


def own_flops(node: Node) -> float:
    """Operations of the algorithm that computes the node."""
    return _winograd_flops(node) if node.op == "c2c.WinogradConv" else flops(node)


def _dims(node: Node, index: int) -> tuple[int, ...]:
    value = node.input(index)
    return () if value is None else value.type.dims


def _size(node: Node, index: int) -> int:
    return prod(_dims(node, index))


def _conv(node: Node, weights: int = 1) -> int:
    return 2 * node.output.type.size * prod(_dims(node, weights)[1:])


def _attention(node: Node) -> int:
    """Both products; powers and sums are small beside them."""
    return 2 * _dims(node, 1)[-2] * (_size(node, 0) + node.output.type.size)


def _matmul(node: Node, a: int = 0) -> int:
    return 2 * node.output.type.size * _dims(node, a)[-1]


def _gemm(node: Node) -> int:
    return 2 * node.output.type.size * _dims(node, 0)[0 if node.attrs.get("transA", 0) else 1]


def _einsum(node: Node) -> int:
    """Two operations for each pair of an output element and a position of the summed labels."""
    left, _, right = str(node.attrs["equation"]).replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for i, labels in enumerate(left.replace("...", "").split(",")):
        sizes.update(zip(reversed(labels), reversed(_dims(node, i)), strict=False))
    summed = prod(n for label, n in sizes.items() if label not in right) if right else 1
    return 2 * node.output.type.size * summed


def _recurrent(node: Node) -> int:
    """Both products of all gates in every step; the gates' own arithmetic is small beside them."""
    sequence, batch = _dims(node, 0)[:2]
    return 2 * sequence * batch * (_size(node, 1) + _size(node, 2))


def _pool(node: Node) -> int:
    return node.output.type.size * prod(int(n) for n in node.attrs.get("kernel_shape", ()))


def _scattered(node: Node) -> int:
    """One operation for each update, where it is combined with what is there."""
    return 0 if node.attrs.get("reduction", "none") == "none" else _size(node, 2)


def _transform(node: Node) -> int:
    """Discrete Fourier transforms as the sums that define them: four multiply-adds for two complex numbers."""
    x, y = _dims(node, 0), node.output.type.dims
    if node.op == "STFT":
        window = node.input(2)
        frame = window.type.size if window is not None else 2 * (y[-2] - 1)
        return 2 * node.output.type.size * frame * (x[-1] if len(x) == 3 else 1)
    axis = _axis(node) % len(x)
    return 2 * node.output.type.size * x[axis] * x[-1]


def _axis(node: Node) -> int:
    given = node.input(2)
    return int(given.data.reshape(-1)[0]) if given is not None and given.data is not None else -2


def _determinants(node: Node) -> int:
    """LU factors: two thirds of n³ for a matrix."""
    n = _dims(node, 0)[-1]
    return _size(node, 0) * n * 2 // 3


_TAPS = {"linear": 2, "bilinear": 2, "cubic": 4, "bicubic": 4}
"""Elements along an axis that an interpolated one is made of."""


def _resized(node: Node) -> int:
    """A multiply-add for each tap of each axis that changes."""
    taps = _TAPS.get(str(node.attrs.get("mode", "nearest")), 0)
    changed = sum(a != b for a, b in zip(_dims(node, 0), node.output.type.dims, strict=True))
    return 2 * node.output.type.size * taps**changed if taps and changed else 0


def _sampled(node: Node) -> int:
    """A multiply-add for each element around a point; the coordinates are small beside them."""
    taps = _TAPS.get(str(node.attrs.get("mode", "linear")), 0)
    return 2 * node.output.type.size * taps ** (len(_dims(node, 0)) - 2) if taps else 0


def _aligned(node: Node) -> int:
    """Four multiply-adds for each sample of a region; one sample where the number follows the region."""
    return 8 * node.output.type.size * max(1, int(node.attrs.get("sampling_ratio", 0))) ** 2


def _trees(node: Node) -> int:
    """A comparison a level, were trees balanced, and an addition, for each row and tree."""
    trees, leaves = _size(node, 6), _size(node, 9)
    return _dims(node, 0)[0] * trees * (1 + max(0, ceil(log2(leaves / trees)))) if trees and leaves else 0


def _compared(node: Node) -> int:
    """One comparison of each score, or of each element that is looked at; what follows only data tell."""
    first = node.attrs["body"].nodes[0].op
    return _size(node, 0 if first == "NonZero" else 1)


_COUNTS: dict[str, Callable[[Node], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "c2c.IntegerConv": _conv,
    "c2c.WinogradConv": _conv,
    "QLinearConv": lambda n: _conv(n, 3),
    "ConvTranspose": lambda n: 2 * _size(n, 0) * prod(_dims(n, 1)[1:]),
    "MatMul": _matmul,
    "c2c.MatMul": _matmul,
    "c2c.Attention": _attention,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "c2c.TreeEnsemble": _trees,
    "c2c.DynamicLSTM": lambda n: 2 * prod(_dims(n, 0)[:2]) * _size(n, 2),
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "DFT": _transform,
    "STFT": _transform,
    "Det": _determinants,
    "Resize": _resized,
    "GridSample": _sampled,
    "RoiAlign": _aligned,
    "Scatter": _scattered,
    "ScatterElements": _scattered,
    "ScatterND": _scattered,
    "Range": lambda n: 2 * n.output.type.size,
    "c2c.Bounded": _compared,
}

_PER_ELEMENT = {
    "ReduceSum": 1, "ReduceMean": 1, "ReduceMax": 1, "ReduceMin": 1, "ReduceProd": 1, "ReduceL1": 2, "ReduceL2": 2,
    "ReduceSumSquare": 2, "ReduceLogSum": 1, "ReduceLogSumExp": 3, "ArgMax": 1, "ArgMin": 1, "Hardmax": 1,
    "GlobalAveragePool": 1, "GlobalMaxPool": 1, "GlobalLpPool": 2, "CumSum": 1, "CumProd": 1, "Col2Im": 1, "TopK": 1,
    "DynamicQuantizeLinear": 5, "TfIdfVectorizer": 1,
    "Softmax": 5, "LogSoftmax": 5, "LayerNormalization": 7, "RMSNormalization": 5, "InstanceNormalization": 7,
    "MeanVarianceNormalization": 7, "LpNormalization": 3, "LRN": 5,
}  # fmt: skip
"""Operations for each input element."""

NO_ARITHMETIC = frozenset({
    "Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand", "EyeLike", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "MaxUnpool", "OneHot", "Pad", "Reshape", "ReverseSequence", "Shape",
    "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "TensorScatter", "Tile", "Transpose", "Trilu", "Unsqueeze",
    "c2c.Copy", "c2c.Reorder",
})  # fmt: skip
"""Operators that place elements and compute none."""


def _winograd_flops(node: Node) -> float:
    """Products and both transforms of all tiles; a transform's operations are two for each non-zero factor."""
    m = int(node.attrs["m"])
    k, c = _dims(node, 1)[:2]
    images, _, height, width = node.output.type.dims
    tiles = images * -(-height // m) * -(-width // m)
    transforms = c * _transform_flops(np.asarray(input_matrix(m))) + k * _transform_flops(np.asarray(output_matrix(m)))
    return float(tiles * (2 * (m + 2) ** 2 * k * c + transforms))


def _transform_flops(a: np.ndarray) -> int:
    """Of A X A': once along the columns of X, once along its rows."""
    return 2 * int(np.count_nonzero(a)) * sum(a.shape)


def _weight_bytes(node: Node, value: Value) -> int:
    if node.op in GROUPS:
        body: Graph = node.attrs["body"]
        inner = body.inputs[[v for v in node.inputs if v is not None].index(value)]
        return max((_weight_bytes(n, inner) for n in body.nodes if inner in n.inputs), default=value.type.nbytes)
    if node.op == "c2c.WinogradConv" and value is node.input(1):
        return value.type.nbytes * (int(node.attrs["m"]) + 2) ** 2 // 9
    return value.type.nbytes
