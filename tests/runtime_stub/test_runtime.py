"""The C runtime stub: builds without a warning as C99 and C++11, stays small, and its pool and mapping are right."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from c2c.compiler.header import PARALLEL

HERE = Path(__file__).parent
STUB = HERE.parent.parent / "runtime_stub"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", str(STUB)]


def run(*command: object, timeout: float = 120) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def build(test: str, folder: Path, *flags: str) -> Path:
    program = folder / "program"
    run("gcc", "-std=c99", "-O2", *STRICT, *flags, STUB / "c2c_runtime.c", HERE / test, "-lpthread", "-o", program)
    return program


@pytest.mark.needs("gcc", "g++")
@pytest.mark.parametrize("compiler", ["gcc -std=c99", "g++ -std=c++11 -x c++", "g++ -std=c++20 -x c++"])
def test_compiles_without_a_warning(tmp_path: Path, compiler: str) -> None:
    run(*compiler.split(), *STRICT, "-Wshadow", "-Wconversion", "-c", STUB / "c2c_runtime.c", "-o", tmp_path / "a.o")


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    "cc", ["gcc", pytest.param("aarch64-linux-gnu-gcc", marks=pytest.mark.needs("aarch64-linux-gnu-gcc"))]
)
def test_is_smaller_than_8_kb(tmp_path: Path, cc: str) -> None:
    run(cc, "-std=c99", "-Os", "-c", STUB / "c2c_runtime.c", "-o", tmp_path / "a.o")
    text, data, bss = (int(n) for n in run("size", tmp_path / "a.o").splitlines()[1].split()[:3])
    assert text > 500, "size has read nothing"
    assert text + data < 8 << 10
    assert (data, bss) == (0, 0), "the stub keeps writable globals"


def test_the_header_declares_what_models_declare() -> None:
    assert PARALLEL in (STUB / "c2c_runtime.h").read_text()


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    "flags", [[], ["-fsanitize=thread", "-g"], ["-fsanitize=address,undefined", "-g"]], ids=" ".join
)
def test_the_pool_runs_every_index_once(tmp_path: Path, flags: list[str]) -> None:
    program = build("pool_test.c", tmp_path, *flags)
    run(program, "100" if flags else "2000")


@pytest.mark.needs("gcc")
def test_weights_are_mapped_or_refused(tmp_path: Path) -> None:
    program = build("map_test.c", tmp_path, "-fsanitize=address,undefined")
    data = tmp_path / "m.weights"
    data.write_bytes(bytes([7, *range(98), 9]))
    assert run(program, data, 100) == "0 7 9 no error\n"
    assert run(program, data, 99).startswith("2 the file has the wrong size")
    assert run(program, data, 101).startswith("2 ")
    assert run(program, tmp_path / "missing", 100).startswith("1 cannot open")
    assert run(program, tmp_path, 100).startswith("2 ")
    data.write_bytes(b"")
    assert run(program, data, 0) == "0 no error\n"
