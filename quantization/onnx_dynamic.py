"""Dynamic quantisation in the file: what a product reads gets its levels at run time, from its own range.

y = x W becomes Cast(MatMulInteger(q, levels, zero)) · (scale of x · scale of W), with q, scale and zero of x by
DynamicQuantizeLinear. No samples are needed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..compression import onnx_model
from ..compression.layers import Layer
from .onnx_qdq import fresh
from .rounding import QuantizedWeights


def write_dynamic(model: ModelProto, weights: Mapping[Layer, QuantizedWeights]) -> ModelProto:
    """A copy of the model whose products by these matrices are of integers; a tensor that several read gets its levels
    once."""
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    taken = {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    taken |= {i.name for i in graph.input}
    by_weight = {layer.name: (layer, w) for layer, w in weights.items()}
    levels: dict[str, list[str]] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        found = by_weight.get(node.input[1]) if len(node.input) > 1 else None
        if found is None:
            nodes.append(node)
            continue
        source = node.input[0]
        if source not in levels:
            levels[source] = [fresh(f"{source}.{k}", taken) for k in ("levels", "scale", "zero")]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [source], levels[source], levels[source][0]))
        nodes += _product(result, node, *found, levels[source], taken)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx_model.drop_unused(result)
    return result


def _product(
    model: ModelProto, node: NodeProto, layer: Layer, w: QuantizedWeights, x: list[str], taken: set[str]
) -> list[NodeProto]:
    """The nodes that take the place of a MatMul or Gemm."""

    def constant(name: str, data: np.ndarray) -> str:
        name = fresh(name, taken)
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(data), name))
        return name

    matrix = constant(f"{layer.name}.levels", w.levels.T if layer.transposed else w.levels)
    scale = constant(f"{layer.name}.scale", w.scale[:, 0])
    result = node.output[0]
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else None
    sums, floats, factor, scaled = (fresh(f"{result}.{k}", taken) for k in ("sums", "floats", "factor", "scaled"))
    last = scaled if bias else result
    made = [
        helper.make_node("MatMulInteger", [x[0], matrix, x[2]], [sums], node.name),
        helper.make_node("Cast", [sums], [floats], f"{floats}.make", to=TensorProto.FLOAT),
        helper.make_node("Mul", [x[1], scale], [factor], f"{factor}.make"),
        helper.make_node("Mul", [floats, factor], [last], f"{last}.make"),
    ]
    if bias:
        made.append(helper.make_node("Add", [scaled, bias], [result], f"{result}.make"))
    return made
