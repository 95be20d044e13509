"""What 8 bits cost the network's output, tensor by tensor and layer by layer, measured on samples held out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..compression.acceptance import relative_error
from ..compression.layers import Layer
from ..ir.graph import Value
from .grid import Grid
from .places import Place
from .precision import Costs
from .session import Fit, Session, computed

SENSED = 16
"""Samples that costs are measured on."""


def measure_costs(session: Session, found: Fit, output: int) -> Costs:
    """Costs of each place and each layer of `found`, by running the dense network on from there; output: which one."""
    work = _Replays(session, found, output)
    return Costs(dict(work.places()), dict(work.weights()))


class _Replays:
    def __init__(self, session: Session, found: Fit, output: int) -> None:
        self.session, self.found, self.output, self.runner = session, found, output, session.runner
        samples = session.samples
        held, count = samples.held_out, min(SENSED, samples.count - samples.calibration)
        self.before = self.runner.live_before({n: a[held][:count] for n, a in samples.arrays.items()})
        self.reference = self.before[-1][session.graph.outputs[output]]

    def places(self) -> Iterator[tuple[Place, float]]:
        grids = self.found.grids
        for place in self.session.places(self.found.inputs):
            self.session.progress(f"cost of the levels of {place.values[0].name}")
            rounded = {v: grids[v] for v in place.values}

            def between(v: Value, x: np.ndarray, rounded: dict[Value, Grid] = rounded) -> np.ndarray | None:
                return rounded[v].rounded(x) if v in rounded else None

            start = next(i for i, live in enumerate(self.before) if any(v in live for v in place.values))
            live = self.before[start]
            tensors = live | {v: g.rounded(live[v]) for v, g in rounded.items() if v in live}
            yield place, self._error(self.runner.replay(start, tensors, between=between))

    def weights(self) -> Iterator[tuple[Layer, float]]:
        for i, step in enumerate(self.runner.steps):
            for layer in (layer for layer in step.layers if layer in self.found.weights):
                self.session.progress(f"cost of the weights of {layer.name}")
                mine = computed(layer, self.found.weights[layer])
                yield layer, self._error(self.runner.replay(i, self.before[i], {layer: mine}))

    def _error(self, outputs: list[np.ndarray]) -> float:
        return relative_error(self.reference, outputs[self.output])
