"""The C drivers of graphics processors: they build without a warning, and answer every failure of the device's library
with an error code."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.dialects import LANGUAGES
from c2c.codegen.target import Target
from c2c.compiler.bundle import write_bundle
from c2c.compiler.options import CompileOptions
from c2c.compiler.toolchain import link_grid
from c2c.tests.passes.lower.harness import Case, graph_of, program_of
from c2c.tests.runtime_stub.test_runtime import HERE, STRICT, STUB, run

C99 = ["gcc", "-std=c99", "-D_DEFAULT_SOURCE"]
SANITISE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]


@pytest.mark.needs("gcc", "g++")
@pytest.mark.parametrize(
    "compiler", ["gcc -std=c99 -D_DEFAULT_SOURCE", "g++ -std=c++11 -x c++", "g++ -std=c++20 -x c++"]
)
@pytest.mark.parametrize("source", ["c2c_gpu.c", "c2c_opencl.c", "c2c_cuda.c"])
def test_compiles_without_a_warning(tmp_path: Path, source: str, compiler: str) -> None:
    run(*compiler.split(), *STRICT, "-Wshadow", "-c", STUB / source, "-o", tmp_path / "a.o")


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("source", ["c2c_opencl.c", "c2c_cuda.c"])
def test_is_smaller_than_16_kb_with_what_drivers_share(tmp_path: Path, source: str) -> None:
    total = 0
    for part in (source, "c2c_gpu.c"):
        run(*C99, "-Os", "-c", STUB / part, "-o", tmp_path / "a.o")
        total += sum(map(int, run("size", tmp_path / "a.o").splitlines()[1].split()[:3]))
    assert total < 16 << 10


def driver_test(driver: str, language: str, failures: int) -> list[str]:
    """Flags that make gpu_test.c a test of a driver."""
    defines = {
        "DRIVER": driver,
        "HEADER": f'"{driver}.h"',
        "NO_DEVICE": f'"no {language} device"',
        "FAILURES": failures,
    }
    return [f"-D{name}={value}" for name, value in defines.items()]


def answers(program: Path, folder: Path) -> int:
    """Failures that were answered; the cache keeps one file."""
    (folder / "cache").mkdir()
    (folder / "known").write_text("leak:libobjc\n")  # tables of the runtime's own; its objects are counted
    environment = [f"LD_LIBRARY_PATH={folder}", f"LSAN_OPTIONS=suppressions={folder / 'known'}:print_suppressions=0"]
    found = int(run("env", *environment, program, folder / "cache"))
    assert len(list((folder / "cache").iterdir())) == 1
    return found


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("driver", "language", "libraries", "failures"),
    [("c2c_opencl", "OpenCL", ["libOpenCL.so.1"], 60), ("c2c_cuda", "CUDA", ["libcuda.so.1", "libnvrtc.so"], 100)],
)
def test_every_failure_is_an_error_code_and_leaves_nothing_behind(
    driver: str, language: str, libraries: list[str], failures: int, tmp_path: Path
) -> None:
    """Under AddressSanitizer, whose leak check takes part; the library counts its objects as well."""
    first, *others = libraries
    fake = HERE / f"fake_{driver.removeprefix('c2c_')}.c"
    build = ["gcc", "-std=c99", *SANITISE, "-shared", "-fPIC", f"-Wl,-soname,{first}", fake, "-ldl", "-o"]
    run(*build, tmp_path / first)
    for name in others:
        (tmp_path / name).symlink_to(first)
    program = tmp_path / "program"
    sources = [STUB / f"{driver}.c", STUB / "c2c_gpu.c", HERE / "gpu_test.c"]
    flags = [*SANITISE, *STRICT, *driver_test(driver, language, failures)]
    run(*C99, *flags, *sources, tmp_path / first, f"-Wl,-rpath,{tmp_path}", "-ldl", "-o", program)
    assert answers(program, tmp_path) > failures


BUILD = """
import ctypes, sys
from pathlib import Path
from c2c.runtime_stub.gpu import LoadedGpu

fake = ctypes.CDLL("libOpenCL.so.1")
(ctypes.c_char * 64).in_dll(fake, "fake_extensions").value = sys.argv[1].encode()
LoadedGpu(Path(sys.argv[2]), "model", "c2c_opencl", weights=Path(sys.argv[3]).read_bytes(), steps=1)
print((ctypes.c_char * 64).in_dll(fake, "fake_options").value.decode())
"""


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("extensions", "target", "options"),
    [
        ("cl_khr_fp16 cl_khr_integer_dot_product", "opencl+dots", "-cl-std=CL3.0"),
        ("cl_khr_fp16", "opencl+dots", ""),
        ("cl_khr_integer_dot_product", "opencl", ""),
    ],
)
def test_opencl_is_asked_for_the_names_of_dot_products(
    extensions: str, target: str, options: str, tmp_path: Path
) -> None:
    """Where the kernels use them and the device has them."""
    run("gcc", "-std=c99", "-shared", "-fPIC", HERE / "fake_opencl.c", "-o", tmp_path / "libOpenCL.so.1")
    levels = np.zeros((6, 64), np.uint8), np.ones((64, 32), np.int8)
    graph, _ = graph_of([Case("MatMulInteger", levels, {}, frozenset({1}))])
    program = program_of(graph, target)
    write_bundle(program, CompileOptions(Target.parse(target), name="model"), tmp_path)
    library = link_grid(tmp_path, "model", LANGUAGES["opencl"])
    (tmp_path / "weights").write_bytes(bytes(program.weights))
    command = [sys.executable, "-c", BUILD, extensions, library, tmp_path / "weights"]
    assert run("env", f"LD_LIBRARY_PATH={tmp_path}", *command).strip() == options


OBJECTIVE_C = ["clang-19", "-x", "objective-c", "-std=gnu99", "-fblocks", "-I", str(HERE / "apple"), *STRICT]


@pytest.mark.needs("clang-19")
@pytest.mark.parametrize(
    "runtime", ["macosx-10.15", "macosx-10.15 -fobjc-arc", "ios-13.0 -fobjc-arc -DTARGET_OS_OSX=0", "gcc"]
)
def test_the_metal_driver_compiles_without_a_warning(runtime: str) -> None:
    """Against declarations as Apple has them, with automatic reference counting and without."""
    flags = ["-Wshadow", "-fsyntax-only", *f"-fobjc-runtime={runtime}".split()]
    run(*OBJECTIVE_C, "-Wno-gnu", "-Wno-availability", *flags, STUB / "c2c_metal.m")


def metal_program(folder: Path, sources: list[Path], *flags: str) -> Path:
    """A program with the Metal driver, on a Metal that is none, under AddressSanitizer; skips visibly without an
    Objective-C runtime."""
    if not list(Path("/usr/lib/gcc").glob("*/*/libobjc.so")):
        pytest.skip("libobjc is missing: apt-get install libobjc-12-dev")
    program, objects = folder / "program", []
    for source in (STUB / "c2c_metal.m", HERE / "fake_metal.m"):
        objects.append(folder / f"{source.stem}.o")
        run(*OBJECTIVE_C, "-w", "-g", "-fobjc-runtime=gcc", "-c", source, "-o", objects[-1])
    plain = [STUB / "c2c_gpu.c", *sources]
    run(*C99, *SANITISE, *STRICT, *flags, *plain, *objects, "-lobjc", "-ldl", "-lm", "-o", program)
    return program


@pytest.mark.needs("clang-19", "gcc")
def test_every_failure_of_metal_is_an_error_code_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = metal_program(tmp_path, [HERE / "gpu_test.c"], *driver_test("c2c_metal", "Metal", 60), "-DLOCK_STEP")
    assert answers(program, tmp_path) > 60
