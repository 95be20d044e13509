"""Models of old opsets mean the same after import: compared with ONNX's reference evaluator on the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from c2c.compiler.onnx_import import import_model
from c2c.compiler.onnx_upgrade import UPGRADES
from c2c.ir.errors import UnsupportedOpError
from c2c.ir.reference import OPSET, evaluate
from c2c.ir.verify import verify

Arrays = dict[str, np.ndarray]
F32 = np.float32


def one_node(op: str, opset: int, feeds: Arrays, constants: Arrays, attrs: dict[str, Any], outputs: int = 1) -> Any:
    """A model of one node that reads `feeds`, then `constants`."""
    names = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, [*feeds, *constants], names, name="node", **attrs)
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for k, a in feeds.items()
    ]
    results = [onnx.ValueInfoProto(name=n) for n in names]
    inits = [numpy_helper.from_array(a, k) for k, a in constants.items()]
    graph = helper.make_graph([node], "one", inputs, results, inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def x(*shape: int) -> Arrays:
    return {"x": np.random.default_rng(3).standard_normal(shape).astype(F32)}


CASES: list[tuple[str, tuple[int, ...], Arrays, Arrays, dict[str, Any], int]] = [
    ("Clip", (7, 10), x(3, 4), {}, {"min": -0.5, "max": 0.25}, 1),
    ("Clip", (7,), x(3, 4), {}, {"max": 0.25}, 1),
    ("Clip", (11, 13, OPSET), x(3, 4), {"low": np.asarray(-0.5, F32)}, {}, 1),
    ("Slice", (7, 9), x(5, 6), {}, {"starts": [1, -3], "ends": [4, 100], "axes": [0, 1]}, 1),
    ("Slice", (7,), x(5, 6), {}, {"starts": [1], "ends": [-1]}, 1),
    ("Slice", (10, 13, OPSET), x(5, 6),
     {"s": np.array([4]), "e": np.array([0]), "a": np.array([1]), "st": np.array([-2])}, {}, 1),
    ("Pad", (7, 10), x(2, 3), {}, {"pads": [1, 0, 0, 2], "value": 1.5}, 1),
    ("Pad", (7,), x(2, 3), {}, {"pads": [1, 1, 1, 1], "mode": "reflect"}, 1),
    ("Pad", (11, 18, OPSET), x(2, 3), {"p": np.array([1, 0, 0, 2]), "v": np.asarray(2, F32)}, {}, 1),
    ("Squeeze", (7, 11), x(1, 3, 1), {}, {"axes": [0]}, 1),
    ("Squeeze", (7, 12), x(1, 3, 1), {}, {}, 1),
    ("Squeeze", (13, OPSET), x(1, 3, 1), {"a": np.array([-1])}, {}, 1),
    ("Unsqueeze", (7, 11), x(3, 2), {}, {"axes": [0, 2]}, 1),
    ("Unsqueeze", (13, OPSET), x(3, 2), {"a": np.array([0, 2])}, {}, 1),
    ("ReduceSum", (7, 11), x(2, 3, 4), {}, {"axes": [1], "keepdims": 0}, 1),
    ("ReduceSum", (7, 12), x(2, 3, 4), {}, {}, 1),
    ("ReduceSum", (13, OPSET), x(2, 3, 4), {"a": np.array([0, 2])}, {}, 1),
    *((f"Reduce{r}", (7, 13, 17), x(2, 3, 4), {}, {"axes": [0, 2], "keepdims": 1}, 1)
      for r in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare")),
    ("ReduceLogSum", (7, 17), {"x": np.abs(x(2, 3)["x"]) + 1}, {}, {"axes": [1]}, 1),
    ("Softmax", (7, 12), x(2, 3, 4), {}, {}, 1),
    ("Softmax", (7, 11), x(2, 3, 4), {}, {"axis": 2}, 1),
    ("Softmax", (7, 12), x(2, 3, 4), {}, {"axis": 0}, 1),
    ("Softmax", (13, OPSET), x(2, 3, 4), {}, {"axis": 1}, 1),
    ("LogSoftmax", (7, 12), x(2, 3, 4), {}, {}, 1),
    ("Hardmax", (7, 12), x(2, 3, 4), {}, {}, 1),
    ("Dropout", (7, 10), x(3, 4), {}, {"ratio": 0.3}, 1),
    ("Dropout", (12, OPSET), x(3, 4), {"r": np.asarray(0.3, F32)}, {}, 1),
    ("Split", (7, 11), x(2, 6), {}, {"axis": 1, "split": [2, 4]}, 2),
    ("Split", (7, 13), x(2, 6), {}, {"axis": 1}, 3),
    ("Split", (13, OPSET), x(2, 6), {"s": np.array([1, 5])}, {"axis": 1}, 2),
    ("TopK", (7, 9), x(3, 5), {}, {"k": 2, "axis": 1}, 2),
    ("TopK", (10, 11, OPSET), x(3, 5), {"k": np.array([2])}, {"axis": 1}, 2),
    ("Upsample", (7,), x(1, 2, 3, 3), {}, {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "nearest"}, 1),
    ("Upsample", (9,), x(1, 2, 3, 3), {"s": np.array([1, 1, 2, 3], F32)}, {"mode": "nearest"}, 1),
    ("Resize", (10,), x(1, 2, 3, 3), {"s": np.array([1, 1, 2, 2], F32)}, {"mode": "nearest"}, 1),
    ("BatchNormalization", (7, 9, 14, OPSET), x(2, 3, 4),
     {k: np.array(v, F32) for k, v in {"s": [1, 2, 3], "b": [0, 1, 0], "m": [0.5, 0, 1], "v": [1, 2, 0.5]}.items()},
     {"epsilon": 1e-3}, 1),
    ("Scatter", (9, 10), x(3, 3), {"i": np.array([[1, 0, 2]]), "u": np.array([[1.0, 1.1, 1.2]], F32)}, {}, 1),
    ("Flatten", (7, 9, 11, OPSET), x(2, 3, 4), {}, {"axis": 2}, 1),
    ("Gemm", (7, 9, 11, OPSET), x(2, 3), {"b": np.ones((4, 3), F32), "c": np.arange(4, dtype=F32)}, {"transB": 1}, 1),
    ("GridSample", (16,), {**x(1, 1, 4, 4), "g": np.zeros((1, 2, 2, 2), F32) + 0.1}, {}, {"mode": "bilinear"}, 1),
    ("Range", (11, OPSET), {}, {"a": np.array(1), "b": np.array(9), "c": np.array(3)}, {}, 1),
    ("ArgMax", (7, 12, 13, OPSET), x(3, 4), {}, {"axis": 1, "keepdims": 0}, 1),
    ("MaxPool", (7, 8, 10, 12, OPSET), x(1, 2, 6, 6), {}, {"kernel_shape": [2, 2], "strides": [2, 2]}, 1),
    ("AveragePool", (7, 10, 19, OPSET), x(1, 2, 6, 6), {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "opset", "feeds", "constants", "attrs", "outputs"),
    [(op, v, *rest) for op, versions, *rest in CASES for v in versions],
    ids=[f"{c[0]}-{v}-{k}" for k, c in enumerate(CASES) for v in c[1]],
)
def test_old_form_means_the_same(
    op: str, opset: int, feeds: Arrays, constants: Arrays, attrs: dict[str, Any], outputs: int
) -> None:
    model = one_node(op, opset, feeds, constants, attrs, outputs)
    graph = import_model(model)
    verify(graph)
    found = evaluate(graph, feeds)
    expected = expected_of(op, opset, model, feeds)
    for (name, a), b in zip(found.items(), expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


def expected_of(op: str, opset: int, model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    """ONNX's reference; what it does not have, or has wrong for old opsets, is written down here."""
    array = feeds.get("x", np.zeros(0))
    attrs = {a.name: helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    if op in ("Softmax", "LogSoftmax", "Hardmax") and opset < 13:
        axis = attrs.get("axis", 1)
        flat = array.reshape(int(np.prod(array.shape[:axis])), -1)
        e = np.exp(flat - flat.max(1, keepdims=True))
        soft = e / e.sum(1, keepdims=True)
        hard = np.eye(flat.shape[1], dtype=F32)[flat.argmax(1)]
        return [{"Softmax": soft, "LogSoftmax": np.log(soft), "Hardmax": hard}[op].reshape(array.shape)]
    if op in ("Upsample", "Resize"):
        scales = np.asarray(attrs["scales"] if "scales" in attrs else constants["s"]).astype(int)
        for axis, times in enumerate(scales):
            array = np.repeat(array, times, axis)
        return [array]
    if op == "BatchNormalization":
        s, b, m, v = (constants[k][:, None] for k in "sbmv")
        return [(array - m) / np.sqrt(v + F32(1e-3)) * s + b]
    if op == "GridSample":
        return list(ReferenceEvaluator(one_node(op, 20, feeds, {}, {"mode": "linear"})).run(None, feeds))
    if op == "Scatter":
        out = array.copy()
        np.put_along_axis(out, constants["i"], constants["u"], 0)
        return [out]
    return [np.asarray(r) for r in ReferenceEvaluator(model).run(None, feeds)]


def test_group_normalization_before_21_scales_groups() -> None:
    scale, bias = np.array([2.0, 3.0], F32), np.array([0.0, 1.0], F32)
    feeds = x(2, 4, 3)
    model = one_node("GroupNormalization", 18, feeds, {"s": scale, "b": bias}, {"num_groups": 2})
    grouped = feeds["x"].reshape(2, 2, 6)
    normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-5)
    expected = (normal * scale[:, None] + bias[:, None]).reshape(2, 4, 3)
    np.testing.assert_allclose(evaluate(import_model(model), feeds)["y0"], expected, rtol=1e-4, atol=1e-5)


def test_resize_tf_half_pixel() -> None:
    feeds = x(1, 1, 5, 5)
    constants = {"r": np.zeros(0, F32), "s": np.zeros(0, F32), "z": np.array([1, 1, 3, 8])}
    attrs = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}
    graph = import_model(one_node("Resize", 11, feeds, constants, attrs))
    rows = np.floor((np.arange(3) + 0.5) * 5 / 3).astype(int)
    columns = np.floor((np.arange(8) + 0.5) * 5 / 8).astype(int)
    np.testing.assert_array_equal(evaluate(graph, feeds)["y0"][0, 0], feeds["x"][0, 0][rows][:, columns])


def test_batch_norm_per_activation_is_refused() -> None:
    constants = {k: np.ones(12, F32) for k in "sbmv"}
    with pytest.raises(UnsupportedOpError, match="spatial=0"):
        import_model(one_node("BatchNormalization", 7, x(2, 3, 4), constants, {"spatial": 0}))


def test_opset_before_7_only_where_nothing_changed() -> None:
    feeds = x(2, 3)
    np.testing.assert_array_equal(
        evaluate(import_model(one_node("Relu", 6, feeds, {}, {})), feeds)["y0"], np.maximum(feeds["x"], 0)
    )
    with pytest.raises(UnsupportedOpError, match="operator Add in the form of opset 6"):
        import_model(one_node("Add", 6, feeds, {"b": np.ones(3, F32)}, {"broadcast": 1}))


REFUSED_OR_READ_IN_EVERY_FORM = {"Constant", "Scan"}


def test_the_table_covers_every_incompatible_change() -> None:
    """An attribute that went, changed its default or became an input needs a row for the opsets before."""
    schemas: dict[str, list[Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            schemas.setdefault(schema.name, []).append(schema)
    found: dict[str, int] = {}
    for name, versions in schemas.items():
        versions.sort(key=lambda s: s.since_version)
        for old, new in zip(versions, versions[1:], strict=False):
            if new.since_version <= 7:
                continue
            gone = [k for k, a in old.attributes.items() if changed(a, new.attributes.get(k))]
            inputs = [i.name for i in old.inputs]
            replaced = len(new.inputs) < len(inputs) or new.deprecated
            if gone or replaced:
                found[name] = max(found.get(name, 0), new.since_version)
    missing = {
        name: version
        for name, version in found.items()
        if name not in REFUSED_OR_READ_IN_EVERY_FORM
        and max((below for below, _ in UPGRADES.get(name, ())), default=0) < version
    }
    assert not missing, f"no row in UPGRADES for a change at opset {missing}"
    assert {"Slice", "Softmax", "Upsample", "Pad"} <= set(found)


def changed(old: Any, new: Any) -> bool:
    if new is None or old.type != new.type:
        return True
    return bool(old.default_value.name and old.default_value != new.default_value)


def test_string_and_float_constants_in_every_form() -> None:
    forms: list[tuple[dict[str, Any], np.ndarray]] = [
        ({"value": numpy_helper.from_array(np.array([[1, 2]], np.int32))}, np.array([[1, 2]], np.int32)),
        ({"value_float": 1.5}, np.asarray(1.5, F32)),
        ({"value_floats": [1.5, 2.5]}, np.array([1.5, 2.5], F32)),
        ({"value_int": 3}, np.asarray(3, np.int64)),
        ({"value_ints": [3, 4]}, np.array([3, 4], np.int64)),
        ({"value_string": "a"}, np.asarray("a", object)),
        ({"value_strings": ["a", "b"]}, np.array(["a", "b"], object)),
    ]
    for attrs, expected in forms:
        node = helper.make_node("Constant", [], ["y0"], **attrs)
        output = onnx.ValueInfoProto(name="y0")
        graph = import_model(helper.make_model(helper.make_graph([node], "c", [], [output])))
        data = graph.outputs[0].data
        assert data is not None and data.dtype == expected.dtype and data.shape == expected.shape
        assert (data == expected).all()


def test_sparse_constant() -> None:
    values = numpy_helper.from_array(np.array([5, 7], F32), "s")
    indices = numpy_helper.from_array(np.array([1, 5], np.int64), "i")
    sparse = helper.make_sparse_tensor(values, indices, [2, 3])
    node = helper.make_node("Constant", [], ["y0"], sparse_value=sparse)
    graph = import_model(helper.make_model(helper.make_graph([node], "c", [], [onnx.ValueInfoProto(name="y0")])))
    np.testing.assert_array_equal(graph.outputs[0].data, [[0, 5, 0], [0, 0, 7]])
    assert graph.outputs[0].type.dtype.value == "f32"
