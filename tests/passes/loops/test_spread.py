"""Loops become grids only where their iterations are independent: by text, and random kernels run in another order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from c2c.codegen.launch import count
from c2c.ir.loops import Block, For, Kernel, Var, binary
from c2c.ir.loops_interp import run_kernel
from c2c.ir.loops_parse import parse_kernel
from c2c.ir.loops_random import RandomKernel, random_memory
from c2c.ir.loops_text import print_kernel
from c2c.ir.loops_verify import verify_kernel
from c2c.ir.loops_visit import statements
from c2c.ir.types import DType
from c2c.passes.loops import optimise_kernel
from c2c.passes.loops.digits import substituted
from c2c.passes.loops.spread import spread

HEAD = "kernel k(x: f32[4096], n: i64[64], y: f32[4096], z: f32[4096])"


def grids(body: str) -> list[list[int]]:
    """Sizes of the grids, outermost first, of the kernels that a body becomes."""
    found = []
    for kernel in spread(parse_kernel(f"{HEAD} {{ {body} }}")):
        verify_kernel(kernel)
        found.append([count(s) for s in statements(kernel.body) if isinstance(s, For) and s.kind == "grid"])
    return found


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        ("serial i = 0 to 16 { serial j = 0 to 8 { store y[i * 8 + j] = x[j] } }", [[16, 8]]),
        ("serial i = 0 to 16 { serial j = 0 to 8 { store y[j * 16 + i] = x[j] } }", [[16, 8]]),
        ("parallel i = 0 to 16 { store z[worker] = x[i] store y[i] = z[worker] }", [[1]]),
        ("parallel i = 0 to 16 { store z[worker * 16 + i] = x[i] store y[i] = z[worker * 16 + i] }", [[16]]),
        ("serial i = 0 to 16 step 4 { store y[i] = x[0] store y[i + 3] = x[1] }", [[4]]),
        ("serial i = 0 to 16 { store y[i] = y[i + 1] }", [[1]]),
        ("serial i = 0 to 16 { store y[i] = y[i] + y[i + 16] }", [[1]]),
        ("serial i = 0 to 16 { store y[i] = y[i] + x[i + 1] }", [[16]]),
        ("serial i = 0 to 16 { store y[i * 2] = x[i] store y[i * 2 + 1] = x[i] }", [[16]]),
        ("serial i = 0 to 16 { store y[i * 2] = x[i] store y[i * 2 + 2] = x[i] }", [[1]]),
        ("serial i = 0 to 16 { store y[i / 2] = x[i] }", [[8]]),
        ("serial i = 0 to 16 { store y[n[i]] = x[i] }", [[1]]),
        ("serial i = 0 to 16 { serial j = 0 to 9 { store y[i * 8 + j] = x[j] } }", [[1]]),
        ("serial i = 0 to 16 { store y[0] = x[i] }", [[1]]),
        ("serial i = 0 to 16 { alloc a: f32[1] register store a[0] = x[i] store y[15 - i] = a[0] }", [[16]]),
        ("alloc a: f32[4] stack serial i = 0 to 16 { store a[i % 4] = x[i] store y[i] = a[0] }", [[1]]),
        ("serial i = 0 to 16 { store y[i] = x[i] } serial i2 = 0 to 8 { store z[i2] = y[i2 * 2] }", [[16], [8]]),
        (
            "serial i = 0 to 4 { serial j = 0 to 8 { store y[i * 8 + j] = x[j] } "
            "serial j2 = 0 to 8 { store z[i * 8 + j2] = y[i * 8 + 7 - j2] } }",
            [[4, 8], [4, 8]],
        ),
        ("parallel t = 0 to 24 { serial w = 0 to 5 { store y[t / 6 * 30 + t % 6 * 5 + w] = x[w] } }", [[4, 6, 5]]),
        ("serial i = 0 to 5 { let a: i64 = i * 3 serial j = 0 to 3 { store y[a + j] = x[a] } }", [[5, 3]]),
        ("serial i = 0 to 4 { let a: f32 = y[i] serial j = 0 to 3 { store y[i * 3 + j] = a } }", [[1]]),
        (
            "serial a = 0 to 2 { serial b = 0 to 3 { serial c = 0 to 4 { serial d = 0 to 5 { "
            "store y[((a * 3 + b) * 4 + c) * 5 + d] = x[d] } } } }",
            [[6, 4, 5]],
        ),
        ("store y[0] = x[0]", [[1]]),
        ("serial i = 0 to 16 { let t: i64 = n[i] store y[i] = x[t * 2] }", [[16]]),
        ("serial i = 0 to 9 { serial j = i to 9 { store y[i * 9 + j] = x[j] } }", [[9]]),
        ("serial i = 0 to 9 { serial j = i to i + 9 { store y[i * 9 + j] = x[j] } }", [[9]]),
        ("serial i = 0 to 9 { serial j = i to i + 9 { store y[i * 8 + j] = x[j] } }", [[9]]),
        ("serial i = 0 to 9 { serial j = i to i + 9 { store y[i * 7 + j] = x[j] } }", [[1]]),
        (
            "serial i = 0 to 4 { alloc a: f32[1] stack store a[0] = x[i] store y[i * 8] = a[0] "
            "serial j = 1 to 8 { store y[i * 8 + j] = x[j] } }",
            [[4], [4, 7]],
        ),
        (
            "serial i = 0 to 4 { alloc a: f32[1] stack store a[0] = x[i] "
            "serial j = 1 to 8 { store y[i * 8 + j] = a[0] } }",
            [[4]],
        ),
        (
            "serial i = 0 to 4 { alloc a: f32[1] stack store a[0] = x[i] "
            "serial j = 1 to 8 { store y[i * 8 + j] = x[j] } store y[i * 8] = a[0] }",
            [[4]],
        ),
    ],
)
def test_grids(body: str, sizes: list[list[int]]) -> None:
    assert grids(body) == sizes


def test_a_name_that_is_defined_between_loops_follows_them() -> None:
    text = "serial i = 0 to 4 { let a: f32 = x[i] serial j = 0 to 3 { store y[i * 3 + j] = a } }"
    (kernel,) = spread(parse_kernel(f"{HEAD} {{ {text} }}"))
    assert " ".join(print_kernel(kernel).split()) == (
        "kernel k(x: f32[4096], y: f32[4096]) { grid i = 0 to 4 { grid j = 0 to 3 { let a: f32 = x[i] "
        "store y[i * 3 + j] = a } } }"
    )


def backwards(kernel: Kernel) -> Kernel:
    """The same kernel with its grid counted from the end."""
    body = kernel.body
    loops: list[For] = []
    while isinstance(first := body.body[0], For) and first.kind == "grid":
        loops.append(first)
        body = first.body
    last = {n.var: binary("sub", count(n) - 1, Var(DType.I64, 1, n.var)) for n in loops}
    body = substituted(body, last)
    for loop in reversed(loops):
        body = Block((replace(loop, body=body),))
    return replace(kernel, body=body)


def test_random_kernels_compute_the_same_in_any_order() -> None:
    """Some of them have grids of more than one thread; all are run from the last thread to the first."""
    spreads = 0
    for seed in range(60):
        kernel = optimise_kernel(RandomKernel(seed).kernel)
        pieces = spread(kernel)
        expected, found = random_memory(kernel, seed), random_memory(kernel, seed)
        run_kernel(kernel, expected)
        names = {p.name: a for p, a in zip(kernel.params, found, strict=True)}
        for piece in pieces:
            verify_kernel(piece)
            loops = [s for s in statements(piece.body) if isinstance(s, For) and s.kind == "grid"]
            spreads += any(count(s) > 1 for s in loops)
            run_kernel(backwards(piece), [names[p.name] for p in piece.params])
        for p, a, b in zip(kernel.params, expected, found, strict=True):
            assert np.array_equal(a, b, equal_nan=p.dtype.is_float), (seed, p.name)
    assert spreads > 20
