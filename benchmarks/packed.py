"""Packed weights: how near Shannon's bound they are, how fast the stub decodes them, and what it holds meanwhile.

    python benchmarks/packed.py [MODEL.onnx ...] [--weights 37000 150000 1000000] [--zeros 0 80 90 95] [--bits 4 5]
                                [--seconds 1] [--cc gcc]

Without models: single layers of Gaussian weights, pruned by magnitude and clustered, one line each. With models: their
weights as `c2c compile --weights packed` writes them. "over" is the whole file but its head over the bound (models: of
the constants that have levels); MB/s counts bytes of the image, one thread, file in the page cache; memory is what the
decoder holds beside the image at most. Needs a C compiler and libzstd's headers.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.compiler.packed import pack_program
from c2c.ir.types import DType
from c2c.packing import Constant, PackedWeights, pack

HERE = Path(__file__).parent
STUB = HERE.parent / "runtime_stub"


def coded(size: int, zeros: float, bits: int) -> np.ndarray:
    """Normal weights, the smallest zero, the others at the nearest of 2^bits - 1 levels of f16 at equal distances."""
    w = np.random.default_rng(bits).standard_normal(size)
    kept = np.abs(w) > (np.quantile(np.abs(w), zeros) if zeros else -1)
    levels = np.linspace(w[kept].min(), w[kept].max(), 2**bits - 1).astype(np.float16)
    nearest = levels[np.abs(w[:, None] - levels[None].astype(np.float64)).argmin(1)]
    return np.where(kept, nearest, 0).astype(np.float32)


class Decoder:
    """The stub, compiled, with a program that times it."""

    def __init__(self, folder: Path, cc: str) -> None:
        self.folder, self.program = folder, folder / "packed"
        wrap = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "free")]
        sources = [str(HERE / "packed.c"), str(STUB / "c2c_weights.c")]
        zstd = ["-Wl,-Bstatic", "-lzstd", "-Wl,-Bdynamic"]  # so that its allocations are counted
        subprocess.run([cc, "-O2", "-I", str(STUB), *sources, *wrap, *zstd, "-o", str(self.program)], check=True)

    def run(self, made: PackedWeights, seconds: float) -> tuple[int, float, int]:
        """Bytes of the image, seconds of the fastest decode, most bytes held."""
        table, file = self.folder / "table", self.folder / "file.c2w"
        table.write_bytes(made.table.tobytes())
        file.write_bytes(made.bytes)
        line = [self.program, table, file, str(seconds)]
        size, best, most = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
        return int(size), float(best), int(most)


def line(name: str, made: PackedWeights, decoder: Decoder, seconds: float) -> str:
    known = [r for r in made.report if r.shannon]
    bound = sum((r.shannon or 0) * r.elements / 8 for r in known)
    over = sum(r.packed for r in known) / bound - 1 if bound else 0.0
    size, best, most = decoder.run(made, seconds)
    forms = "+".join(sorted({r.form for r in known})) if len(known) == 1 else f"{len(made.report)} constants"
    rate = size / best / 1e6
    return (
        f"{name:28} {size:>10} -> {len(made.bytes):>9} bytes, {over:+6.2%} over, "
        f"{best * 1e3:8.2f} ms, {rate:6.0f} MB/s, {most:>9} bytes held  {forms}"
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--weights", nargs="+", type=int, default=[37_000, 150_000, 1_000_000])
    p.add_argument("--zeros", nargs="+", type=int, default=[0, 80, 90, 95])
    p.add_argument("--bits", nargs="+", type=int, default=[4, 5])
    p.add_argument("--seconds", type=float, default=1.0)
    p.add_argument("--cc", default="gcc")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="c2c-") as made:
        decoder = Decoder(Path(made), a.cc)
        for model in a.models:
            options = CompileOptions(Target.parse("native"), name="model", winograd_weights="load")
            print(line(model.stem, pack_program(compile_file(model, options).program), decoder, a.seconds), flush=True)
        for size in () if a.models else a.weights:
            for zeros in a.zeros:
                for bits in a.bits:
                    packed = pack([Constant("w", DType.F32, coded(size, zeros / 100, bits))])
                    print(line(f"{size} at {zeros} %, {bits} bits", packed, decoder, a.seconds), flush=True)


if __name__ == "__main__":
    main()
