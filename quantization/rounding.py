"""A layer's weights as levels: nearest ones, or those of least error of the layer's *results*.

The target are the least-squares weights for what the layer reads in the quantised network, held to the dense ones. Its
levels are chosen column by column, later columns taking over the error of earlier ones (GPTQ), and then by coordinate
descent; so each weight is rounded up or down by what that does to the results, as AdaRound does by gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compression.descent import FEEDBACK_WIDTH
from ..compression.layers import Layer
from ..compression.statistics import Moments
from . import descent
from .grid import SMALLEST, Grid, block_scales

ROUNDINGS = ("reconstruct", "nearest")

ROOM = 0.98
"""Of the largest sum, that weights of 16 bits may use before they are rounded."""

BIAS = 2.0**29
"""The largest bias, in units of sums of levels: where weights are next to nothing beside it, their scale is what it
needs to fit into an i32, with room for what corrects it. Whoever computes the layer may round it to one."""

DAMPING = 0.01
"""Of the mean power of an input: what holds the target to the dense weights where there are positions in plenty."""

_WIDEST = 4800
"""Beyond this d (inputs of a row) second moments would not fit; such layers are rounded to the nearest level."""


@dataclass(frozen=True, slots=True)
class WeightForm:
    """bits: 16, 8 or 4. block: inputs that share a scale, 0 for a scale a row."""

    bits: int = 8
    block: int = 0

    @property
    def most(self) -> int:
        """The largest magnitude of a level: symmetric, so that sums need no term of a zero point."""
        return int(2 ** (self.bits - 1) - 1)


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """levels: whole numbers in the operator's own shape. scale: [channels, blocks], most often one block of the whole
    row. bias: of each channel. error: squared error of the results over the dense network's, at the quantised network's
    inputs; of the weights where those were not known."""

    form: WeightForm
    levels: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    error: float

    def tensor(self, layer: Layer) -> np.ndarray:
        """The weights that the levels stand for."""
        rows = layer.rows(self.levels.astype(np.float32))
        return layer.tensor(rows * _columns(self.scale.reshape(*rows.shape[:2], -1), self.form, rows.shape[2]))


def round_nearest(layer: Layer, form: WeightForm, x: Grid | None = None) -> QuantizedWeights:
    """Without statistics: levels nearest to the weights, the bias as it is. x: what the layer reads, None: floats."""
    rows = layer.rows(layer.dense).astype(np.float64)
    scale = block_scales(rows, np.ones((len(rows), rows.shape[2])), form.most, form.block)
    scale = np.maximum(scale, _least_scale(layer, x))
    columns = _columns(scale, form, rows.shape[2])
    levels = descent.nearest(rows, columns, form.most)
    error = float(np.square(levels * columns - rows).sum() / max(np.square(rows).sum(), 1e-30))
    return _made(layer, form, levels, scale, layer.bias_vector() if layer.bias is not None else None, error)


def fit(layer: Layer, m: Moments, form: WeightForm, rounding: str, x: Grid | None = None) -> QuantizedWeights:
    """Levels of a layer from the moments of its inputs; the bias takes over what they shift the mean of each channel
    by (empirical bias correction). x: what the layer reads, None: floats."""
    weights = layer.rows(layer.dense).astype(np.float64)
    gram, damping = _damped(m)
    target = weights.swapaxes(1, 2)
    if rounding == "reconstruct":
        target = np.linalg.solve(gram, m.cross + damping * target)
    scale = block_scales(weights, np.einsum("gii->gi", gram), form.most, form.block)
    if form.bits == 16:
        scale = _exact_scale(layer, target.swapaxes(1, 2), form, 0 if x is None else x.largest)
    scale = np.maximum(scale, _least_scale(layer, x))
    columns = _columns(scale, form, weights.shape[2])
    if rounding == "nearest" or form.bits == 16:
        levels = descent.nearest(target.swapaxes(1, 2), columns, form.most)
    else:
        levels = _descended(target, gram, columns.swapaxes(1, 2), form.most)
        scale = scale * _factor(levels * columns, target, gram)[:, :, None]
    effective = levels * _columns(scale, form, weights.shape[2])
    left = np.sum((effective @ m.gram) * effective, -1) - 2 * np.einsum("grd,gdr->gr", effective, m.cross) + m.power
    error = float(np.maximum(left, 0).sum() / max(float(m.power.sum()), 1e-30))
    bias = None
    if layer.takes_bias:
        means = np.einsum("grd,gd->gr", weights, m.mean_u) - np.einsum("grd,gd->gr", effective, m.mean_x)
        bias = np.asarray(layer.bias_vector() + means.reshape(-1), np.float32)
    return _made(layer, form, levels, scale, bias, error)


def fits_moments(layer: Layer) -> bool:
    """Whether second moments of what the layer reads may be taken."""
    return bool(layer.rows(layer.dense).shape[2] <= _WIDEST)


def _exact_scale(layer: Layer, rows: np.ndarray, form: WeightForm, largest: int) -> np.ndarray:
    """The least scales [groups, rows, 1] with which no sum of products leaves an i32; for depthwise layers the 24 bits
    that floats hold, in which they are summed."""
    bits = 24 if layer.groups > 1 and layer.dense.shape[1] == 1 else 31
    sums = np.abs(rows).sum(2, keepdims=True) * largest / (ROOM * 2.0**bits)
    return np.asarray(np.maximum(np.maximum(np.abs(rows).max(2, keepdims=True) / form.most, sums), SMALLEST**2))


def _least_scale(layer: Layer, x: Grid | None) -> np.ndarray:
    """The least scales [groups, rows, 1] with which the bias fits."""
    bias = np.abs(layer.bias_vector()).astype(np.float64).reshape(layer.groups, -1, 1)
    return np.zeros_like(bias) if x is None else bias / (BIAS * float(x.scale))


def _damped(m: Moments) -> tuple[np.ndarray, np.ndarray]:
    """gram + damping · 1, and the damping [groups, 1, 1]; more where there are fewer positions than inputs."""
    d = m.gram.shape[-1]
    mean = np.einsum("gii->g", m.gram) / d
    share = DAMPING * (1 + 10 * d / max(m.count, 1))
    damping = share * np.maximum(mean, max(1e-4 * float(mean.max()), 1e-7))[:, None, None]
    return m.gram + damping * np.eye(d), damping


def _columns(scale: np.ndarray, form: WeightForm, d: int) -> np.ndarray:
    """[groups, rows, d or 1] of scales [groups, rows, blocks]."""
    return np.repeat(scale, form.block, 2)[:, :, :d] if form.block else scale


def _descended(target: np.ndarray, gram: np.ndarray, scale: np.ndarray, most: int) -> np.ndarray:
    """Levels [groups, rows, d] of targets [groups, d, rows]."""
    kind = np.float64 if target.shape[1] <= 600 else np.float32
    target, gram, scale = target.astype(kind), gram.astype(kind), scale.astype(kind)
    if target.shape[1] <= FEEDBACK_WIDTH:
        levels = descent.fed_forward(target, gram, scale, most)
    else:
        levels = descent.nearest(target, scale, most)
    return descent.swept(levels, target, gram, scale, most).swapaxes(1, 2)


def _factor(values: np.ndarray, target: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """What to multiply each row [groups, rows] of quantised weights with for least error."""
    image = values @ gram
    power = np.sum(image * values, -1)
    found = np.sum(image * target.swapaxes(1, 2), -1) / np.maximum(power, 1e-30)
    return np.where((power > 0) & (found > 0.5) & (found < 2), found, 1.0)


def _made(
    layer: Layer, form: WeightForm, levels: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, error: float
) -> QuantizedWeights:
    own = layer.tensor(levels.astype(np.int16 if form.bits == 16 else np.int8))
    return QuantizedWeights(form, own, np.asarray(scale.reshape(-1, scale.shape[2]), np.float32), bias, error)
