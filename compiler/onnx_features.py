"""Operators of ai.onnx.ml that prepare features, in terms of ONNX's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir.errors import OnnxImportError, UnsupportedOpError
from ..ir.graph import Value
from ..ir.types import DType
from .onnx_labels import index_of_name
from .onnx_scores import columns_of, one, scalar, to_type
from .onnx_upgrade import Emit, OldNode


def array_feature_extractor(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Elements of the last axis; of constant strings, which the results then name."""
    x, y = node.data, node.input(1)
    if y is None:
        raise OnnxImportError("input 'Y' of ArrayFeatureExtractor is left out")
    flat = one(emit, "Reshape", y, emit.constant(np.asarray([-1], np.int64)))
    if x.type.dtype is DType.STRING:
        if x.data is None or x.data.size != x.type.shape[-1]:
            raise UnsupportedOpError(
                "ArrayFeatureExtractor takes strings out of one constant row only",
                remedy="keep text processing outside of the model",
            )
        index = one(emit, "Unsqueeze", flat, emit.constant(np.asarray([0], np.int64)))
        emit.label(index, tuple(map(str, x.data.reshape(-1))))
        return (index,)
    rows = one(emit, "Unsqueeze", x, emit.constant(np.asarray([0], np.int64))) if x.type.rank == 1 else x
    return (one(emit, "Gather", rows, flat, axis=-1),)


def binarizer(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """1 above the threshold, else 0."""
    x = node.data
    above = one(emit, "Greater", x, scalar(emit, x, node.attrs.get("threshold", 0.0)))
    return (to_type(emit, above, x.type.dtype),)


def imputer(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """One value, or one a column, in place of the one that stands for what is missing."""
    x, kind = node.data, "floats" if node.data.type.dtype.is_float else "int64s"
    values = np.asarray(node.attrs.get(f"imputed_value_{kind}", ()), x.type.dtype.numpy)
    if values.size not in (1, columns_of(x)):
        raise OnnxImportError(f"{values.size} values of imputed_value_{kind} for inputs of {x.type}")
    old = node.attrs.get("replaced_value_float" if kind == "floats" else "replaced_value_int64", 0)
    missing = one(emit, "IsNaN", x) if old != old else one(emit, "Equal", x, scalar(emit, x, old))
    return (one(emit, "Where", missing, emit.constant(values), x),)


def scaler(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """(x - offset) · scale in f32, each one value or one a column; of f64 computed in f64."""
    x = node.data if node.data.type.dtype is DType.F64 else to_type(emit, node.data, DType.F32)
    for name, op in (("offset", "Sub"), ("scale", "Mul")):
        values = np.asarray(node.attrs.get(name, ()), x.type.dtype.numpy)
        if values.size not in (1, columns_of(x)):
            raise OnnxImportError(f"{values.size} values of {name} for inputs of {x.type}")
        x = one(emit, op, x, emit.constant(values))
    return (to_type(emit, x, DType.F32),)


def normalizer(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Rows by their norm, in f32; a norm of 0 divides by nothing. MAX is the largest element, not magnitude."""
    norm = node.attrs.get("norm", "MAX")
    reduction = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}.get(norm)
    if reduction is None:
        raise OnnxImportError(f"norm '{norm}' does not exist")
    x = to_type(emit, node.data, DType.F32)
    axis = emit.constant(np.asarray([min(1, x.type.rank - 1)], np.int64))
    size = one(emit, reduction, x, axis)
    zero = one(emit, "Equal", size, scalar(emit, x, 0))
    return (one(emit, "Div", x, one(emit, "Where", zero, scalar(emit, x, 1), size)),)


def feature_vectorizer(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Columns side by side in f32; vectors are columns of one each."""
    given = [v for v in node.inputs if v is not None]
    sizes: Sequence[int] = node.attrs.get("inputdimensions", ())
    if sizes and len(sizes) != len(given):
        raise OnnxImportError(f"{len(sizes)} inputdimensions for {len(given)} inputs")
    parts = []
    for i, value in enumerate(given):
        part = to_type(emit, value, DType.F32)
        if part.type.rank == 1:
            part = one(emit, "Unsqueeze", part, emit.constant(np.asarray([1], np.int64)))
        elif part.type.rank != 2:
            part = one(emit, "Flatten", part, axis=1)
        if sizes and part.type.shape[1] != sizes[i]:
            raise OnnxImportError(f"input {i} of FeatureVectorizer is {value.type}, inputdimensions says {sizes[i]}")
        parts.append(part)
    return (one(emit, "Concat", *parts, axis=1),)


def one_hot_encoder(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """[…] → […, categories] in f32; what is no category is a row of zeros, whatever `zeros` says."""
    x, numbers = node.data, node.attrs.get("cats_int64s", ())
    names = node.attrs.get("cats_strings", ())
    if bool(numbers) == bool(names):
        raise OnnxImportError("OneHotEncoder needs either cats_int64s or cats_strings")
    if names:
        x, numbers = index_of_name(node, emit, x, names), range(len(names))
    codes = one(emit, "Unsqueeze", to_type(emit, x, DType.I64), emit.constant(np.asarray([-1], np.int64)))
    hot = one(emit, "Equal", codes, emit.constant(np.asarray(numbers, np.int64)))
    return (to_type(emit, hot, DType.F32),)
