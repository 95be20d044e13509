"""Metal kernels of every kind on the emulator, every access watched: no race, no access outside of a tensor, no thread
that misses a barrier; and faults that are planted are found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.devices import DEVICES
from c2c.codegen.metal import emit_metal
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.program import Program

from ..emulation import Emulated, needs_compiler
from .test_opencl_races import network, without

pytestmark = needs_compiler

DEVICE = DEVICES["metal"][0]
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_file(network().SerializeToString(), CompileOptions(Target.parse("metal"), name="net")).program


@pytest.fixture(scope="module")
def text(program: Program) -> str:
    made: str = emit_metal(program, DEVICE)
    return made


def faults(program: Program, text: str, folder: Path) -> list[str]:
    emulated = Emulated(program, DEVICE, folder, text=text, watched=True)
    emulated.run([np.random.default_rng(2).standard_normal((1, 2, 5, 5)).astype(np.float32)])
    return emulated.faults


def test_there_is_no_race_and_no_access_outside(program: Program, text: str, tmp_path: Path) -> None:
    assert faults(program, text, tmp_path) == []


@pytest.mark.parametrize("number", [0, 1, 4, 6, -9, -1])
def test_a_barrier_that_is_missing_is_found(program: Program, text: str, number: int, tmp_path: Path) -> None:
    """In the loop of a product, on both sides of it, and in reductions of a team."""
    assert any("race in shared" in f for f in faults(program, without(text, BARRIER, number), tmp_path))


def test_an_index_that_is_off_by_one_is_found(program: Program, text: str, tmp_path: Path) -> None:
    """Of the result: past the end of its memory, and where another thread has written."""
    stores = [m.group(0) for m in re.finditer(r"y\[[^\];]+\] = ", text)]
    wrong = without(text, stores[-1], -1, stores[-1].replace("] = ", " + 1] = "))
    found = faults(program, wrong, tmp_path)
    assert any("invalid write" in f for f in found) or any("race in device" in f for f in found)


def test_an_index_beyond_shared_memory_is_found(program: Program, text: str, tmp_path: Path) -> None:
    stores = re.findall(r"tile_b\[[^\];]+\] = ", text)
    wrong = text.replace(stores[0], stores[0].replace("tile_b[", "tile_b[1 + "))
    assert faults(program, wrong, tmp_path)


def test_a_guard_that_is_missing_is_found(program: Program, text: str, tmp_path: Path) -> None:
    """Of the last columns of a product."""
    guard = re.search(r"if \(\(row < \d+\) & \(column < \d+\)\)", text)
    assert guard is not None
    assert faults(program, text.replace(guard.group(0), "if (1)"), tmp_path)


@pytest.mark.parametrize("which", ["if (tx == 1) return; ", "if (tx != 1) "])
def test_a_thread_that_misses_a_barrier_is_found(program: Program, text: str, which: str, tmp_path: Path) -> None:
    """It ends before, or goes to another one."""
    wrong = without(text, BARRIER, 0, which + BARRIER)
    assert any("barrier divergence" in f for f in faults(program, wrong, tmp_path))
