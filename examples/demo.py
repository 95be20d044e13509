"""The demo: Magika's trained network inside a C program, on this machine and on an emulated ARM core.

usage: python examples/demo.py [--work DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from fetch_models import FetchError, fetch
from rich.console import Console
from rich.table import Table

import c2c
from c2c.codegen.target import Target
from c2c.compiler.toolchain import run, toolchain

HERE = Path(__file__).parent
ROOT = HERE.parent
FILES = ["README.md", "Makefile", "pyproject.toml", "__init__.py", "compiler/driver.py", "runtime_stub/c2c_runtime.c",
         "runtime_stub/c2c_runtime.h", ".ci/run"]  # fmt: skip


def build(model: Path, labels: list[str], target: str, folder: Path) -> dict[str, int]:
    """Compile the model, link the C program; the sizes of the manifest and of the program."""
    compiled = c2c.compile(model, target=target, shapes={"bytes": (1, 2048)}, name="magika")
    manifest = compiled.save(folder)
    names = ",\n".join(f'    "{name}"' for name in labels)
    (folder / "magika_labels.h").write_text(f"static const char *const magika_labels[] = {{\n{names}\n}};\n")
    shutil.copyfile(HERE / "magika" / "main.c", folder / "main.c")
    tools = toolchain(Target.parse(target))
    static = ["-static"] if tools.emulator else []
    run([tools.cc, "-O2", "-Wall", *static, "main.c", "magika.o", "-lm", "-o", "filetype"], cwd=folder)
    return {**manifest["bytes"], "program": (folder / "filetype").stat().st_size}


def answers(folder: Path, target: str, files: list[Path]) -> list[tuple[str, float]]:
    """What the linked program says about each file."""
    emulator = toolchain(Target.parse(target)).emulator
    lines = run([*emulator, folder / "filetype", *files]).splitlines()
    return [(line.split("\t")[1], float(line.split("\t")[2])) for line in lines]


def expected(model: Path, labels: list[str], files: list[Path]) -> list[tuple[str, float]]:
    """onnxruntime's answer to the same question."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    found = []
    for file in files:
        content = file.read_bytes()
        head, tail = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        x = np.full((1, 2048), 256, np.int32)
        x[0, : len(head)] = list(head)
        x[0, 2048 - len(tail) :] = list(tail)
        y = session.run(None, {"bytes": x})[0][0]
        found.append((labels[int(y.argmax())], float(y.max())))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "demo")
    work = parser.parse_args().work
    console = Console()
    try:
        model = fetch("magika", ROOT / ".cache" / "models") / "model.onnx"
    except FetchError as e:
        console.print(f"the demo needs a trained model from PyPI: {e}")
        return 1
    labels = json.loads((model.parent / "config.min.json").read_text())["target_labels_space"]
    files = [f for f in map(ROOT.joinpath, FILES) if f.exists()]
    table = Table(title="What kind of file is it? (Magika's network, compiled to an object, inside a C program)")
    table.add_column("file")
    reference = expected(model, labels, files)
    columns = {"onnxruntime": reference}
    for target in ("native", "arm64-neon"):
        start = time.perf_counter()
        try:
            sizes = build(model, labels, target, work / target)
            columns[target] = answers(work / target, target, files)
        except c2c.C2CError as e:
            console.print(f"[yellow]{target} left out: {e}[/]")
            continue
        seconds = time.perf_counter() - start
        console.print(
            f"{target}: code {sizes['text'] / 1e3:.0f} KB, read-only data {sizes['rodata'] / 1e6:.2f} MB (weights "
            f"{sizes['weights'] / 1e6:.2f} MB), arena {sizes['arena'] / 1e3:.0f} KB, program "
            f"{sizes['program'] / 1e6:.2f} MB; compiled, linked and run in {seconds:.1f} s"
        )
    for column in columns:
        table.add_column(column)
    for i, file in enumerate(files):
        table.add_row(str(file.relative_to(ROOT)), *(f"{c[i][0]} {c[i][1]:.4f}" for c in columns.values()))
    console.print(table)
    right = all(
        c[i][0] == r[0] and abs(c[i][1] - r[1]) < 1e-4 for c in columns.values() for i, r in enumerate(reference)
    )
    console.print("all answers agree with onnxruntime" if right else "[red]answers differ[/]")
    return 0 if right and "native" in columns else 1


if __name__ == "__main__":
    sys.exit(main())
