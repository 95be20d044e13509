"""Bundles as Metal and CUDA through their drivers, on a fake Metal and a fake CUDA whose kernels the emulator runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

import c2c
from c2c.codegen.dialects import LANGUAGES
from c2c.codegen.target import Target
from c2c.compiler.bundle import write_bundle
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.errors import RunError, ToolError

from ..emulation import build, needs_compiler
from ..passes.test_host_steps import mixed_network
from ..runtime_stub.test_gpu import metal_program
from ..runtime_stub.test_runtime import HERE as RUNTIME
from ..runtime_stub.test_runtime import run

X = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)
LARGER = np.random.default_rng(1).standard_normal((1, 3, 48, 48)).astype(np.float32)


@pytest.fixture(params=["small_cnn", "mixed"])
def subject(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, dict[str, int], np.ndarray]:
    """A model, its open dimensions and its input; `mixed` has steps that the host runs."""
    if request.param == "mixed":
        return mixed_network(), {}, LARGER
    return request.getfixturevalue("small_cnn"), {"N": 1}, X


Subject = tuple[onnx.ModelProto, dict[str, int], np.ndarray]


def bundle(subject: Subject, target: str, folder: Path) -> dict[str, str]:
    """Write a bundle and a library of its kernels; the environment in which drivers run them."""
    model, dims, x = subject
    options = CompileOptions(Target.parse(target), name="net", dims=dims)
    assert options.target.device is not None
    compiled = compile_file(model.SerializeToString(), options)
    write_bundle(compiled.program, options, folder)
    dialect = options.target.device.dialect
    text = (folder / f"net.{LANGUAGES[dialect].ending}").read_text()
    library = build(text, dialect, list(compiled.program.kernels_of(host=False)), folder)
    assert any(s.host for s in compiled.program.steps) == (not dims)
    x.tofile(folder / "x.raw")
    return {"FAKE_KERNELS": str(library), "LD_LIBRARY_PATH": str(folder), "LSAN_OPTIONS": "detect_leaks=0"}


def check(subject: Subject, example: Path, environment: dict[str, str]) -> None:
    model, dims, x = subject
    want = c2c.compile(model, dims=dims).run({"x": x})
    settings = [f"{k}={v}" for k, v in environment.items()]
    files = [f"{name}.out" for name in want]
    command = ["env", *settings, str(example), "x.raw", *files]
    done = subprocess.run(command, cwd=example.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "on Fake device" in done.stderr, done.stderr
    for file, expected in zip(files, want.values(), strict=True):
        found = np.fromfile(example.parent / file, expected.dtype).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@needs_compiler
@pytest.mark.needs("gcc")
def test_the_example_runs_as_metal(subject: Subject, tmp_path: Path) -> None:
    environment = bundle(subject, "metal-ios", tmp_path)
    check(subject, metal_program(tmp_path, [tmp_path / "net.c", tmp_path / "example.c"]), environment)


@needs_compiler
@pytest.mark.needs("gcc")
def test_the_example_runs_as_cuda(subject: Subject, tmp_path: Path) -> None:
    environment = bundle(subject, "cuda", tmp_path)
    strict = ["gcc", "-std=c99", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    fake = ["-std=c99", "-shared", "-fPIC", RUNTIME / "fake_cuda.c", "-ldl", "-o"]
    for name in ("libcuda.so.1", "libnvrtc.so"):
        run("gcc", *fake, tmp_path / name)
    sources = [tmp_path / s for s in ("example.c", "net.c", *LANGUAGES["cuda"].sources)]
    run(*strict, *sources, "-lm", "-ldl", "-o", tmp_path / "example")
    check(subject, tmp_path / "example", environment)


@pytest.mark.parametrize("dialect", ["metal", "cuda"])
def test_a_bundle_has_what_its_driver_needs(small_cnn: onnx.ModelProto, dialect: str, tmp_path: Path) -> None:
    c2c.compile(small_cnn, dialect, dims={"N": 1}, name="net").save(tmp_path)
    language = LANGUAGES["metal" if dialect == "metal" else "cuda"]
    kernels = f"net.{language.ending}"
    own = {kernels, "net.h", "net.c", "net_plan.h", "net.weights", "example.c", "manifest.json"}
    assert {p.name for p in tmp_path.iterdir()} == own | set(language.files)
    assert json.loads((tmp_path / "manifest.json").read_text())["options"]["target"] == dialect
    for file in ("net.h", "net.c", "example.c"):
        assert "opencl" not in (tmp_path / file).read_text().lower()


def test_what_cannot_run_here_is_one_error(small_cnn: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ToolError, match="Metal runs on Apple's systems alone"):
        c2c.compile(small_cnn, "metal", dims={"N": 1}).run({"x": X})
    monkeypatch.setenv("C2C_CUDA_DEVICE", "Quantum")
    with pytest.raises(RunError, match="no CUDA library|no CUDA device"):
        c2c.compile(small_cnn, "cuda", dims={"N": 1}).run({"x": X})
