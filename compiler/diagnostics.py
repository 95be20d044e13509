"""Printing, dumping, checking, timing and bisecting: everything between passes, so that no pass knows about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..ir.errors import C2CError, OnnxImportError, PassError
from ..ir.graph import Graph, Node
from ..ir.graph_text import large_constants, parse_graph, print_graph
from ..ir.reference import evaluate
from ..ir.verify import verify
from ..passes.base import Pass
from .inputs import random_inputs
from .options import Debug
from .output import writing

CHECK_TOLERANCE = 1e-4
"""Of a pass that changes the order of float operations, relative to an output's largest value."""


@dataclass(eq=False)
class PassObserver:
    """Does between passes what `Debug` asks for, and keeps the times of all stages."""

    debug: Debug
    times: list[tuple[str, float, bool]] = field(default_factory=list)
    rewrites: int = 0
    _expected: dict[str, np.ndarray] | None = None
    _feeds: dict[str, np.ndarray] = field(default_factory=dict)
    _number: int = 0

    def allow(self, rule: str, node: Node) -> bool:
        """Whether the next rewrite may be applied; the last one before the limit is named."""
        limit = self.debug.rewrite_limit
        if limit is None:
            self.rewrites += 1
            return True
        if self.rewrites >= limit:
            return False
        self.rewrites += 1
        if self.rewrites == limit:
            print(f"c2c: rewrite {limit} (the last applied): {rule} at {node.where}", file=sys.stderr)
        return True

    def before(self, pass_: Pass, graph: Graph) -> None:
        if self.debug.check_each and self._expected is None:
            self._feeds = random_inputs(graph)
            self._expected = evaluate(graph, self._feeds)

    def after(self, pass_: Pass, graph: Graph, changed: bool, seconds: float) -> None:
        self._number += 1
        self.times.append((pass_.name, seconds, changed))
        debug = self.debug
        wanted = pass_.name in debug.print_after or "all" in debug.print_after or (debug.print_changed and changed)
        if wanted:
            print(f"; after {pass_.name}{'' if changed else ' (unchanged)'}\n{print_graph(graph)}")
        if debug.dump_dir is not None:
            dump_graph(graph, debug.dump_dir / f"{self._number:02d}-{pass_.name}.c2c")
        if debug.verify_each and changed:
            self._verify(pass_, graph)
        if debug.check_each and changed:
            self._check(pass_, graph)

    def _verify(self, pass_: Pass, graph: Graph) -> None:
        try:
            verify(graph)
        except C2CError as e:
            raise PassError(
                f"after pass {pass_.name} the graph breaks a rule: {e.what}", where=e.where, remedy=e.remedy
            ) from e

    def _check(self, pass_: Pass, graph: Graph) -> None:
        assert self._expected is not None
        found = evaluate(graph, self._feeds)
        for name, expected in self._expected.items():
            error = relative_error(found[name], expected)
            if not error <= CHECK_TOLERANCE:
                raise PassError(
                    f"pass {pass_.name} changed output '{name}' by {error:.2g} of its largest value",
                    remedy="find the rewrite with --rewrite-limit N",
                )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage that is no graph pass."""
        start = time.perf_counter()
        yield
        self.times.append((name, time.perf_counter() - start, True))

    def report(self) -> str:
        """The table of `--time-passes`."""
        total = sum(s for _, s, _ in self.times)
        rows = [f"{s * 1e3:9.1f} ms  {s / total:5.1%}  {n}{'' if c else ' (unchanged)'}" for n, s, c in self.times]
        return "\n".join([*rows, f"{total * 1e3:9.1f} ms  total, {self.rewrites} rewrites"])


def dump_graph(graph: Graph, path: Path) -> None:
    """Write a graph's text; its large constants go into `constants/HASH.npy` beside it. Raises OutputError."""
    folder = path.parent / "constants"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(print_graph(graph))
        for digest, data in large_constants(graph).items():
            file = folder / f"{digest}.npy"
            if not file.exists():
                np.save(file, data)


def read_graph(path: Path) -> Graph:
    """What `dump_graph` wrote; raises ParseError, or OnnxImportError where the file cannot be read."""
    try:
        text = path.read_text()
        constants = {f.stem: np.load(f) for f in sorted((path.parent / "constants").glob("*.npy"))}
    except (OSError, ValueError) as e:
        raise OnnxImportError(f"cannot read {path}: {e}") from e
    return parse_graph(text, constants)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest magnitude of `expected`; inf where NaN, inf or shape do not agree."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    if expected.dtype.kind == "O" or found.dtype.kind == "O":
        return 0.0 if (found == expected).all() else float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    special = ~np.isfinite(b)
    if special.any():
        if not np.array_equal(a[special], b[special], equal_nan=True):
            return float("inf")
        a, b = a[~special], b[~special]
        if not b.size:
            return 0.0
    if not np.isfinite(a).all():
        return float("inf")
    worst = float(np.abs(a - b).max())
    scale = max(float(np.abs(b).max()), float(np.finfo(np.float32).tiny))
    return worst / scale
