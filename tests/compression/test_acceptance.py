"""What counts as the same answer, and the loss that noise is expected to make."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.compression.acceptance import agreement, expected_loss


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2])
def test_expected_loss_is_what_normal_noise_makes(noise: float) -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((4000, 1, 10))
    deviation = np.sqrt(noise * np.square(dense - dense.mean(0)).mean())
    small = dense + rng.normal(0, deviation, dense.shape)
    counted = agreement(dense, small, "top1").loss
    assert expected_loss(dense, "top1", noise) == pytest.approx(counted, rel=0.3, abs=1e-3)


def test_expected_loss_of_thresholds_and_cosines() -> None:
    rng = np.random.default_rng(1)
    dense = rng.uniform(0, 1, (2000, 4))
    small = dense + rng.normal(0, np.sqrt(0.01 * dense.var()), dense.shape)
    assert expected_loss(dense, "threshold", 0.01) == pytest.approx(agreement(dense, small, "threshold").loss, rel=0.3)
    assert expected_loss(dense, "cosine", 0.01) == pytest.approx(0.005)
    assert expected_loss(dense, "top1", 0.0) == 0.0
