"""What import does besides opsets: pinned dimensions, constants, external data, functions, control flow, folding."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from c2c.compiler.onnx_import import import_model
from c2c.ir.errors import ConstantNeededError, OnnxImportError, ShapeError, UnknownShapeError, UnsupportedOpError
from c2c.ir.reference import OPSET, evaluate
from c2c.ir.verify import verify

F32 = np.float32
Dims = list[int | str | None] | None


def model_of(
    nodes: list[NodeProto],
    inputs: dict[str, Dims],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    *,
    ints: tuple[str, ...] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    """A model with float inputs (`ints` are int64)."""
    infos = [
        helper.make_tensor_value_info(k, TensorProto.INT64 if k in ints else TensorProto.FLOAT, s)
        for k, s in inputs.items()
    ]
    inits = [numpy_helper.from_array(a, k) for k, a in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", infos, [onnx.ValueInfoProto(name=o) for o in outputs], inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


node = helper.make_node


def flatten_by_shape_arithmetic() -> onnx.ModelProto:
    """Reshape(x, [Shape(x)[0], -1]) as exporters write it."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "minus"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["y"], name="flatten"),
    ]
    constants = {"zero": np.asarray(0), "axes": np.asarray([0]), "minus": np.asarray([-1])}
    return model_of(nodes, {"x": ["N", 3, "H", 4]}, ["y"], constants)


# ---- dimensions ----


def test_dims_make_shape_chains_constant() -> None:
    graph = import_model(flatten_by_shape_arithmetic(), dims={"N": 2, "H": 5})
    assert [n.op for n in graph.nodes] == ["Reshape"]
    assert graph.outputs[0].type.dims == (2, 60)
    assert graph.nodes[0].origin == ("flatten",)


def test_shapes_pin_an_input_and_its_names_elsewhere() -> None:
    nodes = [node("Add", ["a", "b"], ["y"])]
    graph = import_model(model_of(nodes, {"a": ["N", 3], "b": ["N", 1]}, ["y"]), shapes={"a": (7, 3)})
    assert [v.type.dims for v in graph.inputs] == [(7, 3), (7, 1)]


def test_shapes_may_override_declared_numbers() -> None:
    graph = import_model(model_of([node("Relu", ["x"], ["y"])], {"x": [1, 3]}, ["y"]), shapes={"x": (4, 9)})
    assert graph.outputs[0].type.dims == (4, 9)


def test_shapes_give_what_is_not_declared_at_all() -> None:
    model = model_of([node("Relu", ["x"], ["y"])], {"x": None}, ["y"])
    assert import_model(model, shapes={"x": (2, 2)}).outputs[0].type.dims == (2, 2)
    with pytest.raises(UnknownShapeError, match="number of dimensions of 'x'"):
        import_model(model)


def test_an_open_dimension_names_input_and_remedy() -> None:
    with pytest.raises(ShapeError) as caught:
        import_model(flatten_by_shape_arithmetic(), dims={"H": 5})
    assert "size of dimension 'N' of input 'x' [N, 3, 5, 4] is not known" in caught.value.what
    assert caught.value.remedy == "pin it: --dim N=1, or --shape x=1,3,5,4"


def test_an_unnamed_dimension_is_pinned_by_shape() -> None:
    model = model_of([node("Relu", ["x"], ["y"])], {"x": [None, "?", -1]}, ["y"])
    with pytest.raises(ShapeError, match="'x.0', 'x.1', 'x.2'"):
        import_model(model)
    assert import_model(model, shapes={"x": (1, 2, 3)}).inputs[0].type.dims == (1, 2, 3)


@pytest.mark.parametrize(
    ("pins", "text"),
    [
        ({"dims": {"M": 1}}, "no input has a dimension named 'M'"),
        ({"dims": {"N": -1}}, "'N' cannot have size -1"),
        ({"shapes": {"z": (1,)}}, "a shape is given for 'z', which is no input"),
        ({"shapes": {"x": (1, 2)}}, "input 'x' has 4 dimensions"),
        ({"dims": {"N": 2, "H": 1}, "shapes": {"x": (3, 3, 1, 4)}}, "pinned to both 2 and 3"),
    ],
)
def test_wrong_pins(pins: dict[str, Any], text: str) -> None:
    with pytest.raises(ShapeError, match=text):
        import_model(flatten_by_shape_arithmetic(), **pins)


def test_value_turns_an_input_into_a_constant() -> None:
    model = model_of([node("Reshape", ["x", "shape"], ["y"])], {"x": [2, 6], "shape": [2]}, ["y"], ints=("shape",))
    with pytest.raises(ConstantNeededError) as caught:
        import_model(model)
    assert "output shape of operator Reshape depends on the value of input 'shape'" in caught.value.what
    assert caught.value.remedy == "--value shape=…"
    graph = import_model(model, values={"shape": np.asarray([3, 4])})
    assert [v.name for v in graph.inputs] == ["x"]
    assert graph.outputs[0].type.dims == (3, 4)
    with pytest.raises(OnnxImportError, match="does not fit its type i64"):
        import_model(model, values={"shape": np.asarray([1.5, 8])})


def test_a_shape_that_depends_on_data_is_refused() -> None:
    with pytest.raises(UnknownShapeError, match="output shape of operator Unique depends on data") as caught:
        import_model(model_of([node("Unique", ["x"], ["y"], name="where")], {"x": [3]}, ["y"]))
    assert "node 'where'" in caught.value.where


# ---- constants ----


def test_initializers_that_are_inputs_are_constants() -> None:
    graph = import_model(
        model_of([node("Add", ["x", "w"], ["y"])], {"x": [2], "w": [2]}, ["y"], {"w": np.ones(2, F32)})
    )
    assert [v.name for v in graph.inputs] == ["x"]
    assert graph.nodes[0].constant(1) is not None


def test_constant_inputs_are_folded_but_not_large_ones() -> None:
    nodes = [node("Add", ["a", "a"], ["b"]), node("Add", ["w", "w"], ["v"]), node("Concat", ["x", "v"], ["c"], axis=0)]
    nodes.append(node("Add", ["c", "b"], ["y"]))
    constants = {"a": np.ones(1, F32), "w": np.ones(1 << 19, F32)}
    graph = import_model(model_of(nodes, {"x": [1]}, ["y"], constants))
    assert [n.op for n in graph.nodes] == ["Add", "Concat", "Add"]


def test_random_operators_are_not_folded() -> None:
    graph = import_model(model_of([node("RandomNormal", [], ["y"], shape=[2, 3])], {}, ["y"]))
    assert [n.op for n in graph.nodes] == ["RandomNormal"]


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    """Peak memory of reading 40 MB of weights stays below 4 MB."""
    w = np.arange(10_000_000, dtype=F32).reshape(1000, 10_000)
    path = tmp_path / "big.onnx"
    onnx.save(model_of([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 1000]}, ["y"], {"w": w}), path)
    tracemalloc.start()
    graph = import_model(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    data = graph.nodes[0].constant(1)
    assert peak < 4e6 and data is not None and not data.flags.owndata and not data.flags.writeable
    np.testing.assert_array_equal(data, w)


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool", "uint16"]
)
@pytest.mark.parametrize("raw", [True, False])
def test_constants_of_every_type(dtype: str, raw: bool) -> None:
    array = (np.arange(600) % 2).astype(dtype).reshape(3, 200)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    values = array.tobytes() if raw else array.reshape(-1).tolist()
    tensor = helper.make_tensor("w", kind, array.shape, values, raw=raw)
    graph = helper.make_graph([node("Identity", ["w"], ["y"])], "g", [], [onnx.ValueInfoProto(name="y")], [tensor])
    imported = import_model(helper.make_model(graph).SerializeToString())
    data = imported.outputs[0].data
    assert data is not None and data.dtype == array.dtype
    np.testing.assert_array_equal(data, array)


def test_constants_that_say_they_lie_in_the_file() -> None:
    """Written by quantisers, after the elements."""
    array = np.arange(600, dtype=F32)
    tensor = numpy_helper.from_array(array, "w")
    tensor.data_location = TensorProto.DEFAULT
    graph = helper.make_graph([node("Identity", ["w"], ["y"])], "g", [], [onnx.ValueInfoProto(name="y")], [tensor])
    data = import_model(helper.make_model(graph).SerializeToString()).outputs[0].data
    assert data is not None
    np.testing.assert_array_equal(data, array)


# ---- external data ----


def external(tmp_path: Path, **entries: str) -> Path:
    """A model whose weight lies in weights.bin from byte 8 on, its entry changed by `entries`."""
    w = np.arange(6, dtype=F32)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 8 + w.tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[6], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "weights.bin", "offset": "8", "length": "24", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    graph = model_of([node("Add", ["x", "w"], ["y"])], {"x": [6]}, ["y"])
    graph.graph.initializer.append(tensor)
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    graph = import_model(external(tmp_path))
    np.testing.assert_array_equal(graph.nodes[0].constant(1), np.arange(6, dtype=F32))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "/etc/passwd"}, "not a relative path"),
        ({"location": "C:\\x"}, "not a relative path"),
        ({"location": "../weights.bin"}, "leaves the model's folder"),
        ({"location": "a/../../weights.bin"}, "leaves the model's folder"),
        ({"location": "none.bin"}, "No such file"),
        ({"location": ""}, "not a relative path"),
        ({"offset": "16"}, "lie outside"),
        ({"offset": "-8"}, "lie outside"),
        ({"length": "20"}, "takes 24 bytes, the file holds 20"),
        ({"length": "many"}, "broken offset or length"),
    ],
)
def test_bad_external_data(tmp_path: Path, entries: dict[str, str], text: str) -> None:
    with pytest.raises(OnnxImportError, match=text) as caught:
        import_model(external(tmp_path, **entries))
    assert "'w'" in caught.value.where


def test_external_data_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(OnnxImportError, match="not read from a file"):
        import_model(external(tmp_path).read_bytes())


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """Two constants in one sparse file of 3 GB; only what is read is touched."""
    path = external(tmp_path, offset=str(3 << 30))
    with (tmp_path / "weights.bin").open("r+b") as f:
        f.seek(3 << 30)
        f.write(np.arange(6, dtype=F32).tobytes())
    np.testing.assert_array_equal(import_model(path).nodes[0].constant(1), np.arange(6, dtype=F32))


# ---- functions and control flow ----


def test_model_functions_are_inlined_with_their_attributes() -> None:
    inner = node("LeakyRelu", ["a"], ["b"], name="leak")
    inner.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Leak", ["a"], ["b"], [inner], opsets, ["slope"])
    nodes = [
        node("Leak", ["x"], ["t"], domain="own", name="first", slope=0.5),
        node("Leak", ["t"], ["y"], domain="own", name="second"),
    ]
    model = model_of(nodes, {"x": [2]}, ["y"])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    graph = import_model(model)
    verify(graph)
    assert [(n.op, n.attrs) for n in graph.nodes] == [("LeakyRelu", {"alpha": 0.5}), ("LeakyRelu", {})]
    assert [n.origin for n in graph.nodes] == [("first", "first/leak"), ("second", "second/leak")]
    nested = import_model(model, expand=lambda op: op == "LeakyRelu")
    assert {n.origin[:2] for n in nested.nodes} == {("first", "first/leak"), ("second", "second/leak")}
    found = evaluate(graph, {"x": np.array([-4, 2], F32)})["y"]
    np.testing.assert_allclose(found, [-0.02, 2], rtol=1e-6)


def test_functions_that_call_themselves_are_refused() -> None:
    opsets = [helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="own")], opsets)
    model = model_of([node("F", ["x"], ["y"], domain="own")], {"x": [2]}, ["y"])
    model.functions.append(function)
    with pytest.raises(OnnxImportError, match="nested too deeply"):
        import_model(model)


@pytest.mark.parametrize("op", ["Gelu", "Mish", "LayerNormalization", "MeanVarianceNormalization", "HardSwish"])
def test_operators_are_expanded_by_their_onnx_function(op: str) -> None:
    x = np.random.default_rng(5).standard_normal((2, 3, 4, 4)).astype(F32)
    names = ["x", "s"] if op == "LayerNormalization" else ["x"]
    model = model_of(
        [node(op, names, ["y"], name="f")], {"x": [2, 3, 4, 4]}, ["y"], {"s": np.ones(4, F32)}, opset=OPSET
    )
    whole, parts = import_model(model), import_model(model, expand=lambda o: o == op)
    verify(parts)
    assert [n.op for n in whole.nodes] == [op] and op not in [n.op for n in parts.nodes]
    assert all(n.origin[0] == "f" for n in parts.nodes)
    np.testing.assert_allclose(evaluate(parts, {"x": x})["y"], evaluate(whole, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def branch(op: str) -> onnx.GraphProto:
    return helper.make_graph([node(op, ["x"], ["r"])], op, [], [onnx.ValueInfoProto(name="r")])


@pytest.mark.parametrize(("condition", "op"), [(True, "Relu"), (False, "Neg")])
def test_if_with_a_known_condition_is_inlined(condition: bool, op: str) -> None:
    nodes = [node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"))]
    graph = import_model(model_of(nodes, {"x": [2]}, ["y"], {"c": np.asarray(condition)}))
    assert [n.op for n in graph.nodes] == [op]


@pytest.mark.parametrize("condition", [0.0, 1.0])
def test_if_that_is_decided_at_run_time_selects(condition: float) -> None:
    nodes = [
        node("Cast", ["k"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["y"], name="fork", then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    graph = import_model(model_of(nodes, {"x": [2], "k": []}, ["y"]))
    verify(graph)
    found = evaluate(graph, {"x": np.array([-1, 2], F32), "k": np.asarray(condition, F32)})["y"]
    assert found.tolist() == ([0, 2] if condition else [1, -2])


def test_if_between_different_shapes_is_refused() -> None:
    other = branch("Neg")
    other.node[0].CopyFrom(node("Transpose", ["x"], ["r"]))
    nodes = [
        node("Cast", ["k"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["y"], name="fork", then_branch=branch("Relu"), else_branch=other),
    ]
    with pytest.raises(ConstantNeededError, match=r"branches give f32.2,3. and f32.3,2.") as caught:
        import_model(model_of(nodes, {"x": [2, 3], "k": []}, ["y"]))
    assert "node 'fork' (If)" in caught.value.where


@pytest.mark.parametrize("backward", [0, 1])
def test_scan_is_unrolled(backward: int) -> None:
    """Running sums along axis 1, forwards or backwards, stacked along axis 1."""
    info = onnx.ValueInfoProto
    body = helper.make_graph(
        [node("Add", ["s", "v"], ["so"]), node("Identity", ["so"], ["out"])], "body",
        [info(name=n) for n in ("s", "v")], [info(name=n) for n in ("so", "out")],
    )  # fmt: skip
    scan = node("Scan", ["s0", "x"], ["last", "y"], body=body, num_scan_inputs=1, scan_input_axes=[1])
    for key in ("scan_input_directions", "scan_output_directions"):
        scan.attribute.append(helper.make_attribute(key, [backward]))
    scan.attribute.append(helper.make_attribute("scan_output_axes", [1]))
    graph = import_model(model_of([scan], {"x": [2, 3]}, ["last", "y"], {"s0": np.zeros(2, F32)}))
    verify(graph)
    x = np.arange(6, dtype=F32).reshape(2, 3)
    found = evaluate(graph, {"x": x})
    expected = x[:, ::-1].cumsum(1)[:, ::-1] if backward else x.cumsum(1)
    np.testing.assert_array_equal(found["y"], expected)
    np.testing.assert_array_equal(found["last"], x.sum(1))


def test_loops_whose_length_is_unknown_are_refused() -> None:
    body = helper.make_graph(
        [node("Identity", ["c"], ["co"])], "body", [onnx.ValueInfoProto(name=n) for n in ("i", "c")],
        [onnx.ValueInfoProto(name="co")],
    )  # fmt: skip
    model = model_of([node("Loop", ["n", ""], [""], body=body)], {"n": [], "x": [1]}, ["x"], ints=("n",))
    with pytest.raises(ConstantNeededError, match="number of turns of a Loop"):
        import_model(model)


def test_loop_of_known_length_is_unrolled() -> None:
    info = onnx.ValueInfoProto
    body = helper.make_graph(
        [node("Identity", ["c"], ["co"]), node("Mul", ["v", "x"], ["vo"]), node("Neg", ["vo"], ["scan"])], "body",
        [info(name=n) for n in ("i", "c", "v")], [info(name=n) for n in ("co", "vo", "scan")],
    )  # fmt: skip
    nodes = [node("Loop", ["n", "", "x"], ["y", "z"], body=body)]
    graph = import_model(model_of(nodes, {"x": [2]}, ["y", "z"], {"n": np.asarray(3)}))
    verify(graph)
    x = np.array([2, -1], F32)
    found = evaluate(graph, {"x": x})
    np.testing.assert_array_equal(found["y"], x**4)
    np.testing.assert_array_equal(found["z"], [-(x**2), -(x**3), -(x**4)])


# ---- sequences ----


@pytest.mark.parametrize(
    ("split", "keepdims", "sizes"),
    [(None, 1, (1, 1, 1, 1, 1)), (None, 0, None), (np.asarray(2), 1, (2, 2, 1)), (np.asarray([1, 4]), 0, (1, 4))],
)
def test_sequences_of_known_length_vanish(
    split: np.ndarray | None, keepdims: int, sizes: tuple[int, ...] | None
) -> None:
    """The last part, then the first, joined along axis 1 (new where the parts have lost it)."""
    reads = ["x"] if split is None else ["x", "s"]
    nodes = [
        node("SplitToSequence", reads, ["parts"], axis=1, keepdims=keepdims),
        node("SequenceAt", ["parts", "last"], ["b"]),
        node("SequenceAt", ["parts", "zero"], ["a"]),
        node("SequenceConstruct", ["a"], ["one"]),
        node("SequenceInsert", ["one", "b", "zero"], ["two"]),
        node("SequenceLength", ["parts"], ["n"]),
        node("ConcatFromSequence", ["two"], ["y"], axis=1, new_axis=int(sizes is None)),
    ]
    constants = {"last": np.asarray(-1), "zero": np.asarray(0)} | ({} if split is None else {"s": split})
    graph = import_model(model_of(nodes, {"x": [2, 5]}, ["y", "n"], constants))
    verify(graph)
    x = np.arange(10, dtype=F32).reshape(2, 5)
    found = evaluate(graph, {"x": x})
    first, last = (sizes[0], sizes[-1]) if sizes else (1, 1)
    np.testing.assert_array_equal(found["y"], np.concatenate([x[:, -last:], x[:, :first]], 1))
    assert found["n"] == (len(sizes) if sizes else 5)


def test_sequences_at_the_border_or_with_open_positions_are_refused() -> None:
    parts = node("SplitToSequence", ["x"], ["parts"], name="cut")
    with pytest.raises(UnsupportedOpError, match="output 'parts' is a sequence"):
        import_model(model_of([parts], {"x": [2, 3]}, ["parts"]))
    nodes = [parts, node("SequenceAt", ["parts", "k"], ["y"], name="pick")]
    with pytest.raises(ConstantNeededError, match="position of SequenceAt") as caught:
        import_model(model_of(nodes, {"x": [2, 3], "k": []}, ["y"], ints=("k",)))
    assert "node 'pick' (SequenceAt)" in caught.value.where
    with pytest.raises(OnnxImportError, match="position 7 in a sequence of 2"):
        import_model(model_of(nodes, {"x": [2, 3]}, ["y"], {"k": np.asarray(7)}))


# ---- refusals ----


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([node("Gelu2", ["x"], ["y"], domain="com.microsoft")], "uses an operator that ONNX does not have"),
        ([node("SequenceConstruct", ["x"], ["s"]), node("Relu", ["s"], ["y"])], "'s' is a sequence value"),
        ([node("Optional", ["x"], ["y"])], "is of type optional"),
        ([node("Cast", ["x"], ["y"], to=TensorProto.COMPLEX64)], "complex64"),
        ([node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["y"])], "'y' is made twice"),
        ([node("Relu", ["nothing"], ["y"])], "'nothing' is read but no input, constant or node makes it"),
        ([node("Relu", ["x"], ["z"])], "no node makes the output 'y'"),
        ([node("Relu", ["x", "x"], ["y"])], "takes 1 to 1 inputs, not 2"),
        ([node("Relu", [""], ["y"])], "inputs"),
        ([node("Conv", ["x", ""], ["y"])], "inputs"),
        ([node("Relu", ["x"], ["y"], slope=1.0)], "has no attribute 'slope'"),
        ([node("Transpose", ["x"], ["y"], perm=1)], "attribute 'perm' is of type INT, not INTS"),
        ([node("LpNormalization", ["x"], ["y"], axis=5)], "axis 5 of a tensor of rank 2"),
    ],
)
def test_refusals(nodes: list[NodeProto], text: str) -> None:
    model = model_of(nodes, {"x": [2, 3]}, ["y"])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises((OnnxImportError, UnsupportedOpError, ShapeError), match=text):
        import_model(model)


def test_an_opset_newer_than_onnx_is_refused() -> None:
    with pytest.raises(OnnxImportError, match="the installed onnx knows") as caught:
        import_model(model_of([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], opset=OPSET + 1))
    assert caught.value.remedy == "pip install --upgrade onnx"


def test_nodes_out_of_order_are_sorted() -> None:
    nodes = [node("Neg", ["a"], ["y"]), node("Relu", ["x"], ["a"])]
    assert [n.op for n in import_model(model_of(nodes, {"x": [2]}, ["y"])).nodes] == ["Relu", "Neg"]


def test_a_branch_may_read_what_a_later_node_makes() -> None:
    inner = helper.make_graph([node("Neg", ["late"], ["r"])], "inner", [], [onnx.ValueInfoProto(name="r")])
    nodes = [node("If", ["c"], ["y"], then_branch=inner, else_branch=inner), node("Relu", ["x"], ["late"])]
    graph = import_model(model_of(nodes, {"x": [2]}, ["y"], {"c": np.asarray(True)}))
    assert [n.op for n in graph.nodes] == ["Relu", "Neg"]


def test_declared_shapes_are_trusted_only_where_inference_is_silent() -> None:
    nodes = [node("Unique", ["x"], ["i"]), node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
    model = model_of(nodes, {"x": [4]}, ["y"])
    model.graph.value_info.append(helper.make_tensor_value_info("i", TensorProto.FLOAT, [4]))
    assert import_model(model).outputs[0].type.dims == (4,)
    with pytest.raises(UnknownShapeError):
        import_model(model, shapes={"x": (5,)})


def test_dead_nodes_disappear_and_unused_inputs_stay() -> None:
    graph = import_model(
        model_of([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["dead"])], {"x": [2], "z": [3]}, ["y"])
    )
    assert [n.op for n in graph.nodes] == ["Relu"] and [v.name for v in graph.inputs] == ["x", "z"]


def test_outputs_keep_order_and_names() -> None:
    graph = import_model(model_of([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y", "x"]))
    assert graph.output_names == ["y", "x"] and graph.outputs[1] is graph.inputs[0]
