"""Channels brought to like ranges, the network computing the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator

from c2c.compression import onnx_model
from c2c.compression.samples import split
from c2c.quantization.equalize import channels_of, find_joints
from c2c.quantization.onnx_qdq import prepared
from c2c.quantization.rounding import WeightForm
from c2c.quantization.session import Options, Session, start
from c2c.tests.quantization.networks import residual_network, samples


def session() -> Session:
    proto = prepared(residual_network())
    data = split(samples(), onnx_model.inputs_of(proto), 0, calibration=40, held_out=20)
    made = start(proto, data, Options("mse", "reconstruct", WeightForm(), True, 0), lambda stage: None)
    made.read_levels(made.integer)
    return made


def answers(made: Session, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Of the model in the file."""
    results: Any = ReferenceEvaluator(made.model).run(None, feeds)
    return np.asarray(results[0])


def test_the_network_computes_the_same() -> None:
    made = session()
    x = {name: a[:, 0] for name, a in made.samples.arrays.items()}
    before = answers(made, x)
    old = {v.name: v.dense for v in made.layers}
    assert made.equalize() >= 1
    assert any(not np.array_equal(old[v.name], v.dense) for v in made.layers)
    calibrated = {name: a[:40] for name, a in x.items()}
    after = answers(made, calibrated)
    np.testing.assert_allclose(after, before[:40], rtol=1e-4, atol=1e-5)
    ours = made.runner.run({n: a[:40] for n, a in made.samples.arrays.items()}, both=False)[0][0]
    np.testing.assert_allclose(ours[:, 0], after, rtol=1e-4, atol=1e-5)


def test_channels_come_closer_in_range() -> None:
    made = session()
    spread: list[float] = []
    for _ in range(2):
        tensors = made.runner.live_before({n: a[:40] for n, a in made.samples.arrays.items()})
        found = next(t[v] for t in tensors for v in t if v.name == "r2")
        reach = channels_of(found).reach
        spread.append(float(reach.max() / reach[reach > 0].min()))
        made.equalize()
    assert spread[1] < 0.8 * spread[0]


def test_joints_end_at_what_factors_do_not_pass() -> None:
    made = session()
    names = [{v.name for v in j.values} for j in find_joints(made.graph, made.layers)]
    assert {"c2", "r2"} in names
    assert not any({"x", "y", "r1", "n1", "c4", "g4", "h4"} & found for found in names)
