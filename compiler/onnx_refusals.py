"""Forms of nodes that are refused, and the errors that say why."""

from __future__ import annotations

from collections.abc import Sequence

from onnx.defs import OpSchema

from ..ir.errors import C2CError, ConstantNeededError, OnnxImportError, ShapeError, UnknownShapeError
from ..ir.graph import Node, Value
from ..ir.reference import schema_of
from ..ir.types import DType


def is_since(schema: OpSchema, later: OpSchema | None) -> bool:
    """Whether an operator has not changed up to a later opset."""
    return later is not None and schema.since_version == later.since_version


def check_arity(inputs: Sequence[Value | None], outputs: int, schema: OpSchema) -> None:
    """Raises OnnxImportError where the number of inputs or outputs does not fit the schema."""
    if not schema.min_input <= len(inputs) <= schema.max_input:
        raise OnnxImportError(
            f"operator {schema.name} takes {schema.min_input} to {schema.max_input} inputs, not {len(inputs)}"
        )
    if not schema.min_output <= outputs <= schema.max_output:
        raise OnnxImportError(
            f"operator {schema.name} makes {schema.min_output} to {schema.max_output} outputs, not {outputs}"
        )
    for k, value in enumerate(inputs[: len(schema.inputs)]):
        if value is None and schema.inputs[k].option == OpSchema.FormalParameterOption.Single:
            raise OnnxImportError(f"input '{schema.inputs[k].name}' of operator {schema.name} is left out")


_OWN_AXIS = frozenset({"OneHot", "Flatten", "QuantizeLinear", "DequantizeLinear"})
"""Operators whose axis may lie outside of the first input's rank."""


def check_axis(node: Node) -> None:
    """Raises ShapeError for an axis out of range, which inference lets pass for some operators."""
    axis, value = node.attrs.get("axis"), node.input(0)
    if isinstance(axis, int) and value is not None and node.op not in _OWN_AXIS:
        rank = max(value.type.rank, 1)
        if not -rank <= axis < rank:
            raise ShapeError(f"axis {axis} of a tensor of rank {value.type.rank}", where=node.where)


def needs_constant(node: Node, e: UnknownShapeError) -> C2CError:
    """The error for a result of unknown rank: most often an input that says its shape is computed at run time."""
    schema = schema_of(node.op)
    for k, value in enumerate(node.inputs[1:], 1):
        if value is not None and value.data is None and schema is not None and value.type.dtype is DType.I64:
            name = schema.inputs[min(k, len(schema.inputs) - 1)].name
            remedy = f"--value {value.name}=…" if value.producer is None else "export the model with fixed shapes"
            return ConstantNeededError(
                f"input '{name}' of operator {node.op} must be known at compile time", where=node.where, remedy=remedy
            )
    return e


def data_dependent(node: Node) -> C2CError:
    for value in node.inputs:
        if value is not None and value.data is None and value.producer is None and value.type.dtype is DType.I64:
            return ConstantNeededError(
                f"the output shape of operator {node.op} depends on the value of input '{value.name}'",
                where=node.where,
                remedy=f"--value {value.name}=…",
            )
    return UnknownShapeError(
        f"the output shape of operator {node.op} depends on data: {', '.join(str(v.type) for v in node.outputs)}",
        where=node.where,
        remedy="sizes must be known at compile time; cut the model before this node",
    )
