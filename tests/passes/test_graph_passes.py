"""Folding, common subexpressions, batch normalisation, transposes, outputs, concatenations: before and after."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.ir.graph import Value
from c2c.ir.structure import is_coded
from c2c.passes.base import run_pipeline
from c2c.passes.views import find_views, placed_values
from c2c.tests.passes.build import CONTEXT, Net, check, i64, op_names


def test_constants_fold() -> None:
    net = Net()
    x = net.input(2, 3)
    c = net.op("Sqrt", net.op("Add", net.positive(3), 1.0))
    graph = net.done(net.op("Mul", x, c))
    check(graph, "fold-constants")
    assert op_names(graph) == ["Mul"]


def test_shape_of_a_static_value_folds() -> None:
    net = Net()
    x = net.input(2, 3, 4)
    graph = net.done(net.op("Shape", x, start=1))
    check(graph, "fold-constants", "own-outputs")
    assert op_names(graph) == ["c2c.Copy"]


def test_growth_is_limited() -> None:
    net = Net()
    big = net.op("Expand", net.random(1, 1), i64(2048, 1024))
    graph = net.done(net.op("Add", net.input(2048, 1024), big))
    check(graph, "fold-constants")
    assert op_names(graph) == ["Expand", "Add"]


def test_random_numbers_stay() -> None:
    net = Net()
    graph = net.done(net.op("RandomUniformLike", net.random(4)))
    run_pipeline(graph, ["fold-constants", "eliminate-common-subexpressions"], CONTEXT)
    assert op_names(graph) == ["RandomUniformLike"]


def test_equal_expressions_merge() -> None:
    net = Net()
    x, y = net.input(2, 3), net.input(2, 3)
    a, b = net.op("Relu", net.op("Add", x, y)), net.op("Relu", net.op("Add", y, x))
    graph = net.done(net.op("Mul", a, b))
    check(graph, "eliminate-common-subexpressions")
    assert op_names(graph) == ["Add", "Relu", "Mul"]


@pytest.mark.parametrize("size", [3, 100_001])
def test_equal_constants_merge(size: int) -> None:
    """Also large ones; not those that differ in one bit, wherever it is, or in their shape."""
    net = Net()
    x, w = net.input(1, size), net.random(size)
    others = [w.copy(), w.reshape(1, size)]
    for at in (0, size // 2, size - 1):
        others.append(w.copy())
        others[-1][at] = -others[-1][at]
    graph = net.done(*[net.op("Mul", x, a) for a in (w, *others)])
    check(graph, "eliminate-common-subexpressions")
    assert graph.outputs[0] is graph.outputs[1]
    assert len(set(graph.outputs)) == len(others)


def test_order_and_attributes_keep_expressions_apart() -> None:
    net = Net()
    x, y = net.input(2, 3), net.input(2, 3)
    subs = net.op("Add", net.op("Sub", x, y), net.op("Sub", y, x))
    softs = net.op("Add", net.op("Softmax", x, axis=0), net.op("Softmax", x, axis=1))
    graph = net.done(subs, softs)
    check(graph, "eliminate-common-subexpressions")
    assert len(graph.nodes) == 6


def _norm(net: Net, x: Value, channels: int) -> Value:
    return net.op(
        "BatchNormalization", x, net.random(channels), net.random(channels), net.random(channels),
        net.positive(channels), epsilon=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("group", [1, 2, 8])
def test_norm_goes_into_conv(group: int) -> None:
    net = Net()
    graph = net.done(_norm(net, net.conv(net.input(2, 8, 6, 6), 16, group=group), 16))
    check(graph, "fold-batch-norm")
    assert op_names(graph) == ["Conv"]


def _coded(net: Net, *shape: int) -> np.ndarray:
    """Weights of 16 distinct values."""
    return np.asarray(net.random(16)[net.rng.integers(0, 16, shape)])


def test_coded_weights_are_not_scaled() -> None:
    """Their scale stays beside them; a shift alone is no reason to leave the bias alone."""
    net = Net()
    y = net.op("Conv", net.input(1, 32, 5, 5), _coded(net, 32, 32, 1, 1), net.random(32))
    y = net.op("Conv", _norm(net, y, 32), _coded(net, 16, 32, 1, 1))
    graph = net.done(net.op("Add", y, net.random(16, 1, 1)))
    check(graph, "canonicalize", "fold-batch-norm")
    assert op_names(graph) == ["Conv", "Mul", "Add", "Conv"]
    assert all(is_coded(n.constant(1)) for n in graph.nodes if n.op == "Conv")


def test_a_coded_matrix_and_a_coded_reader_are_not_scaled() -> None:
    net = Net()
    product = net.op("Mul", net.op("MatMul", net.input(3, 32), _coded(net, 32, 40)), net.random(40))
    x = net.op("Mul", net.input(1, 32, 5, 5), net.random(32, 1, 1))
    graph = net.done(product, net.op("Conv", x, _coded(net, 16, 32, 1, 1)))
    check(graph, "fold-batch-norm")
    assert op_names(graph) == ["MatMul", "Mul", "Mul", "Conv"]


def test_norm_goes_into_transposed_conv() -> None:
    net = Net()
    y = net.op("ConvTranspose", net.input(1, 4, 5, 5), net.random(4, 6, 3, 3), strides=[2, 2])
    graph = net.done(_norm(net, y, 6))
    check(graph, "fold-batch-norm")
    assert op_names(graph) == ["ConvTranspose"]


def test_groups_of_a_transposed_conv_take_their_own_scales() -> None:
    """ONNX's evaluator fails on this form, so the weights are checked."""
    net = Net()
    w, scale = net.random(4, 3, 3, 3), net.random(6, 1, 1)
    y = net.op("ConvTranspose", net.input(1, 4, 5, 5), w, group=2)
    graph = net.done(net.op("Mul", y, scale))
    run_pipeline(graph, ["fold-batch-norm"], CONTEXT)
    (node,) = graph.nodes
    found = node.constant(1)
    assert found is not None
    np.testing.assert_allclose(found[:2], w[:2] * scale[:3], rtol=1e-6)
    np.testing.assert_allclose(found[2:], w[2:] * scale[3:], rtol=1e-6)


def test_norm_elsewhere_becomes_scale_and_shift() -> None:
    net = Net()
    graph = net.done(_norm(net, net.op("Relu", net.input(2, 8, 6, 6)), 8))
    check(graph, "fold-batch-norm", tolerance=2e-6)
    assert op_names(graph) == ["Relu", "Mul", "Add"]


def test_scale_and_shift_go_into_conv() -> None:
    net = Net()
    y = net.op("Mul", net.conv(net.input(2, 4, 6, 6), 8), net.random(8, 1, 1))
    graph = net.done(net.op("Add", net.op("Mul", y, 0.3), net.random(1, 8, 1, 1)))
    check(graph, "canonicalize", "fold-batch-norm")
    assert op_names(graph) == ["Conv"]


def test_conv_with_two_readers_keeps_its_weights() -> None:
    net = Net()
    y = net.conv(net.input(2, 4, 6, 6), 8)
    graph = net.done(_norm(net, y, 8), net.op("Relu", y))
    check(graph, "fold-batch-norm", tolerance=2e-6)
    assert sorted(op_names(graph)) == ["Add", "Conv", "Mul", "Relu"]


def test_scale_along_width_stays() -> None:
    net = Net()
    graph = net.done(net.op("Mul", net.conv(net.input(2, 4, 6, 6), 8), net.random(6)))
    check(graph, "fold-batch-norm")
    assert op_names(graph) == ["Conv", "Mul"]


def test_scale_goes_into_matrix() -> None:
    net = Net()
    y = net.op("Add", net.op("MatMul", net.input(3, 5, 8), net.random(8, 6)), net.random(6))
    graph = net.done(net.op("Mul", y, 0.125))
    check(graph, "canonicalize", "fold-batch-norm")
    assert op_names(graph) == ["MatMul", "Add"]


def test_transposes_cancel_around_elementwise() -> None:
    net = Net()
    x = net.input(2, 6, 5, 4)
    last = net.op("Add", net.op("Transpose", x, perm=[0, 2, 3, 1]), net.random(6))
    joined = net.op("Mul", net.op("Relu", last), net.op("Transpose", net.op("Tanh", x), perm=[0, 2, 3, 1]))
    graph = net.done(net.op("Transpose", net.op("Clip", joined, 0.0, 6.0), perm=[0, 3, 1, 2]))
    check(graph, "eliminate-transposes")
    assert "Transpose" not in op_names(graph)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_transposes_pass_axes(keepdims: int) -> None:
    net = Net()
    a, b = (net.op("Transpose", net.input(2, 6, 5, 4), perm=[0, 3, 1, 2]) for _ in range(2))
    y = net.op("Softmax", net.op("Concat", a, b, axis=1), axis=1)
    y = net.op("Pad", y, i64(0, 1, 0, 2, 0, 0, 3, 0))
    graph = net.done(net.op("ReduceMax", y, i64(1, 3), keepdims=keepdims))
    check(graph, "eliminate-transposes")
    assert op_names(graph)[:2] == ["Concat", "Softmax"]


def test_transpose_goes_into_matrix() -> None:
    net = Net()
    y = net.op("Flatten", net.op("Transpose", net.op("Relu", net.input(2, 6, 5, 4)), perm=[0, 2, 3, 1]))
    graph = net.done(net.op("MatMul", y, net.random(120, 7)))
    check(graph, "canonicalize", "eliminate-transposes", tolerance=3e-6)
    assert op_names(graph) == ["Relu", "Reshape", "MatMul"]


def test_outputs_get_memory_of_their_own() -> None:
    net = Net()
    x = net.input(2, 6)
    y = net.op("Relu", x)
    z = net.op("Reshape", y, i64(12))
    c = net.op("Identity", net.random(3))
    graph = net.done(x, y, y, z, net.op("Reshape", net.op("Tanh", x), i64(3, 4)), c)
    check(graph, "fold-constants", "own-outputs")
    # x, the second y, z (y's bytes) and c are copied; tanh is written to its output through the reshape.
    assert sorted(op_names(graph)) == ["Relu", "Reshape", "Reshape", "Tanh", *["c2c.Copy"] * 4]
    assert len(set(graph.outputs)) == 6


def test_concat_needs_no_kernel() -> None:
    net = Net()
    x = net.input(1, 4, 6, 6)
    a, b = net.op("Relu", x), net.op("Tanh", x)
    graph = net.done(net.op("Sigmoid", net.op("Concat", a, b, x, axis=1)), net.op("Neg", a))
    check(graph, "place-concats")
    assert op_names(graph).count("c2c.Copy") == 1
    views = find_views(graph)
    concat = next(n for n in graph.nodes if n.op == "Concat")
    assert [views[v].byte_offset for v in concat.inputs if v is not None] == [0, 576, 1152]
    assert placed_values(graph, views) == {concat.output}


def test_concat_across_images_is_left_alone() -> None:
    net = Net()
    x = net.input(2, 4, 6, 6)
    graph = net.done(net.op("Concat", net.op("Relu", x), net.op("Tanh", x), axis=1))
    assert not check(graph, "place-concats")
    assert not find_views(graph)


def test_slices_are_views() -> None:
    net = Net()
    x = net.op("Relu", net.input(1, 8, 6, 6))
    part = net.op("Slice", x, i64(2), i64(5), i64(1))
    strided = net.op("Slice", x, i64(0), i64(8), i64(1), i64(2))
    a, b = net.ops("Split", x, i64(3, 5), outputs=2, axis=1)
    row = net.op("Gather", x, i64(3), axis=1)
    graph = net.done(*(net.op("Neg", v) for v in (part, strided, a, b, row)))
    views = find_views(graph)
    assert {v: views[v].byte_offset for v in (part, a, b, row)} == {part: 288, a: 0, b: 432, row: 432}
    assert strided not in views
    assert placed_values(graph, views) == {part, a, b, row}
