"""TensorProto to numpy: views of the mapped file where the bytes lie ready, checked against the declared shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from onnx import SparseTensorProto, TensorProto, numpy_helper

from ..ir.errors import C2CError, OnnxImportError, ShapeError
from ..ir.reference import MAX_ELEMENTS, dtype_of
from ..ir.types import DType
from .onnx_wire import MARK, map_file, text

_HALVES: dict[int, DType] = {TensorProto.INT4: DType.I8, TensorProto.UINT4: DType.U8}
"""Element types of 4 bits, two to a byte, and the type that they are read as."""


@dataclass(eq=False, slots=True)
class TensorReader:
    """Reads the tensors of one model. folder: where external data lies, None for a model without a file."""

    folder: Path | None = None
    spans: list[memoryview] = field(default_factory=list)
    _files: dict[str, memoryview] = field(default_factory=dict)

    def read(self, tensor: TensorProto) -> np.ndarray:
        """The tensor's elements, read-only where they are a view; raises C2CError naming the tensor."""
        where = f"tensor '{tensor.name}'"
        text(tensor.name)
        try:
            halves = _HALVES.get(tensor.data_type)
            dtype = halves or dtype_of(tensor.data_type)
            shape = tuple(tensor.dims)
            if any(d < 0 for d in shape) or math.prod(shape) > MAX_ELEMENTS or max(shape, default=0) > MAX_ELEMENTS:
                raise ShapeError(f"a constant of shape {list(shape)} is not possible")
            size = math.prod(shape) * dtype.nbytes if halves is None else (math.prod(shape) + 1) // 2
            raw = self._bytes(tensor, size)
            if raw is None:
                return _from_fields(tensor, dtype, shape)
            if dtype is DType.STRING:
                raise OnnxImportError("a string tensor cannot hold raw bytes")
            if len(raw) != size:
                raise OnnxImportError(f"{dtype}{list(shape)} takes {size} bytes, the file holds {len(raw)}")
            if halves is not None:
                return _widened(np.frombuffer(raw, np.uint8), dtype, shape)
            return np.frombuffer(raw, dtype.numpy).reshape(shape)
        except C2CError as e:
            raise type(e)(e.what, where=where, remedy=e.remedy) from e

    def read_sparse(self, sparse: SparseTensorProto) -> np.ndarray:
        """A sparse tensor, made dense; indices are linear or one coordinate tuple a row."""
        values = self.read(sparse.values)
        indices = self.read(sparse.indices)
        shape = tuple(sparse.dims)
        if any(d < 0 for d in shape) or math.prod(shape) > MAX_ELEMENTS >> 8:
            raise ShapeError(f"a sparse constant of shape {list(shape)} is not possible")
        dense = np.zeros(shape, values.dtype)
        try:
            if indices.ndim == 1:
                dense.reshape(-1)[indices] = values
            else:
                dense[tuple(indices.T)] = values
        except (IndexError, ValueError) as e:
            raise OnnxImportError(
                f"broken indices in a sparse tensor: {e}", where=f"tensor '{sparse.values.name}'"
            ) from e
        return dense

    def _bytes(self, tensor: TensorProto, expected: int) -> memoryview | bytes | None:
        """The raw bytes, None where the elements stand in typed fields."""
        entries = {e.key: e.value for e in tensor.external_data}
        text(*entries, *entries.values())
        if entries.get("location") == MARK:  # whatever the file says of data_location after it
            return self._cut(tensor, entries)
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._external(entries, expected)
        return tensor.raw_data if tensor.HasField("raw_data") else None

    def _cut(self, tensor: TensorProto, entries: dict[str, str]) -> memoryview:
        index = int(entries["index"]) if entries.get("index", "").isdecimal() else -1
        if not 0 <= index < len(self.spans) or (entries.get("field") == "4" and tensor.data_type != TensorProto.FLOAT):
            raise OnnxImportError("elements of another type than declared")
        return self.spans[index]

    def _external(self, entries: dict[str, str], expected: int) -> memoryview:
        location = entries.get("location", "")
        if self.folder is None:
            raise OnnxImportError(
                f"the elements lie in the file '{location}', but the model was not read from a file",
                remedy="give the path of the model",
            )
        windows = PureWindowsPath(location)
        if not location or "\0" in location or windows.is_absolute() or windows.drive or windows.root:
            raise OnnxImportError(f"external data at '{location}' is refused: not a relative path")
        if PurePosixPath(location).is_absolute() or ".." in windows.parts:
            raise OnnxImportError(f"external data at '{location}' is refused: it leaves the model's folder")
        if location not in self._files:
            self._files[location] = map_file(self.folder / location)
        data = self._files[location]
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(expected)))
        except ValueError as e:
            raise OnnxImportError(f"broken offset or length of external data in '{location}'") from e
        if offset < 0 or length < 0 or offset + length > len(data):
            raise OnnxImportError(f"bytes {offset} to {offset + length} lie outside '{location}' ({len(data)} bytes)")
        return data[offset : offset + length]


def _widened(pairs: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of 4 bits as bytes; the first of a pair is in the lower half."""
    numbers = np.stack([pairs & 15, pairs >> 4], -1).reshape(-1)[: math.prod(shape)]
    if dtype is DType.I8:
        return ((numbers ^ 8).astype(np.int8) - 8).reshape(shape)
    return numbers.reshape(shape)


def _from_fields(tensor: TensorProto, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Elements from float_data, int32_data, …"""
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as e:  # numpy_helper raises whatever numpy raises
        raise OnnxImportError(f"elements do not make up {dtype}{list(shape)}: {e}") from e
    if array.shape != shape:
        raise OnnxImportError(f"elements do not make up {dtype}{list(shape)}")
    return np.asarray(array, dtype=dtype.numpy)
