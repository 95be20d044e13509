"""ONNX's node tests: what passed before passes, everything else is refused, nothing is wrong or crashes."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.ir.errors import UnsupportedOpError
from c2c.tests.backend.campaign import run_all
from c2c.tests.backend.cases import node_tests
from c2c.tests.backend.execute import PASSED, REFUSED, compare, to_pin
from c2c.tests.backend.report import expected

PARTS = 8
STRIDE = 6
"""The quick tier takes every sixth test."""


def check(names: list[str]) -> None:
    results = run_all(names)
    known = expected()
    broken = {n: r for n, r in results.items() if r.outcome not in (PASSED, REFUSED)}
    assert not broken, broken
    lost = {n: r.detail for n, r in results.items() if known.get(n) == PASSED and r.outcome != PASSED}
    assert not lost, lost


@pytest.mark.parametrize("part", range(PARTS))
def test_sample(part: int) -> None:
    check(list(node_tests())[::STRIDE][part::PARTS])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all(part: int) -> None:
    check(list(node_tests())[part::PARTS])


def test_every_test_is_on_record() -> None:
    """A new version of onnx needs a new report."""
    assert set(expected()) == set(node_tests())


def test_enough_pass() -> None:
    assert sum(outcome == PASSED for outcome in expected().values()) >= 1000


def test_a_wrong_result_is_seen() -> None:
    want = np.array([1, 2], np.float32)
    assert compare([want], [want], 0, 0) == ""
    assert "differs" in compare([want + np.float32(0.1)], [want], 1e-3, 1e-3)
    assert "float64" in compare([want.astype(np.float64)], [want], 1, 1)
    assert "[1]" in compare([want[:1]], [want], 1, 1)
    assert compare([], [want], 1, 1) == "0 outputs, not 1"


def test_inputs_that_a_refusal_names_are_pinned_first() -> None:
    feeds = {"x": np.zeros((2, 2)), "n": np.array([1]), "s": np.array(1.0)}
    named = UnsupportedOpError("input 'x' must be a constant", remedy="pin its value with --value x=…")
    assert to_pin(named, feeds, []) == ["x"]
    assert to_pin(UnsupportedOpError("unknown shape"), feeds, []) == ["n"]
    assert to_pin(UnsupportedOpError("unknown shape"), feeds, ["n"]) == ["s"]
    assert to_pin(UnsupportedOpError("unknown shape"), feeds, ["n", "s"]) == []
