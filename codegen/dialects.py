"""The languages of kernels for graphics processors: what writes them, how their files end, which driver runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ir.program import Program
from .cuda import emit_cuda
from .devices import Device, Dialect
from .metal import emit_metal
from .opencl import emit_opencl

SHARED = ("c2c_plan.h", "c2c_gpu.h", "c2c_gpu.c")
"""Files that all drivers share."""


@dataclass(frozen=True, slots=True)
class Language:
    """ending: of a file of kernels. driver: stem of the C driver, which its functions' names begin with; source: its
    file. build: what stands before and after the sources in a compiler's command. needs: what runs them."""

    name: str
    emit: Callable[[Program, Device], str]
    ending: str
    driver: str
    source: str
    build: tuple[str, str]
    needs: str

    @property
    def files(self) -> tuple[str, ...]:
        """Of the driver, in a bundle."""
        return (*SHARED, f"{self.driver}.h", self.source)

    @property
    def sources(self) -> tuple[str, ...]:
        """Of the driver, for a compiler."""
        return (self.source, "c2c_gpu.c")


LANGUAGES: dict[Dialect, Language] = {
    "opencl": Language(
        "OpenCL",
        emit_opencl,
        "cl",
        "c2c_opencl",
        "c2c_opencl.c",
        ("cc -O2", "-lm -ldl"),
        "an OpenCL driver, for instance pocl-opencl-icd",
    ),
    "metal": Language(
        "Metal",
        emit_metal,
        "metal",
        "c2c_metal",
        "c2c_metal.m",
        ("clang -O2", "-framework Metal -framework Foundation"),
        "macOS or iOS",
    ),
    "cuda": Language(
        "CUDA", emit_cuda, "cu", "c2c_cuda", "c2c_cuda.c", ("cc -O2", "-lm -ldl"), "NVIDIA's driver and NVRTC"
    ),
}


def emit_kernels(program: Program, device: Device) -> str:
    """All kernels of a verified program in the device's language. Raises CodegenError for what that cannot do."""
    return LANGUAGES[device.dialect].emit(program, device)
