"""Every reason why a model cannot be compiled, at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..codegen.target import Target
from ..ir.errors import C2CError
from ..ir.graph import Graph, Node
from ..ir.ops import op as op_row
from ..passes.lower import is_lowered, is_refused, lower_node
from .diagnostics import PassObserver
from .driver import optimise
from .onnx_import import import_model
from .options import CompileOptions

TARGET = "x86-64-v3"
"""What an operator supports does not depend on the target; the kernels are written for this one and thrown away."""


@dataclass(frozen=True, slots=True)
class Problem:
    """severity: 'error'. node, op: '' where it concerns no node."""

    severity: str
    node: str
    op: str
    what: str
    where: str
    remedy: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def check_model(
    path: Path | str | bytes,
    *,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
) -> list[Problem]:
    """Problems of import, then of every operator, in the model's order; empty where the model can be compiled."""
    problems: list[Problem] = []

    def report(e: C2CError, node: str, op: str) -> None:
        problems.append(Problem("error", node, op, e.what, e.where, e.remedy))

    try:
        graph = import_model(
            path, dims=dims, shapes=shapes, values=values, expand=lambda op: not is_lowered(op), report=report
        )
    except C2CError as e:
        report(e, "", "")
        return problems
    known = {p.node for p in problems}
    problems += [p for p in _operator_problems(graph, complete=not problems) if p.node not in known]
    return problems


def _operator_problems(graph: Graph, complete: bool) -> list[Problem]:
    """Nodes without a lowering; in a complete graph also those whose form no lowering takes."""
    missing = [
        _problem(n, C2CError(f"operator {n.op} is not supported", where=n.where)) for n in graph.nodes if _lacks(n)
    ]
    missing += [p for n in graph.nodes if is_refused(n.op) and (p := _try(n, Target.parse(TARGET))) is not None]
    if missing or not complete:
        return missing
    options = CompileOptions(Target.parse(TARGET), winograd_error=0)
    try:
        optimise(graph, options, PassObserver(options.debug))
    except C2CError as e:
        return [Problem("error", "", "", e.what, e.where, e.remedy)]
    return [p for n in graph.nodes if (p := _try(n, options.target)) is not None]


def _lacks(node: Node) -> bool:
    return not is_lowered(node.op) and not op_row(node.op).view


def _try(node: Node, target: Target) -> Problem | None:
    """The problem of lowering one node."""
    if op_row(node.op).view:
        return None
    try:
        lower_node(node, target)
    except C2CError as e:
        return _problem(node, e)
    return None


def _problem(node: Node, e: C2CError) -> Problem:
    name = node.origin[-1] if node.origin else node.output.name
    remedy = e.remedy or "docs/operators.md lists what is supported"
    return Problem("error", name, node.op, e.what, e.where or node.where, remedy)
