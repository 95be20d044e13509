"""A layer's compressed weights in one of the forms that a file can hold, and what the form costs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..packing.frames import byte_entropy, entropy


class Kind(Enum):
    """How a layer's weights are spelt in the model."""

    BOOK = "code book"  # indices into levels
    INT8 = "int8"  # whole numbers times one scale
    F16 = "f16"  # numbers of half precision
    DENSE = "dense"  # as they were


@dataclass(frozen=True, slots=True)
class Coded:
    """A compressed layer. index: levels by position, in the operator's own shape; int8's levels are multiples of one
    step in order, F16 and DENSE have `values` instead. scale: of each output channel, None for 1. error: squared error
    of the results over the dense network's, at the compressed network's inputs. pattern: of the zeros, where some were
    demanded."""

    levels: np.ndarray
    index: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray | None
    error: float
    kind: Kind = Kind.BOOK
    values: np.ndarray | None = None
    pattern: str = ""

    @property
    def tensor(self) -> np.ndarray:
        """The weights before the scale."""
        return np.asarray(self.levels[self.index] if self.values is None else self.values, np.float32)

    @property
    def size(self) -> int:
        """How many weights."""
        return int(self.index.size if self.values is None else self.values.size)

    @property
    def counts(self) -> np.ndarray:
        return np.bincount(self.index.ravel(), minlength=len(self.levels))

    @property
    def bound(self) -> float:
        """Bits a weight: Shannon's bound of the indices, of single bytes where there are none."""
        return entropy(self.counts) if self.values is None else byte_bits(self.values, self.kind)

    @property
    def bits(self) -> float:
        """Of the whole layer, the levels too."""
        table = 0 if self.values is not None else LEVEL_BITS * len(self.levels)
        return self.bound * self.size + table

    @property
    def zeros(self) -> float:
        """Fraction of zeros."""
        return float((self.tensor == 0).mean()) if self.values is not None else float(self._zeros())

    def _zeros(self) -> float:
        return float((self.levels == 0)[self.index].mean())

    @property
    def form(self) -> str:
        """In a word or two."""
        if self.pattern not in ("", "unstructured"):
            return f"{self.pattern} {self.kind.value}"
        return "sparse code book" if self.kind is Kind.BOOK and self.zeros >= SPARSE else self.kind.value


LEVEL_BITS = 16
"""That a level takes in the file."""
SPARSE = 0.4
"""Zeros from which a code book is called sparse."""


def byte_bits(values: np.ndarray, kind: Kind) -> float:
    """Bits a number of independent bytes, the exponent in one of its own."""
    half = kind is Kind.F16
    words = np.ascontiguousarray(values, np.float16 if half else np.float32).ravel().view(np.uint16 if half else "<u4")
    turned = (words << words.dtype.type(1)) | (words >> words.dtype.type(8 * words.itemsize - 1))
    planes = turned.view(np.uint8).reshape(-1, words.itemsize)
    return sum(byte_entropy(planes[:, i].tobytes()) for i in range(words.itemsize))
