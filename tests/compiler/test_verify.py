"""`c2c verify` names the first node whose kernel is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from c2c.codegen.target import Target
from c2c.compiler import driver
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import verify_model
from c2c.ir.loops import Block
from c2c.passes.loops import optimise_kernel
from c2c.passes.lower import lower_graph

OPTIONS = CompileOptions(Target.parse("native"), dims={"N": 1}, winograd_error=0)


def test_right_kernels_are_right(small_cnn: onnx.ModelProto) -> None:
    report = verify_model(small_cnn.SerializeToString(), OPTIONS)
    assert report.ok and report.first_difference is None and report.nodes


def test_the_first_wrong_node_is_named(small_cnn: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second convolution reads weights that are 5 % too large, in the compiled program only."""

    def wrong(graph: Any, *rest: Any, **more: Any) -> Any:
        node = next(n for n in graph.nodes if "conv2" in n.origin)
        node.inputs[1].data = node.inputs[1].data * np.float32(1.05)
        return lower_graph(graph, *rest, **more)

    monkeypatch.setattr(driver, "lower_graph", wrong)
    report = verify_model(small_cnn.SerializeToString(), OPTIONS)
    first = report.first_difference
    assert not report.ok and first is not None
    assert first.name == "relu2" and first.fused == ("conv2", "relu2") and 0.03 < first.error < 0.07
    assert "its kernel computes conv2, relu2" in str(report) and str(report).endswith("WRONG")


def test_a_kernel_that_does_nothing_is_named(small_cnn: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(kernel: Any) -> Any:
        return optimise_kernel(replace(kernel, body=Block(())) if kernel.name == "pool" else kernel)

    monkeypatch.setattr(driver, "optimise_kernel", idle)
    first = verify_model(small_cnn.SerializeToString(), OPTIONS).first_difference
    assert first is not None and first.name == "pool1"
