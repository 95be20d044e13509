"""Models whose Winograd weights are transformed once at load: NAME_prepare, in every form in which a model can run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from c2c.codegen.target import Target
from c2c.compiler.api import compile as c2c_compile
from c2c.compiler.api import load
from c2c.compiler.cli import main
from c2c.compiler.driver import Compiled, compile_file
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_parse import parse_program
from c2c.ir.loops_text import print_program
from c2c.runtime_stub.loader import Loaded

Save = Callable[..., Path]
X = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)


def compiled(path: Path, target: str = "native", **more: Any) -> Compiled:
    return compile_file(path, CompileOptions(Target.parse(target), "m", dims={"N": 1}, winograd_weights="load", **more))


@pytest.fixture
def expected(small_cnn: onnx.ModelProto) -> np.ndarray:
    """What the same model computes with weights that the compiler transformed."""
    model = c2c_compile(small_cnn, dims={"N": 1}, winograd_weights="compile")
    assert not model.compiled.program.prepare
    y: np.ndarray = model.run({"x": X})["y"]
    return y


def test_weights_stay_small_and_results_stay(small_cnn: onnx.ModelProto, expected: np.ndarray) -> None:
    model = c2c_compile(small_cnn, dims={"N": 1}, winograd_weights="load")
    program = model.compiled.program
    assert len(program.prepare) == 1 and program.prepared_bytes > 16 * 20 * 36 * 4
    other = c2c_compile(small_cnn, dims={"N": 1}, winograd_weights="compile").compiled.program
    assert len(program.weights) < len(other.weights) - program.prepared_bytes / 3
    for runner in (model, model.clone()):
        np.testing.assert_allclose(runner.run({"x": X})["y"], expected, rtol=0, atol=1e-6)
    assert model.trace({"x": X}, len(program.steps)).all()


@pytest.mark.parametrize("weights", ["embed", "file"])
def test_saved_bundles_prepare(small_cnn: onnx.ModelProto, tmp_path: Path, expected: np.ndarray, weights: str) -> None:
    model = c2c_compile(small_cnn, dims={"N": 1}, winograd_weights="load")
    manifest = model.save(tmp_path / "b", weights=weights)
    assert list(manifest["prepared"]) == ["conv2"]
    assert sum(manifest["prepared"].values()) <= manifest["bytes"]["prepared"]
    np.testing.assert_allclose(load(tmp_path / "b").run({"x": X})["y"], expected, rtol=0, atol=1e-6)


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("source", [False, True], ids=["object", "c"])
@pytest.mark.parametrize("threads", [0, 2])
def test_the_example_program_prepares(
    small_cnn: onnx.ModelProto, save: Save, expected: np.ndarray, source: bool, threads: int
) -> None:
    made = compiled(save(small_cnn), threads=max(1, threads))
    found = run_as_program(made, {"x": X}, threads=threads, source=source)
    np.testing.assert_allclose(found["y"], expected, rtol=0, atol=1e-6)


@pytest.mark.needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
def test_arm64_prepares_under_emulation(small_cnn: onnx.ModelProto, save: Save, expected: np.ndarray) -> None:
    found = run_as_program(compiled(save(small_cnn), "arm64-neon"), {"x": X})
    np.testing.assert_allclose(found["y"], expected, rtol=0, atol=1e-6)


def test_text_and_interpreter(small_cnn: onnx.ModelProto, save: Save, expected: np.ndarray) -> None:
    program = compiled(save(small_cnn)).program
    text = print_program(program)
    again = parse_program(text, bytes(program.weights))
    assert (again.prepare, again.prepared_bytes) == (program.prepare, program.prepared_bytes)
    assert print_program(again) == text
    np.testing.assert_allclose(run_program(again, [X])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.needs("gcc", "nm")
@pytest.mark.parametrize("weights", ["embed", "file"])
def test_header_and_c_compile_strictly(small_cnn: onnx.ModelProto, tmp_path: Path, weights: str) -> None:
    model = c2c_compile(small_cnn, dims={"N": 1}, name="m", winograd_weights="load")
    model.save(tmp_path, weights=weights, emit=("obj", "c"))
    user = tmp_path / "user.c"
    user.write_text('#include "m.h"\nint f(m_args *a, void *p) { a->prepared = p; return m_prepare(a->weights, p); }\n')
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", "-o", os.devnull]
    for source in (user, tmp_path / "m.c", tmp_path / "example.c"):
        done = subprocess.run(["gcc", *strict, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    symbols = subprocess.run(["nm", str(tmp_path / "m.o")], capture_output=True, text=True, check=True).stdout
    assert [s.split()[-1] for s in symbols.splitlines() if s.split()[-2] == "T"] == ["m_prepare", "m_run"]


def test_pointers_are_checked(small_cnn: onnx.ModelProto) -> None:
    loaded = c2c_compile(small_cnn, dims={"N": 1}, winograd_weights="load")._loadable()
    assert isinstance(loaded, Loaded)
    y = np.zeros((1, 10), np.float32)
    assert loaded.run([X], [y]) == 0
    assert loaded._prepared is not None and loaded._weights is not None
    pointers: list[int | None] = [a.ctypes.data for a in (X, y, loaded._arena, loaded._weights)]
    prepared = loaded._prepared.ctypes.data
    assert loaded.call([*pointers, None, prepared]) == 0
    assert loaded.call([*pointers, None, None]) == 1
    assert loaded.call([*pointers, None, prepared + 4]) == 2


def test_the_report_names_layers_and_bytes(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(small_cnn)
    arguments = ["compile", str(path), "-o", str(tmp_path / "out"), "--dim", "N=1", "--winograd-weights"]
    assert main([*arguments, "load"]) == 0
    assert "weights of 1 Winograd layers are transformed at load" in (text := capsys.readouterr().out)
    assert "conv2: " in text and "prepared" in text
    assert main([*arguments, "compile"]) == 0
    assert "at load" not in capsys.readouterr().out
