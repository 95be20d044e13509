"""Second moments of a layer's inputs, summed over sampled positions: all that the fit of its weights needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..ir.errors import UnsupportedOpError
from .layers import Layer

POSITIONS = 64
"""Positions taken from one sample, as of an image's output pixels."""

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Moments:
    """Of inputs x in the compressed and u in the dense network, at the same positions; per position, means taken out
    where the layer has a bias.

    gram: E x xᵀ [groups, d, d]. cross: E x zᵀ [groups, d, rows], with z the dense network's results, biases left out.
    mean_x, mean_u: [groups, d], zeros without a bias. power: E z² [groups, rows]. count: positions.
    """

    gram: np.ndarray
    cross: np.ndarray
    mean_x: np.ndarray
    mean_u: np.ndarray
    power: np.ndarray
    count: int


def moments(layer: Layer, dense: np.ndarray, small: np.ndarray, seed: int) -> Moments:
    """dense, small: the layer's inputs [samples, …] in both networks, the same object where they are equal."""
    weights = layer.rows(layer.dense).astype(np.float32)
    groups, rows, d = weights.shape
    gram, cross = np.zeros((groups, d, d)), np.zeros((groups, d, rows))
    sums = np.zeros((2, groups, d))
    z1, z2 = np.zeros(weights.shape[:2]), np.zeros(weights.shape[:2])
    count = 0
    shifts: tuple[np.ndarray, np.ndarray] | None = None  # about the means, so that no two large sums are subtracted
    for u, x in _chunks(layer, dense, small, seed):
        if layer.takes_bias:
            shifts = shifts or (u.mean(1, keepdims=True), x.mean(1, keepdims=True))
            same = x is u
            u = u - shifts[0]
            x = u if same else x - shifts[1]
        gram += x.swapaxes(1, 2) @ x
        sums += np.stack([x.sum(1, dtype=np.float64), u.sum(1, dtype=np.float64)])
        z = u @ weights.swapaxes(1, 2)
        if x is not u:
            cross += x.swapaxes(1, 2) @ z
        z1 += z.sum(1, dtype=np.float64)
        z2 += np.square(z, dtype=np.float64).sum(1)
        count += x.shape[1]
    for a in (gram, cross, sums, z1, z2):
        a /= max(count, 1)
    x1, u1 = sums if layer.takes_bias else np.zeros_like(sums)
    if layer.takes_bias:
        gram -= x1[:, :, None] * x1[:, None, :]
        cross -= x1[:, :, None] * z1[:, None, :]
    if dense is small:
        cross = gram @ weights.swapaxes(1, 2)
    if not layer.takes_bias:
        return Moments(gram, cross, x1, u1, z2, count)
    if shifts is not None:
        u1, x1 = (a + s[:, 0] for a, s in zip((u1, x1), shifts, strict=True))
    return Moments(gram, cross, x1, u1, np.maximum(z2 - z1**2, 0), count)


def _chunks(layer: Layer, dense: np.ndarray, small: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(u, x) [groups, positions, d] of some samples at a time."""
    rng = np.random.default_rng(seed)
    rows = layer.rows(layer.dense)
    step = max(1, _CHUNK_BYTES // (POSITIONS * 4 * rows.shape[0] * rows.shape[2]))
    windows = _Windows(layer, dense.shape) if layer.kind == "conv" else None
    for start in range(0, len(dense), step):
        part = slice(start, start + step)
        if windows is None:
            flat = dense[part].reshape(len(dense[part]), -1, rows.shape[2])
            picks = _picks(rng, flat.shape[1], len(flat))
            u, x = (_rows_at(a[part].reshape(flat.shape), picks) for a in (dense, small))
        else:
            picks = _picks(rng, windows.count, len(dense[part]))
            u, x = (windows.take(a[part], picks) for a in (dense, small))
        yield u, (u if dense is small else x)


def _picks(rng: np.random.Generator, positions: int, samples: int) -> np.ndarray:
    """Positions [samples, at most POSITIONS], different ones for each sample."""
    if positions <= POSITIONS:
        return np.tile(np.arange(positions), (samples, 1))
    return np.stack([np.sort(rng.choice(positions, POSITIONS, replace=False)) for _ in range(samples)])


def _rows_at(flat: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """[1, samples · picks, d] of [samples, positions, d]."""
    taken = np.take_along_axis(flat, picks[:, :, None], 1)
    return np.ascontiguousarray(taken.reshape(1, -1, flat.shape[2]), np.float32)


class _Windows:
    """The windows that a convolution multiplies its filters with (im2col), at picked output positions.

    shape: [samples, batch, C, *spatial] of its input.
    """

    def __init__(self, layer: Layer, shape: tuple[int, ...]) -> None:
        attrs, self.groups = layer.node.attrs, layer.groups
        self.kernel = layer.dense.shape[2:]
        n = len(self.kernel)
        self.strides = tuple(attrs.get("strides") or (1,) * n)
        self.dilations = tuple(attrs.get("dilations") or (1,) * n)
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        self.pads = _pads(layer, shape[3:], reach, self.strides)
        padded = [s + sum(p) for s, p in zip(shape[3:], self.pads, strict=True)]
        self.out = tuple((p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True))
        self.batch = shape[1]
        self.count = self.batch * int(np.prod(self.out))

    def take(self, x: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """[groups, samples · picks, C/g · window] of x [samples, batch, C, *spatial]."""
        x = np.pad(x, ((0, 0),) * 3 + self.pads)
        batch, *at = np.unravel_index(picks, (self.batch, *self.out))
        offsets = np.meshgrid(*(np.arange(k) for k in self.kernel), indexing="ij")
        index = tuple(
            (p * s)[..., None] + (o * d).reshape(-1)
            for p, s, o, d in zip(at, self.strides, offsets, self.dilations, strict=True)
        )
        sample = np.arange(len(x))[:, None, None]
        taken = x[(sample, batch[..., None], slice(None), *index)]  # [samples, picks, window, C]
        s, p, w, c = taken.shape
        grouped = taken.reshape(s * p, w, self.groups, c // self.groups).transpose(2, 0, 3, 1)
        return np.ascontiguousarray(grouped.reshape(self.groups, s * p, -1), np.float32)


def _pads(
    layer: Layer, spatial: tuple[int, ...], reach: list[int], strides: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Padding (begin, end) of each spatial dimension."""
    attrs = layer.node.attrs
    mode = attrs.get("auto_pad") or "NOTSET"
    n = len(spatial)
    if mode == "NOTSET":
        pads = list(attrs.get("pads") or [0] * 2 * n)
        return tuple((pads[i], pads[n + i]) for i in range(n))
    if mode == "VALID":
        return ((0, 0),) * n
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedOpError(f"auto_pad '{mode}' is unknown", where=layer.node.where)
    found = []
    for size, r, stride in zip(spatial, reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + r - size, 0)
        small = total // 2
        found.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return tuple(found)
