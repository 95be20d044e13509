"""What a quantisation did: a row a layer, what was tried, sizes, and how the results agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..compression.layers import Layer
from .grid import Grid
from .rounding import QuantizedWeights


@dataclass(frozen=True, slots=True)
class Report:
    """form: static, dynamic or weights. original, size: bytes of the two models' files. agreement, loss: with the dense
    model on `held_out` samples, None where there were none. layers, tried: JSON-ready rows. cycles: that the compiler
    expects of a run on this machine's core before and after. milliseconds: of such runs, where they were asked for."""

    form: str
    original: int
    size: int
    agreement: str | None
    loss: float | None
    calibration: int
    held_out: int
    synthetic: bool
    equalized: int
    layers: list[dict[str, Any]]
    tried: list[dict[str, Any]]
    cycles: tuple[float, float] | None = None
    milliseconds: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        return self.original / max(self.size, 1)

    @property
    def speed(self) -> float | None:
        """How many times as fast as the dense model it is expected to be."""
        return None if self.cycles is None else round(self.cycles[0] / max(self.cycles[1], 1.0), 2)

    def to_json(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in self.__slots__} | {"ratio": round(self.ratio, 3), "speed": self.speed}


def layer_row(
    layer: Layer, w: QuantizedWeights | None, grid: Grid | None, sqnr: float | None, cost: float | None
) -> dict[str, Any]:
    """form: what the layer computes with, int16 where its input or its weights have 16 bits. bits: of both. sqnr:
    of what it reads, dB; error: of its results, relative; cost: squared error of the network's output, relative, with 8
    bits for this layer alone."""
    form, bits = "float", None
    if w is not None:
        read = 0 if grid is None else 16 if grid.is_wide else 8
        form = f"int{max(read, w.form.bits)}" if read else f"int{w.form.bits} weights"
        bits = f"{read or 'f32'} x {w.form.bits}"
    return {
        "layer": layer.name, "operator": layer.node.op, "weights": int(layer.dense.size), "form": form, "bits": bits,
        "scale": None if grid is None else _short(grid.scale), "zero": None if grid is None else grid.zero,
        "sqnr": None if sqnr is None else round(sqnr, 1), "error": None if w is None else _short(w.error),
        "cost": None if cost is None else _short(cost),
    }  # fmt: skip


def _short(number: Any) -> float:
    return float(np.format_float_scientific(float(number), 3))


def print_report(report: Report, console: Console | None = None) -> None:
    console = console or Console(width=None if Console().is_terminal else 140)
    table = Table(title="layers (sqnr: of what a layer reads, dB; error: of its results, relative)")
    for column in ("layer", "operator", "weights", "form", "bits", "scale", "zero", "sqnr", "error", "cost"):
        table.add_column(column, overflow="fold")
    for row in report.layers:
        table.add_row(*("" if row[str(c.header)] is None else str(row[str(c.header)]) for c in table.columns))
    console.print(table)
    if len(report.tried) > 1:
        tried = Table(title="tried")
        for column in ("tensors of 16 bits", "layers in floats", "agreement", "loss", "kept"):
            tried.add_column(column)
        for row in report.tried:
            tried.add_row(
                str(row["wide"]), str(row["floats"]), row["agreement"], f"{row['loss']:.3%}", "*" if row["kept"] else ""
            )
        console.print(tried)
    console.print(f"{report.form}: {report.original} -> {report.size} bytes, {report.ratio:.2f}x")
    if report.agreement is not None:
        made = "MADE-UP samples (none were given)" if report.synthetic else "samples held out"
        console.print(
            f"agreement with the dense model on {report.held_out} {made}: {report.agreement} "
            f"({report.calibration} others were fitted to)"
        )
    if report.speed is not None:
        console.print(f"expected speed beside the dense model on this machine's core: {report.speed:.2f}x")
    if report.milliseconds is not None:
        before, after = report.milliseconds
        console.print(f"a run on this machine, one thread: {before:.2f} -> {after:.2f} ms, {before / after:.2f}x")
