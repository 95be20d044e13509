"""Matrices repeated for several products: read once, with equal results; other repetitions stay."""

from __future__ import annotations

import numpy as np
import pytest

import c2c
from c2c.ir import reference
from c2c.ir.graph import Value
from c2c.tests.passes.build import Net, check, feeds_for, i64, op_names

B, H, T, D = 2, 6, 11, 8


def repeated(net: Net, heads: int, op: str) -> Value:
    apart = net.op("Unsqueeze", net.op("Relu", net.input(B, heads, T, D)), i64(2))
    times = H // heads
    wide = net.op(op, apart, i64(1, 1, times, 1, 1) if op == "Tile" else i64(B, heads, times, T, D))
    return net.op("Reshape", wide, i64(B, H, T, D))


@pytest.mark.parametrize("op", ["Expand", "Tile"])
@pytest.mark.parametrize(("heads", "rows"), [(1, 1), (2, 3), (3, 1)])
def test_both_products_of_few_queries(op: str, heads: int, rows: int) -> None:
    net = Net()
    k, v = repeated(net, heads, op), repeated(net, heads, op)
    x = net.op("MatMul", net.input(B, H, rows, D), net.op("Transpose", k, perm=(0, 1, 3, 2)))
    graph = net.done(net.op("MatMul", net.op("Softmax", x, axis=-1), v))
    feeds = feeds_for(graph, 3)
    (expected,) = reference.evaluate(graph, feeds).values()
    model = c2c.compile(reference.to_onnx(graph))
    ops = op_names(model.compiled.graph)
    assert not {"Expand", "Tile", "Transpose", "c2c.Attention"} & set(ops), ops
    (got,) = model.run(feeds).values()
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(got, expected, rtol=0, atol=eps * (8 + 4 * np.sqrt(T)) * float(np.abs(expected).max()))


def test_repetition_of_the_whole_stays() -> None:
    """Heads 0 1 2 0 1 2: neighbours have other matrices."""
    net = Net()
    apart = net.op("Unsqueeze", net.input(B, 3, D, T), i64(1))
    wide = net.op("Reshape", net.op("Expand", apart, i64(B, 2, 3, D, T)), i64(B, H, D, T))
    graph = net.done(net.op("MatMul", net.input(B, H, 1, D), wide))
    check(graph, "share-factors")
    assert "Expand" in op_names(graph)


def test_repeated_rows_stay() -> None:
    net = Net()
    apart = net.op("Expand", net.input(B, 3, 1, D, T), i64(B, 3, 2, D, T))
    graph = net.done(net.op("MatMul", net.input(B, 3, T, 2 * D), net.op("Reshape", apart, i64(B, 3, 2 * D, T))))
    check(graph, "share-factors")
    assert "Expand" in op_names(graph)
