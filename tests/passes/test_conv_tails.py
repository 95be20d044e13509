"""What follows a convolution is computed where its results are written: no family leaves a step of its own for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest

from c2c.compiler.pipeline import pipeline
from c2c.ir.graph import Value
from c2c.passes.base import run_pipeline
from c2c.tests.passes.build import CONTEXT, Net, op_names

Family: TypeAlias = Callable[[Net], Value]
Tail: TypeAlias = Callable[[Net, Value], Value]


def image(net: Net, channels: int, size: int = 24) -> Value:
    return net.op("Relu", net.conv(net.input(1, channels, size, size), channels, 1, pads=[0] * 4))


def transposed(channels: int, kernel: int) -> Family:
    def build(net: Net) -> Value:
        w, pad = net.random(32, channels, kernel, kernel), (kernel - 1) // 2
        return net.op("ConvTranspose", image(net, 32), w, net.random(channels), strides=[2, 2], pads=[pad] * 4)

    return build


def of_rank(rank: int) -> Family:
    def build(net: Net) -> Value:
        x, w = net.input(1, 16, *[12] * rank), net.random(32, 16, *[3] * rank)
        return net.op("Conv", x, w, net.random(32), pads=[1] * (2 * rank))

    return build


FAMILIES: dict[str, Family] = {
    "first": lambda net: net.conv(net.input(1, 3, 24, 24), 32),
    "dense": lambda net: net.conv(image(net, 32), 48, strides=[2, 2]),
    "pointwise": lambda net: net.conv(image(net, 32), 48, 1, pads=[0] * 4),
    "winograd": lambda net: net.conv(image(net, 64), 64),
    "depthwise": lambda net: net.conv(image(net, 32), 32, group=32),
    "groups": lambda net: net.conv(image(net, 32), 64, group=2),
    "planar": lambda net: net.conv(image(net, 8, 64), 2),
    "transposed": transposed(32, 3),
    "patches": transposed(1, 2),
    "one dimension": of_rank(1),
    "three dimensions": of_rank(3),
}


def per_channel(net: Net, y: Value) -> np.ndarray:
    numbers: np.ndarray = net.positive(y.type.dims[1], *[1] * (y.type.rank - 2))
    return numbers


def beside(net: Net, y: Value) -> Value:
    """What another convolution makes."""
    rank, channels = y.type.rank - 2, y.type.dims[1]
    return net.op("Conv", net.input(*y.type.dims), net.random(channels, channels, *[1] * rank))


TAILS: dict[str, Tail] = {
    "relu": lambda net, y: net.op("Relu", y),
    "clip": lambda net, y: net.op("Clip", y, 0.0, 6.0),
    "sigmoid": lambda net, y: net.op("Sigmoid", y),
    "silu": lambda net, y: net.op("Mul", y, net.op("Sigmoid", y)),
    "hard-swish": lambda net, y: net.op("HardSwish", y),
    "hard-swish, written out": lambda net, y: net.op(
        "Mul", y, net.op("Div", net.op("Clip", net.op("Add", y, 3.0), 0.0, 6.0), 6.0)
    ),
    "gelu": lambda net, y: net.op(
        "Mul", net.op("Mul", y, 0.5), net.op("Add", net.op("Erf", net.op("Div", y, 1.41421354)), 1.0)
    ),
    "gelu by tanh": lambda net, y: net.op("Gelu", y, approximate="tanh"),
    "mish": lambda net, y: net.op("Mul", y, net.op("Tanh", net.op("Softplus", y))),
    "prelu": lambda net, y: net.op("PRelu", y, per_channel(net, y)),
    "leaky relu": lambda net, y: net.op("LeakyRelu", y, alpha=0.1),
    "scale": lambda net, y: net.op("Mul", net.op("Relu", y), per_channel(net, y)),
    "residual": lambda net, y: net.op("Relu", net.op("Add", y, beside(net, y))),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tails_are_no_steps(family: str, tail: str) -> None:
    net = Net()
    graph = net.done(TAILS[tail](net, FAMILIES[family](net)))
    run_pipeline(graph, pipeline(2), CONTEXT)
    left = [n for n in op_names(graph) if "Conv" not in n and n not in ("c2c.Reorder", "Reshape")]
    assert not left, op_names(graph)


def test_a_pooling_joins_the_convolution_before_it_where_their_tensor_is_large() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input(1, 3, 224, 224), 64, 7, strides=[2, 2]))
    graph = net.done(net.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
    run_pipeline(graph, pipeline(2), CONTEXT)
    assert [n.op for n in graph.nodes if n.op != "c2c.Reorder"] == ["c2c.ConvChain"]
