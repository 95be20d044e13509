"""No model crashes the compiler: damaged files end in one clear error, or in a graph that keeps every rule."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from c2c.compiler.check import check_model
from c2c.compiler.onnx_import import import_model
from c2c.ir.errors import C2CError, OnnxImportError, ShapeError
from c2c.ir.verify import verify

from .model_mutator import MODELS, OPSETS, mutated

CASES = 200
SEED = int(os.environ.get("C2C_SEED", "20"))
LIMIT_S = 5.0


def outcome(data: bytes) -> str:
    """'graph' or the name of the error; anything else that is raised fails the test."""
    try:
        graph = import_model(data)
    except C2CError as e:
        assert e.what and "Traceback" not in str(e)
        return type(e).__name__
    verify(graph)
    return "graph"


def test_undamaged_models_are_read() -> None:
    for make in MODELS:
        for opset in OPSETS:
            model = make(np.random.default_rng(0), opset)
            assert outcome(model.SerializeToString()) == "graph", (make.__name__, opset)


def test_damaged_models() -> None:
    """In a process of its own with a memory limit, so that a crash of a library would be seen and named."""
    code = f"from c2c.tests.compiler import test_malformed; test_malformed.run_cases({SEED})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    counts = done.stdout.splitlines()[-1]
    assert "graph" in counts and "OnnxImportError" in counts and "ShapeError" in counts, counts


def run_cases(seed: int) -> None:
    """All cases of a seed; prints each case before it starts, then how often each outcome came up."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    counts: dict[str, int] = {}
    for case in range(seed * CASES, (seed + 1) * CASES):
        print("case", case, flush=True)
        data = mutated(case)
        start = time.perf_counter()
        found = outcome(data)
        assert time.perf_counter() - start < LIMIT_S, f"case {case} took too long"
        counts[found] = counts.get(found, 0) + 1
    print(counts)


def test_check_never_raises() -> None:
    for case in range(SEED * CASES, SEED * CASES + 40):
        data = mutated(case)
        problems = check_model(data)
        if outcome(data) != "graph":
            assert problems, f"case {case}: import fails, check finds nothing"


def model_of(nodes: list[str], shape: list[int | str] | None = None) -> bytes:
    """A chain of unary operators on x."""
    names = ["x", *[f"t{k}" for k in range(len(nodes) - 1)], "y"]
    protos = [helper.make_node(op, [names[k]], [names[k + 1]], name=f"n{k}") for k, op in enumerate(nodes)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(protos, "g", [x], [y])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file holds no graph"),
        (b"PK\x03\x04 this is a zip file", "not an ONNX file"),
        (model_of(["Relu"])[:-5], "the file ends inside a field|broken number"),
        (model_of(["Nothing"]), "operator Nothing does not exist in opset 17"),
        (model_of(["Relu"], [1 << 41]), "elements"),
        (model_of(["Scan"]), "attribute '.*' is missing"),
    ],
)
def test_errors_say_what(data: bytes, text: str) -> None:
    with pytest.raises(C2CError, match=text):
        import_model(data)


def test_an_error_names_its_node() -> None:
    with pytest.raises(C2CError) as caught:
        import_model(model_of(["Relu", "Nothing"]))
    assert "node 'n1' (Nothing)" in caught.value.where


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OnnxImportError, match="No such file"):
        import_model(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(OnnxImportError, match="is empty"):
        import_model(tmp_path / "empty.onnx")


def test_cycle_names_its_nodes() -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])
    with pytest.raises(OnnxImportError, match="cycle: first, second"):
        import_model(helper.make_model(graph))


def test_shapes_that_do_not_fit_name_the_node() -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"], name="product")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([node], "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    with pytest.raises(ShapeError) as caught:
        import_model(helper.make_model(graph))
    assert "node 'product' (MatMul), inputs f32[2,3], f32[2,3]" in caught.value.where
