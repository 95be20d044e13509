"""Attention found in what exporters write, and left alone where its scores are needed."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.ir.errors import VerifyError
from c2c.ir.graph import Graph, Value
from c2c.ir.graph_text import parse_graph, print_graph
from c2c.ir.verify import verify
from c2c.passes.attention import read_form
from c2c.passes.regions import groups, regrouped
from c2c.tests.passes.build import Net, check, i64, op_names

PASSES = ("canonicalize", "eliminate-transposes", "fuse-attention", "canonicalize", "eliminate-transposes")


def attention(net: Net, q: Value, keys: Value, v: Value, form: str, mask: Value | None = None) -> Value:
    """softmax(q · keys · s + mask) · v with the factor in one of its places."""
    s = float(q.type.dims[-1] ** -0.5)
    if form == "operand":
        q = net.op("Mul", q, s)
    x = net.op("MatMul", q, keys)
    if form in ("Mul", "Div"):
        x = net.op(form, x, s if form == "Mul" else 1 / s)
    if mask is not None:
        x = net.op("Add", mask, x)
    return net.op("MatMul", net.op("Softmax", x, axis=-1), v)


def heads(net: Net, x: Value, count: int, perm: tuple[int, ...]) -> Value:
    batch, rows, size = x.type.dims
    parts = net.op("Reshape", x, i64(batch, rows, count, size // count))
    return net.op("Transpose", parts, perm=perm)


@pytest.mark.parametrize("form", ["", "operand", "Mul", "Div"])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_side_by_side_need_no_transpose(form: str, masked: bool) -> None:
    net = Net()
    q, keys, v = (net.op("Relu", net.input(2, 9, 24)) for _ in range(3))
    mask = net.input(2, 1, 1, 9) if masked else None
    split = heads(net, q, 3, (0, 2, 1, 3)), heads(net, keys, 3, (0, 2, 3, 1)), heads(net, v, 3, (0, 2, 1, 3))
    y = attention(net, *split, form, mask)
    joined = net.op("Reshape", net.op("Transpose", y, perm=(0, 2, 1, 3)), i64(2, 9, 24))
    graph = net.done(net.op("Relu", joined))
    check(graph, *PASSES)
    assert "Transpose" not in op_names(graph) and op_names(graph).count("c2c.Attention") == 1
    (node,) = (n for n in graph.nodes if n.op == "c2c.Attention")
    found = read_form(node)
    assert found.batch == (2, 3) and found.kv_heads == 3 and bool(found.scores.nodes) == masked
    assert node.output.type.dims == (2, 9, 24) and node.origin[-1].startswith("Transpose")


@pytest.mark.parametrize("dims", [(2, 9, 8), (2, 3, 9, 8)])
def test_heads_apart(dims: tuple[int, ...]) -> None:
    net = Net()
    q, k, v = (net.input(*dims) for _ in range(3))
    turned = net.op("Transpose", k, perm=(*range(len(dims) - 2), len(dims) - 1, len(dims) - 2))
    graph = net.done(attention(net, q, turned, v, "Mul"))
    check(graph, *PASSES)
    assert [n for n in op_names(graph) if n != "Reshape"] == ["c2c.Attention"]


def _scores_read_twice(net: Net, q: Value, k: Value, v: Value) -> Graph:
    weights = net.op("Softmax", net.op("MatMul", q, k), axis=-1)
    return net.done(net.op("MatMul", weights, v), weights)


def _other_axis(net: Net, q: Value, k: Value, v: Value) -> Graph:
    return net.done(net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=1), v))


def _constant_keys(net: Net, q: Value, k: Value, v: Value) -> Graph:
    x = net.op("MatMul", q, net.random(*k.type.dims))
    return net.done(net.op("MatMul", net.op("Softmax", x, axis=-1), v))


@pytest.mark.parametrize("make", [_scores_read_twice, _other_axis, _constant_keys])
def test_other_forms_stay(make: object) -> None:
    net = Net()
    graph = make(net, net.input(2, 3, 9, 8), net.input(2, 3, 8, 9), net.input(2, 3, 9, 8))  # type: ignore[operator]
    check(graph, *PASSES)
    assert "c2c.Attention" not in op_names(graph)


def test_few_queries_stay_products() -> None:
    net = Net()
    q, k, v = net.input(1, 3, 1, 8), net.input(1, 3, 8, 50), net.input(1, 3, 50, 8)
    graph = net.done(attention(net, q, k, v, "Mul"))
    check(graph, *PASSES)
    assert "c2c.Attention" not in op_names(graph)


def test_a_larger_mask_stays() -> None:
    """Scores broadcast to the shape of the mask."""
    net = Net()
    q, k, v = net.input(1, 3, 9, 8), net.input(1, 3, 8, 9), net.input(1, 3, 9, 8)
    y = attention(net, q, k, v, "Mul", net.input(2, 1, 1, 9))
    graph = net.done(y)
    assert np.prod(y.type.dims) == 2 * 3 * 9 * 8
    check(graph, *PASSES)
    assert "c2c.Attention" not in op_names(graph)


def _scores_outside(net: Net, q: Value, k: Value, v: Value) -> Graph:
    x = net.op("Exp", net.op("MatMul", q, k))
    return net.done(net.op("MatMul", net.op("Softmax", x, axis=-1), v), net.op("Relu", x))


def _added_to_itself_before(net: Net, q: Value, k: Value, v: Value) -> Graph:
    product = net.op("MatMul", q, k)
    mixed = net.op("Add", product, net.op("ReduceMax", product, i64(-1)))
    return net.done(net.op("MatMul", net.op("Softmax", mixed, axis=-1), v))


@pytest.mark.parametrize("make", [_scores_outside, _added_to_itself_before])
def test_scores_that_more_than_elementwise_nodes_read_stay(make: object) -> None:
    net = Net()
    graph = make(net, net.input(2, 3, 9, 8), net.input(2, 3, 8, 9), net.input(2, 3, 9, 8))  # type: ignore[operator]
    check(graph, *PASSES)
    assert "c2c.Attention" not in op_names(graph)


def test_scores_read_twice_in_between() -> None:
    net = Net()
    q, k, v = net.input(1, 3, 9, 8), net.input(1, 3, 8, 9), net.input(1, 3, 9, 8)
    x = net.op("MatMul", q, k)
    x = net.op("Where", net.op("Greater", x, 0.5), net.op("Mul", x, x), net.op("Neg", x))
    graph = net.done(net.op("MatMul", net.op("Softmax", x, axis=-1), v))
    check(graph, *PASSES)
    (node,) = (n for n in graph.nodes if n.op == "c2c.Attention")
    assert [n.op for n in read_form(node).scores.nodes] == ["Greater", "Mul", "Neg", "Where"]
    again = parse_graph(print_graph(graph))
    assert print_graph(again) == print_graph(graph)


def test_a_body_that_is_no_attention() -> None:
    net = Net()
    q, k, v = net.input(1, 3, 9, 8), net.input(1, 3, 8, 9), net.input(1, 3, 9, 8)
    graph = net.done(attention(net, q, k, v, "Mul"))
    check(graph, *PASSES)
    (node,) = (n for n in graph.nodes if n.op == "c2c.Attention")
    softmax = next(n for n in node.attrs["body"].nodes if n.op == "Softmax")
    softmax.op = "Relu"
    softmax.attrs = {}
    with pytest.raises(VerifyError, match="c2c.Attention computes Transpose MatMul Mul Relu MatMul"):
        verify(graph)


@pytest.mark.parametrize(
    ("coarse", "fine", "found"),
    [
        ((8,), (2, 4), [(2, 4)]),
        ((1, 8), (2, 4), [(), (2, 4)]),
        ((8, 4), (2, 4, 4), [(2, 4), (4,)]),
        ((2, 1, 4), (2, 4), [(2,), (), (4,)]),
        ((8,), (1, 8, 1), [(1, 8, 1)]),
        ((4, 2), (2, 4), None),
    ],
)
def test_groups(coarse: tuple[int, ...], fine: tuple[int, ...], found: list[tuple[int, ...]] | None) -> None:
    assert groups(coarse, fine) == found


def test_regrouped_operands_broadcast_to_the_same_places() -> None:
    coarse, fine = (6, 4), (2, 3, 4)
    for dims in ((6, 1), (1, 4), (4,), (6, 4), (1,)):
        x = np.arange(np.prod(dims)).reshape(dims)
        new = x.reshape(regrouped(dims, coarse, fine))
        np.testing.assert_array_equal(np.broadcast_to(new, fine).reshape(coarse), np.broadcast_to(x, coarse))
