"""Which strided pointwise convolutions read packed pixels, and that results stay."""

from __future__ import annotations

from typing import Any

import pytest

from c2c.tests.passes.build import Net, check, op_names


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "attrs", "packed"),
    [
        (64, 256, 15, {"strides": [2, 2]}, True),
        (64, 256, 14, {"strides": [1, 3]}, True),
        (64, 512, 15, {"strides": [2, 2], "group": 2}, True),
        (64, 8, 15, {"strides": [2, 2]}, False),  # the copy would cost more
        (64, 256, 15, {"strides": [2, 2], "pads": [1, 0, 0, 0]}, False),
        (64, 256, 15, {}, False),
    ],
)
def test_pixels(channels: int, outputs: int, size: int, attrs: dict[str, Any], packed: bool) -> None:
    net = Net()
    x = net.op("Relu", net.input(2, channels, size, size))
    graph = net.done(net.conv(x, outputs, 1, **{"pads": [0] * 4, **attrs}))
    check(graph, "canonicalize", "pack-strides", tolerance=1e-6)
    assert ("AveragePool" in op_names(graph)) == packed


def test_larger_kernels_stay() -> None:
    net = Net()
    graph = net.done(net.conv(net.input(1, 64, 15, 15), 256, 3, strides=[2, 2]))
    assert not check(graph, "pack-strides")
