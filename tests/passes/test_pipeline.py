"""The whole pipeline on random networks, compiled and run natively against ONNX's evaluator."""

from __future__ import annotations

import numpy as np
import pytest

import c2c
from c2c.compiler.pipeline import LEVELS
from c2c.ir import reference
from c2c.ir.graph import Graph, Value
from c2c.passes.base import find_pass
from c2c.tests.passes.build import Net, feeds_for, i64


def test_levels_name_known_passes() -> None:
    for names in LEVELS.values():
        assert all(find_pass(name).name == name for name in names)


def _step(net: Net, x: Value, kind: int) -> Value:
    c = x.type.dims[1]
    match kind:
        case 0 | 1:
            return net.conv(x, int(net.rng.choice([4, 16, 20, 32])), int(net.rng.choice([1, 3])))
        case 2:
            return net.conv(x, c, group=c)
        case 3:
            return net.op("Mul", x, net.op("Sigmoid", net.op("GlobalAveragePool", x)))
        case 4:
            return net.op("Concat", x, net.op("Tanh", x), axis=1)
        case 5:
            return net.op("Softmax", x, axis=1)
        case 6:
            return net.op("MaxPool", net.op("HardSwish", x), kernel_shape=[3, 3], pads=[1] * 4)
        case 7:
            norm = [net.random(c), net.random(c), net.random(c), net.positive(c)]
            return net.op("BatchNormalization", x, *norm)
        case 8:
            return net.op("Pad", net.op("PRelu", x, net.random(c, 1, 1)), i64(0, 0, 1, 2, 0, 0, 0, 1), mode="reflect")
        case _:
            turned = net.op("Tanh", net.op("Transpose", x, perm=[0, 2, 3, 1]))
            return net.op("Add", x, net.op("Transpose", turned, perm=[0, 3, 1, 2]))


def _network(seed: int) -> Graph:
    net = Net(seed)
    values = [net.input(1 + seed % 2, int(net.rng.choice([3, 8, 16])), 9, 11)]
    for _ in range(10):
        x = values[int(net.rng.integers(max(0, len(values) - 3), len(values)))]
        values.append(_step(net, x, int(net.rng.integers(10))))
    return net.done(values[-1], *(v for v in values[1:-1] if net.rng.random() < 0.15))


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_compute_the_same(seed: int) -> None:
    graph = _network(seed)
    feeds = feeds_for(graph, seed)
    model = c2c.compile(reference.to_onnx(graph).SerializeToString(), threads=1 + seed % 2)
    found = model.run(feeds)
    for name, expected in reference.evaluate(graph, feeds).items():
        error = np.abs(found[name] - expected).max() / np.abs(expected).max()
        assert error < 2e-5, f"{name}, seed {seed}: {error:.2g}"
