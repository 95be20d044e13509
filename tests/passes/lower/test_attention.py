"""c2c.Attention against numpy in float64, over shapes that leave remainders everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.ir.graph import Graph, Node, Value
from c2c.ir.types import DType, TensorType
from c2c.tests.passes.lower.harness import Array, run_graph

SEED = 5
SHAPES = [
    # batch, heads, queries, keys, size of q and k, size of v
    (1, 1, 4, 1, 1, 1),
    (1, 2, 5, 7, 3, 9),
    (2, 3, 33, 40, 16, 24),
    (1, 2, 130, 67, 32, 32),
    (1, 1, 50, 1100, 8, 40),
]


def expected(q: Array, k: Array, v: Array, scale: float, mask: Array | None) -> Array:
    """Of [batch, heads, rows, size]."""
    x = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * scale
    x = x if mask is None else x + mask
    power = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(power / power.sum(-1, keepdims=True) @ v)


def run(q: Array, k: Array, v: Array, scale: float, mask: Array | None, joined: bool, **options: Any) -> Array:
    """The operator on [batch, heads, rows, size]; `joined`: on heads side by side."""
    b, h, s, _ = q.shape

    def laid(x: Array) -> Array:
        return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(b, x.shape[2], -1) if joined else x

    feeds = [laid(q), laid(k), laid(v), *([] if mask is None else [mask])]
    values = [Value(f"x{i}", TensorType(DType.F32, x.shape)) for i, x in enumerate(feeds)]
    result = Value("y", TensorType(DType.F32, laid(np.empty((b, h, s, v.shape[-1]), np.float32)).shape))
    attrs = {"scale": scale, **({"q_num_heads": h, "kv_num_heads": h} if joined else {})}
    node = Node("c2c.Attention", tuple(values), (result,), attrs, ("attention",))
    (y,) = run_graph(Graph("g", values, [result], [node], ["y"]), feeds, **options)
    return y.reshape(b, s, h, -1).swapaxes(1, 2) if joined else y


def operands(b: int, h: int, s: int, t: int, d: int, e: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(SEED)
    shapes = (b, h, s, d), (b, h, t, d), (b, h, t, e)
    q, k, v = (rng.standard_normal(x).astype(np.float32) for x in shapes)
    return q, k, v


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("target", ["native", "x86-64"])
def test_against_numpy(shape: tuple[int, ...], joined: bool, target: str) -> None:
    q, k, v = operands(*shape)
    got = run(q, k, v, 0.3, None, joined, target=target)
    np.testing.assert_allclose(got, expected(q, k, v, 0.3, None), rtol=2e-5, atol=2e-6, err_msg=f"seed {SEED}")


@pytest.mark.parametrize("mask", [(33, 40), (2, 1, 1, 40), (1, 3, 33, 40), (33, 1)])
def test_masks(mask: tuple[int, ...]) -> None:
    q, k, v = operands(2, 3, 33, 40, 16, 24)
    added = np.random.default_rng(SEED).standard_normal(mask).astype(np.float32)
    added[..., ::3] = -np.inf if mask[-1] > 1 else 0
    for joined in (False, True):
        got = run(q, k, v, 1.0, added, joined)
        np.testing.assert_allclose(got, expected(q, k, v, 1.0, added), rtol=2e-5, atol=2e-6)


def test_large_scores_and_nans() -> None:
    q, k, v = operands(1, 1, 9, 20, 8, 8)
    q[0, 0, 0] *= 1e4
    q[0, 0, 1, 2] = np.nan
    got = run(q, k, v, 1.0, None, False)
    np.testing.assert_allclose(got, expected(q, k, v, 1.0, None), rtol=1e-3, atol=2e-6)
    assert np.isnan(got[0, 0, 1]).all() and not np.isnan(got[0, 0, 2:]).any()


@pytest.mark.parametrize("shape", [(2, 3, 133, 140, 32, 32), (1, 2, 65, 200, 16, 16)])
def test_threads_do_not_change_bits(shape: tuple[int, ...]) -> None:
    q, k, v = operands(*shape)
    for joined in (False, True):
        one, three = (run(q, k, v, 0.2, None, joined, threads=n) for n in (1, 3))
        np.testing.assert_array_equal(one, three)
