"""Choosing a schedule: by cost, by tuning, recorded, and never silently wrong."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.ir.errors import TuningError
from c2c.ir.graph import Node, Value, constant
from c2c.ir.types import DType, TensorType
from c2c.passes.base import PassContext
from c2c.passes.lower import lower_node
from c2c.passes.lower.schedule import Choice, Schedule, Tuning, choose

SLOW, FAST, TIED = Schedule("slow", 9.0, "s"), Schedule("fast", 2.0, "f"), Schedule("tied", 2.0, "t")


def _context(**names: str) -> PassContext:
    return PassContext(Target.parse("x86-64-v3"), tuning=Tuning({("family", k): v for k, v in names.items()}))


def test_the_cheapest_is_chosen_and_of_equal_ones_the_first() -> None:
    context = _context()
    assert choose(context, "family", "problem", [SLOW, FAST, TIED]) == "f"
    (choice,) = context.choices
    assert choice.candidates == (("fast", 2.0), ("tied", 2.0), ("slow", 9.0))
    assert (choice.name, choice.cycles, choice.rank) == ("fast", 2.0, 0)


def test_a_tuning_decides_for_its_problems_only() -> None:
    context = _context(problem="slow", other="tied")
    assert choose(context, "family", "problem", [SLOW, FAST]) == "s"
    assert choose(context, "family", "third", [SLOW, FAST]) == "f"
    assert choose(context, "strange", "problem", [SLOW, FAST]) == "f"
    assert [c.rank for c in context.choices] == [1, 0, 0]


def test_a_name_that_is_no_candidate_is_an_error() -> None:
    with pytest.raises(TuningError, match="does not have: tile=9x9"):
        choose(_context(problem="tile=9x9"), "family", "problem", [SLOW, FAST])


def test_a_lowering_follows_the_tuning_and_its_calls_say_so() -> None:
    a = Value("a", TensorType(DType.F32, (64, 32)))
    w = constant("w", np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32))
    node = Node("MatMul", (a, w), (Value("y", TensorType(DType.F32, (64, 48))),), {}, ("product",))
    target = Target.parse("x86-64-v3")
    (call,) = lower_node(node, target)
    (choice,) = call.choices
    assert choice.origin == ("product",)
    assert len(choice.candidates) > 2
    last = choice.candidates[-1][0]
    (other,) = lower_node(node, target, tuning=Tuning({choice.key: last}))
    assert other.choices[0].name == last
    assert other.kernel != call.kernel


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [("dense", "(2.0x as fast as book=16 by estimate)"), ("book=16", "(0.5x as fast as dense by estimate)")],
)
def test_a_choice_beside_dense_weights_has_a_reason(chosen: str, reason: str) -> None:
    candidates = (("dense", 10.0), ("book=16", 20.0), ("book=32", 30.0))
    assert Choice("book", "problem", chosen, candidates).reason.strip() == reason
    assert not Choice("gemm", "problem", "tile=1x8", (("tile=1x8", 1.0),)).reason
