"""Sequences at import: lists of values whose length and positions are known, so that no node is needed for them.

Exporters write `split` as SplitToSequence and SequenceAt. Sequences that are inputs or outputs of the model, or
leave a branch, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto

from ..ir.errors import ConstantNeededError, OnnxImportError, UnsupportedOpError
from ..ir.graph import Value
from .onnx_scope import Scope

if TYPE_CHECKING:
    from .onnx_import import Importer

SEQUENCE_OPS = frozenset(
    "SequenceEmpty SequenceConstruct SequenceInsert SequenceErase SequenceAt SequenceLength ConcatFromSequence "
    "SplitToSequence".split()
)

_LONGEST = 4096


class _Refused(Exception):
    """An input could not be imported (which has been reported)."""


def sequence_results(imp: Importer, proto: NodeProto, attrs: Mapping[str, Any], scope: Scope) -> list[Value | None]:
    """Results that are tensors; one that is a sequence is bound in `scope` instead.

    Raises ConstantNeededError for a position, and UnsupportedOpError for a length, known at run time only.
    """
    try:
        found = _apply(imp, proto, attrs, scope)
    except _Refused:
        return [None] * len(proto.output)
    if isinstance(found, Value):
        return [found]
    if len(found) > _LONGEST:
        raise UnsupportedOpError(f"a sequence of more than {_LONGEST} tensors is not supported")
    name = next(iter(proto.output), "")
    if scope.knows(name) or name in scope.sequences:
        raise OnnxImportError(f"'{name}' is made twice")
    scope.sequences[name] = found
    return []


def _apply(imp: Importer, proto: NodeProto, attrs: Mapping[str, Any], scope: Scope) -> list[Value] | Value:
    match proto.op_type:
        case "SequenceEmpty":
            return []
        case "SequenceConstruct":
            return [_tensor(proto, k, scope) for k in range(len(proto.input))]
        case "SplitToSequence":
            return _split(imp, proto, attrs, scope)
    items = _sequence(proto, scope)
    match proto.op_type:
        case "SequenceInsert":
            at = _position(proto, 2, len(items) + 1, scope, default=len(items))
            return [*items[:at], _tensor(proto, 1, scope), *items[at:]]
        case "SequenceErase":
            at = _position(proto, 1, len(items), scope, default=len(items) - 1)
            return [*items[:at], *items[at + 1 :]]
        case "SequenceAt":
            return items[_position(proto, 1, len(items), scope)]
        case "SequenceLength":
            return imp.constant(np.asarray(len(items), np.int64))
    if not items:
        raise OnnxImportError("ConcatFromSequence of an empty sequence")
    axis = attrs["axis"]
    if attrs.get("new_axis", 0):
        axes = imp.constant(np.asarray([axis], np.int64))
        items = [imp.emit("Unsqueeze", [v, axes], {})[0] for v in items]
    return imp.emit("Concat", items, {"axis": axis})[0]


def _split(imp: Importer, proto: NodeProto, attrs: Mapping[str, Any], scope: Scope) -> list[Value]:
    """Parts of `split` along an axis: one a position without a split, which alone heeds keepdims=0."""
    x, axis = _tensor(proto, 0, scope), attrs.get("axis", 0)
    if not -x.type.rank <= axis < x.type.rank:
        raise OnnxImportError(f"axis {axis} of a tensor of rank {x.type.rank}")
    length = x.type.shape[axis]
    if not isinstance(length, int):
        raise UnsupportedOpError("SplitToSequence along a dimension of unknown size is not supported")
    sizes = _sizes(proto, length, scope)
    if len(sizes) > _LONGEST:
        raise UnsupportedOpError(f"a sequence of more than {_LONGEST} tensors is not supported")
    split = imp.constant(np.asarray(sizes, np.int64))
    parts = list(imp.emit("Split", [x, split], {"axis": axis}, len(sizes)))
    if len(proto.input) > 1 or attrs.get("keepdims", 1):
        return parts
    axes = imp.constant(np.asarray([axis], np.int64))
    return [imp.emit("Squeeze", [v, axes], {})[0] for v in parts]


def _sizes(proto: NodeProto, length: int, scope: Scope) -> list[int]:
    if len(proto.input) < 2 or not proto.input[1]:
        return [1] * length
    split = _tensor(proto, 1, scope).data
    if split is None:
        raise ConstantNeededError("the sizes of SplitToSequence must be known at compile time")
    if split.ndim:
        return [int(n) for n in split]
    size = int(split)
    if size < 1:
        raise OnnxImportError(f"SplitToSequence into parts of {size}")
    return [size] * (length // size) + [length % size] * bool(length % size)


def _sequence(proto: NodeProto, scope: Scope) -> list[Value]:
    name = next(iter(proto.input), "")
    items = scope.find_sequence(name)
    if items is None:
        if scope.knows(name) and scope.find(name) is None:
            raise _Refused
        raise OnnxImportError(f"'{name}' is no sequence")
    return items


def _tensor(proto: NodeProto, index: int, scope: Scope) -> Value:
    name = proto.input[index] if index < len(proto.input) else ""
    if not scope.knows(name):
        raise OnnxImportError(f"'{name}' is read but no input, constant or node makes it")
    value = scope.find(name)
    if value is None:
        raise _Refused
    return value


def _position(proto: NodeProto, index: int, length: int, scope: Scope, default: int | None = None) -> int:
    """A position in [0, length); negative ones count from the end."""
    if default is not None and (index >= len(proto.input) or not proto.input[index]):
        at: int = default
    else:
        data = _tensor(proto, index, scope).data
        if data is None or data.size != 1:
            raise ConstantNeededError(f"the position of {proto.op_type} must be known at compile time")
        at = int(data.item())
    if not -length <= at < length:
        raise OnnxImportError(f"position {at} in a sequence of {length}")
    return at % length
