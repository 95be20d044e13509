"""Generated C: agrees with the interpreter, is free of undefined behaviour and of warnings, keeps the ABI."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from c2c.codegen.c_helpers import helper
from c2c.codegen.c_source import emit_c
from c2c.ir import loops as ir
from c2c.ir.errors import CodegenError
from c2c.ir.loops import Kernel
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_random import random_inputs, random_program
from c2c.ir.loops_verify import verify_program
from c2c.ir.loops_visit import statements
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType

pytestmark = pytest.mark.needs("gcc")

Array = np.ndarray[Any, Any]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
RANDOM = ["-Wno-type-limits", "-Wno-tautological-compare", "-Wno-sign-compare", "-Wno-unused-but-set-variable"]
"""Warnings about what random kernels compute, not about how it is written."""


def build(source: str, folder: Path, *flags: str) -> ctypes.CDLL:
    path = folder / "model.c"
    path.write_text(source)
    command = ["gcc", *STRICT, "-ffp-contract=off", "-shared", "-fPIC", *flags, str(path), "-o", f"{path}.so", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return ctypes.CDLL(f"{path}.so")


def aligned(size: int) -> Array:
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


def run(library: ctypes.CDLL, program: Program, inputs: list[Array]) -> list[Array]:
    """Outputs of a program whose weights, if any, are embedded."""
    outputs = [np.zeros(p.shape, p.dtype.numpy) for p in program.outputs]
    arena = aligned(max(64, program.arena_bytes))
    pointers = [a.ctypes.data for a in (*inputs, *outputs, arena)] + [None, None]
    code = getattr(library, f"{program.name}_run")((ctypes.c_void_p * len(pointers))(*pointers))
    assert code == 0
    return outputs


@pytest.mark.parametrize("first", [0, 1000])
def test_random_kernels_equal_the_interpreter(first: int, tmp_path: Path) -> None:
    program = random_program(range(first, first + 8))
    verify_program(program)
    inputs = random_inputs(program, first)
    library = build(
        emit_c(program, embed_weights=True), tmp_path, "-O1", *RANDOM, "-fsanitize=undefined",
        "-fsanitize-undefined-trap-on-error",
    )  # fmt: skip
    for port, found, expected in zip(
        program.outputs, run(library, program, inputs), run_program(program, inputs), strict=True
    ):
        assert np.array_equal(found, expected, equal_nan=port.dtype.is_float), f"{port.name}, seeds from {first}"


def single(kernel: Kernel, **changes: Any) -> Program:
    """A program of one step: parameters that are stored are outputs, the others inputs."""
    stored = {s.buffer.name for s in _stores(kernel)}
    ins = [p for p in kernel.params if p.name not in stored]
    outs = [p for p in kernel.params if p.name in stored]
    args = [
        Slot("output", 0, outs.index(p)) if p.name in stored else Slot("input", 0, ins.index(p)) for p in kernel.params
    ]
    ports = [[Port(p.name, p.dtype, (p.size,)) for p in side] for side in (ins, outs)]
    steps = (Step(kernel.name, tuple(args), "step_0", ("node */ name",)),)
    program = Program("m", tuple(ports[0]), tuple(ports[1]), {kernel.name: kernel}, steps, 0, bytearray())
    for name, value in changes.items():
        setattr(program, name, value)
    verify_program(program)
    return program


def _stores(kernel: Kernel) -> list[ir.Store]:
    return [s for s in statements(kernel.body) if isinstance(s, ir.Store)]


def test_names_that_c_reserves_are_renamed(tmp_path: Path) -> None:
    k = Builder()
    x, y = k.param("int", DType.F32, 8), k.param("exp", DType.F32, 8)
    for i in k.loop("l", 8):
        t = k.let(k.load(x, i) + 1.0, "float")
        u = k.let(ir.call("exp", t), "exp_")
        k.store(y, i, u * t * k.let(t * t, "uint8_t") + k.let(t - u, "c2c_max_f32"))
    program = single(k.kernel("k"))
    values = np.linspace(-2, 2, 8, dtype=np.float32)
    (found,) = run(build(emit_c(program, embed_weights=True), tmp_path), program, [values])
    np.testing.assert_allclose(found, run_program(program, [values])[0], rtol=1e-6)


def test_lanes_of_a_store_do_not_see_each_other(tmp_path: Path) -> None:
    """A vector is read whole before any lane of it is written."""
    k = Builder()
    y = k.param("y", DType.I32, 16)
    tile = k.registers("t", DType.I32, 1, 4)
    for i in range(16):
        k.store(y, i, ir.const(i, DType.I32))
    k.store(y, 1, k.load(y, 0, 8))
    k.store(tile, 0, k.load(y, 8, 4))
    k.store(tile, 0, k.load(tile, 0) + ir.broadcast(ir.lane(k.load(tile, 0), 0), 4))
    k.store(y, 12, k.load(tile, 0))
    program = single(k.kernel("k"))
    (found,) = run(build(emit_c(program, embed_weights=True), tmp_path, "-Wno-unused-parameter"), program, [])
    assert found.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 14, 16, 17, 18]


@pytest.mark.parametrize("inplace", [False, True])
def test_restrict_only_where_buffers_are_apart(inplace: bool) -> None:
    k = Builder()
    x, y = k.param("x", DType.F32, 8), k.param("y", DType.F32, 8)
    k.store(y, 0, -k.load(x, 0, 8))
    text = emit_c(single(k.kernel("k", inplace=inplace)), embed_weights=True)
    assert ("restrict" in text) is not inplace


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64])
def test_functions_of_libm_and_fma(dtype: DType, tmp_path: Path) -> None:
    k = Builder()
    x, y = k.param("x", dtype, 16), k.param("y", dtype, 16 * (len(ir.CALLS) + 1))
    a, b = k.let(k.load(x, 0, 8)), k.let(k.load(x, 8, 8))
    for i, name in enumerate(ir.CALLS):
        above = name in ("log", "pow", "acosh")
        arg = ir.unary("abs", a) + 1.5 if above else a * 0.25
        k.store(y, i * 16, ir.call(name, *((arg, b) if name in ("pow", "fmod") else (arg,))))
    k.store(y, len(ir.CALLS) * 16, ir.fma(a, b, -a))
    program = single(k.kernel("k"))
    values = np.random.default_rng(5).uniform(-2, 2, 16).astype(dtype.numpy)
    (found,) = run(build(emit_c(program, embed_weights=True), tmp_path), program, [values])
    eps = float(np.finfo(dtype.numpy).eps)
    assert np.count_nonzero(found) >= 8 * len(ir.CALLS)
    np.testing.assert_allclose(found, run_program(program, [values])[0], rtol=4 * eps, atol=2 * eps)


# --- 16-bit floats


HARNESS = """
#include <stdint.h>
#include <string.h>
{helpers}
void to_float(const uint16_t *h, float *f, int n) {{ for (int i = 0; i < n; i++) f[i] = c2c_float_{t}(h[i]); }}
void from_double(const double *x, uint16_t *h, int n) {{ for (int i = 0; i < n; i++) h[i] = c2c_{t}(x[i]); }}
"""


@pytest.mark.parametrize(("name", "numpy_type"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_16_bit_floats_convert_exactly(name: str, numpy_type: Any, tmp_path: Path) -> None:
    texts = "".join(helper(h)[0] for h in ("narrow", name, f"float_{name}"))
    library = build(HARNESS.format(helpers=texts, t=name), tmp_path, "-O2", "-fsanitize=undefined",
                    "-fsanitize-undefined-trap-on-error")  # fmt: skip
    every = np.arange(1 << 16).astype(np.uint16)
    values = np.zeros(1 << 16, np.float32)
    pointer = ctypes.c_void_p
    library.to_float(pointer(every.ctypes.data), pointer(values.ctypes.data), 1 << 16)
    assert np.array_equal(values, every.view(numpy_type).astype(np.float32), equal_nan=True)
    finite = np.sort(values[np.isfinite(values)].astype(np.float64))
    ties = (finite[1:] + finite[:-1]) / 2
    around = np.concatenate([finite, ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)])
    around = np.concatenate([around, [np.inf, -np.inf, np.nan, 1e300, -1e300, 1e-300, 5e-324, 65520, 65519.99, 3.4e38]])
    found = np.zeros(len(around), np.uint16)
    library.from_double(pointer(around.ctypes.data), pointer(found.ctypes.data), len(around))
    expected = nearest(around, numpy_type)
    wrong = np.flatnonzero((found != expected) & ~np.isnan(around))
    assert not len(wrong), [(around[i], hex(found[i]), hex(expected[i])) for i in wrong[:5]]
    assert np.isnan(found[np.isnan(around)].view(numpy_type)).all()


def nearest(x: Array, numpy_type: Any) -> Array:
    """Bits of the value of `numpy_type` that is nearest to a double, ties to the even one, found by search."""
    bits = np.arange(1 << 15).astype(np.uint16)
    with np.errstate(invalid="ignore"):
        values = bits.view(numpy_type).astype(np.float64)
    table = values[np.isfinite(values)]
    table = np.append(table, 2 * table[-1] - table[-2])  # what rounds to infinity is nearest to this one
    size = np.abs(np.nan_to_num(x, nan=0.0, posinf=1e308, neginf=-1e308))
    above = np.clip(np.searchsorted(table, size), 1, len(table) - 1)
    low, high = table[above - 1], table[above]
    to_low, to_high = size - low, high - size
    up = (to_high < to_low) | ((to_high == to_low) & (above % 2 == 0))
    index = np.where(size >= table[-1], len(table) - 1, np.where(up, above, above - 1))
    return (index | np.where(np.signbit(x), 0x8000, 0)).astype(np.uint16)


# --- the ABI


def two_steps(threads: int = 4) -> Program:
    """y = (x + w) * 2 by two parallel kernels over the arena; w in the weights."""
    n = 64

    def kernel(name: str, op: str) -> Kernel:
        k = Builder()
        a, b, y = (k.param(p, DType.F32, n) for p in "aby")
        for i in k.parallel("i", n // 8):
            k.store(y, i * 8, ir.binary(op, k.load(a, i * 8, 8), k.load(b, i * 8, 8)))
        return k.kernel(name)

    weights = bytearray(np.concatenate([np.arange(n), np.full(n, 2)]).astype(np.float32).tobytes() + b"odd")
    steps = (
        Step("add", (Slot("input"), Slot("weights"), Slot("arena", 128)), "m__000_add", ("add1",)),
        Step("mul", (Slot("arena", 128), Slot("weights", 256), Slot("output")), "m__001_mul", ("mul1",)),
    )
    port = (Port("p", DType.F32, (n,)),)
    kernels = {"add": kernel("add", "add"), "mul": kernel("mul", "mul")}
    program = Program("m", port, port, kernels, steps, 512, weights, threads)
    verify_program(program)
    return program


X = np.linspace(-1, 1, 64, dtype=np.float32)
Y = (X + np.arange(64, dtype=np.float32)) * 2


def test_embedded_weights(tmp_path: Path) -> None:
    program = two_steps()
    library = build(emit_c(program, embed_weights=True), tmp_path, "-fsanitize=undefined",
                    "-fsanitize-undefined-trap-on-error")  # fmt: skip
    (found,) = run(library, program, [X])
    np.testing.assert_array_equal(found, Y)


TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32)
RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, TASK, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32)


class Parallel(ctypes.Structure):
    _fields_ = [("run", RUN), ("self", ctypes.c_void_p), ("workers", ctypes.c_int32)]


@pytest.mark.parametrize(("offered", "threads", "asked"), [(3, 4, [3, 3]), (9, 4, [4, 4]), (1, 4, []), (9, 1, [])])
def test_parallel_steps_ask_for_workers(offered: int, threads: int, asked: list[int], tmp_path: Path) -> None:
    program = two_steps(threads)
    library = build(emit_c(program, embed_weights=False), tmp_path)
    calls: list[int] = []

    def run_split(_: Any, task: Any, frame: Any, count: int, workers: int) -> None:
        assert count == 8
        calls.append(workers)
        cuts = [count * w // workers for w in range(workers + 1)]
        for w in reversed(range(workers)):
            task(frame, cuts[w], cuts[w + 1], w)

    parallel = Parallel(RUN(run_split), None, offered)
    found = np.zeros(64, np.float32)
    arena, weights = aligned(512), aligned(len(program.weights))
    weights[:] = np.frombuffer(program.weights, np.uint8)
    pointers = [X.ctypes.data, found.ctypes.data, arena.ctypes.data, weights.ctypes.data, ctypes.addressof(parallel)]

    def call(at: int = -1, value: int | None = None) -> int:
        changed = [value if i == at else p for i, p in enumerate(pointers)]
        return int(library.m_run((ctypes.c_void_p * 5)(*changed)))

    assert call() == 0
    np.testing.assert_array_equal(found, Y)
    assert calls == asked
    assert [call(at) for at in range(4)] == [1, 1, 1, 1], "a NULL pointer"
    assert call(2, pointers[2] + 32) == 2 and call(3, pointers[3] + 4) == 2, "not aligned"
    assert call(4) == 0, "serial"


def test_a_program_without_weights_does_not_read_their_pointer(tmp_path: Path) -> None:
    k = Builder()
    y = k.param("y", DType.I8, 1)
    k.store(y, 0, ir.const(5, DType.I8))
    program = single(k.kernel("k"))
    (found,) = run(build(emit_c(program, embed_weights=False), tmp_path), program, [])
    assert found.tolist() == [5]


def test_equal_programs_give_equal_text() -> None:
    first, second = (emit_c(random_program(range(4)), embed_weights=True) for _ in range(2))
    assert first == second


def test_what_only_a_gpu_can_do_is_refused() -> None:
    threads = ir.For("t", ir.const(0), ir.const(4), 1, "thread", ir.Block((ir.Barrier(),)))
    kernel = Kernel("k", (), ir.Block((threads,)))
    with pytest.raises(CodegenError, match="barrier needs a GPU") as error:
        emit_c(single(kernel), embed_weights=True)
    assert error.value.where == "kernel k"
    shared = replace(kernel, body=ir.Block((ir.Alloc(ir.Buffer("s", DType.F32, 4, "shared")),)))
    with pytest.raises(CodegenError, match="no shared memory"):
        emit_c(single(shared), embed_weights=True)
