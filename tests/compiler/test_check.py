"""`c2c check` lists every problem at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from c2c.compiler import cli
from c2c.compiler.check import Problem, check_model

node = helper.make_node


def model_of(nodes: list[NodeProto], shape: list[int | str] | None = None) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or [1, 3, 8, 8])
    w = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name="y")], [w])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def problems(model: onnx.ModelProto) -> list[Problem]:
    found: list[Problem] = check_model(model.SerializeToString())
    return found


def test_a_good_model_has_no_problems(small_cnn: onnx.ModelProto) -> None:
    assert check_model(small_cnn.SerializeToString(), dims={"N": 1}) == []


def test_every_problem_is_listed_with_its_node() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="good"),
        node("FusedThing", ["a"], ["b"], name="foreign", domain="com.microsoft"),
        node("Conv", ["x", "w"], ["c"], name="strange", stride=2),
        node("MatMul", ["x", "w"], ["d"], name="misfit"),
        node("Missing", ["x"], ["e"], name="unknown"),
        node("Relu", ["nowhere"], ["f"], name="dangling"),
        node("Sum", ["a", "b", "c", "d", "e", "f"], ["y"], name="after"),
    ]
    found = problems(model_of(nodes))
    assert [(p.node, p.op) for p in found] == [
        ("foreign", "FusedThing"), ("strange", "Conv"), ("misfit", "MatMul"), ("unknown", "Missing"),
        ("dangling", "Relu"),
    ]  # fmt: skip
    assert {p.severity for p in found} == {"error"}
    texts = " ".join(p.what for p in found)
    assert all(t in texts for t in ("ONNX does not have", "no attribute 'stride'", "do not fit", "does not exist"))


def test_open_dimensions_and_operators_are_reported_together() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Unique", ["a"], ["y"], name="set")]
    found = problems(model_of(nodes, ["N", 3, "H", 8]))
    assert any("'N', 'H' of input 'x'" in p.what and "--shape x=1,3,1,8" in p.remedy for p in found)
    assert any(p.node == "set" and p.op == "Unique" for p in found)


def test_nodes_after_a_refused_one_are_checked_by_the_declared_shape() -> None:
    nodes = [
        node("FusedThing", ["x"], ["a"], name="foreign", domain="com.microsoft"),
        node("MatMul", ["a", "w"], ["y"], name="misfit"),
    ]
    model = model_of(nodes)
    assert [p.node for p in problems(model)] == ["foreign"]
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 7]))
    assert [p.node for p in problems(model)] == ["foreign", "misfit"]


def test_broken_files_are_one_problem(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model at all")
    (problem,) = check_model(tmp_path / "m.onnx")
    assert problem.severity == "error" and "not an ONNX file" in problem.what and not problem.node
    (problem,) = check_model(tmp_path / "none.onnx")
    assert "No such file" in problem.what


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model_of([node("Missing", ["x"], ["y"], name="unknown")]), path)
    assert cli.main(["check", str(path), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert set(found) == {"severity", "node", "op", "what", "where", "remedy"} and found["node"] == "unknown"
    onnx.save(model_of([node("Relu", ["x"], ["y"])]), path)
    assert cli.main(["check", str(path)]) == 0
