"""Samples made up where none are given: smooth noise of unit power for floats, numbers in range for integers.

`Runner.settle` then brings what layers make of them to what batch norms say of real inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from ..ir.errors import OptionsError
from ..ir.types import TensorType

COUNT = 256


def synthetic_samples(
    model: ModelProto, inputs: Mapping[str, TensorType], seed: int, count: int = COUNT
) -> dict[str, np.ndarray]:
    """[count, *shape] for each input; a first dimension that the model leaves open is 1. Raises OptionsError."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, t in inputs.items():
        dims = (1 if i == 0 and isinstance(d, str) else d for i, d in enumerate(t.shape))
        shape = tuple(d for d in dims if isinstance(d, int))
        if len(shape) != t.rank:
            raise OptionsError(
                f"no samples can be made up for '{name}', {t}: its size is open", remedy="give samples with --data"
            )
        if t.dtype.is_float:
            made[name] = _smooth(rng, (count, *shape)).astype(t.dtype.numpy)
        else:
            high = _height(model, name) if t.dtype.is_int else 2
            made[name] = rng.integers(0, high, (count, *shape)).astype(t.dtype.numpy)
    return made


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of amplitude 1/f along the last two axes and some white, with a contrast and a brightness of each
    sample's own."""
    white = rng.standard_normal(shape)
    if len(shape) < 4:
        return white
    axes = (len(shape) - 2, len(shape) - 1)
    squares = np.meshgrid(*(np.fft.fftfreq(shape[a]) ** 2 for a in axes), indexing="ij")
    f = np.sqrt(squares[0] + squares[1])
    colour = np.fft.ifft2(np.fft.fft2(white, axes=axes) / np.maximum(f, 1 / max(shape[-2:])), axes=axes).real
    colour /= max(float(colour.std()), 1e-12)
    one = (shape[0], *[1] * (len(shape) - 1))
    mixed = 0.9 * colour + 0.3 * rng.standard_normal(shape)
    return np.asarray(mixed * rng.uniform(0.4, 1.3, one) + rng.normal(0, 0.5, one))


def _height(model: ModelProto, name: str) -> int:
    """Rows of the table that the input indexes, 2 where it indexes none."""
    dims = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] == name and node.input[0] in dims:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            return int(dims[node.input[0]][axis])
    return 2
