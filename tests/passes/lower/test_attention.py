"""c2c.Attention against numpy in float64, over shapes that leave remainders everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, TensorType
from c2c.passes.attention import Chain, Form, attributes
from c2c.tests.passes.lower.harness import Array, run_graph

SEED = 5
LARGE_SCORE = 4.0
"""Of random operands, more or less."""
SHAPES = [
    # batch, heads, queries, keys, size of q and k, size of v
    (1, 1, 4, 1, 1, 1),
    (1, 2, 5, 7, 3, 9),
    (2, 3, 33, 40, 16, 24),
    (1, 2, 130, 67, 32, 32),
    (1, 1, 50, 1100, 8, 40),
]
Step = tuple[str, tuple[Array | None, ...]]
"""An operator and its operands; None stands for the value that comes from before."""


@dataclass(frozen=True)
class Case:
    """One attention of [batch, heads, rows, size] operands; k and v may have fewer heads. `joined`: heads lie side by
    side. `outer`: the batch in more dimensions than one."""

    q: Array
    k: Array
    v: Array
    scale: float = 1.0
    scores: tuple[Step, ...] = ()
    weights: tuple[Step, ...] = ()
    joined: tuple[bool, bool, bool, bool] = (False, False, False, False)
    outer: tuple[int, ...] = ()

    def expected(self) -> Array:
        times = self.q.shape[1] // self.k.shape[1]
        k, v = (np.repeat(x.astype(np.float64), times, axis=1) for x in (self.k, self.v))
        x = _applied(self.scores, self.q.astype(np.float64) @ k.swapaxes(-1, -2) * self.scale)
        power = np.exp(x - x.max(-1, keepdims=True))
        return np.asarray(_applied(self.weights, power / power.sum(-1, keepdims=True)) @ v)

    def run(self, **options: Any) -> Array:
        batch, heads, rows, _ = self.q.shape
        outer = self.outer or (batch,)
        whole = (*outer, heads, rows, self.k.shape[2])
        feeds = [
            _joined(x) if j else x.reshape(*outer, *x.shape[1:])
            for x, j in zip((self.q, self.k, self.v), self.joined, strict=False)
        ]
        inputs: dict[str, Array] = {f"x{i}": x for i, x in enumerate(feeds)}
        values = [Value(n, TensorType(DType.of(x.dtype), x.shape)) for n, x in inputs.items()]
        type_ = TensorType(DType.of(self.q.dtype), whole)
        chains = [_chain(steps, type_, f"{i}", inputs, values) for i, steps in enumerate((self.scores, self.weights))]
        form = Form((*outer, heads), self.k.shape[1], self.scale, *chains)
        dims = (batch, rows, heads * self.v.shape[3]) if self.joined[3] else (*outer, heads, rows, self.v.shape[3])
        result = Value("y", TensorType(type_.dtype, dims))
        operands = [*values[:3], *form.operands()]
        attrs = attributes(form, operands, result.type)
        node = Node("c2c.Attention", tuple(operands), (result,), attrs, ("attention",))
        (y,) = run_graph(Graph("g", values, [result], [node], ["y"]), list(inputs.values()), **options)
        apart = y.reshape(batch, rows, heads, -1).swapaxes(1, 2) if self.joined[3] else y
        return apart.reshape(batch, heads, rows, -1)

    def check(self, **options: Any) -> None:
        """Sums of n products of rounded numbers are off by about √n roundings, each of the size of their terms. Of
        halves, whose sums are f32, weights and results are rounded, and scores by each step that they go through."""
        expected, got = self.expected(), self.run(**options)
        assert (np.isnan(got) == np.isnan(expected)).all(), f"seed {SEED}"
        length = max(self.q.shape[3], self.k.shape[2])
        largest = np.abs(self.v[np.isfinite(self.v)]).max()
        roundings = 8 + 4 * np.sqrt(length) if self.q.dtype == np.float32 else 1 + LARGE_SCORE * len(self.scores)
        tolerance = np.finfo(self.q.dtype).eps * roundings * largest
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=f"seed {SEED}")


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Mul": np.multiply,
    "Tanh": np.tanh,
    "Where": np.where,
    "IsNaN": np.isnan,
}


def _applied(steps: tuple[Step, ...], x: Array) -> Array:
    for op, operands in steps:
        x = FUNCTIONS[op](*(x if a is None else a for a in operands))
    return x


def _chain(
    steps: tuple[Step, ...], type_: TensorType, prefix: str, inputs: dict[str, Array], values: list[Value]
) -> Chain:
    source = x = Value(f"source{prefix}", type_)
    nodes = []
    for s, (op, operands) in enumerate(steps):
        reads = []
        for i, a in enumerate(operands):
            name = f"c{prefix}_{s}_{i}"
            if a is None:
                reads.append(x)
            elif a.size == 1:
                reads.append(constant(name, a))
            else:
                inputs[name] = a
                values.append(Value(name, TensorType(DType.of(a.dtype), a.shape)))
                reads.append(values[-1])
        nodes.append(Node(op, tuple(reads), (Value(f"y{prefix}_{s}", type_),)))
        x = nodes[-1].output
    return Chain(source, tuple(nodes))


def _joined(x: Array) -> Array:
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)


def case(
    b: int,
    h: int,
    s: int,
    t: int,
    d: int,
    e: int,
    kv: int = 0,
    *,
    dtype: type[np.floating[Any]] = np.float32,
    **options: Any,
) -> Case:
    rng = np.random.default_rng(SEED)
    shapes = (b, h, s, d), (b, kv or h, t, d), (b, kv or h, t, e)
    q, k, v = (rng.standard_normal(x).astype(dtype) for x in shapes)
    return Case(q, k, v, **{"scale": 0.3, **options})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("target", ["native", "x86-64"])
def test_against_numpy(shape: tuple[int, ...], joined: bool, target: str) -> None:
    case(*shape, joined=(joined,) * 4).check(target=target)


@pytest.mark.parametrize(
    "joined", [(True, False, False, False), (False, True, False, True), (False, False, True, True)]
)
def test_operands_lie_as_they_like(joined: tuple[bool, bool, bool, bool]) -> None:
    case(2, 3, 33, 40, 16, 24, joined=joined).check()


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("joined", [False, True])
def test_heads_that_share_keys(heads: int, joined: bool) -> None:
    case(2, 6, 9, 21, 8, 8, kv=heads, joined=(joined,) * 4).check()


@pytest.mark.parametrize("mask", [(33, 40), (2, 1, 1, 40), (1, 3, 33, 40), (33, 1)])
def test_masks(mask: tuple[int, ...]) -> None:
    added = np.random.default_rng(SEED).standard_normal(mask).astype(np.float32)
    added[..., ::3] = -np.inf if mask[-1] > 1 else 0
    for joined in (False, True):
        case(2, 3, 33, 40, 16, 24, scores=(("Add", (None, added)),), joined=(joined,) * 4).check()


def test_caps_and_conditions() -> None:
    keep = np.random.default_rng(SEED).random((4, 1, 33, 43)) < 0.7
    keep[..., 0] = True
    low = np.asarray(-50.0, np.float32)
    steps: tuple[Step, ...] = (
        ("Mul", (None, np.asarray(0.2, np.float32))),
        ("Tanh", (None,)),
        ("Mul", (None, np.asarray(5.0, np.float32))),
        ("Where", (keep, None, low)),
    )
    case(4, 3, 33, 43, 16, 24, kv=1, scores=steps).check()
    split = tuple((op, tuple(a.reshape(2, 2, 1, 33, 43) if a is keep else a for a in x)) for op, x in steps)
    one = case(4, 3, 33, 43, 16, 24, kv=1)
    expected = replace(one, scores=steps).run()
    np.testing.assert_array_equal(replace(one, scores=split, outer=(2, 2)).run(), expected)


@pytest.mark.parametrize("count", [16, 43, 100])
def test_weights_that_are_changed(count: int) -> None:
    """Rows without any key give 0 times the values, and weights may be scaled one by one."""
    rng = np.random.default_rng(SEED)
    added = np.where(rng.random((33, count)) < 0.5, 0, -np.inf).astype(np.float32)
    added[::4] = -np.inf
    kept, factor = added.max(-1, keepdims=True) == 0, rng.random((2, 3, 33, count)).astype(np.float32)
    weights: tuple[Step, ...] = (("Where", (kept, None, np.asarray(0, np.float32))), ("Mul", (None, factor)))
    masked = case(2, 3, 33, count, 16, 24, scores=(("Add", (None, added)),))
    with np.errstate(invalid="ignore"):
        masked.check()
        replace(masked, weights=weights, joined=(True,) * 4).check()


def test_large_scores_and_nans() -> None:
    one = case(1, 1, 9, 20, 8, 8, scale=1.0)
    one.q[0, 0, 1, 2] = np.nan
    one.check()
    one.q[0, 0, 0] *= 1e4
    got = one.run()
    np.testing.assert_allclose(got[0, 0, 0], one.expected()[0, 0, 0], rtol=1e-3, atol=2e-6)
    assert np.isnan(got[0, 0, 1]).all() and not np.isnan(got[0, 0, 2:]).any()


@pytest.mark.parametrize("shape", [(2, 3, 133, 140, 32, 32), (1, 2, 65, 200, 16, 16)])
def test_threads_do_not_change_bits(shape: tuple[int, ...]) -> None:
    steps: tuple[Step, ...] = (("Mul", (None, np.asarray(0.5, np.float32))),)
    for weights in ((), steps):
        for joined in (False, True):
            one, three = (case(*shape, weights=weights, joined=(joined,) * 4).run(threads=n) for n in (1, 3))
            np.testing.assert_array_equal(one, three)
