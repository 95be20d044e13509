"""Labels: strings of a model are numbers in a compiled one, the place of each in a table that the app is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.errors import OnnxImportError, UnsupportedOpError
from ..ir.graph import Value
from ..ir.reference import element_type
from ..ir.types import DType
from .onnx_scores import columns_of, one
from .onnx_upgrade import Emit, OldNode

STRINGS = "string tensors are not supported"
REMEDY = "keep text processing outside of the model"


def index_of_name(node: OldNode, emit: Emit, x: Value, names: Sequence[str]) -> Value:
    """The place i64 in `names` of labels that the model made itself, -1 for others."""
    labels = emit.names_of(x)
    if labels is None:
        raise UnsupportedOpError(STRINGS, where=node.where, remedy=REMEDY)
    places = {name: i for i, name in reversed([*enumerate(names)])}
    return one(emit, "Gather", emit.constant(np.asarray([places.get(n, -1) for n in labels], np.int64)), x)


_NAN_IS_A_KEY = 4
"""The version of LabelEncoder since which NaN is found."""
_PASSING = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def passed_names(node: OldNode, emit: Emit) -> tuple[str, ...] | None:
    """What the labels are named that a node of ONNX's own passes on; a Cast of them to strings passes them on, too.

    Raises UnsupportedOpError for a node that would compute with strings.
    """
    named = [n for v in node.inputs if v is not None and (n := emit.names_of(v)) is not None]
    if not named:
        return None
    if node.op == "Cast" and node.attrs["to"] == element_type(DType.STRING):
        node.op, node.attrs = "Identity", {}
    if node.op not in _PASSING:
        raise UnsupportedOpError(STRINGS, remedy=REMEDY)
    return named[0]


def label_encoder(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """keys → values, of every version: numbers to numbers or to labels, labels to either."""
    if node.version == 1:
        return _strings_and_numbers(node, emit, node.attrs.get("classes_strings", ()), None)
    keys, values = _list(node, "keys"), _list(node, "values")
    if len(keys) != len(values) or not len(keys):
        raise OnnxImportError(f"{len(keys)} keys and {len(values)} values of LabelEncoder")
    return (_mapped(node, emit, keys, values, _default(node, values)),)


def category_mapper(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Strings to numbers or numbers to strings, by two lists."""
    return _strings_and_numbers(node, emit, node.attrs.get("cats_strings", ()), node.attrs.get("cats_int64s", ()))


def zip_map(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """A map from class to score a row: the tensor of scores, whose columns have the classes' names."""
    names = node.attrs.get("classlabels_strings", ()) or tuple(map(str, node.attrs.get("classlabels_int64s", ())))
    x = node.data
    if columns_of(x) != len(names):
        raise OnnxImportError(f"{len(names)} labels of ZipMap for scores {x.type}")
    scores = one(emit, "Identity", x)
    emit.label(scores, names)
    return (scores,)


def _list(node: OldNode, of: str) -> np.ndarray:
    """Keys or values in the one of their forms that is given."""
    found = [
        node.attrs[n] for n in (f"{of}_tensor", f"{of}_int64s", f"{of}_floats", f"{of}_strings") if n in node.attrs
    ]
    if len(found) != 1:
        raise OnnxImportError(f"LabelEncoder needs {of} in one form, {len(found)} are given")
    if isinstance(found[0], np.ndarray):
        return found[0].reshape(-1)
    kind = object if f"{of}_strings" in node.attrs else np.int64 if f"{of}_int64s" in node.attrs else np.float32
    return np.asarray(found[0], kind)


def _default(node: OldNode, values: np.ndarray) -> Any:
    """What keys that are not in the list become."""
    given = node.attrs.get("default_tensor")
    if given is not None:
        return np.asarray(given).reshape(-1)[0]
    if values.dtype == object:
        return node.attrs.get("default_string", "_Unused")
    return node.attrs.get("default_float", -0.0) if values.dtype.kind == "f" else node.attrs.get("default_int64", -1)


def _strings_and_numbers(
    node: OldNode, emit: Emit, strings: Sequence[str], numbers: Sequence[int] | None
) -> tuple[Value, ...]:
    names, codes = (
        np.asarray(strings, object),
        np.asarray(range(len(strings)) if numbers is None else numbers, np.int64),
    )
    if len(names) != len(codes):
        raise OnnxImportError(f"{len(names)} strings and {len(codes)} numbers")
    if emit.names_of(node.data) is not None or node.data.type.dtype is DType.STRING:
        return (_mapped(node, emit, names, codes, node.attrs.get("default_int64", -1)),)
    return (_mapped(node, emit, codes, names, node.attrs.get("default_string", "_Unused")),)


def _mapped(node: OldNode, emit: Emit, keys: np.ndarray, values: np.ndarray, default: Any) -> Value:
    """The value of each key, the first of equal ones."""
    if values.dtype == object:
        place = _mapped(node, emit, keys, np.arange(len(values), dtype=np.int64), len(values))
        emit.label(place, (*map(str, values), str(default)))
        return place
    if keys.dtype == object:
        place = index_of_name(node, emit, node.data, [str(k) for k in keys])
        table = np.append(values, np.asarray([default], values.dtype))
        return one(emit, "Gather", emit.constant(table), place)
    return _by_comparing(node, emit, keys, values, np.asarray(default, values.dtype))


def _by_comparing(node: OldNode, emit: Emit, keys: np.ndarray, values: np.ndarray, default: np.ndarray) -> Value:
    x, last = node.data, emit.constant(np.asarray([-1], np.int64))
    column = one(emit, "Unsqueeze", x, last)
    same = one(emit, "Equal", column, emit.constant(keys.astype(x.type.dtype.numpy)))
    if node.version >= _NAN_IS_A_KEY and keys.dtype.kind == "f" and np.isnan(keys).any():
        same = one(emit, "Or", same, one(emit, "And", one(emit, "IsNaN", column), emit.constant(np.isnan(keys))))
    hit = one(emit, "Cast", same, to=element_type(DType.I32))
    found = one(emit, "Cast", one(emit, "ReduceMax", hit, last, keepdims=0), to=element_type(DType.BOOL))
    value = one(emit, "Gather", emit.constant(values), one(emit, "ArgMax", hit, axis=-1, keepdims=0))
    return one(emit, "Where", found, value, emit.constant(default))
