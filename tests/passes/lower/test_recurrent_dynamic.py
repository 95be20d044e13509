"""c2c.DynamicLSTM: the state as levels of its own range, against the reference that counts them one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir.errors import VerifyError
from c2c.ir.graph import Graph
from c2c.ir.verify import verify
from c2c.tests.passes.lower.harness import Array, Case, run_ops

TARGETS = ("x86-64", "x86-64-v3", "x86-64-v3+avxvnni", "x86-64-v4", "x86-64-v4+avx512vnni")
X, SCALE, R, LENGTHS, H0, C0 = 0, 1, 2, 4, 5, 6


def case(steps: int, batch: int, hidden: int, *, state: bool = False, wide: bool = False, **attrs: Any) -> Case:
    """Random gates and weights; `wide`: levels beyond 8 bits."""
    rng = np.random.default_rng(hidden)
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    inputs: list[Array | None] = [None] * 7
    inputs[X] = rng.normal(size=(steps, batch, directions * 4 * hidden)).astype(np.float32)
    inputs[SCALE] = rng.uniform(0.001, 0.004, (directions, 4 * hidden if hidden % 2 else 1)).astype(np.float32)
    levels = rng.integers(-300 if wide else -128, 300 if wide else 128, (directions, 4 * hidden, hidden))
    inputs[R] = levels.astype(np.int16 if wide else np.int8)
    if state:
        inputs[H0], inputs[C0] = (rng.normal(size=(directions, batch, hidden)).astype(np.float32) for _ in range(2))
    while inputs[-1] is None:
        inputs.pop()
    return Case("c2c.DynamicLSTM", inputs, {"hidden_size": hidden, **attrs}, frozenset({SCALE, R}), 3)


CASES = (
    case(5, 1, 16),
    case(4, 5, 7, state=True, direction="bidirectional"),
    case(4, 2, 21, state=True, direction="reverse"),
    case(3, 1, 48, direction="bidirectional"),
    case(3, 3, 18, wide=True),
)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_forms(target: str, threads: int) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    for c, found in zip(CASES, run_ops(CASES, target=target, threads=threads), strict=True):
        for got, want in zip(found, c.expected(), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f"{c.attrs}")


def test_sequences_of_own_lengths_end_there() -> None:
    c = case(4, 2, 9)
    together = run_ops([Case(c.op, [*c.inputs, None, np.array([4, 2], np.int32)], c.attrs, c.constants, 3)])[0]
    x = c.inputs[X]
    assert x is not None
    alone = run_ops([Case(c.op, [x[:2, 1:], *c.inputs[1:]], c.attrs, c.constants, 3)])[0]
    np.testing.assert_array_equal(together[0][:2, :, 1:], alone[0])
    np.testing.assert_array_equal(together[1][:, 1:], alone[1])
    assert not together[0][2:, :, 1].any()


@pytest.mark.parametrize("name", ["arm64-neon", "arm64-dotprod", "arm64-dotprod+i8mm"])
@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
def test_arm_computes_the_same(name: str) -> None:
    c = case(3, 2, 21, state=True, direction="bidirectional")
    node = c.node()
    inputs = [v for v in node.inputs if v is not None and not v.is_constant]
    graph = Graph("g", inputs, [*node.outputs], [node], [v.name for v in node.outputs])
    compiled = compile_graph(graph, CompileOptions(Target.parse(name), name="model"))
    feeds = {v.name: a for v, a in zip(node.inputs, c.inputs, strict=True) if v in inputs and v and a is not None}
    for got, want in zip(run_as_program(compiled, feeds).values(), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_operands_that_do_not_fit_are_refused() -> None:
    c = case(2, 1, 8)
    assert c.inputs[SCALE] is not None
    node = Case(c.op, [c.inputs[X], np.ones((1, 3), np.float32), c.inputs[R]], c.attrs, c.constants, 3).node()
    x = node.inputs[0]
    assert x is not None
    graph = Graph("g", [x], [*node.outputs], [node], [v.name for v in node.outputs])
    with pytest.raises(VerifyError, match="one scale for each direction or column"):
        verify(graph)
