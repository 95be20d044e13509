"""What a pass is, what a rule is, and how a list of passes runs.

Passes know nothing about printing, checking, timing or bisecting: `run_pipeline` tells an `Observer`, and every single
rewrite asks `PassContext.allow`.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from ..codegen.target import Target
from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Rewriter, Value
from ..ir.program import Rounded
from ..ir.types import DType
from .lower.schedule import Choice, Tuning

MAX_ROUNDS = 64
"""Rounds after which a rule table counts as cyclic."""


@dataclass(frozen=True)
class PassContext:
    """What passes may depend on besides the graph.

    target: the machine, as facts. allow: asked before each rewrite (rule name, node), None allows all.
    fold_bytes: largest constant that folding may create where it does not shrink the sum of its operands.
    winograd_error: largest expected rms error of a Winograd convolution, relative to the rms of its result.
    winograd_weights: when they are transformed, of `select_winograd.WEIGHTS`.
    precision: type of the arithmetic on float32 tensors where it may be narrowed (`narrow-floats`).
    weight_type: what constant matrices of float32 are rounded to (`narrow-weights`): f32, f16 or bf16.
    activations: what activations of products by coded weights may be rounded to (`round-activations`): f32 or int8.
    optimize_for: "speed", or "memory" where a smaller arena is worth some time.
    rounded: where passes record the products whose activations they rounded.
    tuning, choices: what `lower.schedule.choose` follows, and where it records.
    """

    target: Target
    threads: int = 1
    allow: Callable[[str, Node], bool] | None = None
    fold_bytes: int = 1 << 20
    winograd_error: float = 1e-5
    winograd_weights: str = "auto"
    precision: DType = DType.F32
    weight_type: DType = DType.F32
    activations: str = "f32"
    optimize_for: str = "speed"
    tuning: Tuning = field(default_factory=Tuning)
    choices: list[Choice] = field(default_factory=list)
    rounded: list[Rounded] = field(default_factory=list)

    def rewriter(self, graph: Graph) -> GraphRewriter:
        return GraphRewriter(graph, self.allow)


class Pass:
    """A graph transformation. Subclasses set `name` (kebab-case) and implement `run`."""

    name: ClassVar[str]

    def run(self, graph: Graph, context: PassContext) -> bool:
        """Change `graph` in place; True when anything changed."""
        raise NotImplementedError


class Observer(Protocol):
    """Told about every pass of a pipeline: the place for printing, dumping, verifying and timing."""

    def before(self, pass_: Pass, graph: Graph) -> None: ...

    def after(self, pass_: Pass, graph: Graph, changed: bool, seconds: float) -> None: ...


PASSES: dict[str, Pass] = {}
"""Every registered pass by name."""

P = TypeVar("P", bound=type[Pass])


def register_pass(cls: P) -> P:
    """Class decorator: one instance of the pass becomes known under its name."""
    assert cls.name not in PASSES, f"two passes are named {cls.name}"
    PASSES[cls.name] = cls()
    return cls


def find_pass(name: str) -> Pass:
    """The pass of that name; raises PassError with the known names."""
    _load()
    if name not in PASSES:
        raise PassError(f"no pass is named '{name}'", remedy=f"one of: {', '.join(sorted(PASSES))}")
    return PASSES[name]


def _load() -> None:
    """Import every module of this folder once, so that its passes are registered."""
    for module in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.ispkg):
        importlib.import_module(f".{module}", __package__)


def run_pipeline(
    graph: Graph, passes: Iterable[Pass | str], context: PassContext, observer: Observer | None = None
) -> bool:
    """Run passes in order, in place; True when any changed the graph."""
    any_changed = False
    for item in passes:
        pass_ = find_pass(item) if isinstance(item, str) else item
        if observer is not None:
            observer.before(pass_, graph)
        start = time.perf_counter()
        changed = pass_.run(graph, context)
        seconds = time.perf_counter() - start
        if observer is not None:
            observer.after(pass_, graph, changed, seconds)
        any_changed = any_changed or changed
    return any_changed


class GraphRewriter(Rewriter):
    """A Rewriter that also knows who reads a value (as of its last `refresh`)."""

    def __init__(self, graph: Graph, allow: Callable[[str, Node], bool] | None = None) -> None:
        super().__init__(graph, allow)
        self.refresh()

    def refresh(self) -> None:
        """Recount readers and names; call it when uses have moved."""
        self._readers = self.graph.uses()
        self._outputs = set(self.graph.outputs)

    def readers(self, value: Value) -> list[Node]:
        """Nodes that read a value, one entry for each use."""
        return self._readers.get(value, [])

    def is_output(self, value: Value) -> bool:
        return value in self._outputs

    def has_one_reader(self, value: Value) -> bool:
        """One node reads it, once, and it is no output of the graph."""
        return len(self.readers(value)) == 1 and not self.is_output(value)

    def place_after(self, anchor: Node, node: Node) -> None:
        """Move the node emitted last to where its place in the order is known."""
        assert self.graph.nodes[-1] is node
        self.graph.nodes.pop()
        self.graph.nodes.insert(self.graph.nodes.index(anchor) + 1, node)

    def place_before(self, anchor: Node, node: Node) -> None:
        """Move the node emitted last before a node that reads it."""
        assert self.graph.nodes[-1] is node
        self.graph.nodes.pop()
        self.graph.nodes.insert(self.graph.nodes.index(anchor), node)

    def emit_like(self, old: Node, op: str, inputs: Sequence[Value | None], **attrs: object) -> Value:
        """A single-output node in place of `old`: the same result type and origin."""
        return self.emit(op, inputs, [old.output.type], attrs, origin=old.origin, hint=old.output.name).output


@dataclass(frozen=True)
class Rule:
    """A local rewrite: `equation` is its law as text; `apply` gives the value to take the place of the first output of
    a node of one of `ops`, or None to decline; a new node with as many outputs takes the place of all of them. Nodes
    that a declined application emitted are dropped."""

    name: str
    equation: str
    ops: tuple[str, ...]
    apply: Callable[[GraphRewriter, Node], Value | None] = field(repr=False)


def apply_rules(graph: Graph, rules: Sequence[Rule], context: PassContext) -> bool:
    """Apply rules in table order at every node, in topological order, until nothing changes."""
    by_op: dict[str, list[Rule]] = {}
    for rule in rules:
        for op in rule.ops:
            by_op.setdefault(op, []).append(rule)
    changed = False
    for _ in range(MAX_ROUNDS):
        rewriter = context.rewriter(graph)
        before = rewriter.count
        for node in list(graph.nodes):
            _apply_first(rewriter, by_op.get(node.op, ()), node)
        applied = rewriter.count > before
        changed |= rewriter.finish()
        if not applied:
            return changed
    raise PassError(f"rules do not come to rest: {', '.join(r.name for r in rules)}")


def _apply_first(rewriter: GraphRewriter, rules: Iterable[Rule], node: Node) -> None:
    """The first rule that matches `node` and is allowed takes effect."""
    nodes = rewriter.graph.nodes
    node.inputs = tuple(None if v is None else rewriter.resolve(v) for v in node.inputs)
    for rule in rules:
        mark = len(nodes)
        new = rule.apply(rewriter, node)
        if new is None or new is node.output or not rewriter.allow(rule.name, node):
            del nodes[mark:]
            continue
        rewriter.replace(node.output, new)
        if len(node.outputs) > 1 and new.producer is not None and len(new.producer.outputs) == len(node.outputs):
            for result, value in zip(node.outputs[1:], new.producer.outputs[1:], strict=True):
                rewriter.replace(result, value)
        return
