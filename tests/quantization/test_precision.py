"""Which tensors and weights get 16 bits, and that their sums are exact."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.compression import onnx_model
from c2c.compression.layers import Layer
from c2c.compression.samples import split
from c2c.compression.statistics import moments
from c2c.ir.graph import Value
from c2c.quantization.costs import measure_costs
from c2c.quantization.grid import Grid
from c2c.quantization.onnx_qdq import prepared
from c2c.quantization.precision import WEIGHT_TIME, WIDE_TIME, Costs, Precision, operations, widened, widest
from c2c.quantization.rounding import WeightForm, fit
from c2c.quantization.session import Options, Session, computed, read_by, start
from c2c.tests.quantization.networks import residual_network, samples


def session() -> Session:
    proto = prepared(residual_network())
    data = split(samples(), onnx_model.inputs_of(proto), 0, calibration=40, held_out=20)
    made = start(proto, data, Options("mse", "reconstruct", WeightForm(), False, 0), lambda stage: None)
    made.read_levels(made.integer)
    return made


def test_costs_add_up_to_the_noise_of_the_whole() -> None:
    made = session()
    made.observe()
    found = made.fit()
    costs = measure_costs(made, found, 0)
    assert len(costs.weights) == len(made.layers) and len(costs.places) == len(made.places(made.layers))
    assert all(c > 0 for c in costs.weights.values())
    held = {n: a[made.samples.held_out] for n, a in made.samples.arrays.items()}

    def between(v: Value, dense: np.ndarray, small: np.ndarray) -> np.ndarray | None:
        return found.grids[v].rounded(small) if v in found.grids else None

    dense, small = made.runner.run(held, lambda layer, a, b: computed(layer, found.weights[layer]), between=between)
    whole = np.square(dense[0] - small[0]).sum() / np.square(dense[0] - dense[0].mean(0)).sum()
    assert 0.4 < costs.total / whole < 2.5


def test_those_come_first_that_cost_most_for_their_time() -> None:
    made = session()
    places = made.places(made.layers)
    readers = {p: [v for v in made.layers if read_by(v) in p.values] for p in places}
    costs = Costs(dict.fromkeys(places, 1e-6), dict.fromkeys(made.layers, 1e-6))
    worst, layer = places[2], made.layers[1]
    costs = Costs({**costs.places, worst: 1.0}, {**costs.weights, layer: 1.0})
    some = widened(costs, readers, 0.01)
    assert set(worst.values) <= some.values and layer in some.weights
    assert widened(costs, readers, 1.001 * costs.total) == Precision()
    assert not some.floats
    worse = widened(Costs({**costs.places, worst: 100.0}, costs.weights), readers, 0.01)
    assert worse.floats == set(readers[worst]), "16 bits would leave more than all others cost"
    assert not worse.floats & worse.weights
    everything = widest(costs)
    assert everything.weights == frozenset(made.layers)
    assert everything.values == {v for p in places for v in p.values}
    alike = Costs(dict.fromkeys(places, 0.0), dict.fromkeys(made.layers, 1.0))
    one = widened(alike, readers, alike.total - 0.5)
    prices = {v: operations(v) * WIDE_TIME + v.dense.size * WEIGHT_TIME for v in made.layers}
    assert [prices[v] for v in one.weights] == [min(prices.values())]


def test_weights_of_16_bits_keep_sums_exact() -> None:
    made, grid = session(), Grid(np.float32(0.01), 0, 4095)
    checked: list[bool] = []

    def visit(layer: Layer, dense: np.ndarray, small: np.ndarray) -> None:
        w = fit(layer, moments(layer, dense, small, 0), WeightForm(16), "reconstruct", grid)
        sums = np.abs(layer.rows(w.levels.astype(np.int64))).sum(2).max() * 4095
        depthwise = layer.groups > 1
        assert w.levels.dtype == np.int16 and sums < 2 ** (24 if depthwise else 31)
        assert sums > 0.9 * 2**24 or np.abs(w.levels).max() == 32767
        assert w.error < 1e-5
        checked.append(depthwise)

    made.runner.run(dict(made.samples.arrays), visit)
    assert True in checked and False in checked


@pytest.mark.parametrize("bits", [8, 16])
def test_a_bias_fits_into_sums_however_small_its_weights(bits: int) -> None:
    made, grid = session(), Grid(np.float32(0.01), 0, 4095 if bits == 16 else 255)
    checked: list[str] = []

    def visit(layer: Layer, dense: np.ndarray, small: np.ndarray) -> None:
        m = moments(layer, dense, small, 0)
        layer.weight.data = np.asarray(layer.dense * np.float32(1e-12))
        w = fit(layer, m, WeightForm(bits), "nearest", grid)
        assert w.bias is not None
        sums = np.abs(w.bias.astype(np.float64)) / (float(grid.scale) * w.scale[:, 0])
        assert sums.max() < 2**30
        checked.append(layer.name)

    made.runner.run(dict(made.samples.arrays), visit)
    assert len(checked) == len(made.layers)
