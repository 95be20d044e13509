"""Whole numbers chosen for the error of a layer's results."""

from __future__ import annotations

import itertools

import numpy as np

from c2c.quantization import descent


def problem(groups: int = 3, d: int = 6, rows: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r = np.random.default_rng(seed)
    x = r.standard_normal((groups, 80, d)) @ r.standard_normal((groups, d, d))
    gram = x.swapaxes(1, 2) @ x / 80 + 0.01 * np.eye(d)
    return r.standard_normal((groups, d, rows)), gram, np.full((groups, 1, rows), 0.7)


def error(levels: np.ndarray, target: np.ndarray, gram: np.ndarray, scale: np.ndarray) -> float:
    off = levels * scale - target
    return float((off * (gram @ off)).sum())


def test_error_feedback_and_descent_beat_the_nearest() -> None:
    target, gram, scale = problem(d=130, rows=30)
    near = descent.nearest(target, scale, 127)
    fed = descent.fed_forward(target, gram, scale, 127)
    swept = descent.swept(fed, target, gram, scale, 127)
    errors = [error(levels, target, gram, scale) for levels in (near, fed, swept)]
    assert errors[1] < 0.6 * errors[0] and errors[2] < errors[1]
    assert all(np.array_equal(levels, np.rint(levels)) for levels in (near, fed, swept))


def test_descent_comes_near_the_best_of_all() -> None:
    found = least = near = 0.0
    for seed in range(12):
        target, gram, scale = problem(groups=1, d=4, rows=1, seed=seed)
        levels = descent.fed_forward(target, gram, scale, 127)
        levels = descent.swept(levels, target, gram, scale, 127)
        around = np.rint(target / scale).reshape(-1)
        choices = itertools.product(*([a - 2, a - 1, a, a + 1, a + 2] for a in around))
        least += min(error(np.array(c).reshape(1, 4, 1), target, gram, scale) for c in choices)
        found += error(levels, target, gram, scale)
        near += error(descent.nearest(target, scale, 127), target, gram, scale)
    assert found - least < 0.3 * (near - least)


def test_levels_stay_in_range_and_scales_may_differ_by_column() -> None:
    target, gram, _ = problem(d=8)
    scale = np.linspace(0.02, 0.4, 8).reshape(1, 8, 1) * np.ones((3, 1, 4))
    for levels in (descent.fed_forward(target, gram, scale, 7), descent.nearest(target, scale, 7)):
        assert np.abs(levels).max() == 7
        assert np.abs(descent.swept(levels, target, gram, scale, 7)).max() <= 7
    wide = descent.fed_forward(target, gram, scale, 127)
    assert error(wide, target, gram, scale) < error(descent.nearest(target, scale, 127), target, gram, scale)
