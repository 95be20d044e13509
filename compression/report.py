"""What a compression did: a row a layer, totals, and how the results agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..compiler.packed import report as packed_rows
from .coded import Coded
from .layers import Layer
from .onnx_result import Outcomes
from .session import Pass, Session


@dataclass(frozen=True, slots=True)
class Report:
    """original: bytes of all constants in fp32. size: of the packed weights and their table. constants: what the search
    counted, all constants packed as they stand in the model. indices, bound: bytes of the coded weights alone, beside
    Shannon's bound. speeds: how many times as fast as the dense model each target is expected to run it. layers, front,
    packed: JSON-ready rows."""

    original: int
    size: int
    constants: int
    indices: int
    bound: int
    agreement: str
    loss: float
    held_out: int
    calibration: int
    synthetic: bool
    speeds: dict[str, float]
    layers: list[dict[str, Any]]
    front: list[dict[str, Any]]
    packed: list[dict[str, Any]]

    @property
    def ratio(self) -> float:
        return self.original / max(self.size, 1)

    def to_json(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in self.__slots__} | {"ratio": round(self.ratio, 3)}


def make_report(
    session: Session, kept: Pass, passes: list[Pass], outcomes: Outcomes, *, whole_front: bool = False
) -> Report:
    """whole_front: every pass is compiled, for its size in the file and its speeds; else the kept one alone."""
    rows = [_row(layer, c, session.surveys[layer.name].sensitivity) for layer, c in kept.coded.items()]
    front = []
    for p in sorted(passes, key=lambda p: p.size.total):
        row = {
            "constants": p.size.total, "agreement": str(p.agreement), "loss": round(p.agreement.loss, 6),
            "kept": p is kept,
        }  # fmt: skip
        if whole_front or p is kept:
            made = outcomes.of(p)
            speeds = {name: round(s, 3) for name, s in made.speeds.items()}
            row |= {"bytes": made.bytes, "ratio": round(session.original_bytes / made.bytes, 2), "speeds": speeds}
        front.append(row)
    s, made = session.samples, outcomes.of(kept)
    return Report(
        session.original_bytes, made.bytes, kept.size.total, kept.size.indices, kept.size.bound, str(kept.agreement),
        round(kept.agreement.loss, 6), s.count - s.calibration, s.calibration, s.synthetic, made.speeds, rows, front,
        packed_rows(made.packed),
    )  # fmt: skip


def _row(layer: Layer, c: Coded, sensed: float) -> dict[str, Any]:
    return {
        "layer": layer.name, "operator": layer.node.op, "weights": int(layer.dense.size), "form": c.form,
        "levels": len(c.levels), "zeros": round(c.zeros, 4), "bits": round(c.bound, 4),
        "error": float(np.format_float_scientific(c.error, 3)), "sensitivity": round(sensed, 4),
    }  # fmt: skip


def print_report(report: Report, console: Console | None = None) -> None:
    console = console or Console(width=None if Console().is_terminal else 140)
    table = Table(title="layers (bits: Shannon's bound a weight; error: of the results, relative)")
    for column in ("layer", "operator", "weights", "form", "levels", "zeros", "bits", "error"):
        table.add_column(column, overflow="fold")
    for row in report.layers:
        table.add_row(*(str(row[c.header]) for c in table.columns))  # type: ignore[index]
    console.print(table)
    front = Table(
        title="passes (constants: all packed as they stand; bytes: for the target's kernels, with their table)"
    )
    for column in ("constants", "bytes", "ratio", "agreement", "loss", *(f"speed {t}" for t in report.speeds), "kept"):
        front.add_column(column)
    for row in report.front:
        speeds = row.get("speeds", {})
        front.add_row(
            str(row["constants"]), str(row.get("bytes", "")), f"{row['ratio']:.2f}x" if "ratio" in row else "",
            row["agreement"], f"{row['loss']:.3%}", *(f"{speeds[t]:.2f}x" if speeds else "" for t in report.speeds),
            "*" if row["kept"] else "",
        )  # fmt: skip
    console.print(front)
    over = report.indices / max(report.bound, 1) - 1
    made = "MADE-UP samples (none were given)" if report.synthetic else "samples held out"
    speeds = ", ".join(f"{v:.2f}x on {t}" for t, v in report.speeds.items())
    console.print(
        f"{report.original} -> {report.size} bytes, {report.ratio:.2f}x; indices {report.indices} bytes, {over:+.1%} "
        f"of Shannon's bound of their frequencies; expected speed beside the dense model {speeds}\n"
        f"agreement with the dense model on {report.held_out} {made}: {report.agreement} "
        f"({report.calibration} others were fitted to)"
    )
