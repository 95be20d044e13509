"""The interpreter of loop IR: the semantics page, checked by hand-made values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from c2c.ir.errors import RunError
from c2c.ir.loops_interp import run_kernel
from c2c.ir.loops_parse import parse_kernel
from c2c.ir.loops_verify import verify_kernel
from c2c.ir.types import DType

INF = math.inf


def value(type_: str, text: str) -> object:
    """The scalar that an expression gives."""
    out = np.zeros(1, DType(type_).numpy)
    run_kernel(parse_kernel(f"kernel k(y: {type_}[1]) {{ store y[0] = {text} }}"), [out])
    return out[0].item()


@pytest.mark.parametrize(
    ("type_", "text", "expected"),
    [
        ("i8", "127:i8 + 1:i8", -128),
        ("u8", "0:u8 - 1:u8", 255),
        ("i32", "65536:i32 * 65537:i32", 65536),
        ("i64", "-7 / 2", -3),
        ("i64", "-7 % 2", -1),
        ("i64", "7 % -2", 1),
        ("u8", "250:u8 / 7:u8", 35),
        ("i8", "-128:i8 >> 7:i8", -1),
        ("u8", "128:u8 >> 7:u8", 1),
        ("i8", "abs(-128:i8)", -128),
        ("f32", "min(nan:f32, 1.0:f32)", 1.0),
        ("f32", "max(nan:f32, 1.0:f32)", 1.0),
        ("f32", "-3.5:f32 % 2.0:f32", -1.5),
        ("bool", "nan:f32 != nan:f32", True),
        ("bool", "nan:f32 >= nan:f32", False),
        ("bool", "cast<bool>(-0.0:f32)", False),
        ("f32", "round(2.5:f32)", 2.0),
        ("f32", "round(-3.5:f32)", -4.0),
        ("f32", "trunc(-1.9:f32)", -1.0),
        ("i32", "cast<i32>(-1.9:f32)", -1),
        ("i8", "cast<i8>(300:i32)", 44),
        ("bool", "not(true:bool)", False),
        ("i8", "not(5:i8)", -6),
        ("i32", "bitcast<i32>(1.0:f32)", 0x3F800000),
        ("i32", "bitcast<i32>(shuffle<0, 1, 0, 1>(bitcast<u8>(513:u32)))", 0x02010201),
        ("f16", "60000.0:f16 + 60000.0:f16", INF),
        ("f16", "2048.0:f16 + 1.0:f16", 2048.0),
        ("bf16", "256.0:bf16 + 3.0:bf16", 260.0),
        ("f32", "select(1 < 2, 3.0:f32, 4.0:f32)", 3.0),
        ("f32", "fma(2.0:f32, 3.0:f32, 4.0:f32)", 10.0),
        ("i64", "reduce<add>(ramp<4, 3>(1))", 22),
        ("i64", "shuffle<5>(ramp<4, 1>(0), ramp<4, 1>(10))", 11),
        ("i64", "reduce<max>(shuffle<3, 1>(ramp<4, -2>(0)))", -2),
        ("f64", "erf(0.5:f64)", math.erf(0.5)),
        ("f32", "reduce<add>(cast<f32>(shuffle<0, 1, 2, 3>(broadcast<4>(2))))", 8.0),
    ],
)
def test_operations(type_: str, text: str, expected: object) -> None:
    assert value(type_, text) == expected


def test_statements() -> None:
    kernel = parse_kernel(
        """kernel k(x: i32[8], y: i32[8]) {
             alloc t: i32x2[2] register
             prefetch x[1000]
             serial i = 0 to 7 step 2 {
               store t[0] = x[i; 2]
               if i < 4 { store y[i] = t[0] * 10:i32x2 } else { store y[ramp<2, -1>(i + 1)] = t[0] }
             }
           }"""
    )
    y = np.zeros(8, np.int32)
    run_kernel(kernel, [np.arange(8, dtype=np.int32), y])
    assert y.tolist() == [0, 10, 20, 30, 5, 4, 7, 6]


@pytest.mark.parametrize(("lanes", "index"), [(1, "-1"), (1, "4"), (3, "2; 3"), (2, "ramp<2, 4>(0)")])
def test_an_index_out_of_bounds_is_an_error(lanes: int, index: str) -> None:
    kernel = parse_kernel(f"kernel k(x: f32[4]) {{ let t: f32x{lanes} = x[{index}] }}")
    with pytest.raises(RunError, match="outside 'x'"):
        run_kernel(kernel, [np.zeros(4, np.float32)])


def test_threads_wait_for_each_other_at_barriers() -> None:
    """A work-group reverses its elements through shared memory, the second time what others have written."""
    kernel = parse_kernel(
        """kernel k(x: i32[16], y: i32[16]) {
             grid g = 0 to 2 {
               alloc s: i32[8] shared
               thread a = 0 to 2 {
                 thread b = 0 to 4 {
                   let t: i64 = a * 4 + b
                   store s[t] = x[g * 8 + t]
                   barrier
                   serial i = 0 to 2 {
                     let v: i32 = s[7 - t]
                     barrier
                     store s[t] = v + 1:i32
                     barrier
                   }
                   store y[g * 8 + t] = s[7 - t]
                 }
               }
             }
           }"""
    )
    verify_kernel(kernel)
    y = np.zeros(16, np.int32)
    run_kernel(kernel, [np.arange(16, dtype=np.int32), y])
    assert y.tolist() == [*range(9, 1, -1), *range(17, 9, -1)]


def test_threads_exchange_values() -> None:
    """Sums of four neighbours by a butterfly; the threads of both loops count."""
    kernel = parse_kernel(
        """kernel k(x: i32[16], y: i32[16]) {
             grid g = 0 to 2 {
               thread a = 0 to 4 {
                 thread b = 0 to 2 {
                   let t: i64 = g * 8 + a * 2 + b
                   let one: i32 = subgroup_xor<1>(x[t])
                   let two: i32 = x[t] + one
                   let others: i32 = subgroup_xor<2>(two)
                   store y[t] = two + others
                 }
               }
             }
           }"""
    )
    verify_kernel(kernel)
    y = np.zeros(16, np.int32)
    run_kernel(kernel, [np.arange(16, dtype=np.int32), y])
    assert y.tolist() == [6] * 4 + [22] * 4 + [38] * 4 + [54] * 4


@pytest.mark.parametrize("body", ["if t < 2 { let a: i32 = subgroup_xor<1>(y[t]) }",
                                  "if t < 2 { barrier } else { let a: i32 = subgroup_xor<1>(y[t]) }"])  # fmt: skip
def test_an_exchange_that_some_threads_miss_is_an_error(body: str) -> None:
    kernel = parse_kernel(f"kernel k(y: i32[4]) {{ thread t = 0 to 4 {{ {body} }} }}")
    with pytest.raises(RunError, match="not all threads"):
        run_kernel(kernel, [np.zeros(4, np.int32)])


MATRICES = """kernel k(x: f32[192], y: f32[128]) {
  alloc a: f32[96] shared
  alloc b: f32[96] shared
  alloc c: f32[128] shared
  thread part = 0 to 2 {
    thread t = 0 to 32 {
      alloc left: f32x64[1] matrix
      alloc right: f32x64[1] matrix
      alloc sums: f32x64[1] matrix
      serial i = t to 96 step 32 { store a[i] = x[i] store b[i] = x[96 + i] }
      store sums[0] = 0.5:f32x64
      barrier
      matrix_load left[0] = a[0; 12]
      matrix_load right[0] = b[part * 4; 12] transposed
      matrix_multiply sums[0] = left[0] * right[0]
      matrix_store c[part * 8; 16] = sums[0]
      barrier
      serial j = 0 to 2 { store y[part * 64 + t * 2 + j] = c[part * 64 + t * 2 + j] }
    }
  }
}"""


def test_subgroups_multiply_matrices() -> None:
    """Eight rows and columns of twelve elements; each of two subgroups has other columns, turned, and its own sums."""
    kernel = parse_kernel(MATRICES)
    verify_kernel(kernel)
    x, y = np.random.default_rng(1).integers(-4, 5, 192).astype(np.float32), np.zeros(128, np.float32)
    run_kernel(kernel, [x, y])
    a, b = x[:96].reshape(8, 12), x[96:].reshape(8, 12)
    expected = np.concatenate([a[:, :8] @ b[:, p * 4 : p * 4 + 8].T + 0.5 for p in range(2)], 1)
    np.testing.assert_array_equal(y.reshape(8, 16), expected)


def test_threads_that_differ_in_a_statement_on_matrices_are_an_error() -> None:
    kernel = parse_kernel(MATRICES.replace("a[0; 12]", "a[t; 8]"))
    with pytest.raises(RunError, match="threads of a subgroup differ"):
        run_kernel(kernel, [np.zeros(192, np.float32), np.zeros(128, np.float32)])


def test_a_barrier_that_some_threads_miss_is_an_error() -> None:
    kernel = parse_kernel("kernel k(y: i32[4]) { thread t = 0 to 4 { if t < 2 { barrier } } }")
    with pytest.raises(RunError, match="not all threads"):
        run_kernel(kernel, [np.zeros(4, np.int32)])
