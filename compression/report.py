"""What a compression did: a row a layer, totals, and how the results agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .layers import Layer
from .reconstruct import Coded
from .session import Pass, Session


@dataclass(frozen=True, slots=True)
class Report:
    """original, size: bytes of all constants in fp32 and packed. layers, front: JSON-ready rows."""

    original: int
    size: int
    indices: int
    bound: int
    agreement: str
    loss: float
    held_out: int
    calibration: int
    synthetic: bool
    layers: list[dict[str, Any]]
    front: list[dict[str, Any]]

    @property
    def ratio(self) -> float:
        return self.original / max(self.size, 1)

    def to_json(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in self.__slots__} | {"ratio": round(self.ratio, 3)}


def make_report(session: Session, kept: Pass, passes: list[Pass]) -> Report:
    rows = [_row(layer, c, session.surveys[layer.name].sensitivity) for layer, c in kept.coded.items()]
    front = [
        {
            "bytes": p.size.total, "ratio": round(session.original_bytes / p.size.total, 2),
            "agreement": str(p.agreement), "loss": round(p.agreement.loss, 6), "kept": p is kept,
        }
        for p in sorted(passes, key=lambda p: p.size.total)
    ]  # fmt: skip
    s = session.samples
    return Report(
        session.original_bytes, kept.size.total, kept.size.indices, kept.size.bound, str(kept.agreement),
        round(kept.agreement.loss, 6), s.count - s.calibration, s.calibration, s.synthetic, rows, front,
    )  # fmt: skip


def _row(layer: Layer, c: Coded, sensed: float) -> dict[str, Any]:
    form = "code book" if c.zeros < 0.4 else "sparse code book"
    return {
        "layer": layer.name, "operator": layer.node.op, "weights": int(layer.dense.size), "form": form,
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
    front = Table(title="passes")
    for column in ("bytes", "ratio", "agreement", "loss", "kept"):
        front.add_column(column)
    for row in report.front:
        front.add_row(str(row["bytes"]), f"{row['ratio']:.2f}x", row["agreement"], f"{row['loss']:.3%}",
                      "*" if row["kept"] else "")  # fmt: skip
    console.print(front)
    over = report.indices / max(report.bound, 1) - 1
    made = "MADE-UP samples (none were given)" if report.synthetic else "samples held out"
    console.print(
        f"{report.original} -> {report.size} bytes, {report.ratio:.2f}x; indices {report.indices} bytes, {over:+.1%} "
        f"of Shannon's bound of their frequencies\nagreement with the dense model on {report.held_out} {made}: "
        f"{report.agreement} ({report.calibration} others were fitted to)"
    )
