"""Canonical forms, rule by rule: the operators that remain, and equal results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from c2c.ir.graph import Graph, Value
from c2c.passes.base import run_pipeline
from c2c.tests.passes.build import CONTEXT, Net, check, i64, op_names

Build = Callable[[Net], Value]


def _x(net: Net, *shape: int) -> Value:
    return net.input(*(shape or (2, 8, 6, 5)))


def _hard_swish(net: Net) -> Value:
    x = _x(net)
    return net.op("Div", net.op("Mul", x, net.op("Clip", net.op("Add", x, 3.0), 0.0, 6.0)), 6.0)


def _hard_swish_inside(net: Net) -> Value:
    x = _x(net)
    return net.op("Mul", net.op("Mul", net.op("Clip", net.op("Add", 3.0, x), 0.0, 6.0), 1 / 6), x)


def _hard_swish_of_sigmoid(net: Net) -> Value:
    x = _x(net)
    return net.op("Mul", x, net.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _hard_sigmoid(net: Net) -> Value:
    return net.op("Div", net.op("Clip", net.op("Add", _x(net), 3.0), 0.0, 6.0), 6.0)


def _not_hard_sigmoid(net: Net) -> Value:
    return net.op("Div", net.op("Clip", net.op("Add", _x(net), 3.0), 0.0, 5.0), 6.0)


def _swish(net: Net) -> Value:
    x = _x(net)
    return net.op("Mul", net.op("Sigmoid", net.op("Mul", x, 1.702)), x)


def _mish(net: Net) -> Value:
    x = _x(net)
    return net.op("Mul", x, net.op("Tanh", net.op("Softplus", x)))


def _gelu(net: Net) -> Value:
    x = _x(net)
    erf = net.op("Erf", net.op("Div", x, float(np.sqrt(2))))
    return net.op("Mul", net.op("Mul", x, net.op("Add", erf, 1.0)), 0.5)


def _gelu_half_inside(net: Net) -> Value:
    x = _x(net)
    gate = net.op("Add", net.op("Mul", net.op("Erf", net.op("Mul", x, float(np.sqrt(0.5)))), 0.5), 0.5)
    return net.op("Mul", gate, x)


def _gelu_tanh(net: Net) -> Value:
    x = _x(net)
    cube = net.op("Mul", net.op("Pow", x, 3.0), 0.044715)
    gate = net.op("Add", net.op("Tanh", net.op("Mul", net.op("Add", x, cube), float(np.sqrt(2 / np.pi)))), 1.0)
    return net.op("Mul", net.op("Mul", 0.5, x), gate)


def _not_gelu(net: Net) -> Value:
    x, z = _x(net), net.op("Neg", _x(net))
    erf = net.op("Erf", net.op("Div", x, float(np.sqrt(2))))
    return net.op("Mul", net.op("Mul", z, net.op("Add", erf, 1.0)), 0.5)


def _layer_norm(net: Net, power: bool) -> Value:
    x = _x(net, 3, 7, 12)
    centred = net.op("Sub", x, net.op("ReduceMean", x, i64(-1)))
    square = net.op("Pow", centred, 2.0) if power else net.op("Mul", centred, centred)
    root = net.op("Sqrt", net.op("Add", net.op("ReduceMean", square, i64(2)), 1e-5))
    y = net.op("Div", centred, root) if power else net.op("Mul", centred, net.op("Reciprocal", root))
    return net.op("Add", net.op("Mul", y, net.random(12)), net.random(12))


def _softmax(net: Net) -> Value:
    x = _x(net, 3, 7, 12)
    e = net.op("Exp", net.op("Sub", x, net.op("ReduceMax", x, i64(1))))
    return net.op("Div", e, net.op("ReduceSum", e, i64(1)))


def _gemm(net: Net) -> Value:
    x = _x(net, 4, 9)
    return net.op("Gemm", x, net.random(5, 9), net.random(5), transB=1, alpha=0.5, beta=2.0)


def _gemm_turned(net: Net) -> Value:
    return net.op("Gemm", _x(net, 9, 4), net.random(9, 5), transA=1)


def _same_upper(net: Net) -> Value:
    return net.op("Conv", _x(net), net.random(4, 8, 2, 3), auto_pad="SAME_UPPER", strides=[2, 2])


def _padded_conv(net: Net) -> Value:
    return net.op("Conv", net.op("Pad", _x(net), i64(0, 0, 1, 2, 0, 0, 0, 1)), net.random(4, 8, 3, 3))


def _padded_by_ones(net: Net) -> Value:
    return net.op("Conv", net.op("Pad", _x(net), i64(0, 0, 1, 1, 0, 0, 1, 1), 1.0), net.random(4, 8, 3, 3))


def _ceil_pool(net: Net) -> Value:
    return net.op("MaxPool", _x(net, 1, 3, 7, 8), kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1)


def _spatial_mean(net: Net) -> Value:
    return net.op("ReduceMean", _x(net), i64(2, 3), keepdims=0)


def _whole_window(net: Net) -> Value:
    return net.op("AveragePool", _x(net), kernel_shape=[6, 5])


def _reshapes(net: Net) -> Value:
    return net.op("Reshape", net.op("Unsqueeze", net.op("Flatten", _x(net), axis=1), i64(1)), i64(0, 40, -1))


def _transposes(net: Net) -> Value:
    return net.op("Transpose", net.op("Transpose", _x(net), perm=[0, 2, 3, 1]), perm=[2, 3, 1, 0])


def _transpose_of_ones(net: Net) -> Value:
    return net.op("Transpose", _x(net, 1, 8, 1, 5), perm=[2, 1, 3, 0])


def _expanded(net: Net) -> Value:
    return net.op("Add", _x(net), net.op("Expand", net.input(8, 1, 1), i64(2, 8, 6, 5)))


def _clips(net: Net) -> Value:
    return net.op("Min", net.op("Relu", net.op("Max", _x(net), -1.0)), 6.0)


def _nested_concats(net: Net) -> Value:
    x = _x(net)
    return net.op("Concat", net.op("Concat", x, x, axis=1), net.op("Relu", x), axis=1)


def _neutral(net: Net) -> Value:
    ones, zeros = np.ones((8, 1, 1), np.float32), np.zeros((1,), np.float32)
    return net.op("Relu", net.op("Sub", net.op("Mul", net.op("Identity", _x(net)), ones), zeros))


def _halves(net: Net) -> Value:
    return net.op("Sub", net.op("Div", _x(net), 4.0), net.random(8, 1, 1))


def _thirds(net: Net) -> Value:
    return net.op("Div", _x(net), 3.0)


def _casts(net: Net) -> Value:
    return net.op("Cast", net.op("Cast", _x(net), to=11), to=1)


CASES: list[tuple[Build, list[str]]] = [
    (_hard_swish, ["HardSwish"]),
    (_hard_swish_inside, ["HardSwish"]),
    (_hard_swish_of_sigmoid, ["HardSwish"]),
    (_hard_sigmoid, ["HardSigmoid"]),
    (_not_hard_sigmoid, ["Add", "Clip", "Div"]),
    (_swish, ["Swish"]),
    (_mish, ["Mish"]),
    (_gelu, ["Gelu"]),
    (_gelu_half_inside, ["Gelu"]),
    (_gelu_tanh, ["Gelu"]),
    (_softmax, ["Softmax"]),
    (lambda net: _layer_norm(net, True), ["LayerNormalization"]),
    (lambda net: _layer_norm(net, False), ["LayerNormalization"]),
    (_gemm, ["MatMul", "Add"]),
    (_gemm_turned, ["Transpose", "MatMul"]),
    (_same_upper, ["Conv"]),
    (_padded_conv, ["Conv"]),
    (_padded_by_ones, ["Pad", "Conv"]),
    (_ceil_pool, ["MaxPool"]),
    (_spatial_mean, ["GlobalAveragePool", "Reshape"]),
    (_whole_window, ["GlobalAveragePool"]),
    (_reshapes, ["Reshape"]),
    (_transposes, ["Transpose"]),
    (_transpose_of_ones, ["Reshape"]),
    (_expanded, ["Add"]),
    (_clips, ["Clip"]),
    (_nested_concats, ["Relu", "Concat"]),
    (_neutral, ["Relu"]),
    (_halves, ["Mul", "Add"]),
    (_thirds, ["Div"]),
    (_casts, []),
]


@pytest.mark.parametrize(
    ("build", "left"), CASES, ids=[b.__name__.strip("_") + str(i) for i, (b, _) in enumerate(CASES)]
)
def test_rule(build: Build, left: list[str]) -> None:
    net = Net()
    graph = net.done(build(net))
    check(graph, "canonicalize", tolerance=2e-6)
    assert op_names(graph) == left


def test_rest_is_reached() -> None:
    net = Net()
    graph = net.done(_gelu(net), _hard_swish(net))
    assert check(graph, "canonicalize", tolerance=2e-6)
    assert not check(graph, "canonicalize")


def test_look_alike_stays() -> None:
    net = Net()
    graph = net.done(_not_gelu(net))
    check(graph, "canonicalize")
    assert "Gelu" not in op_names(graph)


def test_attributes_of_windows_are_explicit() -> None:
    net = Net()
    graph = net.done(_same_upper(net))
    check(graph, "canonicalize")
    assert graph.nodes[0].attrs == {
        "kernel_shape": (2, 3), "strides": (2, 2), "dilations": (1, 1), "pads": (0, 1, 0, 1), "group": 1,
    }  # fmt: skip


def test_origin_of_a_pattern_names_all_of_it() -> None:
    net = Net()
    graph = net.done(_gelu(net))
    last = graph.nodes[-1].origin[-1]
    check(graph, "canonicalize", tolerance=2e-6)
    (node,) = graph.nodes
    assert node.origin[-1] == last and any(o.startswith("Erf") for o in node.origin)


def test_weights_of_a_turned_gemm_share_memory() -> None:
    net = Net()
    w = net.random(5, 9)
    graph = net.done(net.op("Gemm", net.input(4, 9), w, transB=1))
    source = next(v for v in graph.constants()).data
    check(graph, "canonicalize")
    data = graph.nodes[0].constant(1)
    assert data is not None and source is not None and np.shares_memory(data, source)


def _graph_with_one_rewrite() -> Graph:
    net = Net()
    return net.done(net.op("Relu", net.op("Identity", net.input(2, 3))))


def test_every_rewrite_asks() -> None:
    asked: list[str] = []

    def refuse(rule: str, node: object) -> bool:
        asked.append(rule)
        return False

    graph = _graph_with_one_rewrite()
    assert not run_pipeline(graph, ["canonicalize"], replace(CONTEXT, allow=refuse))
    assert asked == ["pass-through"] and op_names(graph) == ["Identity", "Relu"]


def test_a_number_moves_behind_a_product() -> None:
    net = Net()
    q, k = net.op("Mul", net.input(2, 5, 8), 0.25), net.op("Transpose", net.input(2, 6, 8), perm=[0, 2, 1])
    graph = net.done(net.op("MatMul", q, k))
    check(graph, "canonicalize", tolerance=2e-6)
    assert op_names(graph) == ["Transpose", "MatMul", "Mul"]


def test_softmax_with_dropped_dimensions_is_recognised() -> None:
    net = Net()
    x = net.input(3, 7)
    peak = net.op("Reshape", net.op("ReduceMax", x, i64(1), keepdims=0), i64(3, 1))
    e = net.op("Exp", net.op("Sub", x, peak))
    total = net.op("Unsqueeze", net.op("ReduceSum", e, i64(1), keepdims=0), i64(1))
    graph = net.done(net.op("Div", e, total))
    check(graph, "canonicalize", tolerance=2e-6)
    assert op_names(graph) == ["Softmax"]


def test_indices_of_a_pool_follow_it() -> None:
    net = Net()
    y, at = net.ops("MaxPool", net.input(1, 2, 6, 6), outputs=2, kernel_shape=[2, 2], auto_pad="VALID")
    graph = net.done(y, at)
    check(graph, "canonicalize")
    (node,) = graph.nodes
    assert "auto_pad" not in node.attrs and list(node.outputs) == graph.outputs


def _moved(net: Net, x: Value, begin: int, end: int, before: int, after: int) -> Value:
    part = net.op("Slice", x, i64(begin), i64(end), i64(2))
    return net.op("Pad", part, i64(0, 0, before, 0, 0, 0, after, 0), 0.5)


def test_parts_of_moved_images_are_padded_parts() -> None:
    """Harmonics beside each other: cut and padded at once, and channels where they were side by side."""
    net = Net()
    x = net.input(1, 6, 20, 1)
    parts = [_moved(net, x, 3, 20, 0, 3), x, _moved(net, x, 0, 15, 5, 0), _moved(net, x, 2, 18, 0, 4)]
    y = net.op("Slice", net.op("Concat", *parts, axis=3), i64(1), i64(17), i64(2))
    graph = net.done(net.op("Transpose", y, perm=[0, 3, 1, 2]))
    check(graph, "canonicalize")
    assert sorted(op_names(graph)) == ["Concat", *["Pad"] * 2, *["Reshape"] * 4, *["Slice"] * 4]
    (concat,) = (n for n in graph.nodes if n.op == "Concat")
    assert concat.attrs["axis"] == 1 and concat.output in graph.outputs


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (2, 9, ["Pad", "Slice"]),
        (5, 25, []),
        (0, 5, ["Pad", "Slice"]),
        (6, 9, ["Slice"]),
        (25, 28, ["Pad", "Slice"]),
        (0, 30, ["Pad"]),
    ],
)
def test_parts_of_a_padded_image(begin: int, end: int, expected: list[str]) -> None:
    """Parts of the padding alone stay as they are."""
    net = Net()
    y = net.op("Pad", net.input(1, 2, 20, 1), i64(0, 1, 5, 0, 0, 1, 5, 0), 0.5)
    graph = net.done(net.op("Neg", net.op("Slice", y, i64(begin), i64(end), i64(2))))
    check(graph, "canonicalize")
    assert sorted(op_names(graph)) == sorted([*dict.fromkeys([*expected, "Pad"]), "Neg"])


def test_wide_parts_and_turned_images_stay_concatenated() -> None:
    net = Net()
    x = net.input(1, 4, 6, 2)
    wide = net.op("Concat", x, net.op("Exp", x), axis=3)
    turned = net.op("Concat", *(net.op(f, net.input(4, 6, 1)) for f in ("Sin", "Cos")), axis=2)
    graph = net.done(net.op("Transpose", wide, perm=[0, 3, 1, 2]), net.op("Transpose", turned, perm=[2, 1, 0]))
    check(graph, "canonicalize")
    assert op_names(graph).count("Transpose") == 2 and op_names(graph).count("Concat") == 2
