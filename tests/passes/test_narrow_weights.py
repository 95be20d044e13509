"""Weights rounded to half precision: which ones, to what, and that they lie and pack in half the bytes."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.packed import pack_program
from c2c.ir.errors import OptionsError, PassError
from c2c.ir.graph import Graph
from c2c.ir.types import DType
from c2c.tests.passes.build import CONTEXT, Net, check

NUMPY = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def network(scale: float = 1.0) -> Graph:
    net = Net(4)
    x = net.op("Relu", net.conv(net.input(1, 16, 9, 9), 32))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.done(net.op("MatMul", x, net.random(32, 64, scale=scale)))


@pytest.mark.parametrize("name", NUMPY)
def test_matrices_are_rounded_and_nothing_else(name: str) -> None:
    graph = network()
    before = {v.name: v.data for n in graph.nodes for v in n.inputs if v is not None and v.data is not None}
    context = replace(CONTEXT, weight_type=DType(name))
    assert check(graph, "narrow-weights", tolerance=2e-2 if name == "bf16" else 2e-3, context=context)
    after = [v.data for n in graph.nodes for v in n.inputs if v is not None and v.data is not None]
    assert len(after) == len(before)
    for old, new in zip(before.values(), after, strict=True):
        assert new.dtype == np.float32
        expected = old.astype(NUMPY[name]).astype(np.float32) if old.ndim > 1 and old.size >= 512 else old
        np.testing.assert_array_equal(new, expected)


def test_only_when_asked() -> None:
    assert not check(network(), "narrow-weights")
    with pytest.raises(OptionsError, match="no type of weights 'f8'"):
        CompileOptions(Target.parse("arm64-neon"), weight_type="f8")


def test_what_does_not_fit_is_an_error() -> None:
    options = CompileOptions(Target.parse("arm64-neon"), weight_type="f16")
    with pytest.raises(PassError, match=r"do not fit into f16(.|\n)*bf16"):
        compile_graph(network(1e5), options)
    compile_graph(network(1e5), replace(options, weight_type="bf16"))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_half_the_bytes(level: int) -> None:
    options = CompileOptions(Target.parse("x86-64-v3"), level=level, winograd_error=0.0)
    full, half = (
        len(pack_program(compile_graph(network(), replace(options, weight_type=t)).program).bytes)
        for t in ("f32", "f16")
    )
    assert half < 0.58 * full
