"""Element types, layouts and tensor types, shared by both IRs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from .errors import ShapeError

Dim: TypeAlias = int | str
"""A number, or the name of a symbolic dimension."""


_NUMPY: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32), "f64": np.dtype(np.float64), "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16), "i8": np.dtype(np.int8), "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32), "i64": np.dtype(np.int64), "u8": np.dtype(np.uint8), "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32), "u64": np.dtype(np.uint64), "bool": np.dtype(np.bool_), "string": np.dtype(object),
}  # fmt: skip


class DType(enum.Enum):
    """Element types; the value is the spelling in IR text."""

    F32 = "f32"
    F64 = "f64"
    F16 = "f16"
    BF16 = "bf16"
    I8 = "i8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"
    U8 = "u8"
    U16 = "u16"
    U32 = "u32"
    U64 = "u64"
    BOOL = "bool"
    STRING = "string"

    bits: int
    """Bits of one element in memory (a bool takes a byte)."""
    nbytes: int
    numpy: np.dtype[Any]
    is_float: bool
    is_signed: bool
    is_unsigned: bool
    is_int: bool

    def __init__(self, spelling: str) -> None:
        self.numpy = _NUMPY[spelling]
        self.nbytes = self.numpy.itemsize
        self.bits = self.nbytes * 8
        self.is_float = spelling in ("f32", "f64", "f16", "bf16")
        self.is_signed = spelling in ("i8", "i16", "i32", "i64")
        self.is_unsigned = spelling in ("u8", "u16", "u32", "u64")
        self.is_int = self.is_signed or self.is_unsigned

    __hash__ = object.__hash__  # members are single; expressions hash them all the time

    @staticmethod
    def of(dtype: np.dtype[Any] | type) -> DType:
        """The element type of a numpy array; raises ShapeError for one that c2c has no name for."""
        found = _FROM_NUMPY.get(np.dtype(dtype))
        if found is None:
            raise ShapeError(f"element type {np.dtype(dtype)} is not supported")
        return found

    def __str__(self) -> str:
        return str(self.value)


_FROM_NUMPY = {t.numpy: t for t in DType}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor lies in memory.

    block 0: row-major in the logical order of axes. block b > 0: axis 1 (channels) is split into blocks of b and the
    position inside a block is innermost: logical [N, C, *spatial] lies as [N, ceil(C/b), *spatial, b] (NCHWc).
    The lanes beyond C in the last block are undefined: no reader may let them reach a valid element.
    """

    block: int = 0

    def __str__(self) -> str:
        return f"c{self.block}" if self.block else "plain"


PLAIN = Layout()


@dataclass(frozen=True)
class TensorType:
    """Element type, logical shape and layout of a value."""

    dtype: DType
    shape: tuple[Dim, ...]
    layout: Layout = PLAIN

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The shape as numbers; raises ShapeError where a dimension is symbolic."""
        if not self.is_static:
            raise ShapeError(f"dimension of {self} is not known", remedy="pin it: --dim NAME=N or --shape INPUT=N,…")
        return tuple(int(d) for d in self.shape)

    @property
    def size(self) -> int:
        """Number of logical elements."""
        return prod(self.dims)

    @property
    def physical(self) -> tuple[int, ...]:
        """Row-major shape of the bytes in memory."""
        if not self.layout.block:
            return self.dims
        n, c, *spatial = self.dims
        b = self.layout.block
        return (n, -(-c // b), *spatial, b)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, padding lanes included."""
        return prod(self.physical) * self.dtype.nbytes

    def with_layout(self, layout: Layout) -> TensorType:
        return replace(self, layout=layout)

    def with_dtype(self, dtype: DType) -> TensorType:
        return replace(self, dtype=dtype)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return replace(self, shape=tuple(shape))

    def __str__(self) -> str:
        dims = ",".join(str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]" + (f"{{{self.layout}}}" if self.layout.block else "")


@dataclass(frozen=True, slots=True)
class Counted:
    """Of an output only the first elements along `axis` are meant, as many as the output `count` (i64 scalar) says."""

    axis: int
    count: str
