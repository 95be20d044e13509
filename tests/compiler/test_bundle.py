"""What `c2c compile` writes: C that compiles, an object that calls nothing, the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from c2c.codegen.target import Target
from c2c.compiler.api import compile as c2c_compile
from c2c.compiler.api import load
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir.errors import RunError

onnxruntime: Any = pytest.importorskip("onnxruntime")
Save = Callable[..., Path]
X = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)
LIBC = {"memcpy", "memset", "memmove", "expf", "logf", "tanhf", "erff", "sinf", "cosf", "powf", "fmaf", "fmodf"}


def reference(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X})[0])


def options(target: str = "native", **more: Any) -> CompileOptions:
    return CompileOptions(Target.parse(target), "small_cnn", dims={"N": 1}, **more)


@pytest.mark.parametrize("threads", [1, 2])
def test_python_runs_on_the_callers_buffers(small_cnn: onnx.ModelProto, save: Save, threads: int) -> None:
    path = save(small_cnn)
    model = c2c_compile(path, threads=threads, dims={"N": 1})
    y = np.full((1, 10), np.nan, np.float32)
    found = model.run({"x": X}, {"y": y})
    assert found["y"] is y
    np.testing.assert_allclose(y, reference(path), atol=1e-5)


@pytest.mark.parametrize("weights", ["embed", "file"])
def test_saved_bundles_load(small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, weights: str) -> None:
    path = save(small_cnn)
    c2c_compile(path, shapes={"x": (1, 3, 16, 16)}).save(tmp_path / "b", weights=weights)
    np.testing.assert_allclose(load(tmp_path / "b").run({"x": X})["y"], reference(path), atol=1e-5)


def test_a_changed_object_is_refused(small_cnn: onnx.ModelProto, save: Save, tmp_path: Path) -> None:
    c2c_compile(save(small_cnn), dims={"N": 1}, name="m").save(tmp_path / "b")
    obj = tmp_path / "b" / "m.o"
    obj.write_bytes(obj.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match="not the file"):
        load(tmp_path / "b")


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("source", [False, True], ids=["object", "c"])
@pytest.mark.parametrize("threads", [0, 3])
def test_the_example_program_answers(small_cnn: onnx.ModelProto, save: Save, source: bool, threads: int) -> None:
    path = save(small_cnn)
    compiled = compile_file(path, options(threads=max(1, threads)))
    found = run_as_program(compiled, {"x": X}, threads=threads, source=source)
    np.testing.assert_allclose(found["y"], reference(path), atol=1e-5)


@pytest.mark.needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
@pytest.mark.parametrize("target", ["arm64-neon", "arm64-dotprod"])
def test_arm64_answers_under_emulation(small_cnn: onnx.ModelProto, save: Save, target: str) -> None:
    path = save(small_cnn)
    found = run_as_program(compile_file(path, options(target)), {"x": X})
    np.testing.assert_allclose(found["y"], reference(path), atol=1e-5)


@pytest.mark.needs("gcc", "g++")
@pytest.mark.parametrize("compiler", [["gcc", "-std=c99"], ["g++", "-std=c++11", "-x", "c++"]], ids=["c99", "c++11"])
def test_the_header_compiles(small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, compiler: list[str]) -> None:
    c2c_compile(save(small_cnn), dims={"N": 1}, name="m").save(tmp_path / "b")
    user = tmp_path / "user.c"
    user.write_text(
        '#include "m.h"\n#include "m.h"\n#include "c2c_runtime.h"\n'
        "int f(const m_args *a) { return M_X_SIZE == 768 && M_Y_RANK == 2 ? m_run(a) : M_E_NULL; }\n"
    )
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", str(tmp_path / "b"), "-c", str(user), "-o", os.devnull]
    done = subprocess.run([*compiler, *strict], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("gcc")
def test_the_object_calls_libc_only_and_keeps_no_state(small_cnn: onnx.ModelProto, save: Save, tmp_path: Path) -> None:
    c2c_compile(save(small_cnn), dims={"N": 1}, name="m").save(tmp_path / "b")
    symbols = subprocess.run(["nm", str(tmp_path / "b" / "m.o")], capture_output=True, text=True, check=True).stdout
    kinds = {line.split()[-1]: line.split()[-2] for line in symbols.splitlines()}
    assert {n for n, k in kinds.items() if k == "U"} <= LIBC
    assert not {n for n, k in kinds.items() if k in "BbDdCc"}, "writable globals"
    assert [n for n, k in kinds.items() if k == "T"] == ["m_run"]
    assert any("conv2" in n or "relu2" in n for n in kinds), "ONNX names are gone from the symbols"


SCRIPT = """
import sys, c2c
c2c.compile(sys.argv[1], dims={"N": 1}, target=sys.argv[3], name="m").save(sys.argv[2], emit=("obj", "c", "llvm", "ir"))
"""


@pytest.mark.parametrize("target", ["x86-64-v3", "arm64-neon"])
def test_equal_bytes_for_every_hash_seed_and_folder(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, target: str
) -> None:
    path = save(small_cnn)
    digests = []
    for seed, folder in (("1", "a"), ("2", "deeper/b")):
        run = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / folder), target]
        subprocess.run(run, env={**os.environ, "PYTHONHASHSEED": seed}, check=True)
        files = sorted((tmp_path / folder).iterdir())
        digests.append({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files})
    assert digests[0] == digests[1]
    assert {"m.o", "m.c", "m.h", "m.ll", "m.loops", "example.c", "manifest.json"} <= digests[0].keys()


@pytest.mark.needs("gcc")
def test_c_of_a_model_without_steps_compiles_strictly(tmp_path: Path) -> None:
    ports = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [0, 3]) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    c2c_compile(onnx.helper.make_model(graph), name="m").save(tmp_path, emit=("c",))
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", str(tmp_path / "m.c"), "-o", os.devnull]
    done = subprocess.run(["gcc", *strict], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("weights", ["embed", "file"])
def test_the_example_builds_as_its_comment_says(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, weights: str
) -> None:
    c2c_compile(save(small_cnn), dims={"N": 1}, name="m").save(tmp_path / "b", weights=weights)
    lines = (tmp_path / "b" / "example.c").read_text().splitlines()
    commands = [line.removeprefix(" *   ") for line in lines if line.startswith(" *   cc ")]
    assert len(commands) == 2
    for command in commands:
        subprocess.run(["gcc", *command.split()[1:]], cwd=tmp_path / "b", check=True)
        subprocess.run(["./example"], cwd=tmp_path / "b", check=True, stdout=subprocess.DEVNULL)
