"""Attributes of a node as Python values, checked against the operator's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import AttributeProto, NodeProto
from onnx.defs import OpSchema

from ..ir.errors import OnnxImportError, UnsupportedOpError
from .onnx_tensor import TensorReader
from .onnx_wire import text

Arguments = Mapping[str, AttributeProto]
"""Attributes of a function call, which nodes of the body refer to by name."""


def resolve_attributes(proto: NodeProto, arguments: Arguments | None) -> dict[str, AttributeProto]:
    """A node's attributes by name, references to the enclosing function's attributes followed."""
    found: dict[str, AttributeProto] = {}
    for a in proto.attribute:
        text(a.name, a.ref_attr_name)
        if a.name in found:
            raise OnnxImportError(f"attribute '{a.name}' is given twice")
        if not a.ref_attr_name:
            found[a.name] = a
        elif arguments is None:
            raise OnnxImportError(f"attribute '{a.name}' refers to '{a.ref_attr_name}' outside of a function")
        elif a.ref_attr_name in arguments:
            found[a.name] = arguments[a.ref_attr_name]
    return found


def read_attributes(
    proto: NodeProto, schema: OpSchema, arguments: Arguments | None, reader: TensorReader
) -> dict[str, Any]:
    """int, float, str, ndarray, or a tuple of one; a subgraph stays a GraphProto.

    Raises OnnxImportError for an attribute that the schema does not know, of another type, or missing.
    """
    attrs: dict[str, Any] = {}
    for key, a in resolve_attributes(proto, arguments).items():
        declared = schema.attributes.get(key)
        if declared is None:
            raise OnnxImportError(f"operator {schema.name} has no attribute '{key}' in opset {schema.since_version}")
        kind = int(declared.type.value)  # type: ignore[attr-defined]
        if a.type not in (AttributeProto.UNDEFINED, kind):
            raise OnnxImportError(f"attribute '{key}' is of type {_name(a.type)}, not {_name(kind)}")
        attrs[key] = _value(a, kind, reader)
    for key, declared in schema.attributes.items():
        if declared.required and key not in attrs:
            raise OnnxImportError(f"attribute '{key}' is missing")
    return attrs


def _name(kind: int) -> str:
    return AttributeProto.AttributeType.Name(kind) if kind in AttributeProto.AttributeType.values() else str(kind)


def _value(a: AttributeProto, kind: int, reader: TensorReader) -> Any:
    match kind:
        case AttributeProto.FLOAT:
            return float(a.f)
        case AttributeProto.INT:
            return int(a.i)
        case AttributeProto.STRING:
            return a.s.decode("utf-8", "replace")
        case AttributeProto.FLOATS:
            return tuple(a.floats)
        case AttributeProto.INTS:
            return tuple(a.ints)
        case AttributeProto.STRINGS:
            return tuple(s.decode("utf-8", "replace") for s in a.strings)
        case AttributeProto.TENSOR:
            return reader.read(a.t)
        case AttributeProto.SPARSE_TENSOR:
            return reader.read_sparse(a.sparse_tensor)
        case AttributeProto.GRAPH:
            return a.g
    raise UnsupportedOpError(f"attribute '{a.name}' is of type {_name(kind)}, which is not supported")
