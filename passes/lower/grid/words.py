"""Four signed bytes in a 32-bit word, the first in its lowest bits: what dot products of bytes take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir.loops import Const, Expr, binary, bitcast, cast, const, dot
from ....ir.types import DType
from ..context import Lowering

TOGETHER = 4
WRITTEN_OUT = 13.0
"""What a dot product takes where the device has none: eight bytes are brought to their places, four multiply-adds and
what keeps the sum apart."""


def multiply_words(a: Expr, b: Expr, total: Expr) -> Expr:
    """total + Σ a[j] · b[j] over the bytes of two words, i32."""
    return dot(bitcast(a, DType.I8), bitcast(b, DType.I8), total)


def dot_work(ctx: Lowering) -> float:
    """What a dot product takes, in multiply-adds of floats."""
    device = ctx.target.device
    assert device is not None
    return WRITTEN_OUT if device.dots is None else device.dots


def joined(values: Sequence[Expr]) -> Expr:
    """Four bytes, i8 or u8, as a word."""
    bits = [cast(bitcast(v, DType.U8), DType.U32) for v in values]
    word = bits[0]
    for place, b in enumerate(bits[1:], 1):
        word = word | binary("shl", b, 8 * place)
    return bitcast(word, DType.I32)


def repeated(level: Expr) -> Expr:
    """A word of four times the same level, i32."""
    if isinstance(level, Const):
        return const(int(np.full(4, level.value, np.int8).view("<i4")[0]), DType.I32)
    return (level & 255) * 0x01010101


def as_signed(word: Expr, dtype: DType) -> Expr:
    """Bytes of u8 less 128, so that they are i8."""
    return binary("xor", word, -0x7F7F7F80) if dtype is DType.U8 else word


def fits_words(levels: np.ndarray) -> bool:
    """Whether whole numbers are signed bytes."""
    return bool(levels.min(initial=0) >= -128 and levels.max(initial=0) <= 127)


def words_of(levels: np.ndarray) -> np.ndarray:
    """i8 [..., n] with zeros up to whole words, i32 [..., n / 4]."""
    padded = np.pad(levels.astype(np.int8), [*[(0, 0)] * (levels.ndim - 1), (0, -levels.shape[-1] % TOGETHER)])
    return np.ascontiguousarray(padded).view("<i4")
