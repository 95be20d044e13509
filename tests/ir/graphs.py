"""Small graphs with everything the graph IR has."""

from __future__ import annotations

import numpy as np

from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, Layout, TensorType


def f32(*shape: int | str, block: int = 0) -> TensorType:
    return TensorType(DType.F32, shape, Layout(block))


def value(name: str, *shape: int | str, block: int = 0) -> Value:
    return Value(name, f32(*shape, block=block))


def conv_relu(seed: int = 0) -> Graph:
    """y = Relu(Conv(x, w, b)) as two nodes, [1, 3, 6, 6] → [1, 4, 4, 4]."""
    rng = np.random.default_rng(seed)
    x, c, y = value("x", 1, 3, 6, 6), value("c", 1, 4, 4, 4), value("y", 1, 4, 4, 4)
    w = constant("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    b = constant("b", rng.standard_normal(4).astype(np.float32))
    nodes = [
        Node("Conv", (x, w, b), (c,), {"kernel_shape": (3, 3)}, ("conv1",)),
        Node("Relu", (c,), (y,), {}, ("relu1",)),
    ]
    return Graph("conv_relu", [x], [y], nodes, ["out"])


def fused(seed: int = 0, op: str = "Conv") -> Graph:
    """The same as one group, in a blocked layout between two reorders."""
    plain = conv_relu(seed)
    w, b = (v for v in plain.nodes[0].inputs[1:] if v is not None)
    bx, bw, bb = value("bx", 1, 3, 6, 6, block=4), Value("bw", w.type), Value("bb", b.type)
    bc, by = value("bc", 1, 4, 4, 4, block=4), value("by", 1, 4, 4, 4, block=4)
    attrs = {"m": 2} if op == "c2c.WinogradConv" else {}
    body = Graph("body", [bx, bw, bb], [by], [Node(op, (bx, bw, bb), (bc,), attrs), Node("Relu", (bc,), (by,))], ["by"])
    x, xb = value("x", 1, 3, 6, 6), value("xb", 1, 3, 6, 6, block=4)
    yb, y = value("yb", 1, 4, 4, 4, block=4), value("y", 1, 4, 4, 4)
    nodes = [
        Node("c2c.Reorder", (x,), (xb,)),
        Node("c2c.Fused", (xb, w, b), (yb,), {"body": body}, ("conv1", "relu1")),
        Node("c2c.Reorder", (yb,), (y,), {}, ("relu1",)),
    ]
    return Graph("fused", [x], [y], nodes, ["out"])


def chain() -> Graph:
    """Two convolutions with a Relu each as one `c2c.ConvChain`, [1, 3, 6, 6] → [1, 4, 4, 4]."""
    plain = conv_relu()
    w, b = (v for v in plain.nodes[0].inputs[1:] if v is not None)
    w2 = constant("w2", np.ones((4, 4, 1, 1), np.float32))
    bx, bw, bb, bw2 = value("bx", 1, 3, 6, 6), Value("bw", w.type), Value("bb", b.type), Value("bw2", w2.type)
    c1, r1, c2, r2 = (value(name, 1, 4, 4, 4) for name in ("c1", "r1", "c2", "r2"))
    nodes = [
        Node("Conv", (bx, bw, bb), (c1,)),
        Node("Relu", (c1,), (r1,)),
        Node("Conv", (r1, bw2), (c2,)),
        Node("Relu", (c2,), (r2,)),
    ]
    body = Graph("body", [bx, bw, bb, bw2], [r2], nodes, ["r2"])
    x, y = value("x", 1, 3, 6, 6), value("y", 1, 4, 4, 4)
    attrs = {"body": body, "strip": 2}
    return Graph("chain", [x], [y], [Node("c2c.ConvChain", (x, w, b, w2), (y,), attrs, ("conv1", "conv2"))], ["out"])
