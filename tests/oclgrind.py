"""Bundles for OpenCL under Oclgrind (Price and McIntosh-Smith, Oclgrind: An Extensible OpenCL Device Simulator, IWOCL
2015); skips visibly where it is missing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ORACLE = next(
    (p for p in (Path("/usr/lib/oclgrind"), Path("/usr/local/lib")) if (p / "liboclgrind-rt-icd.so").exists()), None
)
needs_oclgrind = pytest.mark.skipif(ORACLE is None, reason="Oclgrind is missing: apt-get install oclgrind")


def simulate(folder: Path, name: str = "net", *, timeout: int = 300, **settings: str) -> str:
    """All that the bundle's example prints on Oclgrind; `settings` are its variables without their prefix."""
    (folder / "oracle.icd").write_text(f"{ORACLE}/liboclgrind-rt-icd.so\n")
    sources = ["example.c", f"{name}.c", "c2c_opencl.c", "c2c_gpu.c"]
    subprocess.run(["gcc", "-O1", *sources, "-ldl", "-o", "example"], cwd=folder, check=True)
    own = {f"OCLGRIND_{key}": value for key, value in settings.items()}
    environment = {**os.environ, "OCL_ICD_VENDORS": str(folder / "oracle.icd"), **own}
    done = subprocess.run(
        ["./example"], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert "on Oclgrind" in done.stderr, done.stderr[:2000]
    return done.stderr + done.stdout


def faults(text: str) -> list[str]:
    """Races, accesses outside of a buffer, and barriers that not all threads come to."""
    return re.findall(r"^.*(?:data race|Invalid (?:read|write)|divergence).*$", text, re.M)


def global_bytes(text: str) -> dict[str, int]:
    """Bytes that each kernel's last run moved from and to global memory, by name; needs INST_COUNTS."""
    found: dict[str, int] = {}
    for name, part in re.findall(r"Instructions executed for kernel '(\w+)':\n((?:[ \t]+\d+.*\n)+)", text):
        found[name] = sum(int(n) for n in re.findall(r"(?:load|store) global \((\d+) bytes\)", part))
    return found
