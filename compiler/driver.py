"""The compiler's table of contents: read `compile_graph` from top to bottom and you know c2c."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..ir.errors import PassError
from ..ir.graph import Graph
from ..ir.loops_verify import verify_program
from ..ir.program import Program
from ..ir.types import DType
from ..ir.verify import verify
from ..passes.base import PassContext, find_pass, run_pipeline
from ..passes.grid import on_grid
from ..passes.host_steps import Model
from ..passes.loops import optimise_kernel
from ..passes.lower import Call, is_lowered, lower_graph
from ..passes.lower.schedule import Choice
from ..passes.overwrite import overwrite
from ..passes.plan_memory import MemoryPlan, plan
from ..passes.views import find_views, placed_values
from .assemble import assemble
from .diagnostics import PassObserver
from .onnx_import import import_model
from .options import CompileOptions
from .pipeline import pipeline
from .taps import tap

Progress = Callable[[str], None]


@dataclass(eq=False, slots=True)
class Compiled:
    """What a compile made: the imported graph, the optimised one, its kernel calls, memory and program.

    choices: schedules that graph passes chose; those of kernels are with the calls, which are the program's steps.
    """

    options: CompileOptions
    source: Graph
    graph: Graph
    calls: list[Call]
    plan: MemoryPlan
    program: Program
    observer: PassObserver
    choices: tuple[Choice, ...] = ()

    @property
    def schedules(self) -> tuple[Choice, ...]:
        """Every choice of a schedule, of graph passes and of kernels, in order."""
        return (*self.choices, *(choice for call in self.calls for choice in call.choices))


@contextmanager
def without_collector() -> Iterator[None]:
    """Python's search for unreachable cycles off: a compile makes millions of small objects and no garbage of weight,
    and the searches took a quarter of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def compile_file(
    path: Path | str | bytes, options: CompileOptions, progress: Progress = lambda stage: None
) -> Compiled:
    """An ONNX file (or its bytes) to a Program; raises C2CError."""
    observer = PassObserver(options.debug)
    progress("import")
    with observer.stage("import"), without_collector():
        graph = load_graph(path, options)
    return compile_graph(graph, options, observer, progress)


def load_graph(path: Path | str | bytes, options: CompileOptions) -> Graph:
    """Import with dimensions pinned; operators without a lowering are replaced by their ONNX function bodies."""
    return import_model(
        path, dims=options.dims, shapes=options.shapes, values=options.values, expand=lambda op: not is_lowered(op)
    )


@without_collector()
def compile_graph(
    source: Graph,
    options: CompileOptions,
    observer: PassObserver | None = None,
    progress: Progress = lambda stage: None,
) -> Compiled:
    """Graph IR to Program: optimise, lower, plan memory, assemble."""
    observer = observer or PassObserver(options.debug)
    progress("optimise")
    graph = source.clone()
    context = optimise(graph, options, observer)
    if options.taps:
        tap(graph)
    verify(graph)
    views = find_views(graph)
    progress("lower")
    with observer.stage("lower"):
        calls = lower_graph(
            graph, options.target, options.threads, placed_values(graph, views), options.tuning,
            for_memory=options.optimize_for == "memory", activations=options.activations,
            precision=context.precision,
        )  # fmt: skip
    with observer.stage("loop passes"):
        if options.target.device is not None:
            calls = on_grid(calls, Model(graph, views, options.target) if options.host_steps else None)
        else:
            for call in calls:
                call.kernel = optimise_kernel(call.kernel)
    progress("plan memory")
    with observer.stage("plan memory"):
        views = overwrite(calls, graph, views)
        memory = plan(calls, graph, views, release=not options.keep_constants)
    with observer.stage("assemble"):
        program = assemble(graph, calls, memory, options)
        verify_program(program)
    steps = [call for call in calls if not call.once]
    compiled = Compiled(options, source, graph, steps, memory, program, observer, tuple(context.choices))
    program.rounded = (*context.rounded, *dict.fromkeys(r for call in steps for r in call.rounded))
    program.notes |= {f"{c.family} {c.problem}": c.name for c in compiled.schedules if len(c.candidates) > 1}
    return compiled


def optimise(graph: Graph, options: CompileOptions, observer: PassObserver) -> PassContext:
    """Run the graph passes of the optimisation level, up to `--stop-after`, in place; what they were given, with the
    schedules that they chose and the products that they rounded."""
    names = list(pipeline(options.level, grid=options.target.device is not None))
    stop = options.debug.stop_after
    for name in (*options.debug.print_after, *((stop,) if stop is not None else ())):
        if name != "all" or name == stop:
            find_pass(name)
            if name not in names:
                raise PassError(f"pass {name} does not run at -O{options.level}", remedy=f"it runs {', '.join(names)}")
    if stop is not None:
        names = names[: names.index(stop) + 1]
    context = PassContext(
        options.target, options.threads, observer.allow, winograd_error=options.winograd_error,
        winograd_weights=options.winograd_weights, precision=DType(options.precision),
        weight_type=DType(options.weight_type), activations=options.activations,
        optimize_for=options.optimize_for, tuning=options.tuning,
    )  # fmt: skip
    run_pipeline(graph, names, context, observer)
    return context
