"""The model as it lies in its file: read, batch norms folded, and written again with code books for weights.

A coded weight W becomes Gather(book, Cast(index)): operators of any runtime, and every tensor keeps its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..ir.errors import OnnxImportError
from ..ir.reference import tensor_type
from ..ir.types import TensorType
from .coded import Coded, Kind
from .layers import Layer

SPARSE_INDEX_BYTES = 8
"""That the place of an element takes in a sparse tensor."""
SPARSE_IR_VERSION = 6
"""From which on models hold sparse initialisers."""

Spread = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation of each channel."""


def read_model(source: Path | str | bytes | ModelProto) -> ModelProto:
    """A copy of the model, with its external data; raises OnnxImportError."""
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.CopyFrom(source)
        return model
    try:
        return onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(str(source))
    except Exception as e:  # DecodeError of whichever protobuf is installed, and errors of files
        raise OnnxImportError(f"cannot read the model: {e}", remedy="is it an ONNX file, complete?") from e


def fold_batch_norm(model: ModelProto) -> dict[str, Spread]:
    """BatchNormalization of a convolution that nobody else reads into its weights and bias; what the norms that were
    folded say of their results, by name: in training these had the norm's shift as mean and its scale as deviation."""
    graph = model.graph
    constants = _constants(model)
    readers = Counter(i for n in graph.node for i in n.input)
    producers = {o: n for n in graph.node for o in n.output}
    outputs = {o.name for o in graph.output}
    folded: dict[str, Spread] = {}
    for norm in list(graph.node):
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or readers[norm.input[0]] != 1 or norm.input[0] in outputs:
            continue
        names = [*conv.input[1:], *norm.input[1:5]]
        if any(n not in constants for n in names) or readers[conv.input[1]] != 1 or len(norm.output) > 1:
            continue
        _fold(model, conv, norm, constants)
        graph.node.remove(norm)
        producers[conv.output[0]] = conv
        folded[conv.output[0]] = (constants[norm.input[2]], np.abs(constants[norm.input[1]]))
    if folded:
        drop_unused(model)
    return folded


def _fold(model: ModelProto, conv: NodeProto, norm: NodeProto, constants: dict[str, np.ndarray]) -> None:
    weights = constants[conv.input[1]].astype(np.float64)
    old = constants[conv.input[2]].astype(np.float64) if len(conv.input) > 2 else np.zeros(len(weights))
    scale, shift, mean, variance = (constants[n].astype(np.float64) for n in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    name, bias = f"{norm.output[0]}.weight", f"{norm.output[0]}.bias"
    for key, value in (
        (name, weights * factor.reshape(-1, *[1] * (weights.ndim - 1))),
        (bias, (old - mean) * factor + shift),
    ):
        constants[key] = value.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(constants[key], key))
    inputs = [conv.input[0], name, bias]
    del conv.input[:]
    conv.input.extend(inputs)
    conv.output[0] = norm.output[0]


def _constants(model: ModelProto) -> dict[str, np.ndarray]:
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for a in node.attribute:
                if a.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(a.t)
    return found


def inputs_of(model: ModelProto) -> dict[str, TensorType]:
    """The declared type of each input that is no constant."""
    constants = {t.name for t in model.graph.initializer}
    return {v.name: tensor_type(v.type, v.name) for v in model.graph.input if v.name not in constants}


def writable(model: ModelProto, layers: list[Layer]) -> list[Layer]:
    """The layers that stand in the file as they stand in the graph: one node of that operator reads that tensor."""
    readers: dict[str, list[NodeProto]] = {}
    producers: dict[str, NodeProto] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        producers.update({o: node for o in node.output})
    known = {t.name for t in model.graph.initializer} | set(producers)
    outputs = {o.name for o in model.graph.output}
    kept = []
    for layer in layers:
        found = readers.get(layer.name, [])
        if layer.name not in known or len(found) != 1 or found[0].op_type != layer.node.op or layer.name in outputs:
            continue
        if found[0].output[0] != layer.node.output.name:
            continue
        add = producers.get(layer.output.name) if layer.add is not None else None
        if layer.add is not None and (add is None or add.op_type != "Add" or found[0].output[0] not in add.input):
            layer.add, layer.bias = None, None
        kept.append(layer)
    return kept


def write_coded(model: ModelProto, coded: Mapping[Layer, Coded]) -> ModelProto:
    """A copy of the model that computes with the coded weights."""
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    gone = {layer.name for layer in coded}
    gone_nodes = {layer.output.name for layer in coded if layer.add is not None}
    for t in [t for t in graph.initializer if t.name in gone]:
        graph.initializer.remove(t)
    for v in [v for v in graph.input if v.name in gone]:
        graph.input.remove(v)
    by_weight = {layer.name: (layer, c) for layer, c in coded.items()}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output and (node.output[0] in gone or (node.op_type == "Add" and node.output[0] in gone_nodes)):
            continue
        mine = [by_weight[i] for i in node.input if i in by_weight]
        for layer, c in mine:
            nodes += _spelt(result, layer, c)
        nodes.append(node)
        if mine:
            nodes += _epilogue(result, node, *mine[0])
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(result)
    return result


def _spelt(model: ModelProto, layer: Layer, c: Coded) -> list[NodeProto]:
    """Constants and nodes that give the weights before the scale, under their old name."""
    name = layer.name
    if c.kind is Kind.DENSE:
        _constant(model, name, c.tensor)
        return []
    if c.kind is Kind.F16 and c.values is not None:
        _constant(model, f"{name}.half", c.values.astype(np.float16))
        return [helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)]
    if c.kind is Kind.INT8 and _opset(model) >= 10:
        step = np.float32(c.levels[1] - c.levels[0] if len(c.levels) > 1 else c.levels[0])
        low = int(round(float(c.levels[0] / step)))
        _constant(model, f"{name}.whole", (c.index.astype(np.int16) + low).astype(np.int8))
        _constant(model, f"{name}.step", np.asarray(step))
        return [helper.make_node("DequantizeLinear", [f"{name}.whole", f"{name}.step"], [name])]
    order = np.argsort(c.levels != 0, kind="stable")  # 0 first: what a sparse tensor leaves out
    rank = np.empty(len(order), np.uint8)
    rank[order] = np.arange(len(order))
    _constant(model, f"{name}.book", c.levels[order].astype(np.float32))
    _index(model, f"{name}.index", rank[c.index])
    return [
        helper.make_node("Cast", [f"{name}.index"], [f"{name}.place"], to=TensorProto.INT32),
        helper.make_node("Gather", [f"{name}.book", f"{name}.place"], [name], axis=0),
    ]


def _opset(model: ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _index(model: ModelProto, name: str, index: np.ndarray) -> None:
    """A constant of bytes; sparse where that is smaller."""
    kept = np.flatnonzero(index)
    if kept.size * (1 + SPARSE_INDEX_BYTES) >= index.size or not kept.size or model.ir_version < SPARSE_IR_VERSION:
        _constant(model, name, index)
        return
    values = numpy_helper.from_array(index.ravel()[kept], name)
    places = numpy_helper.from_array(kept.astype(np.int64), f"{name}.places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, index.shape))


def _epilogue(model: ModelProto, node: NodeProto, layer: Layer, c: Coded) -> list[NodeProto]:
    """Scale and bias behind the node, or the bias in it."""
    if c.bias is None and c.scale is None:
        return []
    name, result = layer.name, layer.output.name
    bias = np.zeros(layer.channels, np.float32) if c.bias is None else c.bias
    if c.scale is None and node.op_type in ("Conv", "Gemm"):
        inputs = [*node.input[:2], _constant(model, f"{name}.bias", bias)]
        del node.input[:]
        node.input.extend(inputs)
        node.output[0] = result
        return []
    inputs = [*node.input[:2]]
    del node.input[:]
    node.input.extend(inputs)
    shape = (-1, *[1] * (layer.dense.ndim - 2)) if layer.kind == "conv" else (-1,)
    node.output[0] = f"{name}.product"
    nodes = []
    last = node.output[0]
    if c.scale is not None:
        scale = _constant(model, f"{name}.scale", c.scale.reshape(shape))
        nodes.append(helper.make_node("Mul", [last, scale], [f"{name}.scaled"]))
        last = f"{name}.scaled"
    nodes.append(helper.make_node("Add", [last, _constant(model, f"{name}.bias", bias.reshape(shape))], [result]))
    return nodes


def _constant(model: ModelProto, name: str, data: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(data), name))
    return name


def drop_unused(model: ModelProto) -> None:
    """Initialisers and nodes without a reader."""
    graph = model.graph
    while True:
        read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output} | captured(model)
        dead = [n for n in graph.node if not any(o in read for o in n.output)]
        if not dead:
            break
        for n in dead:
            graph.node.remove(n)
    for t in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(t)
    stale = {n for n in (v.name for v in graph.value_info) if n not in read}
    for v in [v for v in graph.value_info if v.name in stale]:
        graph.value_info.remove(v)


def captured(model: ModelProto) -> set[str]:
    """Names that branches and loop bodies read from the graph around them."""
    found: set[str] = set()
    pending = [a.g for n in model.graph.node for a in n.attribute if a.HasField("g")]
    while pending:
        graph = pending.pop()
        found |= {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
        pending += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return found


def with_constants(model: ModelProto, changed: Mapping[str, np.ndarray]) -> ModelProto:
    """A copy of the model with other values for some constants."""
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for t in [t for t in graph.initializer if t.name in changed]:
        graph.initializer.remove(t)
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] in changed]:
        graph.node.remove(node)
    for name, data in changed.items():
        _constant(result, name, data)
    return result


def constants_of(model: ModelProto) -> dict[str, np.ndarray]:
    """The constants that the file holds, by name."""
    return _constants(model)
