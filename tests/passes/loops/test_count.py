"""Operations of kernels: counted by hand, and beside what the loops of random kernels run."""

from __future__ import annotations

import pytest

from c2c.ir.loops_parse import parse_kernel
from c2c.passes.loops.count import CALL, UNKNOWN, effort

HEAD = "kernel k(x: f32[4096], n: i64[64], y: f32[4096])"


@pytest.mark.parametrize(
    ("body", "total", "thread"),
    [
        ("store y[0] = x[0]", 1, 1),
        ("serial i = 0 to 10 { store y[i] = x[i] + x[i] }", 30, 30),
        ("grid i = 0 to 10 { store y[i] = x[i] + x[i] }", 30, 3),
        ("grid i = 0 to 10 { serial j = 0 to 4 step 2 { store y[i] = x[j] } }", 20, 2),
        ("grid i = 0 to 4 { thread j = 0 to 8 { store y[i] = exp(x[j]) } }", 32 * (CALL + 1), CALL + 1),
        ("serial i = 0 to n[0] { store y[i] = x[i] }", 1 + UNKNOWN, 1 + UNKNOWN),
        ("serial i = 0 to max(min(n[0], 9), 5) { store y[i] = x[i] }", 3 + 7, 3 + 7),
        ("let t: i64 = max(min(n[0], 9), 5) serial i = 3 to t { store y[i] = x[i] }", 3 + 4, 3 + 4),
        ("if x[0] < x[1] { store y[0] = x[0] } else { store y[0] = x[0] + x[1] }", 3 + 3, 3 + 3),
    ],
)
def test_operations_of_all_threads_and_of_one(body: str, total: float, thread: float) -> None:
    found = effort(parse_kernel(f"{HEAD} {{ {body} }}"))
    assert (found.total, found.thread) == (total, thread)


def test_a_loop_that_another_one_bounds_counts_as_the_mean() -> None:
    found = effort(parse_kernel(f"{HEAD} {{ serial i = 0 to 9 {{ serial j = 0 to i {{ store y[j] = x[j] }} }} }}"))
    assert found.total == 9 * 4


def test_a_loop_that_follows_another_one_is_as_long_everywhere() -> None:
    body = "serial i = 0 to 64 step 8 { let to: i64 = i + 8 serial j = i to to { store y[j] = x[j] } }"
    assert effort(parse_kernel(f"{HEAD} {{ {body} }}")).total == 8 * (1 + 8)
