"""The only place that runs other programs: C compilers and emulators, found on PATH."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..codegen.dialects import Language
from ..codegen.target import Target
from ..ir.errors import ToolError

TIMEOUT_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Toolchain:
    """C compiler and, for a foreign machine, the emulator's command line."""

    cc: str
    emulator: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        return [p for p in (self.cc, *self.emulator[:1]) if shutil.which(p) is None]


PACKAGES = {
    "gcc": "gcc",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "qemu-aarch64": "qemu-user",
}


def toolchain(target: Target) -> Toolchain:
    """How to link and run a Linux program for `target` here; raises ToolError that says what to install."""
    if target.os != "linux":
        raise ToolError(
            f"programs for {target.os} cannot be linked and run here", remedy=f"link and run the bundle on {target.os}"
        )
    found = (
        Toolchain("gcc")
        if target.arch == "x86_64"
        else Toolchain("aarch64-linux-gnu-gcc", ("qemu-aarch64", "-cpu", "max"))
    )
    if found.missing:
        packages = " ".join(PACKAGES.get(m, m) for m in found.missing)
        raise ToolError(f"{', '.join(found.missing)} not found", remedy=f"apt-get install {packages}")
    return found


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Standard output of a command; ToolError with its messages where it fails."""
    line = [str(c) for c in command]
    try:
        done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except FileNotFoundError as e:
        raise ToolError(f"{line[0]} not found", remedy=f"install {PACKAGES.get(line[0], line[0])}") from e
    except subprocess.TimeoutExpired as e:
        raise ToolError(f"{line[0]} ran longer than {TIMEOUT_SECONDS} s") from e
    if done.returncode == -signal.SIGILL:
        raise ToolError(
            f"{line[0]} met an instruction that this processor lacks", remedy="run it on the target's machine"
        )
    if done.returncode:
        raise ToolError(
            f"{line[0]} failed with exit code {done.returncode}", where=(done.stderr or done.stdout)[-2000:]
        )
    return done.stdout


def link_shared(obj: Path, library: Path, target: Target) -> None:
    """Link an object into a shared library with the platform's C compiler."""
    run([toolchain(target).cc, "-shared", "-o", library, obj, "-lm"])


def link_grid(folder: Path, name: str, language: Language) -> Path:
    """Build a graphics processor's bundle, with its driver, into a shared library for this machine; raises ToolError
    where its driver cannot be built here."""
    if language.name == "Metal" and sys.platform != "darwin":
        raise ToolError("Metal runs on Apple's systems alone", remedy="build the bundle there, or take --target opencl")
    library = folder / f"lib{name}.so"
    compiler = "clang" if language.name == "Metal" else "gcc"
    flags, parts = ["-O1", "-shared", "-fPIC"], [f"{name}.c", *language.sources]
    run([compiler, *flags, *parts, *language.build[1].split(), "-o", library], cwd=folder)
    return library


def check_zstd(cc: str) -> None:
    """Raises ToolError where a C compiler does not find libzstd."""
    text = "#include <zstd.h>\nint main(void) { return ZSTD_versionNumber() < 10400; }\n"
    line = [cc, "-x", "c", "-", "-lzstd", "-o", "/dev/null"]
    if subprocess.run(line, input=text, capture_output=True, text=True, check=False).returncode:
        arm = ":arm64, after dpkg --add-architecture arm64" if cc.startswith("aarch64") else ""
        raise ToolError(f"{cc} finds no libzstd", remedy=f"apt-get install libzstd-dev{arm}")


def link_example(folder: Path, name: str, target: Target, threads: int = 0, source: str = "") -> Path:
    """Build the bundle's example program (statically for a foreign machine); `source` replaces the object."""
    tools = toolchain(target)
    program = folder / "example"
    defines = [f"-DUSE_THREADS={threads}"] if threads else []
    static = ["-static"] if tools.emulator else []
    parts = ["example.c", "c2c_runtime.c", source or f"{name}.o"]
    packed = ["c2c_weights.c", "-lzstd"] if (folder / "c2c_weights.c").exists() else []
    if packed:
        check_zstd(tools.cc)
    run([tools.cc, "-O2", *static, *defines, *parts, *packed, "-lm", "-lpthread", "-o", program], cwd=folder)
    return program


def run_example(program: Path, target: Target, files: Sequence[Path]) -> str:
    """Run an example program on raw files, emulated where the target is foreign."""
    return run([*toolchain(target).emulator, program, *files], cwd=program.parent)
