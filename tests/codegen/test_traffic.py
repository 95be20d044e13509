"""Global memory traffic of products on a grid, counted by Oclgrind: within half as much again of what tiles need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from c2c.codegen.target import Target
from c2c.compiler.bundle import write_bundle
from c2c.compiler.driver import Compiled, compile_file
from c2c.compiler.options import CompileOptions
from c2c.tests.oclgrind import global_bytes, needs_oclgrind, simulate
from c2c.tests.traffic import sampled, tiles_of

pytestmark = [needs_oclgrind, pytest.mark.needs("gcc"), pytest.mark.slow]
MOST = 1.5


def network(channels: int, maps: int, size: int) -> Compiled:
    """A convolution, and a product of its means."""
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.standard_normal((maps, channels, 3, 3)), "b": rng.standard_normal(maps),
        "v": rng.standard_normal((maps, 80)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "traffic", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 80])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return compile_file(model.SerializeToString(), CompileOptions(Target.parse("opencl"), "net"))


def test_products_move_what_their_tiles_need(tmp_path: Path) -> None:
    compiled = network(8, 32, 16)
    nodes = tiles_of(compiled)
    assert [t.problem for t in nodes] == ["32x256x72", "1x80x32"]
    counted = sampled(compiled, nodes, tmp_path)
    for t in nodes:
        assert 0.9 < counted[t.kernel] / t.least < MOST, t


def test_one_work_group_stands_for_all(tmp_path: Path) -> None:
    """Work-groups at the edge of an image read less."""
    compiled = network(8, 32, 16)
    conv = tiles_of(compiled)[:1]
    write_bundle(compiled.program, compiled.options, tmp_path / "whole")
    whole = global_bytes(simulate(tmp_path / "whole", INST_COUNTS="1"))[conv[0].kernel]
    (one,) = sampled(compiled, conv, tmp_path / "one").values()
    assert 0.7 < whole / one <= 1.0
