"""CUDA text through NVIDIA's own compiler, where it is installed; it needs no device."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import onnx
import pytest

from c2c.codegen.cuda import emit_cuda
from c2c.codegen.devices import DEVICES
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.loops_random import random_program

from .test_metal import half_program
from .test_opencl import on_grid

DEVICE = DEVICES["cuda"][0]


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """The compiler's library, of the system or of a Python package."""
    for folder in (Path(p) for p in sys.path):
        for library in sorted(folder.glob("nvidia/*/lib/libnvrtc.so.*")):
            for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(library))
    try:
        return ctypes.CDLL("libnvrtc.so")
    except OSError:
        return None


pytestmark = pytest.mark.skipif(nvrtc() is None, reason="NVRTC is missing: pip install nvidia-cuda-nvrtc")


def ptx_of(text: str) -> str:
    """What the driver asks for: PTX, without contraction."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert library is not None
    options = (ctypes.c_char_p * 2)(b"--gpu-architecture=compute_75", b"--fmad=false")
    assert library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"net", 0, None, None) == 0
    failed = library.nvrtcCompileProgram(program, len(options), options)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert failed == 0, log.value.decode()[:3000]
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value.decode()


def test_takes_programs_of_all_types() -> None:
    ptx = ptx_of(emit_cuda(on_grid(random_program(range(8), inexact=True)), DEVICE))
    assert ptx.count(".entry") >= 8 and "cvt.rn.f16.f32" in ptx


def test_takes_arithmetic_in_halves() -> None:
    ptx = ptx_of(emit_cuda(on_grid(half_program(0)), DEVICES["cuda-volta"][0]))
    assert all(f"{name}.rn.f16" in ptx for name in ("add", "sub", "mul", "fma"))


def test_takes_a_network_and_multiplies_and_adds_as_written(small_cnn: onnx.ModelProto) -> None:
    options = CompileOptions(Target.parse("cuda"), name="net", dims={"N": 1})
    program = compile_file(small_cnn.SerializeToString(), options).program
    text = emit_cuda(program, DEVICE)
    ptx = ptx_of(text)
    assert all(f".entry {name}(" in ptx for name in program.kernels)
    assert "bar.sync" in ptx and ".maxntid" in ptx and "fma.rn.f32" in ptx


def test_takes_exchanges_of_all_types() -> None:
    ptx = ptx_of(emit_cuda(on_grid(random_program(range(30, 36), subgroup=32)), DEVICE))
    assert "shfl.sync.bfly.b32" in ptx


def test_a_wrong_text_is_refused() -> None:
    with pytest.raises(AssertionError, match="undefined"):
        ptx_of('extern "C" __global__ void k(float *y) { y[0] = undefined_name; }')
