"""The package list in pyproject.toml names every folder that holds a module."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("compiler", "compression", "ir", "passes", "codegen", "packing", "quantization", "runtime_stub")


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {p.parent for room in ROOMS for p in (ROOT / room).rglob("__init__.py")}
    assert listed == {"c2c"} | {"c2c." + ".".join(f.relative_to(ROOT).parts) for f in folders}


def test_runtime_sources_ship() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["c2c.runtime_stub"] == ["*.c", "*.h", "*.m"]
    assert not [p for p in (ROOT / "runtime_stub").rglob("*.[chm]") if p.parent != ROOT / "runtime_stub"]


def test_no_stray_module_joins_the_wheel() -> None:
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}
