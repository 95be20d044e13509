"""Masks, code books and refits against what can be computed exhaustively."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from c2c.compression import codebook, descent, mask
from c2c.compression.codebook import Book
from c2c.packing.frames import entropy


def problem(rows: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights [rows, d] and correlated second moments [d, d]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * d, d)) @ rng.standard_normal((d, d))
    return rng.standard_normal((rows, d)), x.T @ x / len(x) + 0.01 * np.eye(d)


def error(w: np.ndarray, target: np.ndarray, gram: np.ndarray) -> float:
    return float(np.sum((w - target) @ gram * (w - target)))


def masked_error(w: np.ndarray, gram: np.ndarray, keep: np.ndarray) -> float:
    return error(mask.refit(w, gram, keep), w, gram)


def test_exact_obs_is_near_the_best_of_all_masks() -> None:
    found, best, plain = 0.0, 0.0, 0.0
    for seed in range(12):
        w, gram = problem(1, 8, seed)
        kept = mask.exact_obs(w, gram, 0.5)
        assert kept.sum() == 4
        found += masked_error(w, gram, kept)
        plain += masked_error(w, gram, mask.magnitude(w, 0.5))
        every = [np.isin(np.arange(8), s)[None] for s in itertools.combinations(range(8), 4)]
        best += min(masked_error(w, gram, k) for k in every)
    assert best <= found < 1.6 * best
    assert found < 0.6 * plain


def test_the_first_weight_removed_is_the_best_one() -> None:
    w, gram = problem(1, 9, 3)
    costs = [masked_error(w, gram, (np.arange(9) != j)[None]) for j in range(9)]
    kept = mask.exact_obs(w, gram, 1 / 9)
    assert int(np.flatnonzero(~kept[0])[0]) == int(np.argmin(costs))


def test_sparse_gpt_is_better_than_magnitude() -> None:
    w, gram = problem(40, 150, 1)
    kept = mask.sparse_gpt(w, gram, 0.7, block=32)
    assert abs(kept.mean() - 0.3) < 0.01
    assert masked_error(w, gram, kept) < masked_error(w, gram, mask.magnitude(w, 0.7))


def test_refit_is_the_least_squares_of_the_survivors() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((60, 7)), rng.standard_normal((3, 7))
    keep = rng.random((3, 7)) < 0.6
    fitted = mask.refit(w, x.T @ x / 60, keep)
    for r in range(3):
        s = np.flatnonzero(keep[r])
        expected = np.linalg.lstsq(x[:, s], x @ w[r], rcond=None)[0]
        np.testing.assert_allclose(fitted[r, s], expected, rtol=1e-8)
        assert not fitted[r, ~keep[r]].any()


def test_patterns() -> None:
    w, gram = problem(8, 12, 2)
    blocks = mask.choose_mask(w, gram, 0.5, "4x1")
    assert (blocks.reshape(2, 4, 12).all(1) | ~blocks.reshape(2, 4, 12).any(1)).all() and blocks.mean() == 0.5
    assert (mask.choose_mask(w, gram, 0.5, "2:4").reshape(8, 3, 4).sum(2) == 2).all()
    assert mask.choose_mask(w[:7], gram, 0.5, "4x1").shape == (7, 12)


def test_a_code_book_is_near_the_exhaustive_optimum() -> None:
    values = np.sort(np.random.default_rng(4).standard_normal(40))
    book, index = codebook.fit(values, np.ones(()), 1.3, 0.0)
    k = len(book.levels)

    def spread(part: np.ndarray) -> float:
        return float(np.square(part - part.mean()).sum())

    # dynamic programming over splits of the sorted values, one of the clusters at 0
    best = np.full((k + 1, 2, 41), np.inf)
    best[0, 0, 0] = 0.0
    for c, z, end in itertools.product(range(1, k + 1), range(2), range(1, 41)):
        for begin in range(end):
            part = values[begin:end]
            best[c, z, end] = min(best[c, z, end], best[c - 1, z, begin] + spread(part))
            if z:
                best[c, z, end] = min(best[c, z, end], best[c - 1, 0, begin] + float(np.square(part).sum()))
    optimum = best[k, 1, 40]
    assert optimum - 1e-9 <= np.square(book.levels[index] - values).sum() < 1.4 * optimum


def test_bits_have_a_price() -> None:
    values = np.random.default_rng(5).laplace(size=4000)
    spent = []
    for price in (0.0, 0.02, 0.1):
        book, index = codebook.fit(values, np.ones(()), 0.5, price)
        spent.append(entropy(np.bincount(index)))
        assert np.isclose(book.bits[index].mean(), spent[-1])
    assert spent[0] > spent[1] > spent[2]


def test_refitted_levels_solve_the_normal_equations() -> None:
    w, gram = problem(6, 10, 6)
    target, grams = w.T[None], gram[None]
    book = codebook.uniform(target.ravel(), 0.7)
    index = descent.nearest(target, grams, book, 0.0, None)
    fitted = descent.refit(index, target, grams, book)
    columns = [k for k in range(len(book.levels)) if k != book.zero and (index == k).any()]
    basis = np.stack([(index[0] == k).astype(float) for k in columns])
    a = np.array([[np.sum(p * (gram @ q)) for q in basis] for p in basis])
    b = np.array([np.sum(p * (gram @ target[0])) for p in basis])
    np.testing.assert_allclose(fitted.levels[columns], np.linalg.solve(a, b), rtol=2e-2, atol=2e-2)
    assert fitted.levels[book.zero] == 0


def test_feedback_and_descent_beat_rounding() -> None:
    w, gram = problem(16, 30, 7)
    target, grams = w.T[None], gram[None]
    book = codebook.uniform(target.ravel(), 0.8)
    rounded = descent.nearest(target, grams, book, 0.0, None)
    fed = descent.first_pass(target, grams, book, 0.0, None)
    final, index = descent.quantise(target, grams, book, 0.0)
    errors = [
        descent.squared_error(values, target, grams)
        for values in (book.levels[rounded], book.levels[fed], final.levels[index])
    ]
    assert errors[0] > 1.3 * errors[1] and errors[1] > errors[2]


def test_a_sweep_never_makes_it_worse() -> None:
    w, gram = problem(5, 70, 8)
    target, grams = w.T[None], gram[None]
    book = codebook.uniform(target.ravel(), 0.5)
    index = descent.nearest(target, grams, book, 0.01, None)

    def cost(i: np.ndarray) -> float:
        return float(descent.squared_error(book.levels[i], target, grams)) + 0.01 * float(book.bits[i].sum())

    costs = [cost(index)]
    for _ in range(3):
        index = descent.sweep(index, target, grams, book, 0.01, None)
        costs.append(cost(index))
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_masks_hold_through_quantisation() -> None:
    w, gram = problem(8, 20, 9)
    keep = mask.choose_mask(w, gram, 0.6).T[None]
    book, index = descent.quantise(w.T[None], gram[None], codebook.uniform(w.ravel(), 0.3), 0.0, keep)
    assert not book.levels[index][~keep].any()


@pytest.mark.parametrize("pattern", ["3:4", "blocks"])
def test_unknown_patterns(pattern: str) -> None:
    w, gram = problem(4, 8)
    with pytest.raises(Exception, match="no pattern"):
        mask.choose_mask(w, gram, 0.5, pattern)


def test_assign_prefers_cheap_levels_only_at_a_price() -> None:
    book = Book(np.array([-1.0, 0.0, 1.0]), np.array([6.0, 0.5, 6.0]))
    assert codebook.assign(np.array([0.6, -0.6]), book, 0.0).tolist() == [2, 0]
    assert codebook.assign(np.array([0.6, -0.6]), book, 0.1).tolist() == [1, 1]


@pytest.mark.parametrize(("levels", "least"), [(4, 0.1175), (8, 0.03454), (16, 0.009497)])
def test_few_levels_lose_little_more_than_the_best(levels: int, least: float) -> None:
    """`least`: mean squared errors of normal numbers by the best levels (Max 1960), none of which has to be 0."""
    values = np.random.default_rng(4).standard_normal(200_000)
    book = codebook.uniform(values, 1e-6, levels)
    assert len(book.levels) <= levels and np.count_nonzero(book.levels == 0) == 1
    lost = float(np.square(values - book.levels[codebook.assign(values, book, 0.0)]).mean())
    assert 0.98 * least < lost < 1.2 * least


def test_few_levels_of_numbers_of_one_sign_and_of_few_values() -> None:
    for values in (np.full(600, -1.0), np.repeat([1.0, 2.0, 3.0], 200)):
        book = codebook.uniform(values, 1e-6, 16)
        lost = np.abs(values - book.levels[codebook.assign(values, book, 0.0)])
        assert lost.max() < 1e-2 and book.levels[book.zero] == 0
