"""Registers of kernels as `passes/loops/pressure.py` estimates them, beside those that NVIDIA's assembler allots.

usage: python benchmarks/registers.py FOLDER MODEL.onnx...      (FOLDER: of nvidia-cuda-nvrtc and nvidia-cuda-nvcc)
"""

from __future__ import annotations

import ctypes
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from c2c.codegen.cuda import emit_cuda
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.program import Program
from c2c.passes.loops.pressure import registers

ARCHITECTURE = "sm_75"


def ptx_of(text: str, folder: Path) -> bytes:
    """PTX by NVRTC. Raises RuntimeError with the compiler's messages."""
    (library,) = folder.glob("nvidia/*/lib/libnvrtc.so.*")
    for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc, program, size = ctypes.CDLL(str(library)), ctypes.c_void_p(), ctypes.c_size_t()
    options = (ctypes.c_char_p * 2)(
        f"--gpu-architecture={ARCHITECTURE.replace('sm', 'compute')}".encode(), b"--fmad=false"
    )
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"net", 0, None, None)
    if nvrtc.nvrtcCompileProgram(program, len(options), options):
        raise RuntimeError("NVRTC refuses the kernels")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value


def allotted(program: Program, target: Target, folder: Path) -> dict[str, int]:
    """Registers of each kernel, by ptxas."""
    assert target.device is not None
    (assembler,) = folder.glob("nvidia/*/bin/ptxas")
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "k.ptx"
        path.write_bytes(ptx_of(emit_cuda(program, target.device), folder))
        command = [assembler, f"-arch={ARCHITECTURE}", "-v", path, "-o", Path(made) / "k.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found: dict[str, int] = {}
    name = ""
    for line in said.splitlines():
        entry, used = re.search(r"Compiling entry function '(\w+)'", line), re.search(r"Used (\d+) registers", line)
        name = entry.group(1) if entry else name
        if used:
            found[name] = int(used.group(1))
    return found


def main(folder: Path, models: list[Path]) -> int:
    target, ratios = Target.parse("cuda"), []
    for path in models:
        program = compile_file(path, CompileOptions(target, name="net")).program
        real = allotted(program, target, folder)
        for name, kernel in program.kernels_of(host=False).items():
            estimate = registers(kernel)
            ratios.append(estimate / real[name])
            print(f"{estimate:4d} {real[name]:4d} {ratios[-1]:5.2f}  {path.stem} {name}")
    print(f"estimate over allotted: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]]))
