"""Ranges from what a tensor holds."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.ir.errors import OptionsError
from c2c.quantization.grid import Grid, block_scales, grid_of
from c2c.quantization.observers import METHODS, choose_grid, merged, observe


def heavy_tailed(count: int = 40000) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).standard_t(3, count), np.float32)


def noise(method: str, x: np.ndarray) -> float:
    return float(np.square(choose_grid(method, observe(x, 0)).rounded(x) - x).mean())


def test_zero_is_a_level_and_the_ends_are_reached() -> None:
    for low, high in ((-1.0, 3.0), (0.0, 6.0), (-2.0, 0.0), (0.5, 2.0), (-3.0, -1.0)):
        grid = grid_of(low, high)
        assert grid.rounded(np.zeros(1, np.float32))[0] == 0
        assert grid.low <= min(low, 0) + grid.scale and grid.high >= max(high, 0) - grid.scale
    assert grid_of(0, 6).zero == 0 and grid_of(-2, 0).zero == 255
    assert grid_of(0, 0).scale > 0


def test_levels_are_those_of_quantize_linear() -> None:
    grid = Grid(np.float32(0.1), 10)
    x = np.array([-5, -1, -0.05, 0.049, 0.15, 0.25, 24.4, 100], np.float32)
    levels = np.clip(np.rint(x / np.float32(0.1)) + 10, 0, 255)
    np.testing.assert_array_equal(grid.rounded(x), ((levels - 10) * np.float32(0.1)).astype(np.float32))


def test_the_least_squared_error_is_that_of_mse() -> None:
    x = heavy_tailed()
    errors = {method: noise(method, x) for method in METHODS}
    assert min(errors, key=lambda m: errors[m]) == "mse"
    assert errors["mse"] < 0.95 * errors["minmax"]


def test_minmax_cuts_off_nothing_and_percentile_little() -> None:
    x = heavy_tailed()
    grids = {method: choose_grid(method, observe(x, 0)) for method in METHODS}
    assert grids["minmax"].high >= x.max() - grids["minmax"].scale
    outside = float((x > grids["percentile"].high).mean() + (x < grids["percentile"].low).mean())
    assert 0 < outside < 4e-4
    assert grids["entropy"].high < grids["minmax"].high


def test_a_uniform_tensor_keeps_its_range() -> None:
    x = np.random.default_rng(1).uniform(-1, 2, 20000).astype(np.float32)
    for method in METHODS:
        grid = choose_grid(method, observe(x, 0))
        assert grid.high > 1.9 and grid.low < -0.9, method


def test_tensors_that_share_a_scale_count_alike() -> None:
    wide = observe(np.linspace(0, 10, 100000, dtype=np.float32), 0)
    narrow = observe(np.linspace(0, 1, 1000, dtype=np.float32), 0)
    both = merged([wide, narrow])
    assert (both.low, both.high) == (0, 10)
    assert abs(float((both.values <= 1).mean()) - 0.55) < 0.01


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(OptionsError, match="there is no method 'median'"):
        choose_grid("median", observe(np.ones(4, np.float32), 0))


def test_scales_of_blocks_fit_each_block() -> None:
    rows = np.ones((1, 2, 10)) * np.array([1, 1, 1, 1, 8, 8, 8, 8, 2, 2])
    scale = block_scales(rows, np.ones((1, 10)), 7, 4)
    assert scale.shape == (1, 2, 3)
    np.testing.assert_allclose(scale[0, 0] * 7, [1, 8, 2])


def test_wide_levels_are_finer_and_reach_farther() -> None:
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    grids = [choose_grid("mse", observe(x, 0), wide=wide) for wide in (False, True)]
    narrow, wide = (float(np.square(g.rounded(x) - x).mean()) for g in grids)
    assert wide < narrow / 100 and grids[1].most == 4095 and grids[1].is_wide and not grids[0].is_wide
    assert grids[1].high > 1.2 * x.max() and grids[1].low < 1.2 * x.min()
    assert grids[1].largest == max(grids[1].zero, 4095 - grids[1].zero)
