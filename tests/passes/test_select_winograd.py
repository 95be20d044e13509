"""Which convolutions take Winograd's form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from c2c.codegen.target import Target
from c2c.tests.passes.build import CONTEXT, Net, check


def _chosen(
    channels: int, outputs: int, size: int, error: float = 1e-4, target: Target = CONTEXT.target, **attrs: Any
) -> int | None:
    net = Net()
    graph = net.done(net.conv(net.input(1, channels, size, size), outputs, **attrs))
    check(graph, "canonicalize", "select-winograd", context=replace(CONTEXT, target=target, winograd_error=error))
    (node,) = graph.nodes
    return node.attrs["m"] if node.op == "c2c.WinogradConv" else None


@pytest.mark.parametrize(("channels", "size"), [(64, 56), (128, 28), (128, 64)])
def test_deep_layers_take_the_largest_tile(channels: int, size: int) -> None:
    assert _chosen(channels, channels, size) == 4


def test_an_error_cap_takes_a_smaller_tile_or_none() -> None:
    assert _chosen(64, 64, 28, error=1e-6) == 2
    assert _chosen(64, 64, 28, error=0.0) is None


@pytest.mark.parametrize("target", ["opencl", "opencl-cpu"])
def test_grids_take_it_where_weights_are_few_beside_positions(target: str) -> None:
    on = Target.parse(target)
    assert _chosen(64, 64, 56, target=on) == 4
    assert _chosen(64, 64, 56, error=0.0, target=on) is None
    assert _chosen(512, 512, 7, target=on) is None
    assert _chosen(8, 64, 56, target=on) is None


@pytest.mark.parametrize(
    ("when", "channels", "prepared"),
    [("auto", 64, 0), ("load", 64, 1), ("auto", 1280, 1), ("compile", 1280, 0)],
)
def test_large_weights_are_transformed_at_load(when: str, channels: int, prepared: int) -> None:
    net = Net()
    graph = net.done(net.conv(net.input(1, channels, 24, 24), channels))
    check(graph, "canonicalize", "select-winograd", context=replace(CONTEXT, winograd_error=1, winograd_weights=when))
    (node,) = graph.nodes
    assert node.op == "c2c.WinogradConv" and node.attrs.get("prepared", 0) == prepared


@pytest.mark.parametrize(
    "form",
    [
        {"size": 1, "pads": [0] * 4},
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": [2] * 4},
        {"group": 2},
    ],
)
def test_other_forms_stay(form: dict[str, Any]) -> None:
    net = Net()
    graph = net.done(net.conv(net.input(1, 32, 20, 20), 32, **form))
    check(graph, "canonicalize", "select-winograd")
    assert graph.nodes[0].op == "Conv"


def test_few_channels_and_small_images_stay() -> None:
    assert _chosen(3, 64, 56) is None
    assert _chosen(16, 4, 56) is None
    assert _chosen(512, 512, 2) is None


def test_weights_from_memory_count() -> None:
    """Few results a weight: fewer products of F(4 x 4), or of F(2 x 2), do not pay for more bytes."""
    assert _chosen(512, 512, 7) is None
    assert _chosen(256, 256, 14) == 2
    near = replace(CONTEXT.target, l3_bytes=256 << 20, core=replace(CONTEXT.target.core, l3_bytes=27.0))
    assert _chosen(512, 512, 7, target=near) == _chosen(256, 256, 14, target=near) == 4
