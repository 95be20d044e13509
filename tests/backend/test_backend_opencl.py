"""ONNX's node tests on OpenCL: all that pass as processor code, but for those on record with a reason."""

from __future__ import annotations

import json

import pytest

from c2c.tests.backend import campaign
from c2c.tests.backend.execute import PASSED, REFUSED
from c2c.tests.backend.report import FOLDER, expected
from c2c.tests.opencl import needs_opencl

pytestmark = [needs_opencl, pytest.mark.needs("gcc")]
RECORD = FOLDER / "expected_opencl.json"
"""Tests that do not run on OpenCL, with the reason."""
PARTS = 16
STRIDE = 120
"""The quick tier takes every 120th test."""


def subjects() -> list[str]:
    """What passes as processor code, in order."""
    return sorted(name for name, outcome in expected().items() if outcome == PASSED)


def check(names: list[str], target: str = "opencl") -> None:
    refused: dict[str, str] = json.loads(RECORD.read_text())
    results = campaign.run_all(names, target)
    broken = {n: r for n, r in results.items() if r.outcome not in (PASSED, REFUSED)}
    assert not broken, broken
    assert {n for n, r in results.items() if r.outcome == REFUSED} == set(names) & set(refused)


def test_sample() -> None:
    check(subjects()[::STRIDE])


def test_two_steps_of_a_recurrence() -> None:
    """PoCL's compiler stops at a loop of two steps: it has to be unrolled."""
    check(["test_rnn_seq_length"])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all(part: int) -> None:
    check(subjects()[part::PARTS])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["opencl+dots", "opencl-cpu"])
def test_quantised_ones_in_other_forms(target: str) -> None:
    names = [n for n in subjects() if any(part in n for part in ("quantize", "integer", "qlinear"))]
    assert len(names) > 25
    check(names, target)


def test_nine_of_ten_run() -> None:
    refused = json.loads(RECORD.read_text())
    assert set(refused) <= set(subjects())
    assert 10 * len(refused) <= len(subjects())
