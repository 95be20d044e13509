"""The C driver for OpenCL: builds without a warning, and answers every failure of the library with an error code."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2c.tests.runtime_stub.test_runtime import HERE, STRICT, STUB, run


@pytest.mark.needs("gcc", "g++")
@pytest.mark.parametrize(
    "compiler", ["gcc -std=c99 -D_DEFAULT_SOURCE", "g++ -std=c++11 -x c++", "g++ -std=c++20 -x c++"]
)
def test_compiles_without_a_warning(tmp_path: Path, compiler: str) -> None:
    run(*compiler.split(), *STRICT, "-Wshadow", "-c", STUB / "c2c_opencl.c", "-o", tmp_path / "a.o")


@pytest.mark.needs("gcc")
def test_is_smaller_than_16_kb(tmp_path: Path) -> None:
    run("gcc", "-std=c99", "-D_DEFAULT_SOURCE", "-Os", "-c", STUB / "c2c_opencl.c", "-o", tmp_path / "a.o")
    text, data, bss, *_ = run("size", tmp_path / "a.o").splitlines()[1].split()
    assert int(text) + int(data) + int(bss) < 16 << 10


@pytest.mark.needs("gcc")
def test_every_failure_is_an_error_code_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Under AddressSanitizer, whose leak check takes part; the library counts its objects as well."""
    sanitise = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    library = tmp_path / "libOpenCL.so.1"
    run(
        "gcc",
        "-std=c99",
        *sanitise,
        "-shared",
        "-fPIC",
        "-Wl,-soname,libOpenCL.so.1",
        HERE / "fake_opencl.c",
        "-o",
        library,
    )
    program = tmp_path / "program"
    sources = [STUB / "c2c_opencl.c", HERE / "opencl_test.c"]
    run(
        "gcc",
        "-std=c99",
        "-D_DEFAULT_SOURCE",
        *sanitise,
        *STRICT,
        *sources,
        library,
        f"-Wl,-rpath,{tmp_path}",
        "-ldl",
        "-o",
        program,
    )
    (tmp_path / "cache").mkdir()
    assert int(run(program, tmp_path / "cache")) > 60
    assert len(list((tmp_path / "cache").iterdir())) == 1
