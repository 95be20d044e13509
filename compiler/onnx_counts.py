"""Results of which only data tell the number, at import: as many as there can be, and how many of them are meant.

NonMaxSuppression, NonZero and Compress become `c2c.Bounded`: results in front, zeros behind them, and their number as a
second output. `Counts` follows such an axis through the nodes behind (`onnx_count_rules`), where rows stay apart or
what is behind the results can be hidden from an operator that mixes them; elsewhere the model is refused. So every
shape of the graph is a number, and no pass has to know. Sizes computed from such results keep their bounds (`sizes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.errors import ShapeError
from ..ir.graph import Graph, Node, Value, constant
from ..ir.ops import COUNTED
from ..ir.reference import infer_node
from ..ir.types import Counted, DType, TensorType
from .onnx_sizes import Size, scalar, upper, vector
from .onnx_upgrade import Emit


@dataclass(frozen=True, slots=True)
class Along:
    """An axis of which the first `count` (a scalar of i64) are meant."""

    axis: int
    count: Value


class Counts:
    """What is known of one graph in the making."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.along: dict[Value, Along] = {}
        self.sizes: dict[Value, np.ndarray] = {}

    def concern(self, inputs: Sequence[Value | None]) -> bool:
        """Whether a number that only data tell is among the inputs of a node."""
        return any(v in self.along or v in self.sizes for v in inputs if v is not None)

    def shape(self, node: Node, data: np.ndarray) -> Value | None:
        """The result of Shape or Size, `data` where all results are meant; None where that is it."""
        value = node.inputs[0]
        along = None if value is None else self.along.get(value)
        if value is None or along is None:
            return None
        dims = np.asarray(value.type.dims, object)
        dims[along.axis] = Size(along.count, value.type.dims[along.axis])
        if node.op == "Size":
            rest = int(data) // max(dims[along.axis].upper, 1)
            (total,) = self.emit.emit("Mul", [along.count, self.emit.constant(np.asarray(rest, np.int64))], {})
            sizes = np.asarray(Size(total, int(data)), object)
        else:
            sizes = dims[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
            if not any(isinstance(e, Size) for e in sizes):
                return None
            total = vector(sizes, self.emit)
        self.sizes[total] = sizes
        return total

    def bounds_of(self, value: Value) -> Value:
        """A vector of sizes as a constant, each at its bound; any other value as it is."""
        sizes = self.sizes.get(value)
        return value if sizes is None or value.is_constant else self.emit.constant(
            upper(sizes).astype(value.type.dtype.numpy)
        )  # fmt: skip

    def hide(self, value: Value, fill: float | None) -> Value:
        """`value` with `fill` (None: the lowest of its type, infinity the highest) in place of what is not meant."""
        along = self.along.get(value)
        if along is None:
            return value
        bound, rank = value.type.dims[along.axis], value.type.rank
        places = np.arange(bound, dtype=np.int64).reshape([-1 if a == along.axis else 1 for a in range(rank)])
        (meant,) = self.emit.emit("Less", [self.emit.constant(places), along.count], {})
        self.along[meant] = along
        other = self.emit.constant(_filler(value.type.dtype, fill))
        (hidden,) = self.emit.emit("Where", [meant, value, other], {})
        return hidden

    def bounded(self, node: Node) -> tuple[Value, ...] | None:
        """`c2c.Bounded` in place of an operator whose number of results only data tell; None where it has no bound."""
        if node.op not in COUNTED or not all(v is None or v.type.is_static for v in node.inputs):
            return None
        if node.op == "Compress" and node.constant(1) is not None:
            return None
        bound, axis = self._bound(node)
        body, inputs = _body(node, bound, axis)
        rows, count = self.emit.emit("c2c.Bounded", inputs, {"body": body}, 2)
        self.along[rows] = Along(axis, count)
        return (rows,)

    def _bound(self, node: Node) -> tuple[int, int]:
        """The most results, and the axis along which they lie."""
        x = node.inputs[0]
        assert x is not None
        if node.op == "NonZero":
            return x.type.size, 1
        if node.op == "Compress":
            axis, condition = node.attrs.get("axis"), node.inputs[1]
            assert condition is not None
            there = x.type.size if axis is None else x.type.dims[axis]
            return min(condition.type.size, there), 0 if axis is None else axis % x.type.rank
        batch, classes, boxes = _scores(node)
        most = node.input(2)
        if most is None:
            return 0, 0
        known = most.data if most.data is not None else upper(self.sizes[most]) if most in self.sizes else None
        number = boxes if known is None else int(known.reshape(-1)[0])
        return batch * classes * min(max(number, 0), boxes), 0

    def replace(self, old: Sequence[Value], new: Sequence[Value]) -> None:
        """Values that others take the place of."""
        for before, after in zip(old, new, strict=True):
            if before in self.along:
                self.along[after] = self.along[before]
            if before in self.sizes:
                self.sizes[after] = self.sizes[before]

    def add_outputs(self, graph: Graph) -> None:
        """Every number of results that an output holds becomes an output, too; `graph.counts` says whose."""
        taken = {v.name for v in graph.inputs} | set(graph.output_names)
        names: dict[Value, str] = {}
        for value, output in [*zip(graph.outputs, graph.output_names, strict=True)]:
            along = self.along.get(value)
            if along is None:
                continue
            name = names.get(along.count, f"{output}_count")
            while along.count not in names and name in taken:
                name += "_"
            if along.count not in names:
                names[along.count] = name
                taken.add(name)
                graph.outputs.append(along.count)
                graph.output_names.append(name)
            graph.counts[output] = Counted(along.axis, name)

    def least(self, count: Value, most: Value | int) -> Value:
        """The smaller of two numbers, as a scalar of i64."""
        other = scalar(most, self.emit) if isinstance(most, int) else self.scalar(most)
        return self.emit.emit("Min", [count, other], {})[0]

    def scalar(self, value: Value) -> Value:
        """The one number of a tensor, as a scalar of i64."""
        sizes = self.sizes.get(value)
        if sizes is not None and isinstance(sizes.reshape(-1)[0], Size):
            return scalar(sizes.reshape(-1)[0], self.emit)
        if value.type.rank:
            (value,) = self.emit.emit("Reshape", [value, self.emit.constant(np.zeros(0, np.int64))], {})
        return value


def _filler(dtype: DType, fill: float | None) -> np.ndarray:
    if fill is None or np.isinf(fill):
        lowest = fill is None
        if dtype.is_float:
            return np.asarray(-np.inf if lowest else np.inf).astype(dtype.numpy)
        if dtype is DType.BOOL:
            return np.asarray(not lowest)
        info = np.iinfo(dtype.numpy)
        return np.asarray(info.min if lowest else info.max, dtype.numpy)
    return np.asarray(fill).astype(dtype.numpy)


def _scores(node: Node) -> tuple[int, int, int]:
    boxes, scores = node.inputs[0], node.inputs[1]
    assert boxes is not None and scores is not None
    fits = boxes.type.rank == scores.type.rank == 3 and boxes.type.dims[2] == 4
    if not fits or boxes.type.dims[:2] != (scores.type.dims[0], scores.type.dims[2]):
        raise ShapeError(
            "NonMaxSuppression takes boxes [batch, boxes, 4] and scores [batch, classes, boxes]", where=node.where
        )
    batch, classes, number = scores.type.dims
    return batch, classes, number


def _body(node: Node, bound: int, axis: int) -> tuple[Graph, list[Value]]:
    """What `c2c.Bounded` computes, and the inputs of the node that are there."""
    outer = [v for v in node.inputs if v is not None]
    inner = [Value(f"i{k}", v.type) for k, v in enumerate(outer)]
    inside = iter(inner)
    first = Node(
        node.op, tuple(None if v is None else next(inside) for v in node.inputs),
        (Value("found", TensorType(DType.F32, ())),), dict(node.attrs), node.origin,
    )  # fmt: skip
    nodes: list[Node] = []

    def add(n: Node) -> Value:
        n.output.type = infer_node(n)[0]
        nodes.append(n)
        return n.output

    def step(op: str, inputs: Sequence[Value], name: str, **attrs: Any) -> Value:
        return add(Node(op, tuple(inputs), (Value(name, TensorType(DType.I64, ())),), attrs, node.origin))

    def numbers(name: str, *values: int) -> Value:
        return constant(name, np.asarray(values, np.int64))

    found = add(first)
    rank = found.type.rank
    length = step("Shape", [found], "length", start=axis, end=axis + 1)
    count = step("Squeeze", [length, numbers("axis", 0)], "count")
    room = step("Sub", [numbers("bound", bound), length], "room")
    before, behind = numbers("before", *[0] * (rank + axis)), numbers("behind", *[0] * (rank - axis - 1))
    pads = step("Concat", [before, room, behind], "pads", axis=0)
    dims = tuple(bound if a == axis else d for a, d in enumerate(found.type.shape))
    rows = Value("rows", TensorType(found.type.dtype, dims))
    nodes.append(Node("Pad", (found, pads), (rows,), {}, node.origin))
    return Graph("body", inner, [rows, count], nodes, ["rows", "count"]), outer
