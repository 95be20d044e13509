"""Operators of older opsets in terms of the newest: a table of what changed in meaning since opset 7.

`onnx.version_converter` is not used: it copies the whole model, and it knows neither values nor ranks, which the
changes below need. A row (op, N, rule) applies to nodes of opsets below N; `tests/compiler/test_import_opsets.py`
compares the table with the differences between ONNX's schemas, so that a new opset cannot add one unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..ir.errors import UnsupportedOpError
from ..ir.graph import Value


class Emit(Protocol):
    """Adds nodes of the newest opset to the graph being imported."""

    def constant(self, data: np.ndarray) -> Value: ...

    def emit(
        self, op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any], count: int = 1
    ) -> tuple[Value, ...]: ...

    def label(self, value: Value, names: tuple[str, ...]) -> None:
        """Integers that stand for strings: what each number names; of floats, what each column is."""

    def names_of(self, value: Value) -> tuple[str, ...] | None:
        """The strings for which integers stand; None where they are numbers."""


@dataclass(eq=False, slots=True)
class OldNode:
    """A node as it stands in the file; rules change it in place or return the results that take its place."""

    op: str
    version: int
    inputs: list[Value | None]
    attrs: dict[str, Any]
    outputs: int
    where: str

    def input(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def set_input(self, index: int, value: Value | None) -> None:
        self.inputs += [None] * (index + 1 - len(self.inputs))
        self.inputs[index] = value

    @property
    def data(self) -> Value:
        value = self.inputs[0]
        assert value is not None
        return value


Rule = Callable[[OldNode, Emit], tuple[Value, ...] | None]


def upgrade(node: OldNode, emit: Emit) -> tuple[Value, ...] | None:
    """Apply every row that concerns `node`; results where it was replaced by others, else None."""
    for below, rule in UPGRADES.get(node.op, ()):
        if node.version < below:
            results = rule(node, emit)
            if results is not None:
                return results
    return None


def _attr_to_input(attr: str, index: int, dtype: type | None = np.int64, scalar: bool = False) -> Rule:
    """An attribute became input `index`; dtype None: of the first input's type."""

    def rule(node: OldNode, emit: Emit) -> None:
        if attr in node.attrs:
            value = node.attrs.pop(attr)
            element = node.data.type.dtype.numpy if dtype is None else np.dtype(dtype)
            data = np.asarray(value).astype(element)
            node.set_input(index, emit.constant(data.reshape(()) if scalar else data.reshape(-1)))

    return rule


def _clip(node: OldNode, emit: Emit) -> None:
    for index, attr in ((1, "min"), (2, "max")):
        if attr in node.attrs:
            node.set_input(index, emit.constant(np.asarray(node.attrs.pop(attr), node.data.type.dtype.numpy)))


def _slice(node: OldNode, emit: Emit) -> None:
    for index, attr in ((1, "starts"), (2, "ends"), (3, "axes")):
        if attr in node.attrs:
            node.set_input(index, emit.constant(np.asarray(node.attrs.pop(attr), np.int64)))


def _pad(node: OldNode, emit: Emit) -> None:
    value = node.attrs.pop("value", 0.0)
    node.set_input(1, emit.constant(np.asarray(node.attrs.pop("pads"), np.int64)))
    node.set_input(2, emit.constant(np.asarray(value, node.data.type.dtype.numpy)))


def _batch_normalization(node: OldNode, emit: Emit) -> None:
    if node.attrs.pop("spatial", 1) != 1:
        raise UnsupportedOpError("BatchNormalization with spatial=0 is not supported", where=node.where)
    node.attrs.pop("training_mode", None)
    node.outputs = 1


def _dropout(node: OldNode, emit: Emit) -> None:
    node.attrs.pop("ratio", None)
    if node.version < 10:  # its mask has the data's type
        node.outputs = 1


def _flattening(node: OldNode, emit: Emit) -> tuple[Value, ...] | None:
    """Softmax, LogSoftmax and Hardmax flattened to [product before axis, product from axis on]."""
    x, rank = node.data, node.data.type.rank
    axis = node.attrs.pop("axis", 1)
    axis += rank if axis < 0 else 0
    if axis == rank - 1:
        node.attrs["axis"] = -1
        return None
    flat = emit.emit("Flatten", [x], {"axis": axis})
    result = emit.emit(node.op, flat, {"axis": -1})
    return emit.emit("Reshape", [*result, *emit.emit("Shape", [x], {})], {})


def _split(node: OldNode, emit: Emit) -> None:
    if node.input(1) is None:
        node.attrs["num_outputs"] = node.outputs


def _upsample(node: OldNode, emit: Emit) -> None:
    scales = node.attrs.pop("scales", None)
    given = node.input(1) if scales is None else emit.constant(np.asarray(scales, np.float32))
    node.op, node.inputs = "Resize", [node.data, None, given]
    node.attrs = {
        "mode": node.attrs.get("mode", "nearest"),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }


def _resize(node: OldNode, emit: Emit) -> None:
    """Opset 10 had no roi and no coordinate modes: it is an Upsample."""
    _upsample(node, emit)


def _resize_coordinates(node: OldNode, emit: Emit) -> None:
    """tf_half_pixel_for_nn is half_pixel plus 1/2, then rounded."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        moved = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}
        nearest = moved.get(node.attrs.get("nearest_mode", "round_prefer_floor"))
        if nearest is None or node.attrs.get("mode", "nearest") != "nearest":
            raise UnsupportedOpError("Resize with tf_half_pixel_for_nn is not supported in this form", where=node.where)
        node.attrs.update(coordinate_transformation_mode="half_pixel", nearest_mode=nearest)


def _resize_empty(node: OldNode, emit: Emit) -> None:
    """An empty roi, scales or sizes means that it is left out."""
    node.inputs = [
        v if k == 0 or v is None or (v.type.is_static and v.type.size) else None for k, v in enumerate(node.inputs)
    ]


def _scatter(node: OldNode, emit: Emit) -> None:
    node.op = "ScatterElements"


def _grid_sample(node: OldNode, emit: Emit) -> None:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    if "mode" in node.attrs:
        node.attrs["mode"] = names.get(node.attrs["mode"], node.attrs["mode"])


def _roi_align(node: OldNode, emit: Emit) -> None:
    node.attrs["coordinate_transformation_mode"] = "output_half_pixel"


def _stft(node: OldNode, emit: Emit) -> None:
    """ONNX's inference does not know the default."""
    node.attrs.setdefault("onesided", 1)


def _dft(node: OldNode, emit: Emit) -> None:
    node.set_input(2, emit.constant(np.asarray(node.attrs.pop("axis", 1), np.int64)))


def _group_normalization(node: OldNode, emit: Emit) -> None:
    """scale and bias were one value a group: repeat each for the group's channels."""
    groups, channels = node.attrs.get("num_groups", 1), node.data.type.shape[1]
    if not isinstance(channels, int) or groups < 1 or channels % groups:
        raise UnsupportedOpError(f"GroupNormalization of {channels} channels in {groups} groups", where=node.where)
    for index in (1, 2):
        column = emit.emit("Unsqueeze", [node.input(index), emit.constant(np.asarray([1]))], {})
        wide = emit.emit("Expand", [*column, emit.constant(np.asarray([groups, channels // groups]))], {})
        node.set_input(index, emit.emit("Reshape", [*wide, emit.constant(np.asarray([channels]))], {})[0])


def _top_k(node: OldNode, emit: Emit) -> None:
    node.set_input(1, emit.constant(np.asarray([node.attrs.pop("k")], np.int64)))


def _range(node: OldNode, emit: Emit) -> None:
    """Bounds are scalars; exporters, and ONNX's own AffineGrid, also write [1]."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.type.shape == (1,):
            scalar = emit.constant(np.asarray([], np.int64))
            node.set_input(index, emit.emit("Reshape", [value, scalar], {})[0])


_AXES = _attr_to_input("axes", 1)
_ALWAYS = 1 << 30

UPGRADES: dict[str, tuple[tuple[int, Rule], ...]] = {
    "BatchNormalization": ((14, _batch_normalization),),
    "Clip": ((11, _clip),),
    "DFT": ((20, _dft),),
    "Dropout": ((12, _dropout),),
    "GridSample": ((20, _grid_sample),),
    "GroupNormalization": ((21, _group_normalization),),
    "Hardmax": ((13, _flattening),),
    "LogSoftmax": ((13, _flattening),),
    "Pad": ((11, _pad),),
    "Range": ((_ALWAYS, _range),),
    "ReduceL1": ((18, _AXES),),
    "ReduceL2": ((18, _AXES),),
    "ReduceLogSum": ((18, _AXES),),
    "ReduceLogSumExp": ((18, _AXES),),
    "ReduceMax": ((18, _AXES),),
    "ReduceMean": ((18, _AXES),),
    "ReduceMin": ((18, _AXES),),
    "ReduceProd": ((18, _AXES),),
    "ReduceSum": ((13, _AXES),),
    "ReduceSumSquare": ((18, _AXES),),
    "Resize": ((11, _resize), (13, _resize_coordinates), (_ALWAYS, _resize_empty)),
    "RoiAlign": ((16, _roi_align),),
    "STFT": ((_ALWAYS, _stft),),
    "Scatter": ((_ALWAYS, _scatter),),
    "Slice": ((10, _slice),),
    "Softmax": ((13, _flattening),),
    "Split": ((13, _attr_to_input("split", 1)), (18, _split)),
    "Squeeze": ((13, _AXES),),
    "TopK": ((10, _top_k),),
    "Unsqueeze": ((13, _AXES),),
    "Upsample": ((_ALWAYS, _upsample),),
}
