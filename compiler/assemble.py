"""Kernel calls and a memory plan become a Program: equal kernels once, one step a call, symbols from ONNX names."""

from __future__ import annotations

from dataclasses import replace

from ..ir.errors import ShapeError
from ..ir.graph import Graph, Value
from ..ir.loops import Kernel
from ..ir.program import Port, Program, Step
from ..ir.types import Counted
from ..passes.lower import Call
from ..passes.plan_memory import MemoryPlan
from .names import identifier
from .options import CompileOptions

SYMBOL_LENGTH = 96


def assemble(graph: Graph, calls: list[Call], plan: MemoryPlan, options: CompileOptions) -> Program:
    """The whole model as loop IR."""
    kernels, names = _kernels(calls, options.name)
    steps: list[Step] = []
    prepare: list[Step] = []
    for number, call in enumerate(calls):
        origin = call.node.origin or (call.node.output.name,)
        symbol = f"{options.name}__{number:03d}_{identifier(origin[-1])[:SYMBOL_LENGTH]}"
        args = tuple(plan.slots[v] for v in call.args)
        (prepare if call.once else steps).append(Step(names[id(call.kernel)], args, symbol, origin, call.host))
    return Program(
        options.name,
        tuple(_port(v.name, v) for v in graph.inputs),
        tuple(
            _port(n, v, graph.labels.get(n, ()), graph.counts.get(n))
            for n, v in zip(graph.output_names, graph.outputs, strict=True)
        ),
        kernels,
        tuple(steps),
        plan.arena_bytes,
        plan.weights,
        options.threads,
        prepare=tuple(prepare),
        prepared_bytes=plan.prepared_bytes,
        spans=plan.spans,
    )


def _kernels(calls: list[Call], model: str) -> tuple[dict[str, Kernel], dict[int, str]]:
    """The different kernels by their names, and the name for each call's kernel object: comparing them takes time."""
    known: dict[Kernel, str] = {}
    names: dict[int, str] = {}
    used: dict[str, int] = {}
    for kernel in (call.kernel for call in calls):
        if id(kernel) in names:
            continue
        name = known.get(kernel)
        if name is None:
            count = used.get(kernel.name, 0)
            used[kernel.name] = count + 1
            name = known[kernel] = f"{model}__{kernel.name}" + (f"_{count}" if count else "")
        names[id(kernel)] = name
    return {name: replace(kernel, name=name) for kernel, name in known.items()}, names


def _port(name: str, value: Value, labels: tuple[str, ...] = (), counted: Counted | None = None) -> Port:
    if value.type.layout.block:
        raise ShapeError(f"'{name}' must be in plain layout at the model's border, it is {value.type}")
    return Port(name, value.type.dtype, value.type.dims, labels, counted)
