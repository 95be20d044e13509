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
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.lower.harness import Array, Case, run_ops
from c2c.tests.passes.lower.test_recurrent import SEED, case, expected

TOLERANCE = 4e-6
"""Of sums of 10 products and functions of them, over four steps."""
OPTIONS: tuple[dict[str, Any], ...] = (
    {"direction": "bidirectional"},
    {"direction": "bidirectional", "lengths": [4, 2, 3], "state": True},
    {"direction": "reverse", "lengths": [3, 4, 1]},
    {"lengths": [4, 1, 2], "state": True},
)


QUICK = {("LSTM", 1), ("GRU", 2), ("RNN", 0)}
CASES = [
    pytest.param(op, options, marks=() if (op, i) in QUICK else pytest.mark.slow)
    for op in ("LSTM", "GRU", "RNN") for i, options in enumerate(OPTIONS)
]  # fmt: skip


@pytest.mark.parametrize(("op", "options"), CASES)
def test_a_team_makes_a_row(op: str, options: dict[str, Any]) -> None:
    """Threads beyond the last unit; sequences with lengths of their own."""
    one = case(op, 4, 3, 10, **options)
    for got, wanted in zip(run_ops([one], target="opencl")[0], expected(one), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0, err_msg=f"seed {SEED}")
    calls = [c for c in on_grid(lower_node(one.node(), Target.parse("opencl"))) if op.lower() in c.kernel.name]
    loops = [s for c in calls for s in statements(c.kernel.body) if isinstance(s, For) and s.kind == "thread"]
    assert [count(loop) for loop in loops] == [16] * len(calls)


def by_steps(op: str, steps: int, batch: int, directions: int, hidden: int) -> Tuning:
    """Each step is a kernel, or two."""
    problem = f"{op} {steps} of {batch}x{directions}x{hidden} f32"
    return Tuning({("grid-recurrent", problem + end): "step=16x8" for end in ("", " in two products")})


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("RNN", {"direction": "bidirectional", "lengths": [1, 3]}),
        pytest.param("LSTM", {"direction": "bidirectional", "state": True}, marks=pytest.mark.slow),
        pytest.param("GRU", {"lengths": [3, 2], "direction": "reverse"}, marks=pytest.mark.slow),
    ],
)
def test_a_kernel_makes_a_step(op: str, options: dict[str, Any]) -> None:
    """More units than a work-group has, and a remainder."""
    one = case(op, 3, 2, 17, **options)
    tuning = by_steps(op, 3, 2, 2 if options["direction"] == "bidirectional" else 1, 17)
    for got, wanted in zip(run_ops([one], target="opencl", tuning=tuning)[0], expected(one), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0, err_msg=f"seed {SEED}")
    calls = on_grid(lower_node(one.node(), Target.parse("opencl"), tuning=tuning))
    steps = [c.kernel for c in calls if op.lower() in c.kernel.name]
    assert len(steps) == 3 * (2 if op == "GRU" else 1)
    assert len(set(map(id, steps))) == len(steps) // 3, "steps do not share their kernels"


@pytest.mark.parametrize(
    ("target", "hidden", "form"),
    [("opencl", 64, "team=64"), ("opencl", 512, "step=16x8"), ("opencl", 1025, "step=16x8"), ("opencl-cpu", 512, "")],
)
def test_states_that_fit_are_a_teams_where_launches_take_longer(target: str, hidden: int, form: str) -> None:
    one = case("RNN", 2, 1, hidden)
    choices = [c for call in lower_node(one.node(), Target.parse(target)) for c in call.choices]
    assert {c.name for c in choices if c.family == "grid-recurrent"} == ({form} if form else set())


@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("tuning", [Tuning(), pytest.param(by_steps("GRU", 4, 3, 1, 9), marks=pytest.mark.slow)])
def test_rows_by_batch_and_their_lengths(tuning: Tuning, linear: int) -> None:
    one = case("GRU", 4, 3, 9, layout=1, lengths=[2, 4, 1], linear_before_reset=linear)
    for got, wanted in zip(run_ops([one], target="opencl", tuning=tuning)[0], time_first(one), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0, err_msg=f"seed {SEED}")


def time_first(one: Case) -> list[Array]:
    """What the same node by steps gives, laid by batch."""
    x = np.asarray(one.inputs[0]).swapaxes(0, 1)
    attrs = {k: v for k, v in one.attrs.items() if k != "layout"}
    y, h = expected(Case(one.op, [x, *one.inputs[1:]], attrs, one.constants, one.outputs))
    return [y.transpose(2, 0, 1, 3), h.swapaxes(0, 1)]
