"""Unrolling: copies in order, names new in each copy, the same results."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.ir.errors import PassError
from c2c.ir.loops import For
from c2c.ir.loops_interp import run_kernel
from c2c.ir.loops_parse import parse_kernel
from c2c.ir.loops_random import RandomKernel, random_memory
from c2c.ir.loops_text import print_kernel
from c2c.ir.loops_verify import verify_kernel
from c2c.ir.loops_visit import statements
from c2c.passes.loops.unroll import unroll


def unrolled(body: str) -> str:
    kernel = unroll(parse_kernel(f"kernel k(x: f32[64], y: f32[64]) {{ {body} }}"))
    verify_kernel(kernel)
    text: str = print_kernel(kernel)
    return text.partition("{\n")[2].rpartition("}")[0]


def test_a_body_becomes_its_copies() -> None:
    assert unrolled("unroll i = 1 to 6 step 2 { let t: f32 = x[i * 8 + 2] store y[i] = t }") == (
        "  let t: f32 = x[10]\n"
        "  store y[1] = t\n"
        "  let t_1: f32 = x[26]\n"
        "  store y[3] = t_1\n"
        "  let t_2: f32 = x[42]\n"
        "  store y[5] = t_2\n"
    )


def test_nested_loops_and_what_they_define() -> None:
    text = unrolled(
        """unroll i = 0 to 2 { alloc a: f32x4[2] register
             unroll j = 0 to 2 { store a[j] = x[i * 8 + j * 4; 4] }
             serial s = 0 to i + 1 {
               if s < i { let t: f32x4 = a[1] store y[s * 4 + i] = t } else { store y[s] = a[0] }
             }
           }"""
    )
    assert text == (
        "  alloc a: f32x4[2] register\n"
        "  store a[0] = x[0; 4]\n"
        "  store a[1] = x[4; 4]\n"
        "  serial s = 0 to 1 {\n"
        "    if s < 0 {\n"
        "      let t: f32x4 = a[1]\n"
        "      store y[s * 4] = t\n"
        "    } else {\n"
        "      store y[s] = a[0]\n"
        "    }\n"
        "  }\n"
        "  alloc a_1: f32x4[2] register\n"
        "  store a_1[0] = x[8; 4]\n"
        "  store a_1[1] = x[12; 4]\n"
        "  serial s_1 = 0 to 2 {\n"
        "    if s_1 < 1 {\n"
        "      let t_1: f32x4 = a_1[1]\n"
        "      store y[s_1 * 4 + 1] = t_1\n"
        "    } else {\n"
        "      store y[s_1] = a_1[0]\n"
        "    }\n"
        "  }\n"
    )


def test_a_kernel_without_such_loops_is_the_same_object() -> None:
    kernel = parse_kernel("kernel k(y: f32[4]) { serial i = 0 to 4 { store y[i] = 1.0:f32 } }")
    assert unroll(kernel) is kernel


def test_too_many_copies_are_refused() -> None:
    with pytest.raises(PassError, match="unrolling loop i makes 99999 copies"):
        unroll(parse_kernel("kernel k(y: f32[4]) { unroll i = 0 to 99999 { store y[0] = 1.0:f32 } }"))
    with pytest.raises(PassError, match="its bounds are no constants"):
        unroll(parse_kernel("kernel k(n: i64[4]) { unroll i = 0 to n[0] { store n[0] = 1 } }"))


@pytest.mark.parametrize("seed", range(20))
def test_random_kernels_compute_the_same(seed: int) -> None:
    kernel = RandomKernel(seed).kernel
    after = unroll(kernel)
    verify_kernel(after)
    assert not any(isinstance(s, For) and s.kind == "unroll" for s in statements(after.body))
    before, found = random_memory(kernel, seed), random_memory(kernel, seed)
    run_kernel(kernel, before)
    run_kernel(after, found)
    for p, a, b in zip(kernel.params, before, found, strict=True):
        assert np.array_equal(a, b, equal_nan=p.dtype.is_float), p.name
