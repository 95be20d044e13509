"""What an error in a layer's result does to the network's: a little white noise is added to it, the rest replayed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .acceptance import relative_error
from .runner import Runner
from .samples import Samples

NOISE = 0.01
SAMPLES = 8
FLOOR = 1e-3


def sensitivities(
    runner: Runner, samples: Samples, output: int, seed: int, progress: Callable[[str], None]
) -> dict[str, float]:
    """Relative squared error of the output per relative squared error of each layer's result, by layer name."""
    count = min(SAMPLES, samples.calibration)
    feeds = {name: a[:count] for name, a in samples.arrays.items()}
    before = runner.live_before(feeds)
    reference = before[-1].get(runner.graph.outputs[output])
    rng = np.random.default_rng(seed)
    found: dict[str, float] = {}
    for i, step in enumerate(runner.steps):
        if not step.layers:
            continue
        progress(f"sensitivity of {step.layers[0].name}")
        tensors = dict(before[i + 1])
        for v in step.gives:
            if v in tensors:
                tensors[v] = _noisy(tensors[v], rng)
        result = runner.replay(i + 1, tensors)[output]
        value = relative_error(reference, result) / NOISE if reference is not None else 1.0
        for layer in step.layers:
            found[layer.name] = value if np.isfinite(value) else 1.0
    return _floored(found)


def _noisy(tensor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    spread = np.sqrt(NOISE) * float(tensor.std())
    return np.asarray(tensor + spread * rng.standard_normal(tensor.shape), tensor.dtype)


def _floored(found: dict[str, float]) -> dict[str, float]:
    """No layer counts as (nearly) irrelevant on the word of a few samples."""
    most = max(found.values(), default=1.0)
    return {name: max(v, FLOOR * most, 1e-6) for name, v in found.items()}
