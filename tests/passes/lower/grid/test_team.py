"""States of a team as one, by every way: each pair once, the lower thread's first, and the same for all threads."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from c2c.ir.loops import Expr
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_kernel
from c2c.ir.loops_verify import verify_kernel
from c2c.ir.types import DType
from c2c.passes.lower.grid.team import State, Team

THREADS = 16
SEED = 4


def merge(low: State, high: State) -> State:
    """Neither commutative nor associative."""
    return (low[0] * 3 + high[0] * 5 + 1, low[1] * 7 - high[0])


def expected(states: list[tuple[Any, ...]], *, by_halves: bool) -> tuple[Any, ...]:
    while len(states) > 1:
        half = len(states) // 2
        pairs = (
            zip(states[:half], states[half:], strict=True) if by_halves else zip(states[::2], states[1::2], strict=True)
        )
        states = [merge(cast(State, a), cast(State, b)) for a, b in pairs]
    return states[0]


@pytest.mark.parametrize("subgroup", [1, 2, 8, 16, 64])
def test_states_are_merged_in_order(subgroup: int) -> None:
    k = Builder()
    x, y = k.param("x", DType.I32, 2 * THREADS), k.param("y", DType.I32, 2 * THREADS)
    for t in k.loop("t", THREADS, kind="thread"):
        team = Team(THREADS, subgroup, t)
        own: tuple[Expr, ...] = (k.load(x, t), k.load(x, t + THREADS))
        found = team.together(cast(Any, k), own, merge)
        for i, value in enumerate(found):
            k.store(y, t + i * THREADS, value)
    kernel = k.kernel("team")
    verify_kernel(kernel)
    given = np.random.default_rng(SEED).integers(-9, 10, 2 * THREADS).astype(np.int32)
    made = np.zeros(2 * THREADS, np.int32)
    with np.errstate(over="ignore"):
        states = list(zip(given[:THREADS], given[THREADS:], strict=True))
        first, second = expected(states, by_halves=subgroup == 1)
        run_kernel(kernel, [given, made])
    assert made.tolist() == [first] * THREADS + [second] * THREADS, f"seed {SEED}"
