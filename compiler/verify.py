"""Does the compiled model compute what ONNX says? Run it, natively or emulated, and compare node by node."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import RunError
from ..ir.graph import Graph, Node
from ..ir.reference import evaluate
from .api import from_compiled, load
from .bundle import check_grid_kinds, write_bundle
from .diagnostics import relative_error
from .driver import Compiled, Progress, compile_file, compile_graph
from .inputs import checked_inputs, meant, random_inputs, read_array
from .options import CompileOptions
from .packed import KINDS as PACKED
from .taps import PREFIX
from .toolchain import link_example, run_example


@dataclass(frozen=True, slots=True)
class Comparison:
    """One value: ONNX node (or output), operator, type, error relative to its largest magnitude.

    fused: all ONNX nodes that one kernel computes on the way to this value, itself the last.
    """

    name: str
    op: str
    type: str
    error: float
    ok: bool
    fused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """All comparisons in execution order; outputs last."""

    target: str
    tolerance: float
    nodes: tuple[Comparison, ...]
    outputs: tuple[Comparison, ...]

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.outputs)

    @property
    def first_difference(self) -> Comparison | None:
        return next((c for c in (*self.nodes, *self.outputs) if not c.ok), None)

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"output '{c.name}' {c.type}: error {c.error:.2g}" for c in self.outputs]
        lines.append(f"{len(self.nodes)} inner values compared on {self.target}, tolerance {self.tolerance:g}")
        first = self.first_difference
        if first is not None:
            lines.append(f"first that differs: node '{first.name}' ({first.op}) {first.type}, error {first.error:.2g}")
            if len(first.fused) > 1:
                lines.append(f"  its kernel computes {', '.join(first.fused)}")
        return "\n".join([*lines, "right" if self.ok else "WRONG"])


def verify_model(
    path: Path | str | bytes,
    options: CompileOptions,
    inputs: Sequence[str] = (),
    seed: int = 0,
    tolerance: float = 1e-4,
    progress: Progress = lambda stage: None,
    weights: str = "embed",
) -> VerifyReport:
    """Compile twice (as it ships, and with every node's result as an output), run both, compare with the reference."""
    shipped = compile_file(path, options, progress)
    tapped = compile_graph(shipped.source, replace(options, taps=True), progress=progress)
    feeds = feeds_of(shipped, inputs, seed)
    progress("reference")
    fused = {n.origin[-1]: n.origin for n in tapped.graph.nodes if n.origin}
    producers = {n.origin[-1] if n.origin else n.output.name: n for n in shipped.source.nodes}
    expected = evaluate_all(shipped.source, feeds)
    progress(f"run on {options.target}")
    taps = {n.removeprefix(PREFIX): v for n, v in run_compiled(tapped, feeds).items() if n.startswith(PREFIX)}
    nodes = [
        replace(_compare(name, node, taps[name], expected, tolerance), fused=fused.get(name, ()))
        for name, node in producers.items()
        if name in taps
    ]
    results = run_compiled(shipped, feeds, weights)
    outputs = []
    named = list(zip(shipped.source.output_names, shipped.source.outputs, strict=True))
    references = meant(shipped.program.outputs, {name: expected[value.name] for name, value in named})
    for name, value in named:
        error = relative_error(results[name], references[name])
        outputs.append(
            Comparison(
                name, value.producer.op if value.producer else "input", str(value.type), error, error <= tolerance
            )
        )
    return VerifyReport(str(options.target), tolerance, tuple(nodes), tuple(outputs))


def _compare(
    name: str, node: Node, found: np.ndarray, expected: Mapping[str, np.ndarray], tolerance: float
) -> Comparison:
    reference = expected[node.output.name]
    # passes may rewrite a node into one of another shape but the same elements
    error = relative_error(found.reshape(reference.shape) if found.size == reference.size else found, reference)
    return Comparison(name, node.op, str(node.output.type), error, error <= tolerance)


def evaluate_all(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of a graph by name, through ONNX's reference evaluator."""
    copy = graph.clone()
    copy.outputs = [v for v in copy.values() if v.producer is not None or v in copy.outputs]
    copy.output_names = [v.name for v in copy.outputs]
    return {**evaluate(copy, dict(feeds))}


def feeds_of(compiled: Compiled, inputs: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Inputs from `NAME=FILE` items; those not named are random by `seed`."""
    feeds = random_inputs(compiled.source, seed)
    for item in inputs:
        name, equals, file = item.rpartition("=")
        if not equals:
            raise RunError(f"'{item}' is not of the form NAME=FILE.npy")
        feeds[name] = read_array(Path(file), name)
    return feeds


def run_compiled(compiled: Compiled, feeds: Mapping[str, np.ndarray], weights: str = "embed") -> dict[str, np.ndarray]:
    """Run in this process where the target is this machine's, else as a C program under an emulator.
    weights: their form; packed ones are written and read back."""
    if compiled.options.target.device is not None:
        check_grid_kinds(("obj",), weights)
        return from_compiled(compiled).run(feeds)
    if not compiled.options.target.runs_here:
        return run_as_program(compiled, feeds, weights=weights)
    if weights not in PACKED:
        return from_compiled(compiled).run(feeds)
    with tempfile.TemporaryDirectory(prefix="c2c-") as made:
        write_bundle(compiled.program, compiled.options, Path(made), weights=weights)
        return load(made).run(feeds)


def run_as_program(
    compiled: Compiled,
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int = 0,
    source: bool = False,
    weights: str = "embed",
) -> dict[str, np.ndarray]:
    """Bundle, link with the C example, run on raw files. `source`: from the C text instead of the object.
    Raises ToolError where compiler or emulator is missing."""
    program = compiled.program
    arrays = checked_inputs(program.inputs, feeds)
    with tempfile.TemporaryDirectory(prefix="c2c-") as made:
        folder = Path(made)
        write_bundle(program, compiled.options, folder, weights=weights, emit=("c",) if source else ("obj",))
        binary = link_example(
            folder, program.name, compiled.options.target, threads, f"{program.name}.c" if source else ""
        )
        files = [folder / f"in{i}.raw" for i in range(len(arrays))]
        for file, array in zip(files, arrays, strict=True):
            array.tofile(file)
        results = [folder / f"out{i}.raw" for i in range(len(program.outputs))]
        run_example(binary, compiled.options.target, [*files, *results])
        found = {
            p.name: np.fromfile(f, p.dtype.numpy).reshape(p.shape)
            for p, f in zip(program.outputs, results, strict=True)
        }
        return meant(program.outputs, found)
