"""Text for graphics processors run here: Metal and CUDA as C++, OpenCL as what it is, by an emulator whose threads are
fibers (`tests/emulator`)."""

from __future__ import annotations

import atexit
import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2c.codegen.devices import Device
from c2c.codegen.dialects import emit_kernels
from c2c.codegen.plan import PORTS, Plan, PlanStep, host_header, make_plan
from c2c.ir.program import Program

Array = np.ndarray[Any, Any]

HERE = Path(__file__).parent / "emulator"
COMPILER = "clang++-19"
needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason="clang-19 is missing: apt-get install clang-19"
)

FLAGS = """-std=c++17 -fPIC -ffp-contract=off -Xclang -ffloat16-excess-precision=none -march=native
 -Wall -Wextra -Werror""".split()
QUIET = """-Wno-unknown-attributes -Wno-unused-variable -Wno-unused-parameter -Wno-unused-function
 -Wno-unused-const-variable -Wno-ignored-attributes -Wno-pass-failed""".split()
WATCH = "-fsanitize=thread,bounds".split()
OPENCL = """-x cl -cl-std=CL1.2 -Xclang -finclude-default-header -Xclang -fdeclare-opencl-builtins -fPIC
 -march=native -Wall -Wextra -Werror""".split()
SHARED = ".bss=emulated_shared,alloc,load,data,contents"
"""Of an object of OpenCL kernels: its only variables are what work-groups share."""


UNWATCHED = '__attribute__((no_sanitize("thread")))'
"""What reads no tensor."""


def parameters(text: str, kernel: str) -> list[str]:
    """The declarations of a kernel's parameters, in order."""
    found = re.search(rf"\b{kernel}\(\s*([^{{]*?)\)\s*\{{", text)
    assert found is not None, f"{kernel} is not in the text"
    return [p.strip() for p in re.split(r",(?![^\[(]*[\])])", found.group(1)) if p.strip()]


def _metal_argument(declaration: str) -> str:
    """What an entry passes for a parameter, by its attribute."""
    position = {
        "threadgroup_position_in_grid": "at.of_group",
        "thread_position_in_threadgroup": "at.in_group",
        "thread_position_in_grid": "at.in_grid",
        "simdgroup_index_in_threadgroup": "at.subgroup",
        "thread_index_in_simdgroup": "at.lane",
    }
    found = re.fullmatch(r"(.*?)\w+ \[\[(?:buffer\((\d+)\)|(\w+))\]\]", declaration)
    assert found is not None, declaration
    type_, number, built_in = found.groups()
    return position[built_in] if built_in else f"({type_})arguments[{number}]"


def _cuda_argument(number: int, declaration: str) -> str:
    return f"({declaration.rpartition('*')[0]}*)arguments[{number}]"


def _opencl_argument(number: int, count: int, declaration: str) -> str:
    """A parameter is a tensor's memory, or the place of the first element there; both follow the `count` tensors."""
    where = f"arguments[{count + number}]"
    return where if number % 2 else f"({declaration.rpartition('*')[0]}*){where}"


def _opencl_entry(text: str, kernel: str) -> str:
    found = parameters(text, kernel)
    made = ", ".join(_opencl_argument(i, len(found) // 2, p) for i, p in enumerate(found))
    head = f"{UNWATCHED} void emulated_{kernel}(const __global ulong *arguments)"
    return f"{head};\n{head}\n{{\n    {kernel}({made});\n}}\n"


def _entry(text: str, dialect: str, kernel: str) -> str:
    found = parameters(text, kernel)
    made = (
        [_metal_argument(p) for p in found]
        if dialect == "metal"
        else [_cuda_argument(i, p) for i, p in enumerate(found)]
    )
    ignored = "" if any(m.startswith("at.") for m in made) else "    (void)at;\n"
    return (
        f'extern "C" {UNWATCHED} void emulated_{kernel}(void *const *arguments, const emulated_position &at)\n'
        f"{{\n{ignored}    {kernel}({', '.join(made)});\n}}\n"
        f'extern "C" {{ extern const unsigned count_{kernel}; const unsigned count_{kernel} = {len(found)}; }}\n'
    )


def executable(text: str, dialect: str, kernels: Sequence[str]) -> str:
    """The kernels' text with an entry for each of them."""
    if dialect == "opencl":
        return "\n".join([text, *(_opencl_entry(text, k) for k in kernels)])
    entries = "\n".join(_entry(text, dialect, k) for k in kernels)
    if dialect == "metal":
        return f"{text}\n{entries}"
    text = re.sub(r'asm\("([\w.]+) [%\d, ]+;" : ("=\w"\(\w+\)) : ([^;]*)\);', _instruction, text)
    return f'#include "cuda_emulated.h"\n{text}\n{entries}'


def _instruction(found: re.Match[str]) -> str:
    names = re.findall(r"\((\w+)\)", f"{found.group(2)}, {found.group(3)}")
    return f"{found.group(1).replace('.', '_')}({', '.join(names)});"


def build(
    text: str, dialect: str, kernels: Sequence[str], folder: Path, *, watched: bool = False, defines: Sequence[str] = ()
) -> Path:
    """A shared library of kernels and emulator; `watched`: every access calls the emulator. defines: macros, for OpenCL
    the names of extensions."""
    speed = ["-O1", "-fno-vectorize", "-fno-slp-vectorize", "-fno-unroll-loops", *WATCH] if watched else ["-O2"]
    given = [f"-D{name}" for name in defines]
    source = "kernels.cl" if dialect == "opencl" else "kernels.cpp"
    (folder / source).write_text(executable(text, dialect, kernels))
    if dialect == "opencl":
        quiet = ["-Wno-ignored-pragmas"] if defines else []  # clang knows not all extensions
        header = ["-include", str(HERE / "opencl" / "opencl_emulated.h")]
        _run("clang-19", *OPENCL, *QUIET, *speed, *given, *quiet, *header, "-c", source, "-o", "kernels.o", cwd=folder)
        _run("objcopy", "--rename-section", SHARED, "kernels.o", cwd=folder)
    else:
        includes = ["-I", str(HERE / dialect), "-I", str(HERE)]
        _run(COMPILER, *FLAGS, *QUIET, *speed, *given, *includes, "-c", source, "-o", "kernels.o", cwd=folder)
    _run(COMPILER, "-shared", "-Wl,-z,defs", "kernels.o", _emulator(), "-lm", "-o", "libkernels.so", cwd=folder)
    return folder / "libkernels.so"


@functools.cache
def _emulator() -> Path:
    """The emulator's object, built once."""
    folder = Path(tempfile.mkdtemp(prefix="emulator-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _run(COMPILER, *FLAGS, "-O2", "-c", HERE / "emulator.cpp", "-o", "emulator.o", cwd=folder)
    return folder / "emulator.o"


def _run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def check_equal(program: Program, found: Sequence[Array], expected: Sequence[Array], what: str) -> None:
    """Outputs equal bit by bit, but for the bits of a NaN."""
    for port, a, b in zip(program.outputs, found, expected, strict=True):
        at = np.flatnonzero((a != b) & ~((a != a) & (b != b)))
        message = f"{port.name}, {what}: " + ", ".join(f"[{i}] {a[i]} for {b[i]}" for i in at[:5])
        assert np.array_equal(a, b, equal_nan=port.dtype.is_float), message


class Emulated:
    """A program's kernels on the emulator. `faults` are what it found in the last run."""

    def __init__(
        self,
        program: Program,
        device: Device,
        folder: Path,
        *,
        text: str | None = None,
        watched: bool = False,
        defines: Sequence[str] = (),
    ) -> None:
        self.program, self.watched, self.device = program, watched, device
        self.plan: Plan = make_plan(program, device)
        self.text = emit_kernels(program, device) if text is None else text
        folder.mkdir(parents=True, exist_ok=True)
        kernels = list(program.kernels_of(host=False))
        library = build(self.text, device.dialect, kernels, folder, watched=watched, defines=defines)
        self.library = ctypes.CDLL(str(library))
        self.library.emulated_faults.restype = ctypes.c_char_p
        ctypes.c_uint.in_dll(self.library, "emulated_subgroup").value = max(device.subgroup, 1)
        self.faults: list[str] = []
        self.host = _build_host(self.plan, folder)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs, by the plan's steps in order."""
        p = self.program
        outputs = [np.zeros(port.shape, port.dtype.numpy) for port in p.outputs]
        own = [_filled(p.arena_bytes), _aligned(bytes(p.weights)), _filled(p.prepared_bytes)]
        buffers = [*own, *(np.ascontiguousarray(x) for x in inputs), *outputs]
        assert len(own) == PORTS
        for step in self.plan.steps:
            if step.host is None:
                self._launch(step, buffers)
            else:
                spans = self.plan.spans[step.host.first : step.host.first + step.host.count]
                mapped = [buffers[s.buffer].ctypes.data + s.begin for s in spans]
                self.host[step.host.function]((ctypes.c_void_p * len(mapped))(*mapped))
        self.faults = self.library.emulated_faults().decode().splitlines()
        return outputs

    def _launch(self, step: PlanStep, buffers: Sequence[Array]) -> None:
        name, launch = self.plan.kernels[step.kernel]
        params = self.program.kernels[name].params
        addresses = [buffers[buffer].ctypes.data + at * size for buffer, at, size in step.args]
        sizes = [p.size * p.dtype.nbytes for p in params]
        if self.device.dialect == "opencl":
            addresses += [v for buffer, at, _ in step.args for v in (buffers[buffer].ctypes.data, at)]
        groups = [t // g for t, g in zip(launch.threads, launch.group, strict=True)]
        if self.device.dialect == "cuda" and max(groups[1:]) > 65535:
            groups = [groups[0] * groups[1] * groups[2], 1, 1]
        self.library.emulated_run(
            name.encode(), self.library[f"emulated_{name}"], (ctypes.c_void_p * len(addresses))(*addresses),
            (ctypes.c_size_t * len(params))(*sizes) if self.watched else None, len(params),
            (ctypes.c_uint * 3)(*groups), (ctypes.c_uint * 3)(*launch.group),
            int(any(word in self.text for word in ("barrier", "syncthreads", "simd", "shfl"))),
        )  # fmt: skip


def _build_host(plan: Plan, folder: Path) -> ctypes.CDLL:
    """What the host runs, as a library."""
    text = host_header(plan) or ""
    (folder / "host.c").write_text(
        text.replace(f"static void {plan.program.name}_host_", f"void {plan.program.name}_host_")
    )
    _run("gcc", "-O2", "-shared", "-fPIC", "host.c", "-lm", "-o", "libhost.so", cwd=folder)
    return ctypes.CDLL(str(folder / "libhost.so"))


def _filled(size: int) -> Array:
    """Memory whose floats are NaN until they are written."""
    return np.full(size + 8, 0xFF, np.uint8)


def _aligned(data: bytes) -> Array:
    return np.frombuffer(data + bytes(8), np.uint8)
