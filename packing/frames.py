"""zstd frames (RFC 8878) of single streams, and what an entropy coder could reach."""

from __future__ import annotations

from functools import cache
from math import log, pi
from typing import Any

import numpy as np
import zstandard

LITERALS = 0
"""In place of a level: hardly any match is looked for, so that the entropy coder of literals gets symbols without order
as they are. The other levels find matches by chance that cost more than they save."""
LEVELS = (LITERALS, 1, 3, 19)
"""What is tried."""
SLOW_BYTES = 256 << 10
"""Streams longer than that are left out by the slowest level: it takes a second a megabyte."""
NOISE_BITS = 7.97
"""Entropy of a byte from which a stream is stored."""


@cache
def _compressor(level: int) -> zstandard.ZstdCompressor:
    more = {"min_match": 7, "hash_log": 6, "chain_log": 6, "window_log": 17} if level == LITERALS else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level or 1, write_content_size=False, write_checksum=False, **more
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def compress(data: bytes, levels: tuple[int, ...] = LEVELS) -> bytes:
    """The smallest frame, or the data itself where no frame is smaller."""
    if byte_entropy(data) > NOISE_BITS:
        return data
    tried = [_compressor(v).compress(data) for v in levels if v < LEVELS[-1] or len(data) <= SLOW_BYTES]
    return min((data, *tried), key=len)


def decompress(frame: bytes, size: int) -> bytes:
    """What `compress` was given, of that size; raises zstandard.ZstdError."""
    return frame if len(frame) == size else zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)


def histogram(data: bytes) -> np.ndarray[Any, Any]:
    """How often each byte occurs, [256]."""
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256)


def byte_entropy(data: bytes) -> float:
    """Bits a byte of independent bytes with these frequencies (Shannon)."""
    return entropy(histogram(data))


def entropy(counts: np.ndarray[Any, Any]) -> float:
    """Bits a symbol of independent symbols that occur so often. Of a code book's symbols with a fill of frequency
    1 - p this is H2(p) + p H(index)."""
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log2(p)).sum())


def learned_bytes(counts: np.ndarray[Any, Any]) -> float:
    """Bytes of an ideal code that learns the frequencies [256] on its way (Krichevsky, Trofimov, 1981): what streams
    cost that share a frame."""
    nats = _log_gamma(counts.sum() + 128.0) - _log_gamma(np.float64(128))
    return float(nats - (_log_gamma(counts + 0.5) - _log_gamma(np.float64(0.5))).sum()) / log(2) / 8


def _log_gamma(x: np.ndarray[Any, Any] | np.float64) -> Any:
    """By Stirling's series at x + 8; off by less than 1e-9."""
    y = x + 8
    series = (y - 0.5) * np.log(y) - y + 0.5 * log(2 * pi) + 1 / (12 * y) - 1 / (360 * y**3)
    return series - sum(np.log(x + i) for i in range(8))
