"""Structure of constants: code books, zeros, blocks."""

from __future__ import annotations

import gc

import ml_dtypes
import numpy as np
import pytest

from c2c.ir import structure as module
from c2c.ir.structure import exact_half, is_coded, occupied, structure, zero_blocks
from c2c.ir.types import DType

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("count", [2, 16, 17, 256])
def test_levels_and_indices_give_the_array_back(count: int, dtype: type) -> None:
    levels: np.ndarray = np.sort(RNG.permutation(np.linspace(-2, 2, 257))[:count].astype(dtype))
    levels = np.unique(levels)
    array = levels[RNG.integers(0, levels.size, (40, 60))]
    array.reshape(-1)[: levels.size] = levels
    found = structure(array)
    assert found.levels is not None and found.indices is not None
    assert found.levels.dtype == array.dtype and found.indices.dtype == np.uint8
    np.testing.assert_array_equal(found.levels, levels)
    np.testing.assert_array_equal(found.levels[found.indices].view(np.uint8), array.view(np.uint8))
    assert 2**found.bits >= levels.size > 2 ** (found.bits - 1)


def test_what_is_not_coded() -> None:
    assert not is_coded(None)
    assert not is_coded(np.arange(257 * 8, dtype=np.float32).reshape(8, 257) % 257), "257 levels"
    assert is_coded(np.arange(256 * 8, dtype=np.float32).reshape(8, 256) % 256)
    assert not is_coded(np.zeros((20, 20), np.float32)), "too small"
    assert not is_coded(np.zeros((20, 200), np.int32)), "no floats"
    assert not is_coded(np.zeros(4000, np.float32)), "one axis"
    many = (np.arange(600) % 200).astype(np.float32).reshape(20, 30)
    assert not is_coded(many), "as many levels as would be saved"
    late = np.zeros((1 << 11, 1 << 10), np.float32)
    late[-1] = np.arange(1 << 10)
    assert not is_coded(late), "beyond the sample"
    assert not structure(np.empty((0, 4), np.float32)).is_coded


def test_signed_zeros_stay_apart() -> None:
    array = np.zeros((30, 30), np.float32)
    array[3] = -0.0
    found = structure(array)
    assert found.levels is not None and found.indices is not None and found.levels.size == 2
    np.testing.assert_array_equal(np.signbit(found.levels[found.indices]), np.signbit(array))
    assert found.zeros == 1.0


def test_a_transposed_view_has_its_own_indices() -> None:
    array = RNG.integers(0, 7, (50, 40)).astype(np.float32)
    found = structure(array.T)
    assert found.levels is not None and found.indices is not None
    np.testing.assert_array_equal(found.levels[found.indices], array.T)


def test_zeros_and_blocks() -> None:
    array = RNG.standard_normal((10, 6)).astype(np.float32)
    array[0:4, 2] = 0
    array[8:10, 5] = 0
    array[5, 0] = -0.0
    found = structure(array)
    assert found.zeros == pytest.approx(7 / 60)
    assert zero_blocks(array, 4) == pytest.approx(2 / 18)
    assert zero_blocks(array, 1) == pytest.approx(7 / 60)
    assert zero_blocks(array, 2, axis=1) == 0
    assert zero_blocks(array.T, 4, axis=1) == pytest.approx(2 / 18)
    assert occupied(array, 4).shape == (3, 6) and not occupied(array, 4)[2, 5]


def test_remembered_while_the_array_lives() -> None:
    array = RNG.integers(0, 7, (50, 40)).astype(np.float32)
    gc.collect()
    before = len(module._KNOWN)
    found = structure(array)
    assert structure(array) is found and len(module._KNOWN) == before + 1
    del array
    gc.collect()
    assert len(module._KNOWN) == before


def test_what_halves_hold() -> None:
    array = RNG.standard_normal((40, 30)).astype(np.float16).astype(np.float32)
    assert exact_half(array) is DType.F16
    assert exact_half(array.astype(ml_dtypes.bfloat16).astype(np.float32) * np.float32(2**-60)) is DType.BF16
    for value in (1 / 3, 1e6 + 1, np.nan, 2.0**-30 * 3.001):
        other = array.copy()
        other[-1, -1] = value
        assert exact_half(other) is None, value
    assert exact_half(array[:2]) is None, "too small"
