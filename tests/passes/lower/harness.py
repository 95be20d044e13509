"""One-node graphs compiled and run natively: `run_op` for one, `run_ops` for many in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from c2c.codegen.llvm_program import emit_object
from c2c.codegen.target import Target
from c2c.compiler.assemble import assemble
from c2c.compiler.options import CompileOptions
from c2c.ir import reference
from c2c.ir.graph import Graph, Node, Value
from c2c.ir.loops import Buffer, Kernel, Prefetch, Stmt
from c2c.ir.loops_interp import _Run, run_program
from c2c.ir.loops_verify import verify_program
from c2c.ir.program import Program
from c2c.ir.types import DType, Layout, TensorType
from c2c.passes.grid import on_grid
from c2c.passes.lower import Call, lower_graph
from c2c.passes.lower.schedule import Tuning
from c2c.passes.overwrite import overwrite
from c2c.passes.plan_memory import plan
from c2c.runtime_stub.loader import Loaded

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """An operator applied to arrays; inputs listed in `constants` (indices) are known at compile time."""

    op: str
    inputs: Sequence[Array | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: frozenset[int] = frozenset()
    outputs: int = 1

    @property
    def arrays(self) -> list[Array]:
        """The inputs that are given."""
        return [a for a in self.inputs if a is not None]

    def node(self, prefix: str = "") -> Node:
        """The node with its values, types inferred by ONNX."""
        values = [
            None
            if a is None
            else Value(f"{prefix}x{i}", TensorType(DType.of(a.dtype), a.shape), a if i in self.constants else None)
            for i, a in enumerate(self.inputs)
        ]
        unknown = TensorType(DType.F32, ())
        probe = Node(self.op, tuple(values), tuple(Value(f"{prefix}y{i}", unknown) for i in range(self.outputs)))
        probe.attrs = dict(self.attrs)
        types = reference.infer_node(probe)
        outputs = tuple(Value(v.name, t) for v, t in zip(probe.outputs, types, strict=True))
        return Node(self.op, probe.inputs, outputs, probe.attrs, (f"{prefix}{self.op}",))

    def expected(self) -> list[Array]:
        """What ONNX's reference evaluator gives."""
        node = self.node()
        if not reference.has_function(self.op):
            return [*reference.evaluate_node(node, list(self.inputs))]
        graph_inputs = [v for v in node.inputs if v is not None and not v.is_constant]
        feeds = {v.name: a for v, a in zip(node.inputs, self.inputs, strict=True) if v is not None and a is not None}
        graph = Graph("case", graph_inputs, [*node.outputs], [node], [v.name for v in node.outputs])
        return list(reference.evaluate(graph, {v.name: feeds[v.name] for v in graph_inputs}).values())


def run_op(
    op: str,
    inputs: Sequence[Array | None],
    attrs: Mapping[str, Any] | None = None,
    *,
    target: str = "native",
    threads: int = 1,
    constants: Sequence[int] = (),
    outputs: int = 1,
) -> list[Array]:
    """Outputs of one operator, computed by compiled code."""
    case = Case(op, inputs, attrs or {}, frozenset(constants), outputs)
    return run_ops([case], target=target, threads=threads)[0]


def run_ops(
    cases: Sequence[Case], *, target: str = "native", threads: int = 1, tuning: Tuning | None = None
) -> list[list[Array]]:
    """Outputs of each case; all of them are compiled into one object."""
    graph, inputs = graph_of(cases)
    found = iter(run_graph(graph, inputs, target=target, threads=threads, tuning=tuning))
    return [[next(found) for _ in range(case.outputs)] for case in cases]


def graph_of(cases: Sequence[Case]) -> tuple[Graph, list[Array]]:
    """All cases side by side in one graph, and its inputs."""
    nodes = [case.node(f"n{i}_") for i, case in enumerate(cases)]
    inputs = [
        (v, a)
        for node, case in zip(nodes, cases, strict=True)
        for v, a in zip(node.inputs, case.inputs, strict=True)
        if v is not None and a is not None and not v.is_constant
    ]
    outputs = [v for node in nodes for v in node.outputs]
    graph = Graph("cases", [v for v, _ in inputs], outputs, nodes, [v.name for v in outputs])
    return graph, [a for _, a in inputs]


def program_of(graph: Graph, target: str, tuning: Tuning | None = None) -> Program:
    """A graph lowered as it is for a graphics processor."""
    options = CompileOptions(Target.parse(target), name="model")
    return _assembled(graph, on_grid(lower_graph(graph, options.target, 1, tuning=tuning)), options)


def run_graph(
    graph: Graph, inputs: Sequence[Array], *, target: str = "native", threads: int = 1, tuning: Tuning | None = None
) -> list[Array]:
    """Outputs of a graph lowered as it is (no graph passes); values of inputs and outputs lie in their own layout."""
    options = CompileOptions(Target.parse(target), threads=threads, name="model")
    if options.target.device is not None:  # in memory that holds NaN where nothing has been written
        results: list[Array] = run_program(program_of(graph, target, tuning), inputs, fill=0xFF)
        return results
    calls = lower_graph(graph, options.target, threads, tuning=tuning)
    memory = plan(calls, graph, overwrite(calls, graph, {}))
    program = assemble(graph, calls, memory, options)
    verify_program(program)
    loaded = Loaded(
        emit_object(program, options.target, embed_weights=False), program.name, arena_bytes=memory.arena_bytes,
        weights=memory.weights, threads=threads, prepared_bytes=memory.prepared_bytes,
    )  # fmt: skip
    loaded._arena[:] = 0xFF  # NaN in every float: lanes beyond the last channel must not reach a result
    results = [np.empty(v.type.dims, v.type.dtype.numpy) for v in graph.outputs]
    assert loaded.run([np.ascontiguousarray(a) for a in inputs], results) == 0
    return results


def _assembled(graph: Graph, calls: list[Call], options: CompileOptions) -> Program:
    program = assemble(graph, calls, plan(calls, graph, overwrite(calls, graph, {})), options)
    verify_program(program)
    return program


def in_blocks(case: Case, block: int) -> Graph:
    """The case with its first input and its first result in a blocked layout, reordered from and to plain layout.

    Other inputs of the rank and the channels of the first are blocked too.
    """
    node = case.node()
    layout = Layout(block)
    nodes: list[Node] = []
    inputs: list[Value | None] = []
    first = node.inputs[0]
    assert first is not None
    for value in node.inputs:
        alike = value is not None and not value.is_constant and value.type.shape[:2] == first.type.shape[:2]
        if value is not None and (value is first or (alike and value.type.rank == first.type.rank)):
            inside = Value(f"{value.name}.blocks", value.type.with_layout(layout))
            nodes.append(Node("c2c.Reorder", (value,), (inside,)))
            inputs.append(inside)
        else:
            inputs.append(value)
    whole = node.output.type.rank == first.type.rank and node.output.type.rank > 2
    result = Value("result", node.output.type.with_layout(layout if whole else Layout()))
    nodes.append(Node(case.op, tuple(inputs), (result, *node.outputs[1:]), dict(case.attrs), node.origin))
    nodes.append(Node("c2c.Reorder" if whole else "Identity", (result,), (node.output,)))
    outputs = [node.output, *node.outputs[1:]]
    graph_inputs = [v for v in node.inputs if v is not None and not v.is_constant]
    return Graph("blocks", graph_inputs, outputs, nodes, [v.name for v in outputs])


def fused(nodes: list[Node], inputs: list[Value]) -> Graph:
    """The nodes as one c2c.Fused group; its inputs are the graph's."""
    outer = [Value(v.name, v.type) for v in inputs]
    body = Graph("body", inputs, [nodes[-1].output], nodes, ["y"])
    result = Value("y", nodes[-1].output.type)
    group = Node("c2c.Fused", tuple(outer), (result,), {"body": body}, ("group",))
    return Graph("fused", outer, [result], [group], ["y"])


def with_tail(case: Case, factor: Array) -> Graph:
    """The case, its first result through Abs, times `factor`: as one group. Inputs: the case's, then the factor."""
    node = case.node()
    inputs = [v for v in node.inputs if v is not None and not v.is_constant]
    other = Value("factor", TensorType(DType.of(factor.dtype), factor.shape))
    size = Node("Abs", (node.output,), (Value("size", node.output.type),))
    product = Node("Mul", (size.output, other), (Value("product", node.output.type),))
    return fused([node, size, product], [*inputs, other])


def lines_asked_for(kernel: Kernel, of: Buffer | None = None) -> set[int]:
    """Cache lines of 16 elements that the kernel's prefetches (`of` one parameter) name, run on zeros."""
    asked: set[int] = set()

    class Recorder(_Run):
        def statement(self, stmt: Stmt) -> None:
            if isinstance(stmt, Prefetch) and of in (None, stmt.buffer):
                asked.add(int(self.value(stmt.index)[0]) // 16)
            super().statement(stmt)

    memory = {p.name: np.zeros(p.size, p.dtype.numpy) for p in kernel.params}
    Recorder(kernel.name, memory).block(kernel.body)
    return asked
