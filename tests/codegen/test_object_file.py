"""Reading objects back, putting weights in: against other readers and linkers, and malformed files."""

from __future__ import annotations

import ctypes
import random
import subprocess
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from c2c.codegen.llvm_program import emit_object
from c2c.codegen.object_file import read_object
from c2c.codegen.object_weights import reserve
from c2c.codegen.target import Target, native
from c2c.ir.errors import CodegenError
from c2c.ir.loops import call
from c2c.ir.loops_builder import Builder
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType
from c2c.runtime_stub.loader import aligned_bytes

N, SEED = 100, 11


def program() -> Program:
    """y = exp(w) with the weights from the object."""
    k = Builder()
    w, y = k.param("w", DType.F32, N), k.param("y", DType.F32, N)
    for i in k.loop("i", N):
        k.store(y, i, call("exp", k.load(w, i)))
    weights = np.random.default_rng(SEED).standard_normal(N).astype(np.float32)
    step = Step("model__k", (Slot("weights"), Slot("output")), "model__000_exp")
    ports = (Port("y", DType.F32, (N,)),)
    return Program("model", (), ports, {"model__k": k.kernel("model__k")}, (step,), 0, bytearray(weights.tobytes()))


@pytest.mark.needs("nm")
@pytest.mark.parametrize("name", ["x86-64", "arm64-neon", "x86-64-windows"])
def test_symbols_are_those_of_nm(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.o").write_bytes(emit_object(program(), Target.parse(name)))
    tool = subprocess.run(["nm", tmp_path / "model.o"], capture_output=True, text=True, check=False)
    if "not recognized" in tool.stderr:
        pytest.skip("nm does not know the format")
    rows = [line.split() for line in tool.stdout.splitlines()]
    made = read_object(tmp_path / "model.o")
    assert set(made.undefined) == {r[-1] for r in rows if r[-2] == "U"}
    assert set(made.exported) == {r[-1] for r in rows if r[-2] in "TRD"}


@pytest.mark.skipif(native().arch != "x86_64" or native().os != "linux", reason="links x86-64 objects in process")
@pytest.mark.parametrize("name", ["x86-64", "x86-64-macos", "x86-64-windows"])
def test_weights_are_found_by_a_linker(name: str) -> None:
    """LLVM's JITLink takes objects of all three formats; those with this machine's calling convention also run."""
    target, p = Target.parse(name), program()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    jit = llvm.create_lljit_compiler(use_jit_link=True)
    builder = llvm.JITLibraryBuilder().add_object_img(emit_object(p, target)).add_current_process()
    expf = ctypes.cast(ctypes.CDLL("libm.so.6").expf, ctypes.c_void_p).value
    prefix = target.symbol_prefix
    builder.import_symbol(f"{prefix}expf", expf)
    builder.export_symbol(f"{prefix}model_run").export_symbol(f"{prefix}model_weights")
    library = builder.link(jit, f"test.{name}")
    assert ctypes.string_at(library[f"{prefix}model_weights"], len(p.weights)) == bytes(p.weights)
    assert library[f"{prefix}model_weights"] % 64 == 0
    if target.os != "windows":
        y, arena = np.empty(N, np.float32), aligned_bytes(64)
        run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(library[f"{prefix}model_run"])
        assert run((ctypes.c_void_p * 4)(y.ctypes.data, arena.ctypes.data, None, None)) == 0
        np.testing.assert_allclose(y, np.exp(np.frombuffer(p.weights, np.float32)), 1e-6)


@pytest.mark.parametrize("name", ["x86-64", "arm64-neon-macos", "x86-64-windows"])
def test_malformed_files_give_one_clear_error(name: str) -> None:
    obj = emit_object(program(), Target.parse(name))
    pick = random.Random(SEED)
    for size in (0, 3, 10, 40, 64):
        with pytest.raises(CodegenError):
            read_object(obj[:size])
    for _ in range(200):
        broken = bytearray(obj)
        for _ in range(4):
            broken[pick.randrange(min(len(obj), 600))] = pick.randrange(256)
        try:
            read_object(bytes(broken))
        except CodegenError as e:
            assert "object" in str(e)


def test_weights_too_large_for_the_format_are_refused() -> None:
    obj = emit_object(program(), Target.parse("x86-64-windows"))
    with pytest.raises(CodegenError, match="do not fit"):
        reserve(obj, 1 << 32)
