"""ONNX's node tests as Metal and CUDA, executed by the emulator: what passes as processor code passes, or is refused
for 64-bit floats, which Metal lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.inputs import checked_inputs
from c2c.compiler.options import CompileOptions
from c2c.ir.errors import C2CError, CodegenError
from c2c.ir.program import Program
from c2c.tests.backend.cases import NodeTest, node_tests
from c2c.tests.backend.execute import PASSED, compare, to_pin
from c2c.tests.backend.execute import _array as as_array
from c2c.tests.backend.report import expected

from ..emulation import Emulated, needs_compiler

pytestmark = needs_compiler

NAMES = [n for n in node_tests() if expected().get(n) == PASSED]
STRIDE = 45
"""Of the tests that are run at all."""
QUICK = ["test_conv_with_strides_padding", "test_layer_normalization_4d_axis1", "test_matmul_4d", "test_softmax_axis_1"]


def compiled(test: NodeTest, feeds: dict[str, np.ndarray], target: str) -> tuple[Program, list[str]]:
    """The program, all of it on the device, and the inputs whose values had to be made constants."""
    pinned: list[str] = []
    while True:
        values = {n: feeds[n] for n in pinned}
        options = CompileOptions(Target.parse(target), name="m", values=values, host_steps=False)
        try:
            return compile_file(test.model.SerializeToString(), options).program, pinned
        except C2CError as e:
            more = to_pin(e, feeds, pinned)
            if not more:
                raise
            pinned += more


def check(name: str, target: str, folder: Path) -> None:
    test, device = node_tests()[name], Target.parse(target).device
    assert device is not None
    inputs, outputs = test.data[0]
    feeds = {n: as_array(a) for n, a in zip(test.inputs, inputs, strict=False) if a is not None}
    program, pinned = compiled(test, feeds, target)
    arrays = checked_inputs(program.inputs, {n: a for n, a in feeds.items() if n not in pinned})
    try:
        emulated = Emulated(program, device, folder)
    except CodegenError as e:
        assert target.startswith("metal") and "64-bit floats" in str(e)
        return
    assert compare(emulated.run(arrays), list(outputs), test.rtol, test.atol) == ""
    assert emulated.faults == []


@pytest.mark.parametrize("target", ["metal", "metal-ios", "cuda"])
@pytest.mark.parametrize("name", QUICK)
def test_some(name: str, target: str, tmp_path: Path) -> None:
    assert name in NAMES
    check(name, target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["metal", "metal-ios", "cuda"])
@pytest.mark.parametrize("name", NAMES[7::STRIDE])
def test_more(name: str, target: str, tmp_path: Path) -> None:
    check(name, target, tmp_path)
