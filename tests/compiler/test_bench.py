"""Node times beside the peak, with a model that is a stand-in."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from c2c.compiler import bench
from c2c.compiler.api import CompiledModel
from c2c.compiler.machine import peak_burst
from c2c.runtime_stub.loader import Bound


class _Drifting:
    """Two steps whose clock halves between runs; the peak with it. The second step lies between two rates."""

    def __init__(self) -> None:
        self.runs = 0

    def trace(self, feeds: dict[str, np.ndarray], steps: int, beside: Bound) -> np.ndarray:
        self.runs += 1
        return np.array([[100, 1000], [300, 2000]]) * (1 + self.runs % 2)


def test_possible_operations_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "peak_burst", lambda: (None, 400))
    times, possible = bench.step_times(cast(CompiledModel, _Drifting()), 2, {}, 0.0)
    assert times.tolist() == [2000, 4000]
    assert possible.tolist() == [1000 * 400 / 200, 2000 * 400 / 300]


def test_a_burst_does_its_operations() -> None:
    beside, flops = peak_burst()
    times = beside.loaded.trace([], beside.arrays, 1, beside)
    assert times.shape == (1, 2) and (times > 0).all()
    assert flops / times[0, 0] < 1000, "more operations than a core can do"
