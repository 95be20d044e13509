"""Every schedule that a family lists computes the same: the candidates that a tuner tries, on ragged shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import native
from c2c.compiler.tune import CANDIDATES
from c2c.ir.graph import Graph
from c2c.ir.types import DType
from c2c.passes.lower import lower_graph
from c2c.passes.lower.schedule import Choice, Tuning
from c2c.tests.passes.lower.harness import Case, in_blocks, run_graph

LANES = native().lanes(DType.F32)


def operator(op: str, *shapes: tuple[int, ...], known: int = 1, **attrs: Any) -> Case:
    """An operator on random operands; those from `known` on are constants."""
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    return Case(op, inputs, attrs, frozenset(range(known, len(shapes))))


def conv(x: tuple[int, ...], w: tuple[int, ...], **attrs: Any) -> Case:
    return operator("Conv", x, w, w[:1], kernel_shape=list(w[2:]), **attrs)


BLOCKED = [
    conv((1, 16, 7, 61), (24, 16, 1, 1)),
    conv((2, 72, 9, 11), (40, 72, 1, 1)),
    conv((1, 3, 21, 22), (24, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    conv((1, 56, 13, 15), (37, 56, 3, 3), pads=[1, 1, 1, 1]),
    conv((1, 32, 12, 9), (48, 16, 3, 3), group=2, strides=[2, 1], pads=[1, 1, 0, 2]),
    conv((1, 24, 9, 9), (24, 1, 3, 3), group=24, pads=[1, 1, 1, 1]),
]
BLOCKED += [
    conv((1, 21, 8, 45), (21, 1, 3, 5), group=21, strides=[1, 2], pads=[1, 2, 1, 2]),
    operator("MaxPool", (1, 21, 13, 27), kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 0, 1]),
    operator("AveragePool", (2, 16, 6, 23), kernel_shape=[2, 3], pads=[0, 1, 0, 1]),
]
PLAIN = [
    operator("LSTM", (5, 3, 7), (1, 76, 7), (1, 76, 19), hidden_size=19),
    operator("GRU", (4, 5, 6), (2, 33, 6), (2, 33, 11), hidden_size=11, direction="bidirectional"),
    operator("RNN", (6, 2, 6), (1, 21, 6), (1, 21, 21), hidden_size=21),
    operator("MatMul", (13, 37), (37, 29)),
    operator("MatMul", (3, 17, 20), (3, 20, 50), known=2),
    operator("Gemm", (1, 70), (150, 70), (150,), transB=1),
    operator("Softmax", (9, 37)),
    operator("MaxPool", (1, 5, 13, 14), kernel_shape=[3, 3], strides=[2, 2]),
    conv((1, 9, 7, 75), (4, 9, 3, 5), pads=[1, 2, 1, 1]),
    conv((2, 3, 5, 70), (4, 3, 3, 39), pads=[1, 19, 1, 17]),
]


def problems(graph: Graph, threads: int) -> dict[tuple[str, str], Choice]:
    calls = lower_graph(graph, native(), threads)
    return {c.key: c for call in calls for c in call.choices if len(c.candidates) > 1}


def agree(case: Case, graph: Graph, threads: int) -> None:
    """Each candidate's result against ONNX's reference evaluator."""
    inputs = [a for i, a in enumerate(case.inputs) if a is not None and i not in case.constants]
    expected = case.expected()[0]
    atol = 1e-5 * float(np.abs(expected).max())
    for choice in problems(graph, threads).values():
        for name, _ in choice.candidates[: CANDIDATES + 1]:
            (got,) = run_graph(graph, inputs, threads=threads, tuning=Tuning({choice.key: name}))
            np.testing.assert_allclose(got, expected, rtol=0, atol=atol, err_msg=f"{choice.problem}: {name}")


@pytest.mark.parametrize("case", BLOCKED, ids=lambda c: f"{c.op} {c.inputs[0].shape}")
def test_blocked(case: Case) -> None:
    block = 0 if case.inputs[0] is not None and case.inputs[0].shape[1] < LANES else LANES
    agree(case, in_blocks(case, block), 2)


@pytest.mark.parametrize("case", PLAIN, ids=lambda c: c.op)
def test_plain(case: Case) -> None:
    node = case.node()
    values = [v for v in node.inputs if v is not None and not v.is_constant]
    agree(case, Graph("g", values, [node.output], [node], ["y"]), 1)


def test_some_problem_has_several_schedules() -> None:
    """What this file is about exists."""
    assert problems(in_blocks(BLOCKED[1], LANES), 1)
