"""Networks of every kind in small: what the benchmark networks are made of, for simulators."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
Net: Any = importlib.import_module("nets").Net


def fire() -> onnx.ModelProto:
    """SqueezeNet's modules: a strided stem, pooling, squeezed and expanded channels side by side."""
    n = Net("fire", (1, 3, 19, 19))
    x = n.op("MaxPool", n.op("Relu", n.conv("input", 3, 9, 3, 2, pad=0)), kernel_shape=[3, 3], strides=[2, 2])
    x = n.op("Relu", n.conv(x, 9, 6, 1))
    x = n.op("Concat", *(n.op("Relu", n.conv(x, 6, 11, kernel)) for kernel in (1, 3)), axis=1)
    made: onnx.ModelProto = n.model(n.op("Softmax", n.op("ReduceMean", n.conv(x, 22, 10, 1), axes=[2, 3], keepdims=0)))
    return made


def residual() -> onnx.ModelProto:
    """ResNet's blocks, whole and strided, a depthwise layer, and a dense one."""
    n = Net("residual", (1, 3, 13, 13))
    x = n.op("Relu", n.conv_bn("input", 3, 8, 5, 2))
    y = n.conv_bn(n.op("Relu", n.conv_bn(x, 8, 8, 3)), 8, 8, 3)
    x = n.op("Relu", n.op("Add", x, y))
    y = n.conv_bn(n.relu6(n.conv_bn(x, 8, 8, 3, 2, group=8)), 8, 18, 1)
    x = n.op("Relu", n.op("Add", n.conv_bn(x, 8, 18, 1, 2), y))
    made: onnx.ModelProto = n.model(n.dense(n.op("ReduceMean", x, axes=[2, 3], keepdims=0), 18, 19))
    return made


def transformer() -> onnx.ModelProto:
    """One post-norm layer of width 24 with 3 heads over 8 tokens."""
    n, tokens, width, heads = Net("transformer", (1, 8), TensorProto.INT64), 8, 24, 3
    each = width // heads

    def split(x: str) -> str:
        return str(n.op("Transpose", n.op("Reshape", x, n.ints(1, tokens, heads, each)), perm=[0, 2, 1, 3]))

    def norm(x: str) -> str:
        return str(n.op("LayerNormalization", x, n.floats(*[1] * width), n.floats(*[0] * width), axis=-1))

    x = n.op("Gather", n.weight(n.normal(50, width, std=1)), "input")
    q, k, v = (n.linear(x, width, width) for _ in range(3))
    scores = n.op("MatMul", split(q), n.op("Transpose", split(k), perm=[0, 1, 3, 2]))
    scores = n.op("Softmax", n.op("Mul", scores, n.weight(np.float32(each**-0.5))), axis=-1)
    mixed = n.op("Transpose", n.op("MatMul", scores, split(v)), perm=[0, 2, 1, 3])
    x = norm(n.op("Add", x, n.linear(n.op("Reshape", mixed, n.ints(1, tokens, width)), width, width)))
    wide = n.linear(x, width, 2 * width)
    wide = n.op("Mul", wide, n.op("Erf", wide))
    made: onnx.ModelProto = n.model(norm(n.op("Add", x, n.linear(wide, 2 * width, width))))
    return made


def recurrent() -> onnx.ModelProto:
    """Four steps of an LSTM in both directions, then of a GRU."""
    n, steps, hidden = Net("recurrent", (4, 1, 6)), 4, 18
    w, r, b = (
        n.normal(2, 4 * hidden, 6, std=0.3),
        n.normal(2, 4 * hidden, hidden, std=0.2),
        n.normal(2, 8 * hidden, std=1),
    )
    x = n.op("LSTM", "input", *map(n.weight, (w, r, b)), hidden_size=hidden, direction="bidirectional")
    x = n.op("Reshape", n.op("Transpose", x, perm=[0, 2, 1, 3]), n.ints(steps, 1, 2 * hidden))
    w, r = n.normal(1, 3 * hidden, 2 * hidden, std=0.3), n.normal(1, 3 * hidden, hidden, std=0.2)
    x = n.op("GRU", x, n.weight(w), n.weight(r), hidden_size=hidden)
    made: onnx.ModelProto = n.model(n.op("Squeeze", x, n.ints(1)))
    return made


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {f.__name__: f for f in (fire, residual, transformer, recurrent)}
