"""Graphs for tests of passes: built call by call, evaluated before and after a pass."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from c2c.codegen.target import Target
from c2c.ir import reference
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, TensorType
from c2c.ir.verify import verify
from c2c.passes.base import PassContext, find_pass, run_pipeline

Array = np.ndarray[Any, Any]
Operand: TypeAlias = Value | Array | float | None
CONTEXT = PassContext(Target.parse("x86-64-v4"))
"""16 float32 lanes."""


class Net:
    """A graph in the making: arrays become constants, types come from ONNX's inference."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("net", [], [], [], [])
        self._count = 0

    def _name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def input(self, *shape: int, dtype: DType = DType.F32) -> Value:
        value = Value(self._name("x"), TensorType(dtype, shape))
        self.graph.inputs.append(value)
        return value

    def random(self, *shape: int, scale: float = 1.0) -> Array:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def positive(self, *shape: int) -> Array:
        return self.rng.uniform(0.5, 1.5, shape).astype(np.float32)

    def ops(self, op: str, *operands: Operand, outputs: int = 1, **attrs: object) -> tuple[Value, ...]:
        """All results of a node. A float is a float32 scalar."""
        inputs = tuple(self._operand(a) for a in operands)
        probe = Node(op, inputs, tuple(Value(self._name("y"), TensorType(DType.F32, ())) for _ in range(outputs)))
        probe.attrs = dict(attrs)
        types = reference.infer_node(probe)
        values = tuple(Value(v.name, t) for v, t in zip(probe.outputs, types, strict=True))
        self.graph.nodes.append(Node(op, inputs, values, dict(attrs), (f"{op}_{self._count}",)))
        return values

    def op(self, op: str, *operands: Operand, **attrs: Any) -> Value:
        return self.ops(op, *operands, **attrs)[0]

    def conv(self, x: Value, channels: int, size: int = 3, **attrs: Any) -> Value:
        """A same-size convolution with random weights and bias."""
        cin = x.type.dims[1] // int(str(attrs.get("group", 1)))
        w = self.random(channels, cin, size, size, scale=1 / np.sqrt(cin * size * size))
        pads = [size // 2] * 4
        return self.op("Conv", x, w, self.random(channels), **{"pads": pads, **attrs})

    def done(self, *outputs: Value) -> Graph:
        self.graph.outputs = list(outputs)
        self.graph.output_names = [f"out{i}" for i in range(len(outputs))]
        verify(self.graph)
        return self.graph

    def _operand(self, a: Operand) -> Value | None:
        if a is None or isinstance(a, Value):
            return a
        return constant(self._name("c"), np.asarray(a, np.float32) if isinstance(a, float) else np.asarray(a))


def i64(*values: int) -> Array:
    return np.asarray(values, np.int64)


def feeds_for(graph: Graph, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal(v.type.dims).astype(v.type.dtype.numpy) for v in graph.inputs}


def check(graph: Graph, *passes: str, tolerance: float = 1e-6, seed: int = 3, context: PassContext = CONTEXT) -> bool:
    """Run passes and assert that the results stay the same (relative to the largest); whether the graph changed."""
    feeds = feeds_for(graph, seed)
    expected = reference.evaluate(graph, feeds)
    changed: bool = run_pipeline(graph, passes, context)
    verify(graph)
    for name, y in reference.evaluate(graph, feeds).items():
        assert y.shape == expected[name].shape and y.dtype == expected[name].dtype, name
        scale = max(float(np.abs(expected[name].astype(np.float64)).max(initial=0)), 1e-30)
        error = float(np.abs(y.astype(np.float64) - expected[name]).max(initial=0)) / scale
        assert error <= tolerance, f"{name}: {error:.3g} after {', '.join(passes)} (seed {seed})"
    for name in passes:
        assert find_pass(name).name == name
    return changed


def op_names(graph: Graph) -> list[str]:
    """Operators in order; a group as `Conv+Relu`."""
    return [
        "+".join(n.op for n in node.attrs["body"].nodes) if node.op == "c2c.Fused" else node.op for node in graph.nodes
    ]
