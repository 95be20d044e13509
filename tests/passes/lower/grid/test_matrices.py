"""Which products are matrices of a subgroup, and that the interpreter agrees with ONNX's reference."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.passes.lower import lower_node
from c2c.passes.lower.grid.matrices import SHAPES, MatrixTile
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.lower.harness import Case, run_graph, with_tail

from .test_grid import SEED, normal


def chosen(target: str, *shapes: tuple[int, ...]) -> tuple[str, list[str]]:
    """The form of a product, and those that it could have had."""
    (call,) = lower_node(Case("MatMul", normal(*shapes)).node(), Target.parse(target))
    (choice,) = call.choices
    return choice.name, [name for name, _ in choice.candidates]


@pytest.mark.parametrize(("target", "matrices"), [("metal-ios", True), ("metal", False), ("cuda", False)])
def test_large_products_are_matrices_where_a_device_has_them(target: str, matrices: bool) -> None:
    name, candidates = chosen(target, (512, 256), (256, 512))
    assert name.startswith("simdgroup=64x64" if matrices else "tile=64x64")
    assert any(c.startswith("simdgroup") for c in candidates) == matrices
    assert any(c.startswith("tile") for c in candidates)


def test_tiles_fit_the_device() -> None:
    """Shared memory of 32 KB and 64 registers leave out none of the shapes; a name is one tile's."""
    names = [str(MatrixTile(*s)) for s in SHAPES]
    _, candidates = chosen("metal-ios", (512, 256), (256, 512))
    assert len(set(names)) == len(names) and set(names) <= set(candidates)


@pytest.mark.parametrize("tile", ["simdgroup=16x16 depth=8", "simdgroup=32x16 depth=16"])
def test_a_convolution_with_what_follows_it(tile: str) -> None:
    """Remainders of channels, pixels and depth."""
    case = Case("Conv", normal((1, 3, 5, 5), (9, 3, 3, 3), (9,)), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 0]})
    (factor,) = normal((1, 9, 1, 3))
    tuning = Tuning({("grid-product", "9x15x27 f32"): tile})
    (got,) = run_graph(with_tail(case, factor), [*case.arrays, factor], target="metal-ios", tuning=tuning)
    expected = np.abs(case.expected()[0]) * factor
    np.testing.assert_allclose(got, expected, atol=27e-6, rtol=1e-5, err_msg=f"seed {SEED}")
