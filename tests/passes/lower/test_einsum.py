"""Einsum against numpy: equations that are matrix products, and those that are not."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.tests.passes.lower.harness import Case, run_ops

SEED = 2
PRODUCTS = [
    ("ij,jk->ik", (3, 4), (4, 21)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("bhid,bhjd->bhij", (2, 3, 20, 33), (2, 3, 35, 33)),
    ("ij,kj->ki", (3, 9), (5, 9)),
    ("abc,cd->abd", (2, 3, 4), (4, 18)),
    ("...ij,...jk->...ik", (2, 3, 4), (1, 4, 5)),
    ("bcxd,bcyd->bxcy", (1, 2, 3, 4), (1, 2, 5, 4)),
    ("ij,jk", (3, 4), (4, 5)),
]
LOOPS = [
    ("...ii->...i", (2, 5, 5)),
    ("i,i->", (7,), (7,)),
    ("ij->ji", (3, 4)),
    ("ij", (4, 3)),
    ("ab,bc,cd->ad", (2, 3), (3, 4), (4, 19)),
    ("ij,j->i", (3, 70), (70,)),
    ("i,j->ij", (3,), (20,)),
    ("ii", (4, 4)),
    ("ij,ij->i", (3, 5), (3, 5)),
    ("b...,b...->...", (2, 3, 17), (2, 3, 17)),
]


@pytest.mark.parametrize("equations", [PRODUCTS, LOOPS], ids=["products", "loops"])
@pytest.mark.parametrize("target", ["native", "x86-64"])
def test_equations(equations: list[tuple[str, tuple[int, ...]]], target: str) -> None:
    rng = np.random.default_rng(SEED)
    cases = [
        Case("Einsum", [rng.standard_normal(s).astype(np.float32) for s in shapes], {"equation": equation})
        for equation, *shapes in equations
    ]
    for case, (got,) in zip(cases, run_ops(cases, target=target), strict=True):
        want = np.einsum(case.attrs["equation"], *(a.astype(np.float64) for a in case.arrays))
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5, err_msg=f"{case.attrs} seed {SEED}")
