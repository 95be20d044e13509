"""Tables for people: with rules and colours on a terminal, plain columns in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..ir.program import Port, Rounded
from .bench import BenchReport, NodeTime
from .fit import Fit
from .grid_bench import GridReport, GridTime
from .machine import Machine
from .tune import TuneReport


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> None:
    """Columns of numbers to the right, then `text` columns of text to the left."""
    console = Console()
    numbers = len(columns) - text
    if console.is_terminal:
        table = Table(title=title, box=None, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i < numbers else "left", no_wrap=i < numbers)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(len(r[i]) for r in (columns, *rows)) for i in range(len(columns))]
    print(title)
    for row in (columns, *rows):
        cells = [c.rjust(w) if i < numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def print_rounded(products: Sequence[Rounded]) -> None:
    """Products whose activations were rounded, and what that does to their results."""
    if products:
        print(f"activations of {len(products)} products are rounded to {products[0].activations}:")
    for p in products:
        print(
            f"  {p.origin[-1]} {p.length}x{p.columns}: error {p.expected:.2%} expected (of weights {p.weights:.2%}),"
            f" at most {p.largest:.3g} times the largest activation of a row"
        )


def print_labels(outputs: Sequence[Port]) -> None:
    """Outputs that are strings or maps in the model, and what they are here."""
    for port in outputs:
        some = ", ".join(port.labels[:4]) + (", …" if len(port.labels) > 4 else "")
        if port.labels and port.dtype.is_float:
            print(f"output '{port.name}' is a tensor of floats in place of maps; its columns are {some}")
        elif port.labels:
            print(f"output '{port.name}' numbers {len(port.labels)} strings (in the header and the manifest): {some}")


def print_machine(m: Machine) -> None:
    """Peaks, bandwidths and what a parallel step costs."""
    rows = [(f"{p.gflops:.1f}", "GFLOP/s", f"f32 multiply-adds, {p.bits} bits") for p in m.peaks]
    for v in m.levels:
        holds = f" of {_bytes(v.bytes)}" if v.bytes else ""
        rows.append((f"{v.gbs:.1f}", "GB/s", f"reading {v.name}{holds} (through {_bytes(v.measured_bytes)})"))
    if m.cores > 1:
        rows.append((f"{m.barrier_us:.2f}", "us", f"empty parallel step, {m.cores} threads awake"))
        rows.append((f"{m.wake_us:.2f}", "us", "more where the threads are asleep"))
    print_table(f"one core of {m.cpu}", ("", "unit", "what"), rows, 2)


def _bytes(n: int) -> str:
    return f"{n >> 20} MiB" if n >= 1 << 20 else f"{n >> 10} KiB"


_COLUMNS = (
    "ms", "share", "GFLOP/s", "own", "GB/s", "MB", "flops/B", "peak", "roofline", "node", "operators", "schedule",
)  # fmt: skip


def print_bench(report: BenchReport) -> None:
    """Nodes by time, then the whole."""
    m = report.machine
    peak = ", ".join(f"{v.name} {v.gbs:.0f}" for v in m.levels)
    rows = [_row(n) for n in sorted(report.nodes, key=lambda n: -n.milliseconds)]
    print_table(f"{m.cpu}: peak {m.gflops:.1f} GFLOP/s, GB/s: {peak}", _COLUMNS, rows, 3)
    flops = sum(n.work.flops for n in report.nodes)
    total = sum(n.milliseconds for n in report.nodes)
    limit = sum(n.limit_ms for n in report.nodes)
    print(
        f"{report.milliseconds:.3f} ms median of {report.runs} runs, {report.threads} thread(s), fastest "
        f"{report.fastest:.3f} ms; arena {report.arena_bytes / 1e6:.2f} MB, "
        f"weights {report.weight_bytes / 1e6:.2f} MB\n"
        f"{total:.3f} ms sum of nodes, one thread: {flops / 1e9:.3f} GFLOP at {_per(flops, total * 1e6):.1f} GFLOP/s, "
        f"{_per(limit, total):.0%} of the roofline"
    )


_GRID_COLUMNS = (
    "ms", "share", "GFLOP/s", "GB/s", "MB", "flops/B", "kernels", "threads", "node", "operators", "schedule",
)  # fmt: skip


def print_grid_bench(report: GridReport) -> None:
    """Nodes by time, then the whole."""
    rows = [_grid_row(n) for n in sorted(report.nodes, key=lambda n: -n.milliseconds)]
    print_table(report.device, _GRID_COLUMNS, rows, 3)
    total = sum(n.milliseconds for n in report.nodes)
    flops = sum(n.work.flops for n in report.nodes)
    print(
        f"{report.milliseconds:.3f} ms median of {report.runs} runs with copies, fastest {report.fastest:.3f} ms; "
        f"arena {report.arena_bytes / 1e6:.2f} MB, weights {report.weight_bytes / 1e6:.2f} MB\n"
        f"{total:.3f} ms sum of nodes by the device's clock: {flops / 1e9:.3f} GFLOP at "
        f"{_per(flops, total * 1e6):.1f} GFLOP/s"
    )
    print_fit(report.fit)


_FIT_COLUMNS = (
    "MFLOP", "in f16", "MB", "flops/B", "at best", "groups", "threads", "registers", "shared", "a unit holds",
    "occupancy", "busy", "µs at best", "bound by", "node", "kernel",
)  # fmt: skip


def print_fit(fits: Sequence[Fit]) -> None:
    """How kernels fit the chip that the target names, by the time that they take at best; nothing without one."""
    if fits:
        rows = [_fit_row(f) for f in sorted(fits, key=lambda f: -f.microseconds * f.calls)]
        print_table(f"kernels on {fits[0].chip}, derived", _FIT_COLUMNS, rows, 3)


def _fit_row(f: Fit) -> tuple[str, ...]:
    halves = f.half_flops / f.flops if f.flops else 0.0
    return (
        f"{f.flops / 1e6:.2f}", f"{halves:.0%}", f"{f.bytes / 1e6:.3f}", f"{f.intensity:.1f}",
        f"{f.best_intensity:.1f}", str(f.groups), str(f.threads), str(f.registers), str(f.shared_bytes),
        f"{f.resident} ({f.limit})", f"{f.occupancy:.0%}", f"{f.busy:.0%}", f"{f.microseconds:.1f}", f.bound, f.node,
        f"{f.kernel} x{f.calls}",
    )  # fmt: skip


def _grid_row(n: GridTime) -> tuple[str, ...]:
    threads = sum(prod(la.threads) for la in n.launches)
    return (
        f"{n.milliseconds:.4f}", f"{n.share:.1%}", f"{n.gflops:.1f}", f"{n.gbs:.1f}", f"{n.work.bytes / 1e6:.3f}",
        f"{n.work.intensity:.1f}", str(len(n.kernels)), str(threads), n.origin[-1], "+".join(n.ops),
        "; ".join(n.schedules),
    )  # fmt: skip


def _row(n: NodeTime) -> tuple[str, ...]:
    own = f"{n.own_gflops:.1f}" if n.work.own_flops != n.work.flops else ""
    return (
        f"{n.milliseconds:.4f}", f"{n.share:.1%}", f"{n.gflops:.1f}", own, f"{n.gbs:.1f}", f"{n.work.bytes / 1e6:.3f}",
        f"{n.work.intensity:.1f}", f"{n.peak:.0%}", f"{n.roofline:.0%}", n.origin[-1],
        "+".join(n.ops), "; ".join(n.schedules),
    )  # fmt: skip


def print_tuning(report: TuneReport, path: Path) -> None:
    """What differs from the cost model's choices, then the whole."""
    rows = [
        ("" if m.default_us is None else f"{m.default_us:.1f}", f"{m.us:.1f}", f"{family} {problem}", m.default, m.name)
        for (family, problem), m in sorted(report.changed.items())
    ]
    title = f"{len(rows)} of {len(report.measured)} problems take another schedule than the cost model's"
    print_table(title, ("us", "tuned", "problem", "cost model", "schedule"), rows, 3)
    print(
        f"{report.before:.3f} ms before, {report.after:.3f} ms after, {report.rounds} rounds"
        f"{'' if report.complete else ' (candidates were left: give more --seconds)'}\n{path}: for c2c compile --tuning"
    )


def _per(a: float, b: float) -> float:
    return a / b if b else 0.0
