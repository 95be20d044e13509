"""Import direction between the rooms, and who may use which library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "ir": set(),
    "codegen": {"ir"},
    "passes": {"ir", "codegen.target"},
    "packing": {"ir.types"},
    "runtime_stub": set(),
    "compiler": {
        "ir",
        "codegen",
        "passes",
        "packing",
        "runtime_stub",
        "compression.onnx_compress",
        "compression.report",
        "quantization.onnx_quantize",
        "quantization.report",
    },
    "compression": {
        "ir",
        "codegen.target",
        "compiler.api",
        "compiler.driver",
        "compiler.estimate",
        "compiler.options",
        "compiler.packed",
        "packing",
    },
    "quantization": {
        "ir",
        "codegen.target",
        "compiler.api",
        "compiler.diagnostics",
        "compiler.driver",
        "compiler.estimate",
        "compiler.options",
        "compression",
    },
}
LIBRARIES = {
    "onnx": {"compiler/", "compression/onnx_", "compression/session.py", "quantization/", "ir/reference"},
    "llvmlite": {
        "codegen/llvm_",
        "codegen/target.py",
        "runtime_stub/loader.py",
        "runtime_stub/pool.py",
        "compiler/bundle.py",
    },
    "zstandard": {"packing/"},
    "torch": {"compression/torch_", "compression/fine_tune.py"},
    "onnxruntime": set(),
}
"""Path prefixes that may import a library; any other use is an error."""


def modules() -> list[Path]:
    return sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names a module imports: `c2c.ROOM…` for relative ones, the library's name otherwise."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = ("c2c", *package)[: len(package) + 1 - node.level]
            if node.module:
                yield ".".join((*base, node.module))
            else:
                yield from (".".join((*base, a.name)) for a in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_direction(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    room = path.relative_to(ROOT).parts[0]
    for imported in imports(path):
        top, _, rest = imported.partition(".")
        if top == "c2c" and rest and rest.partition(".")[0] in ROOMS:
            other = rest.partition(".")[0]
            allowed = other == room or any(rest == a or rest.startswith(a + ".") for a in ROOMS[room])
            assert allowed, f"{name} imports {rest}"
        assert top not in LIBRARIES or any(name.startswith(p) for p in LIBRARIES[top]), f"{name} imports {top}"


def test_a_wrong_import_is_found(tmp_path: Path) -> None:
    module = ROOT / "ir" / "types.py"
    assert "numpy" in set(imports(module))
    tree = [i for p in modules() for i in imports(p) if i.startswith("c2c.")]
    assert any(i.startswith("c2c.ir.") for i in tree), "relative imports are not resolved: this test could not fail"
