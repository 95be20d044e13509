"""LSTM, GRU and RNN on a grid against onnxruntime (ONNX's reference where rows come by batch), in the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.codegen.launch import count
from c2c.codegen.target import Target
from c2c.ir.loops import For
from c2c.ir.loops_visit import statements
from c2c.passes.grid import on_grid
from c2c.passes.lower import lower_node
from c2c.tests.passes.lower.harness import run_ops
from c2c.tests.passes.lower.test_recurrent import SEED, case, expected

TOLERANCE = 4e-6
"""Of sums of 10 products and functions of them, over four steps."""
OPTIONS: tuple[dict[str, Any], ...] = (
    {"direction": "bidirectional"},
    {"direction": "bidirectional", "lengths": [4, 2, 3], "state": True},
    {"direction": "reverse", "lengths": [3, 4, 1]},
    {"lengths": [4, 1, 2], "state": True},
)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_team_makes_a_row(op: str, options: dict[str, Any]) -> None:
    """Threads beyond the last unit; sequences with lengths of their own."""
    one = case(op, 4, 3, 10, **options)
    for got, wanted in zip(run_ops([one], target="opencl")[0], expected(one), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0, err_msg=f"seed {SEED}")
    calls = [c for c in on_grid(lower_node(one.node(), Target.parse("opencl"))) if op.lower() in c.kernel.name]
    loops = [s for c in calls for s in statements(c.kernel.body) if isinstance(s, For) and s.kind == "thread"]
    assert [count(loop) for loop in loops] == [16] * len(calls)


@pytest.mark.parametrize("linear", [0, 1])
def test_rows_by_batch_and_their_lengths(linear: int) -> None:
    one = case("GRU", 4, 3, 9, layout=1, lengths=[2, 4, 1], linear_before_reset=linear)
    for got, wanted in zip(run_ops([one], target="opencl")[0], _by_steps(one), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0, err_msg=f"seed {SEED}")


def _by_steps(one: Any) -> list[np.ndarray]:
    """What the same node by steps gives, laid by batch."""
    x = one.inputs[0].swapaxes(0, 1)
    attrs = {k: v for k, v in one.attrs.items() if k != "layout"}
    y, h = expected(type(one)(one.op, [x, *one.inputs[1:]], attrs, one.constants, one.outputs))
    return [y.transpose(2, 0, 1, 3), h.swapaxes(0, 1)]
