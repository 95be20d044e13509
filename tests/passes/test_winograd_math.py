"""Bounds of Winograd's forms."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.passes.winograd_math import SIZES, input_matrix, output_matrix, transform_weights, winograd_bound


@pytest.mark.parametrize("m", SIZES)
def test_nothing_exceeds_the_bound_and_something_reaches_it(m: int) -> None:
    """Inputs whose signs make a place of the transform, or a sum over channels, as large as it gets."""
    rng = np.random.default_rng(m)
    n, worst = m + 2, 0.0
    weights = rng.standard_normal((5, 3, 3, 3))
    b, a = input_matrix(m), output_matrix(m)
    u = transform_weights(weights, m).reshape(n, n, 3, 5)
    for p, q, k in np.ndindex(n, n, 5):
        signs = np.sign(np.outer(b[p], b[q]))
        d = signs[None] * np.sign(u[p, q, :, k])[:, None, None]
        v = b @ d @ b.T
        products = np.einsum("cpq,pqck->kpq", v, u)
        half = np.abs(a) @ np.abs(products)
        worst = max(worst, np.abs(v).max(), np.abs(products).max(), half.max(), (half @ np.abs(a).T).max())
        assert np.abs(products[k, p, q]) == pytest.approx(
            (np.abs(u[p, q, :, k]) * np.abs(b[p]).sum() * np.abs(b[q]).sum()).sum()
        )
    assert 0.2 * winograd_bound(m, weights) < worst <= winograd_bound(m, weights) * (1 + 1e-9)


def test_small_weights_are_bounded_by_transformed_inputs() -> None:
    assert winograd_bound(4, np.full((4, 4, 3, 3), 1e-6)) == 100.0
    assert winograd_bound(2, np.full((4, 4, 3, 3), 1e-6)) == 4.0
