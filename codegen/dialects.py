"""The languages of kernels for graphics processors: what writes them, how their files end, which driver runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ir.program import Program
from .cuda import emit_cuda
from .devices import Device, Dialect
from .metal import emit_metal
from .opencl import emit_opencl


@dataclass(frozen=True, slots=True)
class Language:
    """ending: of a file of kernels. driver: files of the C driver, its source first. build: what follows the sources in
    a compiler's command."""

    name: str
    emit: Callable[[Program, Device], str]
    ending: str
    driver: tuple[str, ...]
    build: str


LANGUAGES: dict[Dialect, Language] = {
    "opencl": Language("OpenCL", emit_opencl, "cl", ("c2c_opencl.c", "c2c_opencl.h"), "-ldl"),
    "metal": Language("Metal", emit_metal, "metal", (), "-framework Metal -framework Foundation"),
    "cuda": Language("CUDA", emit_cuda, "cu", (), "-ldl"),
}


def emit_kernels(program: Program, device: Device) -> str:
    """All kernels of a verified program in the device's language. Raises CodegenError for what that cannot do."""
    return LANGUAGES[device.dialect].emit(program, device)
