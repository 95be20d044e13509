"""Packed weights in every form in which a model can run, and wrong files, which are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from c2c.codegen.object_file import read_object
from c2c.codegen.target import Target
from c2c.compiler.api import compile as c2c_compile
from c2c.compiler.api import load
from c2c.compiler.cli import main
from c2c.compiler.driver import Compiled, compile_file
from c2c.compiler.options import CompileOptions
from c2c.compiler.packed import pack_program
from c2c.compiler.toolchain import check_zstd
from c2c.compiler.verify import run_as_program
from c2c.ir.errors import RunError, ToolError
from c2c.packing import unpack

Save = Callable[..., Path]
X = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)
FORMS = ("packed", "embed-packed")


def needs_zstd(cc: str = "gcc") -> None:
    try:
        check_zstd(cc)
    except ToolError as e:
        pytest.skip(f"{e.what}: {e.remedy}")


def compiled(path: Path, target: str = "native") -> Compiled:
    return compile_file(path, CompileOptions(Target.parse(target), "m", dims={"N": 1}, winograd_weights="load"))


@pytest.fixture
def expected(small_cnn: onnx.ModelProto) -> np.ndarray:
    y: np.ndarray = c2c_compile(small_cnn, dims={"N": 1}, winograd_weights="load").run({"x": X})["y"]
    return y


@pytest.mark.parametrize("target", ["x86-64-v3", "arm64-neon"])
def test_the_image_comes_back(small_cnn: onnx.ModelProto, save: Save, target: str) -> None:
    program = compiled(save(small_cnn), target).program
    made = pack_program(program)
    assert unpack(made.bytes, made.table).tobytes() == bytes(program.weights)
    assert sum(r.elements for r in made.report) * 4 >= len(program.weights) - 64 * len(program.spans)


@pytest.mark.parametrize("weights", FORMS)
def test_saved_bundles_load(small_cnn: onnx.ModelProto, tmp_path: Path, expected: np.ndarray, weights: str) -> None:
    model = c2c_compile(small_cnn, dims={"N": 1}, name="m", winograd_weights="load")
    manifest = model.save(tmp_path / "b", weights=weights)
    assert manifest["options"]["weights"] == weights
    np.testing.assert_array_equal(load(tmp_path / "b").run({"x": X})["y"], expected)
    assert ((tmp_path / "b" / "m.c2w").exists()) == (weights == "packed")
    assert 0 < manifest["bytes"]["packed"] < manifest["bytes"]["weights"]
    assert all(row["bits"] <= 32.5 for row in manifest["packed"] if row["elements"] > 1000)


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("source", [False, True], ids=["object", "c"])
@pytest.mark.parametrize("weights", FORMS)
def test_the_example_program_decodes(
    small_cnn: onnx.ModelProto, save: Save, expected: np.ndarray, source: bool, weights: str
) -> None:
    needs_zstd()
    found = run_as_program(compiled(save(small_cnn)), {"x": X}, source=source, weights=weights)
    np.testing.assert_allclose(found["y"], expected, rtol=0, atol=1e-6)


@pytest.mark.needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
@pytest.mark.parametrize("weights", FORMS)
def test_arm64_decodes_under_emulation(
    small_cnn: onnx.ModelProto, save: Save, expected: np.ndarray, weights: str
) -> None:
    needs_zstd("aarch64-linux-gnu-gcc")
    found = run_as_program(compiled(save(small_cnn), "arm64-neon"), {"x": X}, weights=weights)
    np.testing.assert_allclose(found["y"], expected, rtol=0, atol=1e-6)


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("weights", FORMS)
def test_the_example_builds_as_its_comment_says(small_cnn: onnx.ModelProto, tmp_path: Path, weights: str) -> None:
    needs_zstd()
    c2c_compile(small_cnn, dims={"N": 1}, name="m").save(tmp_path, weights=weights, emit=("obj", "c"))
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", "-o", "/dev/null"]
    for file in ("example.c", "m.c"):
        subprocess.run(["gcc", *strict, file], cwd=tmp_path, check=True)
    lines = (tmp_path / "example.c").read_text().splitlines()
    commands = [line.removeprefix(" *   ") for line in lines if line.startswith(" *   cc ")]
    assert len(commands) == 2
    for command in commands:
        subprocess.run(["gcc", *command.split()[1:]], cwd=tmp_path, check=True)
        subprocess.run(["./example"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.needs("gcc")
def test_the_example_refuses_a_damaged_file(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    needs_zstd()
    c2c_compile(small_cnn, dims={"N": 1}, name="m").save(tmp_path, weights="packed")
    subprocess.run("gcc -O1 example.c m.o c2c_weights.c -lzstd -lm -o example".split(), cwd=tmp_path, check=True)
    file = tmp_path / "m.c2w"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    done = subprocess.run(["./example"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "checksum" in done.stderr


@pytest.mark.parametrize("target", ["x86-64-v3", "arm64-neon", "arm64-neon-macos", "x86-64-v3-windows"])
@pytest.mark.parametrize("weights", FORMS)
def test_objects_of_every_system_name_them(
    small_cnn: onnx.ModelProto, tmp_path: Path, target: str, weights: str
) -> None:
    model = c2c_compile(small_cnn, target, dims={"N": 1}, name="m")
    model.save(tmp_path, weights=weights)
    made = read_object(tmp_path / "m.o")
    names = {"m_packed", "m_run"} | ({"m_packed_weights"} if weights == "embed-packed" else set())
    assert names <= set(made.exported)
    size = made.sizes.embedded_weights
    assert size == (len(pack_program(model.compiled.program).bytes) if weights == "embed-packed" else 0)
    assert not made.sizes.data and not made.sizes.bss


def test_a_wrong_file_is_refused(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    model = c2c_compile(small_cnn, dims={"N": 1}, name="m")
    model.save(tmp_path, weights="packed")
    file = tmp_path / "m.c2w"
    right = file.read_bytes()
    file.write_bytes(right[:-1])
    with pytest.raises(RunError, match="bytes, "):
        load(tmp_path)
    file.unlink()
    with pytest.raises(RunError, match="not a bundle"):
        load(tmp_path)


def test_the_command_line(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(small_cnn))
    assert main(["compile", path, "--dim", "N=1", "-o", str(tmp_path / "o"), "--weights", "packed"]) == 0
    text = capsys.readouterr().out
    assert "packed " in text and "transformed at load" in text, "plain weights pack better than Winograd's"
    assert main(["verify", path, "--dim", "N=1", "--weights", "packed"]) == 0
    assert main(["run", path, "--dim", "N=1", "--weights", "embed-packed"]) == 0
