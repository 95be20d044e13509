"""A layer's compressed weights from the moments of its inputs: target, mask, survivors, code book, bias."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import codebook, descent
from .codebook import PRICE
from .coded import Coded, Kind
from .layers import Layer
from .mask import choose_mask, refit
from .statistics import Moments

DAMPING = 0.01
"""Of the mean power of an input; also what holds the target to the dense weights."""

PLAIN_SAMPLE = 1 << 18
"""Of a table's numbers, by which its code book is fitted."""

PRECISE_WIDTH = 600
"""Inputs of a row up to which sums are in double precision."""

MOST_ERROR = 0.2
"""Of a layer's results, relative, before its bits get cheaper."""

_CLIP = 1.5
_STEPS = (0.7, 1.0, 1.5)
_TRIAL_ROWS = 96
_BIAS_STEP = 1.0


@dataclass(frozen=True, slots=True)
class Form:
    """Demands on a layer's weights: a fraction `sparsity` of zeros in a `pattern`, at most `levels` values."""

    sparsity: float = 0.0
    pattern: str = "unstructured"
    levels: int = codebook.MAX_LEVELS

    @property
    def is_demanding(self) -> bool:
        """Whether other forms than code books are ruled out."""
        return self.sparsity > 0 or self.levels < codebook.MAX_LEVELS


def compress_layer(layer: Layer, m: Moments, price: float, form: Form, scale_power: float) -> Coded:
    """The form of least error + price · bits: a code book, or the dense weights as `spelt`. Bits get cheaper for a code
    book where the layer would lose more than MOST_ERROR: sensitivities hold for small errors only, and a layer that
    says nothing any more cannot be made good behind it."""
    found = fit_layer(layer, m, price, form, scale_power)
    at = price
    while found.error > MOST_ERROR and at > 0:
        at /= 4
        better = fit_layer(layer, m, at, form, scale_power)
        if better.error > 0.8 * found.error:
            break
        found = better
    if form.is_demanding:
        return found
    power = float(m.power.sum())
    weights = layer.rows(layer.dense).astype(np.float64)
    least = found.error * power + price * found.bits
    for plain in spelt(layer.dense):
        if price * plain.bits < least:  # else its errors need not be known
            error, bias = _judged(layer, m, layer.rows(plain.tensor).astype(np.float64), weights)
            plain = replace(plain, error=error, bias=bias)
            cost = error * power + price * plain.bits
            found, least = (plain, cost) if cost < least else (found, least)
    return found


def spelt(dense: np.ndarray) -> list[Coded]:
    """Weights in whole numbers, in half precision and as they are, where they can be; errors are not known yet."""
    no_levels, no_index = np.zeros(0, np.float32), np.zeros(0, np.uint8)
    largest = float(np.abs(dense).max(initial=0.0))
    step = _short(largest / 127)
    found = [Coded(no_levels, no_index, None, None, 0.0, Kind.DENSE, dense)]
    if largest <= float(np.finfo(np.float16).max):
        found.append(Coded(no_levels, no_index, None, None, 0.0, Kind.F16, dense.astype(np.float16)))
    if step > 0:
        whole = np.clip(np.round(dense / step), -127, 127).astype(np.int64)
        low = int(whole.min())
        levels = np.asarray(np.arange(low, int(whole.max()) + 1) * step, np.float32)
        found.append(Coded(levels, _narrow(whole - low), None, None, 0.0, Kind.INT8))
    return found


def _short(step: float) -> float:
    """Rounded up to 4 bits of mantissa: its multiples by 7 bits are numbers of f16."""
    mantissa, exponent = np.frexp(step)
    return float(np.ldexp(np.ceil(mantissa * 16) / 16, exponent))


def fit_layer(layer: Layer, m: Moments, price: float, form: Form, scale_power: float) -> Coded:
    """price: what a bit may cost, in squared error of the layer's results a position. scale_power: 0 for errors that
    count alike in all channels, 1 for errors relative to each channel's power."""
    weights = layer.rows(layer.dense).astype(np.float64)
    kind = np.float64 if weights.shape[2] <= PRECISE_WIDTH else np.float32
    gram, diagonal = _damped(m.gram, kind)
    wanted = m.cross + diagonal * weights.swapaxes(1, 2)
    target = np.linalg.solve(gram, wanted.astype(kind)).astype(np.float64)
    most = _CLIP * np.abs(weights).max(2)[:, None, :]
    target = np.clip(target, -most, most)  # what few samples do not settle must not grow without bound
    scale = _scales(layer, m.power, scale_power)
    rowed = None if scale is None else _by_rows(layer, scale, weights.shape)
    if rowed is not None:
        target = target / rowed[:, None, :]
    mask = _mask(target, gram, form)
    if mask is not None:
        target = _survivors(target, gram, mask)
    target = target.astype(kind)
    if mask is not None:
        mask = mask.swapaxes(1, 2)
    step = _best_step(target, gram, price, mask, form)
    book = codebook.uniform(_kept(target, mask), step, form.levels)
    book, index = descent.quantise(target, gram, book, price, mask)
    found = _finish(layer, m, rounded(book.levels), index, scale, rowed, weights)
    return found if mask is None else replace(found, pattern=form.pattern)


def compress_plain(layer: Layer, step: float, form: Form) -> Coded:
    """Without statistics of the inputs (an embedding, whose rows are looked up): the error of the weights counts."""
    values = layer.dense.astype(np.float64)
    power = max(float(np.square(values).sum()), 1e-30)
    some = np.append(values.ravel()[:: values.size // PLAIN_SAMPLE | 1], [values.min(), values.max()])
    book, _ = codebook.fit(some, np.ones(()), step, PRICE * step**2, form.levels)
    book, index = codebook.compact(book, codebook.assign(values, book, PRICE * step**2))
    levels = rounded(book.levels)
    found = [Coded(levels, _narrow(index), None, None, 0.0)]
    if not form.is_demanding:
        found += spelt(layer.dense)
    judged = [replace(c, error=float(np.square(c.tensor - values).sum()) / power) for c in found]
    return min(judged, key=lambda c: c.error * power + PRICE * step**2 * c.bits)


def step_for(gram: np.ndarray, price: float) -> float:
    """The step of the grid that trades error for bits at `price`: PRICE · step² · h = price, with h the geometric mean
    of the inputs' conditional powers, (det gram)^(1/d), gram damped."""
    log_h = float(np.linalg.slogdet(gram)[1].mean()) / gram.shape[-1]
    return float(np.sqrt(price / PRICE / max(np.exp(log_h), 1e-30)))


def damped(gram: np.ndarray, kind: type = np.float64) -> np.ndarray:
    """gram + damping · 1, of a type."""
    return _damped(gram, kind)[0]


def _damped(gram: np.ndarray, kind: type) -> tuple[np.ndarray, np.ndarray]:
    """gram + damping · 1, and the damping [groups, 1, 1]."""
    mean = np.einsum("gii->g", gram) / gram.shape[-1]
    damping = DAMPING * np.maximum(mean, max(1e-4 * float(mean.max()), 1e-7))[:, None, None]
    result: np.ndarray = gram.astype(kind)
    at = np.arange(gram.shape[-1])
    result[:, at, at] += damping[:, 0].astype(kind)
    return result, damping


def _scales(layer: Layer, power: np.ndarray, exponent: float) -> np.ndarray | None:
    """A scale for each channel, of the root of its power to `exponent`, on a grid of half powers of two, so that the
    scales themselves are a code book of a few levels."""
    if not layer.takes_scale or layer.kind == "embedding" or not exponent:
        return None
    spread = np.sqrt(np.maximum(power.reshape(-1), 1e-6 * float(power.max()) + 1e-30))
    relative = spread / np.exp(np.log(spread).mean())
    return np.asarray(2.0 ** (np.round(2 * exponent * np.log2(relative)) / 2), np.float32)


def _by_rows(layer: Layer, scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(scale.reshape(shape[0], shape[1]), np.float64)


def _mask(target: np.ndarray, gram: np.ndarray, form: Form) -> np.ndarray | None:
    """[groups, rows, d], or None where nothing is demanded. Depthwise filters stay whole."""
    if not form.sparsity or target.shape[1] < 16:
        return None
    return np.stack([choose_mask(t.T, g, form.sparsity, form.pattern) for t, g in zip(target, gram, strict=True)])


def _survivors(target: np.ndarray, gram: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.stack([refit(t.T, g, k).T for t, g, k in zip(target, gram, mask, strict=True)])


def _kept(target: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return target.ravel() if mask is None else target[mask]


def _best_step(target: np.ndarray, gram: np.ndarray, price: float, mask: np.ndarray | None, form: Form) -> float:
    """Around the step of theory the one of least error + price · bits, tried on some rows."""
    base = step_for(gram, price)
    rows = np.linspace(0, target.shape[2] - 1, min(_TRIAL_ROWS, target.shape[2])).astype(np.int64)
    some = np.ascontiguousarray(target[:, :, rows])
    few = None if mask is None else mask[:, :, rows]
    if len(some) > _TRIAL_ROWS:
        groups = np.linspace(0, len(some) - 1, _TRIAL_ROWS).astype(np.int64)
        some, gram, few = some[groups], gram[groups], None if few is None else few[groups]
    best, least = base, np.inf
    for factor in _STEPS:
        book = codebook.uniform(_kept(some, few), base * factor, form.levels)
        book, index = descent.quantise(some, gram, book, price, few, sweeps=1)
        cost = descent.squared_error(book.levels[index], some, gram)
        cost += price * float(book.bits[index].sum())
        if cost < least:
            best, least = base * factor, cost
    return best


def _finish(
    layer: Layer,
    m: Moments,
    levels: np.ndarray,
    index: np.ndarray,
    scale: np.ndarray | None,
    rowed: np.ndarray | None,
    weights: np.ndarray,
) -> Coded:
    coded = levels[index].swapaxes(1, 2)  # [groups, rows, d]
    effective = coded if rowed is None else coded * rowed[:, :, None]
    error, bias = _judged(layer, m, effective, weights)
    own = layer.tensor(_narrow(index.swapaxes(1, 2)))
    return Coded(levels, own, scale, bias, error)


def _judged(layer: Layer, m: Moments, effective: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray | None]:
    """The error of weights [groups, rows, d] in place of the dense ones, and the bias that goes with them."""
    left = np.sum((effective @ m.gram) * effective, -1) - 2 * np.einsum("grd,gdr->gr", effective, m.cross) + m.power
    error = float(np.maximum(left, 0).sum() / max(float(m.power.sum()), 1e-30))
    if not layer.takes_bias:
        return error, None
    means = np.einsum("grd,gd->gr", weights, m.mean_u) - np.einsum("grd,gd->gr", effective, m.mean_x)
    return error, _grid(layer.bias_vector() + means.reshape(-1), np.sqrt(m.power.reshape(-1) * error))


def _grid(bias: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Biases on a grid that adds little to the errors that the channels have: few different bytes in the file."""
    step = 2.0 ** np.floor(np.log2(max(float(np.median(error)), 1e-20) * _BIAS_STEP))
    return np.asarray(np.round(bias / step) * step, np.float32)


def rounded(levels: np.ndarray) -> np.ndarray:
    """Levels with 10 bits of mantissa, as f16 has: the low bytes are zeros."""
    mantissa, exponent = np.frexp(levels)
    return np.asarray(np.ldexp(np.round(mantissa * 2048) / 2048, exponent), np.float32)


def _narrow(index: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(index.astype(np.uint8))
