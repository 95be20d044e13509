"""Which products become convolutions of their weights' lists, and that results stay."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.tests.passes.build import Net, check, op_names


def pruned(shape: tuple[int, int], zeros: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(rng.uniform(size=shape) < zeros, 0, rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "zeros", "listed"),
    [
        ((64,), 96, 80, 0.9, True),
        ((2, 40), 96, 80, 0.9, True),
        ((64,), 96, 80, 0.3, False),
        ((8,), 96, 80, 0.9, False),  # rows would not fill vectors
        ((64,), 96, 10, 0.9, False),  # copies would cost too much
    ],
)
def test_matmul(rows: tuple[int, ...], depth: int, columns: int, zeros: float, listed: bool) -> None:
    net = Net()
    graph = net.done(net.op("Relu", net.op("MatMul", net.input(*rows, depth), pruned((depth, columns), zeros))))
    check(graph, "sparse-products", tolerance=1e-5)
    assert ("Conv" in op_names(graph)) == listed


@pytest.mark.parametrize(
    ("attrs", "bias", "listed"),
    [({}, (80,), True), ({"transB": 1}, None, True), ({"alpha": 0.5}, (80,), False), ({}, (64, 80), False)],
)
def test_gemm(attrs: dict[str, float], bias: tuple[int, ...] | None, listed: bool) -> None:
    net = Net()
    weights = pruned((96, 80), 0.9)
    stored = np.ascontiguousarray(weights.T) if attrs.get("transB") else weights
    graph = net.done(net.op("Gemm", net.input(64, 96), stored, *([net.random(*bias)] if bias else []), **attrs))
    check(graph, "sparse-products", tolerance=1e-5)
    assert ("Conv" in op_names(graph)) == listed


def test_what_is_added_to_columns_is_the_bias() -> None:
    net = Net()
    product = net.op("MatMul", net.input(64, 96), pruned((96, 80), 0.9))
    graph = net.done(net.op("Relu", net.op("Add", net.random(80), product)))
    check(graph, "sparse-products", tolerance=1e-5)
    assert op_names(graph) == ["Reshape", "Transpose", "Conv", "Transpose", "Reshape", "Relu"]
    (conv,) = (n for n in graph.nodes if n.op == "Conv")
    assert conv.input(2) is not None
