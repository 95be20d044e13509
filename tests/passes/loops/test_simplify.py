"""Index simplification: single rules by text, and random kernels and index expressions by value."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.ir import loops as ir
from c2c.ir.loops import Expr
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_kernel
from c2c.ir.loops_parse import parse_kernel
from c2c.ir.loops_random import RandomKernel, random_memory
from c2c.ir.loops_text import print_kernel
from c2c.ir.loops_verify import verify_kernel
from c2c.ir.loops_visit import statements, walk
from c2c.ir.types import DType
from c2c.passes.loops import optimise_kernel
from c2c.passes.loops.simplify import simplify

HEAD = "kernel k(y: i64[4096], n: i64[8])"
LOOP = "serial i = 0 to 16 { serial j = 0 to 8 {"


def simplified(body: str) -> str:
    """The statements of the simplified body on one line."""
    kernel = simplify(parse_kernel(f"{HEAD} {{ {body} }}"))
    verify_kernel(kernel)
    return " ".join(print_kernel(kernel).split())[len(HEAD) + 3 : -2]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("(i * 8 + 4) / 4", "i * 2 + 1"),
        ("(i * 8 + j) / 8", "i"),
        ("(i * 8 + j) % 8", "j"),
        ("(i * 16 + j) / 8", "i * 2"),
        ("(i * 16 + j + 8) % 8", "j"),
        ("(i * 12 + j) / 4", "i * 3 + j / 4"),
        ("(i * 12 + j) % 4", "j % 4"),
        ("j / 8", "0"),
        ("(j - 4) / 8", "0"),
        ("(j - 4) % 8", "j - 4"),
        ("i + j - i", "j"),
        ("(i + 1) * 3 - 3", "i * 3"),
        ("i * 2 + j + i * 2", "i * 4 + j"),
        ("5 - (2 - i)", "i + 3"),
        ("min(i, 15)", "i"),
        ("max(j, 8)", "8"),
        ("min(i, j)", "min(i, j)"),
        ("n[i % 8] * 8 / 8", "n[i % 8] * 8 / 8"),  # data may wrap
        ("n[0] * 2 + n[0]", "n[0] * 3"),
        ("select(i < 16, i, j)", "i"),
        ("(i * 8 + j) / 3", "(i * 8 + j) / 3"),
        ("i % 1", "0"),
        ("(j - 3) / 2 * 2", "(j - 3) / 2 * 2"),
        ("(i * 4 + j - 8) / 4", "(i * 4 + j - 8) / 4"),  # may be negative: truncation is not flooring
    ],
)  # fmt: skip
def test_rules(before: str, after: str) -> None:
    found = simplified(f"{LOOP} store y[i * 8 + j] = {before} }} }}")
    value = found.partition("] = ")[2].removesuffix(" } }")
    assert value == after


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("if i < 16 { store y[i] = 1 } else { store y[i] = 2 }", "store y[i] = 1"),
        ("if i >= 16 { store y[i] = 1 }", ""),
        ("if j == 8 { store y[i] = 1 } else { store y[i] = 2 }", "store y[i] = 2"),
        ("if j != 9 { store y[i] = 1 }", "store y[i] = 1"),
        ("if i < 8 { store y[i] = 1 }", "if i < 8 { store y[i] = 1 }"),
        ("if (i < 16) & (j < 4) { store y[i] = 1 }", "if j < 4 { store y[i] = 1 }"),
        ("if (i < 16) | (j < 4) { store y[i] = 1 }", "store y[i] = 1"),
        ("serial k = 3 to 4 { store y[k + i] = k }", "store y[i + 3] = 3"),
        ("serial k = 3 to 3 { store y[k] = k }", ""),
        ("serial k = 2 to 5 step 3 { let t: i64 = k store y[t] = t }", "store y[2] = 2"),
        ("let a: i64 = i let b: i64 = a store y[b] = n[b % 8 / 8]", "store y[i] = n[0]"),
        ("let a: i64 = i + 1 let b: i64 = i + 2 store y[b] = 1", "let b: i64 = i + 2 store y[b] = 1"),
        ("let a: i64 = i * 4 store y[a / 64] = 1", "store y[0] = 1"),
    ],
)
def test_control_flow(body: str, after: str) -> None:
    expected = f"serial i = 0 to 16 {{ serial j = 0 to 8 {{ {after} }} }}" if after else ""
    assert simplified(f"{LOOP} {body} }} }}") == expected


def test_a_simple_kernel_is_the_same_object() -> None:
    kernel = parse_kernel("kernel k(y: f32[64]) { parallel i = 0 to 8 { store y[i * 8] = 1.0:f32x8 } }")
    assert simplify(kernel) is kernel


@pytest.mark.parametrize("seed", range(25))
def test_random_kernels_compute_the_same(seed: int) -> None:
    kernel = RandomKernel(seed).kernel
    after = optimise_kernel(kernel)
    verify_kernel(after)
    before, found = random_memory(kernel, seed), random_memory(kernel, seed)
    run_kernel(kernel, before)
    run_kernel(after, found)
    for p, a, b in zip(kernel.params, before, found, strict=True):
        assert np.array_equal(a, b, equal_nan=p.dtype.is_float), p.name


def random_index(rng: np.random.Generator, names: list[Expr], depth: int) -> Expr:
    """An index expression as lowerings write them, with divisions, remainders and comparisons of constants."""
    if depth == 0 or rng.random() < 0.15:
        return names[int(rng.integers(len(names)))] if rng.random() < 0.75 else ir.const(int(rng.integers(-9, 20)))
    a = random_index(rng, names, depth - 1)
    by = int(rng.choice([1, 2, 3, 4, 8, 16]))
    kind = rng.random()
    if kind < 0.2:
        return ir.Binary(DType.I64, 1, "mul", a, ir.const(by))
    if kind < 0.5:
        return ir.Binary(DType.I64, 1, str(rng.choice(["div", "mod"])), a, ir.const(by))
    b = random_index(rng, names, depth - 1)
    if kind < 0.6:
        cond = ir.Binary(DType.BOOL, 1, str(rng.choice(ir.COMPARE)), a, ir.const(int(rng.integers(-4, 16))))
        return ir.Select(DType.I64, 1, cond, a, b)
    return ir.Binary(DType.I64, 1, str(rng.choice(["add", "sub", "min", "max"])), a, b)


@pytest.mark.parametrize("seed", range(30))
def test_random_indices_keep_their_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = Builder()
    y = k.param("y", DType.I64, 4096)
    count = 0
    for i in k.loop("i", 6):
        for j in k.loop("j", 9, begin=int(rng.integers(-4, 2)), step=int(rng.integers(1, 4))):
            for m in k.loop("m", i + 2, begin=i):
                t = k.let(random_index(rng, [i, j, m], 2), "t")
                for _ in range(8):
                    k.store(y, (i * 16 + j + 4) * 16 + (m - i) * 8 + count % 8, random_index(rng, [i, j, m, t], 4))
                    count += 1
    kernel = k.kernel("indices")
    after = simplify(kernel)
    verify_kernel(after)
    before, found = np.zeros(4096, np.int64), np.zeros(4096, np.int64)
    run_kernel(kernel, [before])
    run_kernel(after, [found])
    np.testing.assert_array_equal(found, before)
    assert np.count_nonzero(before) > 50
    size = [
        sum(1 for s in statements(x.body) if isinstance(s, ir.Store) for _ in walk(s.value)) for x in (kernel, after)
    ]
    assert size[1] <= size[0], "simplification made the expressions larger"
