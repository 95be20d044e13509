"""The generated object: interface, structure on every target, threads, reproducibility, weights."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.llvm_program import emit_asm, emit_llvm, emit_object, write_object
from c2c.codegen.object_file import read_object
from c2c.codegen.target import OSES, TARGETS, Target
from c2c.ir.errors import CodegenError
from c2c.ir.loops import Expr, Kernel, call, const, fma, maximum, ramp, unary
from c2c.ir.loops_builder import Builder
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType
from c2c.runtime_stub.loader import Loaded, aligned_bytes

N = 1000
LIBM = {"expf", "memcpy", "memset"}
PLATFORM = {"windows": {"_fltused", "__chkstk"}}
"""What a platform's own start-up code provides and every compiler's objects ask for."""


def axpy(lanes: int = 8) -> Kernel:
    """y = x · w + 1, the rest by exp and floor."""
    k = Builder()
    x, w, y = k.param("x", DType.F32, N), k.param("w", DType.F32, N), k.param("y", DType.F32, N)
    for i in k.parallel("i", N // lanes):
        at = i * lanes
        k.store(y, at, fma(k.load(x, at, lanes), k.load(w, at, lanes), const(1.0, DType.F32, lanes)))
    return k.kernel("model__axpy")


def decay(k: Builder, value: Expr) -> Expr:
    return call("exp", unary("neg", unary("floor", maximum(value, 0.0))))


def second() -> Kernel:
    k = Builder()
    x, y = k.param("x", DType.F32, N), k.param("y", DType.F32, N)
    for i in k.loop("i", N):
        k.store(y, i, decay(k, k.load(x, i)))
    return k.kernel("model__decay", shaped=False)


def program(threads: int = 1, weights: int = 1) -> Program:
    values = np.random.default_rng(3).standard_normal(N).astype(np.float32)
    return Program(
        "model",
        (Port("x", DType.F32, (N,)),),
        (Port("y", DType.F32, (N,)), Port("z", DType.F32, (N,))),
        {"model__axpy": axpy(), "model__decay": second()},
        (
            Step("model__axpy", (Slot("input"), Slot("weights", 64), Slot("arena", 128)), "model__000_first"),
            Step("model__axpy", (Slot("arena", 128), Slot("weights", 64), Slot("output")), "model__001_second"),
            Step("model__decay", (Slot("output"), Slot("output", 0, 1)), "model__002_third"),
        ),
        128 + 4 * N,
        bytearray(bytes(64) + values.tobytes() + bytes(weights - 1)),
        threads,
    )


def expected(x: np.ndarray) -> list[np.ndarray]:
    w = np.random.default_rng(3).standard_normal(N).astype(np.float32)
    y = (x * w + 1) * w + 1
    return [y, np.exp(-np.floor(np.maximum(y, 0)))]


def feed() -> np.ndarray:
    return np.random.default_rng(4).standard_normal(N).astype(np.float32)


ALL = [
    f"{name}-{system}".removesuffix("-linux")
    for name, target in TARGETS.items()
    for system in OSES
    if name != "native" and target.device is None and not (system == "ios" and name.startswith("x86"))
]


@pytest.mark.parametrize("name", ALL)
def test_object_of_every_target(name: str) -> None:
    target = Target.parse(name)
    p = program()
    obj = emit_object(p, target)
    made = read_object(obj)
    assert (made.format, made.machine) == (target.object_format, target.arch)
    assert made.platform == (target.os if made.format == "macho" else "")
    assert set(made.undefined) <= LIBM | ({"floorf"} if not target.rounds else set()) | PLATFORM.get(target.os, set())
    assert "expf" in made.undefined
    assert made.sizes.data == made.sizes.bss == 0, "writable data"
    assert made.sizes.embedded_weights == len(p.weights)
    weights = made.sections[next(s.section for s in made.symbols if s.name == "model_weights") or 0]
    assert obj[weights.offset : weights.offset + weights.size] == bytes(p.weights)
    assert weights.offset % 64 == 0 or target.object_format == "macho" and weights.address % 64 == 0
    names = {s.name for s in made.symbols}
    assert {"model_run", "model__axpy", "model__001_second"} <= names
    local = {s.name for s in made.symbols if not s.is_global}
    assert {"model__axpy", "model__001_second"} <= local


@pytest.mark.parametrize("name", ["x86-64", "arm64-neon-macos", "x86-64-windows"])
def test_weights_beside_the_object(name: str) -> None:
    made = read_object(emit_object(program(), Target.parse(name), embed_weights=False))
    assert made.sizes.embedded_weights == 0 and "model_weights" not in made.exported


@pytest.mark.parametrize("target", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("embed", [True, False])
def test_runs_here(target: str, embed: bool) -> None:
    p = program()
    obj = emit_object(p, Target.parse(target), embed_weights=embed)
    loaded = Loaded(obj, "model", arena_bytes=p.arena_bytes, weights=None if embed else p.weights)
    outputs = [np.empty(N, np.float32), np.empty(N, np.float32)]
    assert loaded.run([feed()], outputs) == 0
    for found, want in zip(outputs, expected(feed()), strict=True):
        np.testing.assert_allclose(found, want, 1e-5, 1e-5)


@pytest.mark.needs("qemu-aarch64")
@pytest.mark.needs("aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("name", ["arm64-neon", "arm64-dotprod"])
def test_runs_emulated(name: str, run_program: Callable[..., list[np.ndarray]]) -> None:
    for found, want in zip(run_program(program(), Target.parse(name), [feed()]), expected(feed()), strict=True):
        np.testing.assert_allclose(found, want, 1e-5, 1e-5)


def test_threads_change_no_bit() -> None:
    results = []
    for threads in (1, 2, 3, 7):
        p = program(threads)
        loaded = Loaded(emit_object(p, Target.parse("native")), "model", arena_bytes=p.arena_bytes, threads=threads)
        for _ in range(20):
            outputs = [np.empty(N, np.float32), np.empty(N, np.float32)]
            assert loaded.run([feed()], outputs) == 0
            results.append(b"".join(o.tobytes() for o in outputs))
    assert len(set(results)) == 1


def test_trace_times_every_step() -> None:
    p = program()
    loaded = Loaded(emit_object(p, Target.parse("native")), "model", arena_bytes=p.arena_bytes)
    outputs = [np.empty(N, np.float32), np.empty(N, np.float32)]
    times = loaded.trace([feed()], outputs, len(p.steps))
    assert times.shape == (3,) and (times > 0).all() and (times < 10**9).all()


def test_trace_runs_another_program_before_every_step() -> None:
    """Its nanoseconds stand before those of the step; both leave their results."""
    p = program()
    loaded, other = (Loaded(emit_object(p, Target.parse("native")), "model", arena_bytes=p.arena_bytes) for _ in "ab")
    outputs, beside = ([np.full(N, np.nan, np.float32) for _ in "ab"] for _ in "ab")
    times = loaded.trace([feed()], outputs, len(p.steps), other.bind([feed()], beside))
    assert times.shape == (3, 2) and (times > 0).all() and (times < 10**9).all()
    for found, also, want in zip(outputs, beside, expected(feed()), strict=True):
        np.testing.assert_allclose(found, want, 1e-5, 1e-5)
        np.testing.assert_array_equal(also, found)


def test_error_codes() -> None:
    """NULL pointers give 1, unaligned arena or weights 2."""
    p = program()
    loaded = Loaded(emit_object(p, Target.parse("native"), embed_weights=False), "model", arena_bytes=0)
    x, y, z, arena, weights = (aligned_bytes(8 * N) for _ in range(5))
    weights[: len(p.weights)] = np.frombuffer(p.weights, np.uint8)
    pointers = [a.ctypes.data for a in (x, y, z, arena, weights)]
    assert loaded.call([*pointers, None]) == 0
    assert loaded.call(None) == 1
    for i in range(5):
        assert loaded.call([None if i == j else a for j, a in enumerate(pointers)] + [None]) == 1
    for i, code in enumerate((0, 0, 0, 2, 2)):
        assert loaded.call([a + 4 * (i == j) for j, a in enumerate(pointers)] + [None]) == code


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no object"):
        Loaded(b"", "model", arena_bytes=0).run([], [])


def test_same_bytes_for_every_hash_seed(tmp_path: Path) -> None:
    script = (
        "import sys, hashlib, importlib.util as u\n"
        f"s = u.spec_from_file_location('t', {__file__!r}); m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "from c2c.codegen.target import Target\n"
        "for t in ('x86-64-v3', 'arm64-neon-macos', 'x86-64-windows'):\n"
        "    print(hashlib.sha256(m.emit_object(m.program(), Target.parse(t))).hexdigest())\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=tmp_path,
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    here = [
        hashlib.sha256(emit_object(program(), Target.parse(t))).hexdigest()
        for t in ("x86-64-v3", "arm64-neon-macos", "x86-64-windows")
    ]
    assert runs == {"\n".join(here) + "\n"}


def test_written_object_has_the_same_bytes(tmp_path: Path) -> None:
    p, target = program(weights=1 << 20), Target.parse("arm64-neon")
    write_object(p, target, tmp_path / "model.o")
    assert (tmp_path / "model.o").read_bytes() == emit_object(p, target)
    assert read_object(tmp_path / "model.o").sizes.embedded_weights == len(p.weights)


@pytest.mark.needs("gcc")
def test_weights_survive_the_linker(tmp_path: Path) -> None:
    p = program(weights=3 << 20)
    write_object(p, Target.parse("x86-64"), tmp_path / "model.o")
    subprocess.run(["gcc", "-shared", "-o", "libmodel.so", "model.o", "-lm"], cwd=tmp_path, check=True)
    assert bytes(p.weights[:4096]) in (tmp_path / "libmodel.so").read_bytes()


def test_listings_name_the_nodes() -> None:
    p, target = program(), Target.parse("arm64-neon")
    assert "define internal void @model__001_second" in emit_llvm(p, target)
    assert "model__001_second:" in emit_asm(p, target)


def test_what_a_processor_cannot_do_is_refused() -> None:
    k = Builder()
    x = k.param("x", DType.F32, N)
    for i in k.loop("i", N, kind="grid"):
        k.store(x, i, const(1.0, DType.F32))
    p = program()
    p.kernels["model__axpy"] = k.kernel("model__axpy")
    with pytest.raises(CodegenError, match="grid"):
        emit_llvm(p, Target.parse("native"))


def test_a_strided_line_reads_no_further_than_its_last_element() -> None:
    """An array that ends at a page's end would fault otherwise; here the text is checked."""
    k = Builder()
    x, y = k.param("x", DType.F32, 15), k.param("y", DType.F32, 8)
    k.store(y, 0, k.load(x, ramp(const(0), 2, 8)))
    p = program()
    p.kernels["model__axpy"] = k.kernel("model__axpy")
    text = emit_llvm(p, Target.parse("native"))
    assert "getelementptr inbounds float, ptr %p0, i64 7" in text and "i64 8\n" not in text.split("@model__decay")[0]
