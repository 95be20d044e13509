"""A quantised network in the file: QuantizeLinear and DequantizeLinear around what holds levels (QDQ form).

Every tensor keeps its name; what reads a tensor with levels reads the dequantised one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper, version_converter

from ..compression import onnx_model
from ..compression.layers import Layer
from ..ir.errors import C2CError, OnnxImportError
from .grid import Grid
from .places import MOVING
from .rounding import QuantizedWeights

OPSET = 13
"""The first with a scale for each channel."""

BLOCK_OPSET = 21
"""The first with 4-bit integers and a scale for each block."""

WIDE_OPSET = 21
"""The first with levels of 16 bits."""

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def prepared(model: ModelProto, least: int = OPSET) -> ModelProto:
    """The model with batch norms folded, an opset of at least `least` and a name for every node; raises C2CError where
    it is quantised already."""
    for node in model.graph.node:
        if node.op_type in _QUANTIZED:
            raise C2CError(
                f"the model is quantised already: node '{node.name}' is a {node.op_type}",
                remedy="give the model of floats",
            )
    onnx_model.fold_batch_norm(model)
    model = raised(model, least)
    taken = {n.name for n in model.graph.node}
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = fresh(f"{node.op_type}_{node.output[0]}", taken)
        seen.add(node.name)
    return model


def opset(model: ModelProto) -> int:
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def raised(model: ModelProto, least: int) -> ModelProto:
    """The model in an opset of at least `least`; raises OnnxImportError."""
    version = opset(model)
    if version >= least:
        return model
    try:
        return version_converter.convert_version(model, least)
    except Exception as e:  # ConvertError and others of ONNX's own converter
        raise OnnxImportError(f"cannot bring the model from opset {version} to {least}: {e}") from e


def write_quantized(
    model: ModelProto,
    weights: Mapping[Layer, QuantizedWeights],
    inputs: Mapping[Layer, Grid],
    grids: Mapping[str, Grid],
) -> ModelProto:
    """A copy of the model that computes with these levels.

    weights: the quantised layers; inputs: the grid of what each reads, for those that read levels. grids: of the
    tensors that hold levels, by name.
    """
    wide = any(g.is_wide for g in grids.values()) or any(w.form.bits == 16 for w in weights.values())
    result = ModelProto()
    result.CopyFrom(raised(model, WIDE_OPSET) if wide else model)
    work = _Writer(result)
    for layer, w in weights.items():
        work.layer(layer, w, inputs.get(layer))
    for name, grid in grids.items():
        work.tensor(name, grid)
    work.finish()
    return result


def set_constants(model: ModelProto, changed: Mapping[str, np.ndarray]) -> None:
    """Replace constants, or what computes them, by others of their shape, in place."""
    graph = model.graph
    for t in [t for t in graph.initializer if t.name in changed]:
        graph.initializer.remove(t)
    for node in [n for n in graph.node if n.output and n.output[0] in changed]:
        graph.node.remove(node)
    for name, data in changed.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(data), name))
    onnx_model.drop_unused(model)


def owned(model: ModelProto) -> set[str]:
    """Names of tensors of the main graph that one node reads and no branch or loop."""
    readers = Counter(i for n in model.graph.node for i in n.input)
    named = {t.name for t in model.graph.initializer} | {n.output[0] for n in model.graph.node if len(n.output) == 1}
    shared = onnx_model.captured(model) | {o.name for o in model.graph.output}
    return {name for name in named if readers[name] == 1 and name not in shared}


class _Writer:
    """Nodes are collected before those that read them (`before`) or behind what makes their input (`behind`)."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.names = {t.name for t in model.graph.initializer} | {i.name for i in model.graph.input}
        self.names |= {o for n in model.graph.node for o in n.output}
        self.makers = {o: n for n in model.graph.node for o in n.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.behind: dict[str, list[NodeProto]] = {}
        self.before: dict[str, list[NodeProto]] = {}

    def layer(self, layer: Layer, w: QuantizedWeights, x: Grid | None) -> None:
        """Weights, and the bias as i32 in units of the sums where the layer reads levels."""
        (node,) = self.readers[layer.name]
        self._set_input(node, layer.index, self._weights(node, layer, w))
        if w.bias is None:
            return
        if layer.add is not None:
            self._set_added(node, layer, w.bias)
        elif node.op_type == "MatMul":
            self._append_add(node, layer, w.bias)
        elif x is None or x.is_wide or w.form.bits == 16:
            self._set_input(node, 2, self._constant(f"{layer.name}.bias", w.bias))
        else:
            steps = np.asarray(x.scale * w.scale[:, 0], np.float32)
            sums = np.clip(np.rint(w.bias.astype(np.float64) / steps), -(2**31), 2**31 - 1).astype(np.int32)
            zeros = np.zeros(steps.shape, np.int32)
            self._set_input(node, 2, self._dequantized(node, f"{layer.name}.bias", (sums, steps, zeros), axis=0))

    def tensor(self, name: str, grid: Grid) -> None:
        """Levels of a tensor for all that read it."""
        scale = self._constant(f"{name}.scale", np.asarray(grid.scale, np.float32))
        zero = self._constant(f"{name}.zero", np.asarray(grid.zero, np.uint16 if grid.is_wide else np.uint8))
        levels, values = self._name(f"{name}.levels"), self._name(f"{name}.dequantized")
        cut = self._cut_off(name, grid) if grid.is_wide and not self._is_moved(name) else []
        self.behind[name] = [
            *cut,
            helper.make_node(
                "QuantizeLinear", [cut[0].output[0] if cut else name, scale, zero], [levels], f"{levels}.make"
            ),
            helper.make_node("DequantizeLinear", [levels, scale, zero], [values], f"{values}.make"),
        ]
        for node in self.readers.get(name, []):
            inputs = [values if i == name else i for i in node.input]
            del node.input[:]
            node.input.extend(inputs)

    def _cut_off(self, name: str, grid: Grid) -> list[NodeProto]:
        """What holds levels of 16 bits to those of the grid: that bounds all sums of products."""
        ends = [
            self._constant(f"{name}.{k}", np.asarray(e, np.float32))
            for k, e in (("low", grid.low), ("high", grid.high))
        ]
        result = self._name(f"{name}.cut")
        return [helper.make_node("Clip", [name, *ends], [result], f"{result}.make")]

    def _is_moved(self, name: str) -> bool:
        """Whether a tensor holds elements of others of its grid."""
        return name in self.makers and self.makers[name].op_type in MOVING

    def finish(self) -> None:
        graph = self.model.graph
        nodes: list[NodeProto] = []
        for i in graph.input:
            self._follow(i.name, nodes)
        for node in graph.node:
            nodes += self.before.get(node.name, [])
            nodes.append(node)
            for o in node.output:
                self._follow(o, nodes)
        del graph.node[:]
        graph.node.extend(nodes)
        onnx_model.drop_unused(self.model)

    def _follow(self, name: str, nodes: list[NodeProto]) -> None:
        for made in self.behind.get(name, ()):
            nodes.append(made)
            for o in made.output:
                self._follow(o, nodes)

    def _weights(self, node: NodeProto, layer: Layer, w: QuantizedWeights) -> str:
        levels, scale, axis = w.levels, w.scale, layer.channel_axis
        attrs: dict[str, Any]
        if w.form.block:
            across = np.ascontiguousarray(scale if axis == 0 else scale.T)
            attrs = {"axis": 1 - axis, "block_size": w.form.block}
        else:
            across, attrs = scale[:, 0], {"axis": axis}
        if w.form.bits == 4:
            return self._dequantized(node, layer.name, (levels.astype(ml_dtypes.int4), across), **attrs)
        return self._dequantized(node, layer.name, (levels, across, np.zeros(across.shape, levels.dtype)), **attrs)

    def _dequantized(self, node: NodeProto, name: str, parts: Sequence[np.ndarray], **attrs: Any) -> str:
        """Levels, scale and, for other than 4 bits, a zero point as a tensor of floats for `node`."""
        names = [self._constant(f"{name}.{k}", a) for k, a in zip(("levels", "scale", "zero"), parts, strict=False)]
        result = self._name(f"{name}.dequantized")
        made = helper.make_node("DequantizeLinear", names, [result], f"{result}.make", **attrs)
        self.before.setdefault(node.name, []).append(made)
        return result

    def _set_input(self, node: NodeProto, index: int, name: str) -> None:
        while len(node.input) <= index:
            node.input.append("")
        node.input[index] = name

    def _set_added(self, node: NodeProto, layer: Layer, bias: np.ndarray) -> None:
        assert layer.bias is not None and layer.bias.data is not None
        (add,) = self.readers[node.output[0]]
        data = bias.reshape((-1, *[1] * (layer.dense.ndim - 2)) if layer.kind == "conv" else (-1,))
        name = self._constant(f"{layer.name}.bias", data)
        for i, source in enumerate(add.input):
            if source != node.output[0]:
                add.input[i] = name

    def _append_add(self, node: NodeProto, layer: Layer, bias: np.ndarray) -> None:
        result, product = node.output[0], self._name(f"{layer.name}.product")
        node.output[0] = product
        name = self._constant(f"{layer.name}.bias", bias)
        add = helper.make_node("Add", [product, name], [result], f"{product}.add")
        self.behind[product] = [add]

    def _constant(self, name: str, data: np.ndarray) -> str:
        name = self._name(name)
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(data), name))
        return name

    def _name(self, name: str) -> str:
        return fresh(name, self.names)


def fresh(name: str, taken: set[str]) -> str:
    """A name that is not taken, and is from now on."""
    unique, k = name, 1
    while unique in taken:
        unique, k = f"{name}_{k}", k + 1
    taken.add(unique)
    return unique


def check(model: ModelProto) -> None:
    """Raise AssertionError where the written model is none: our own bug."""
    onnx.checker.check_model(model)
