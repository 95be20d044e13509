"""Constants of every sort that weights come in, for the tests of packing and of its reader in C."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from c2c.ir.types import DType
from c2c.packing import Constant

Array = np.ndarray[Any, Any]


def coded(rng: np.random.Generator, size: int, sparsity: float, bits: int, laplace: bool = False) -> Array:
    """Pruned by magnitude, the rest clustered by Lloyd's algorithm into 2^bits - 1 levels; f32."""
    w = rng.laplace(size=size) if laplace else rng.standard_normal(size)
    keep = np.abs(w) > (np.quantile(np.abs(w), sparsity) if sparsity else 0)
    kept = w[keep]
    levels = np.linspace(kept.min(), kept.max(), 2**bits - 1)
    for _ in range(30):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, kept)
        count = np.bincount(nearest, minlength=levels.size)
        mean = np.bincount(nearest, kept, levels.size) / np.maximum(count, 1)
        levels = np.sort(np.where(count > 0, mean, levels))
    out = np.zeros(size, np.float32)
    out[keep] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, kept)]
    return out


def every_sort(seed: int = 0) -> list[Constant]:
    """One constant (at least) for each form of positions and values, of every width, ragged; large ones too."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(3001).astype(np.float32)
    sparse = np.where(rng.random(5003) < 0.05, rng.standard_normal(5003), 0).astype(np.float32)
    half_sparse = np.where(rng.random(40_001) < 0.5, rng.standard_normal(40_001), 0).astype(np.float32)
    arrays: dict[str, Array] = {
        "noise": noise,
        "f64": noise[:501].astype(np.float64),
        "f16": noise[:777].astype(np.float16),
        "bf16": noise[:778].astype(ml_dtypes.bfloat16),
        "sparse": sparse,
        "half sparse": half_sparse,
        "sparse integers": np.where(rng.random(9001) < 0.05, rng.integers(0, 1 << 30, 9001), 0).astype(np.int32),
        "far apart": np.where(np.arange(30_000) % 9973 == 9972, 1.5, 0).astype(np.float32),
        "bytes": rng.integers(-128, 128, 2047).astype(np.int8),
        "indices": np.cumsum(rng.integers(0, 90, 999)).astype(np.int32),
        "words": rng.integers(0, 1 << 63, 65).astype(np.int64),
        "bool": rng.random(1001) < 0.3,
        "one": np.full(4001, 2.25, np.float32),
        "zero": np.zeros(131, np.float32),
        "single": np.array([-0.0], np.float32),
        "empty": np.zeros(0, np.float32),
        "negative zeros": np.where(rng.random(600) < 0.5, -0.0, 0.0).astype(np.float32),
        "not numbers": np.where(rng.random(600) < 0.5, np.nan, np.inf).astype(np.float32),
        "ternary": rng.choice(np.array([-0.3, 0, 0.3], np.float32), 9001),
        "binary": rng.choice(np.array([-1, 1], np.float32), 4099),
        "levels16": rng.choice(noise[:16], 7001),
        "levels256": rng.choice(noise[:256], 20_001),
        "levels257": rng.choice(noise[:257], 20_001),
        "small codes": coded(rng, 3000, 0.9, 4),
        "codes 4": coded(rng, 150_001, 0.9, 4),
        "codes 5": coded(rng, 140_001, 0.95, 5, laplace=True),
        "codes dense": coded(rng, 135_001, 0, 4),
        "zero point": np.where(rng.random(6000) < 0.9, 128, rng.integers(0, 256, 6000)).astype(np.uint8),
        "ternary long": rng.choice(np.array([-0.3, 0, 0.3], np.float32), 132_001),
        "long": np.where(rng.random((1 << 20) + 77) < 0.8, 0, 1).astype(np.uint8),
    }  # fmt: skip
    return [Constant(name, DType.of(a.dtype), a) for name, a in arrays.items()]


def image_of(constants: list[Constant]) -> bytes:
    """The image that `pack` lays constants without offsets into."""
    out = bytearray()
    for c in constants:
        out += bytes(-len(out) % 64) + c.words.tobytes()
    return bytes(out)
