"""Programs on OpenCL for tests; skips visibly where there is no device."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2c.codegen.dialects import LANGUAGES
from c2c.codegen.target import Target
from c2c.compiler.bundle import write_bundle
from c2c.compiler.options import CompileOptions
from c2c.compiler.toolchain import link_grid
from c2c.ir.program import Program
from c2c.runtime_stub.gpu import LoadedGpu

Array = np.ndarray[Any, Any]

OPENCL = ("opencl", "opencl-cpu")
"""Targets whose kernels have little in common; those of one maker are `opencl` with other limits."""


@functools.cache
def has_device() -> bool:
    """Whether there is an OpenCL library with a device."""
    try:
        library = ctypes.CDLL("libOpenCL.so.1")
    except OSError:
        return False
    count = ctypes.c_uint32(0)
    return library.clGetPlatformIDs(0, None, ctypes.byref(count)) == 0 and count.value > 0


needs_opencl = pytest.mark.skipif(not has_device(), reason="there is no OpenCL device: apt-get install pocl-opencl-icd")


QUERY = """
import ctypes

library = ctypes.CDLL("libOpenCL.so.1")
platform, device, text = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.create_string_buffer(1 << 14)
library.clGetPlatformIDs(1, ctypes.byref(platform), None)
library.clGetDeviceIDs(platform, ctypes.c_uint64(0xFFFFFFFF), 1, ctypes.byref(device), None)
library.clGetDeviceInfo(device, 0x1030, ctypes.c_size_t(len(text)), text, None)
print(text.value.decode())
"""


@functools.cache
def extensions() -> frozenset[str]:
    """Of the first platform's first device; empty without one. A process of its own asks: forks of one that has opened
    a device of PoCL hang when they open it again."""
    if not has_device():
        return frozenset()
    done = subprocess.run([sys.executable, "-c", QUERY], capture_output=True, text=True, check=False)
    return frozenset(done.stdout.split())


needs_half = pytest.mark.skipif(
    "cl_khr_fp16" not in extensions(),
    reason="the OpenCL device has no cl_khr_fp16: pip install intel-opencl-rt has one",
)


def run_on_device(program: Program, target: str, inputs: list[Array], folder: Path) -> list[Array]:
    """Outputs of a program, through its bundle and the C driver."""
    write_bundle(program, CompileOptions(Target.parse(target), name=program.name), folder)
    library = link_grid(folder, program.name, LANGUAGES["opencl"])
    loaded = LoadedGpu(library, program.name, "c2c_opencl", weights=program.weights, steps=len(program.steps))
    outputs = [np.zeros(p.shape, p.dtype.numpy) for p in program.outputs]
    assert loaded.run([np.ascontiguousarray(x) for x in inputs], outputs) == 0
    loaded.close()
    return outputs
