"""Whole networks as Metal, CUDA and, in f16, OpenCL, executed by the emulator, against onnxruntime; and with every
access watched: no race, no access outside of a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions

from ..codegen.test_metal import refused
from ..emulation import Emulated, needs_compiler
from .test_models import TOLERANCE, Subject, check, expected, feeds_of, nets, network, real

pytestmark = needs_compiler

SUBJECTS = {
    s.name: s
    for s in (
        network("mobilenet_v2", lambda: nets.mobilenet_v2(64)),
        network("squeezenet11", lambda: nets.squeezenet11(64)),
        network("resnet18", lambda: nets.resnet18(64)),
        real("ppocrv4_rec", {"x": (1, 3, 48, 64)}),
        real("minilm_l3", {"input_ids": (1, 32), "attention_mask": (1, 32)}),
        network("style_256", lambda: nets.style_256(64)),
        network("lstm_100", lambda: nets.lstm_100(20)),
    )
}
ON_CUDA = ("mobilenet_v2", "minilm_l3")
WATCHED = ("squeezenet11", "minilm_l3", "lstm_100", "ppocrv4_rec")


HALVES = ("mobilenet_v2", "squeezenet11", "resnet18")
HALF_TOLERANCE = 3e-3
"""What `--precision f16` is stated to lose."""


def emulate(subject: Subject, target: str, folder: Path, *, watched: bool = False, precision: str = "f32") -> list[str]:
    """Run, and compare what comes out; the emulator's faults."""
    model = subject.load_small()
    feeds = feeds_of(model, subject.shapes_small, subject.name)
    shapes = {k: v.shape for k, v in feeds.items()}
    options = CompileOptions(Target.parse(target), name="net", shapes=shapes, precision=precision)
    program = compile_file(model.SerializeToString(), options).program
    assert options.target.device is not None
    emulated = Emulated(program, options.target.device, folder, watched=watched)
    assert options.target.device.dialect != "metal" or refused(emulated.text, folder) == ""
    outputs = emulated.run([np.ascontiguousarray(feeds[p.name]) for p in program.inputs])
    found = {p.name: y for p, y in zip(program.outputs, outputs, strict=True)}
    check(subject.name, found, expected(model, feeds), TOLERANCE if precision == "f32" else HALF_TOLERANCE)
    return emulated.faults


@pytest.mark.parametrize("name", [n for n in SUBJECTS if n != "resnet18"])
def test_as_metal(name: str, tmp_path: Path) -> None:
    assert emulate(SUBJECTS[name], "metal-ios", tmp_path) == []


@pytest.mark.parametrize("name", ON_CUDA)
def test_as_cuda(name: str, tmp_path: Path) -> None:
    assert emulate(SUBJECTS[name], "cuda", tmp_path) == []


@pytest.mark.parametrize("name", [n if n == "lstm_100" else pytest.param(n, marks=pytest.mark.slow) for n in WATCHED])
@pytest.mark.parametrize("target", ["metal", pytest.param("metal-ios", marks=pytest.mark.slow)])
def test_no_race_and_no_access_outside(name: str, target: str, tmp_path: Path) -> None:
    assert emulate(SUBJECTS[name], target, tmp_path, watched=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("target", ["opencl-mali", "metal-ios", "cuda-volta"])
def test_in_halves(name: str, target: str, tmp_path: Path) -> None:
    assert emulate(SUBJECTS[name], target, tmp_path, precision="f16") == []


@pytest.mark.slow
def test_no_race_in_halves(tmp_path: Path) -> None:
    assert emulate(SUBJECTS["squeezenet11"], "opencl-mali", tmp_path, watched=True, precision="f16") == []
