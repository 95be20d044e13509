"""Runs kernels natively and, through a small C program, under an emulator."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.llvm_program import emit_object
from c2c.codegen.target import Target
from c2c.ir.program import Program
from c2c.runtime_stub.loader import Loaded

MAIN = """
#include <stdio.h>
#include <stdlib.h>
int model_run(void **args);
static void *block(size_t n) { void *p; if (posix_memalign(&p, 64, n + 64)) exit(9); return p; }
/* arguments: arena bytes, inputs, then "in FILE BYTES" or "out FILE BYTES" */
int main(int argc, char **argv) {
    void *args[256]; int n = 0;
    for (int i = 2; i + 2 < argc; i += 3) {
        size_t size = strtoull(argv[i + 2], 0, 10);
        args[n] = block(size);
        if (argv[i][0] == 'i') {
            FILE *f = fopen(argv[i + 1], "rb");
            if (!f || fread(args[n], 1, size, f) != size) return 8;
            fclose(f);
        }
        n++;
    }
    args[n] = block(strtoull(argv[1], 0, 10)); args[n + 1] = 0; args[n + 2] = 0;
    int code = model_run(args);
    for (int i = 2, k = 0; i + 2 < argc; i += 3, k++)
        if (argv[i][0] == 'o') {
            FILE *f = fopen(argv[i + 1], "wb");
            if (!f) return 7;
            fwrite(args[k], 1, strtoull(argv[i + 2], 0, 10), f);
            fclose(f);
        }
    return code;
}
"""

Runner = Callable[[Program, Target, Sequence[np.ndarray]], list[np.ndarray]]


@pytest.fixture
def run_program(tmp_path: Path) -> Runner:
    """Outputs of a program named `model` on inputs: in this process, or under qemu for a foreign target."""

    def run(program: Program, target: Target, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = [np.empty(p.shape, p.dtype.numpy) for p in program.outputs]
        obj = emit_object(program, target)
        if target.runs_here:
            loaded = Loaded(obj, program.name, arena_bytes=program.arena_bytes, threads=program.threads)
            assert loaded.run(inputs, outputs) == 0
            return outputs
        (tmp_path / "model.o").write_bytes(obj)
        (tmp_path / "main.c").write_text(MAIN)
        build = "aarch64-linux-gnu-gcc -O1 -static main.c model.o -lm -o main"
        subprocess.run(build.split(), cwd=tmp_path, check=True)
        items: list[str] = []
        for i, a in enumerate(inputs):
            a.tofile(tmp_path / f"in{i}")
            items += ["in", f"in{i}", str(a.nbytes)]
        for i, a in enumerate(outputs):
            items += ["out", f"out{i}", str(a.nbytes)]
        cpu = "max" if target.has_fp16 or target.has_dot_prod else "cortex-a57"
        command = ["qemu-aarch64", "-cpu", cpu, "./main", str(program.arena_bytes), *items]
        assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
        for i, a in enumerate(outputs):
            a[...] = np.fromfile(tmp_path / f"out{i}", a.dtype).reshape(a.shape)
        return outputs

    return run
