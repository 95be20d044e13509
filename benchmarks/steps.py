"""What the benchmarks of kernels share: calls made by hand, loaded so that each step can be timed."""

from __future__ import annotations

from collections.abc import Mapping

from c2c.codegen.llvm_program import emit_object
from c2c.compiler.assemble import assemble
from c2c.compiler.options import CompileOptions
from c2c.ir.graph import Graph, Value
from c2c.passes.lower import Call
from c2c.passes.plan_memory import plan
from c2c.passes.views import View
from c2c.runtime_stub.loader import Loaded


def load_calls(
    calls: list[Call], graph: Graph, options: CompileOptions, views: Mapping[Value, View] | None = None
) -> tuple[Loaded, int]:
    """The calls of a graph in this process, a step each, and the bytes of their arena."""
    memory = plan(calls, graph, views or {})
    program = assemble(graph, calls, memory, options)
    obj = emit_object(program, options.target, embed_weights=False)
    return Loaded(obj, program.name, arena_bytes=memory.arena_bytes, weights=memory.weights), memory.arena_bytes
