"""Operands that do not fit each other are refused, those that do are let pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.ir.errors import ShapeError
from c2c.ir.graph import Node, Value, constant
from c2c.ir.operands import check_operands
from c2c.ir.reference import infer_node
from c2c.ir.types import DType, TensorType

Operand = tuple[int, ...] | list[Any] | None
"""A shape, or the values of an integer constant."""


def node_of(op: str, operands: list[Operand], attrs: dict[str, Any]) -> Node:
    values: list[Value | None] = []
    for k, given in enumerate(operands):
        if given is None:
            values.append(None)
        elif isinstance(given, list):
            values.append(constant(f"v{k}", np.asarray(given, np.int64)))
        else:
            values.append(Value(f"v{k}", TensorType(DType.F32, given)))
    node = Node(op, tuple(values), (Value("y", TensorType(DType.F32, ())),), attrs, ("node",))
    node.output.type = infer_node(node)[0]
    return node


X = (1, 6, 8, 8)
GOOD: list[tuple[str, list[Operand], dict[str, Any]]] = [
    ("Conv", [X, (4, 6, 3, 3), (4,)], {}),
    ("Conv", [X, (6, 1, 3, 3)], {"group": 6, "kernel_shape": (3, 3), "auto_pad": "SAME_UPPER"}),
    ("Clip", [X, (), None], {}),
    ("ConvTranspose", [X, (6, 4, 3, 3), (8,)], {"group": 2}),
    ("MaxPool", [X], {"kernel_shape": (3, 3), "pads": (2, 2, 2, 2)}),
    ("AveragePool", [X], {"kernel_shape": (2, 2), "dilations": (3, 3), "pads": (3, 3, 3, 3)}),
    ("PRelu", [(2, 3, 4), (3, 1)], {}),
    ("LSTM", [(5, 2, 3), (2, 16, 3), (2, 16, 4), (2, 32), None, (2, 2, 4)],
     {"direction": "bidirectional", "hidden_size": 4}),
    ("GRU", [(5, 2, 3), (1, 12, 3), (1, 12, 4)], {"hidden_size": 4}),
    ("Gemm", [(2, 3), (3, 4), (2, 1)], {}),
    ("Gather", [(2, 3), [-2, 1]], {}),
    ("GatherElements", [(2, 3), [[0, 1]]], {"axis": 1}),
    ("GatherND", [(2, 3), [[1, -3]]], {}),
    ("ScatterElements", [(2, 3), [[1, 0, 1]], (1, 3)], {}),
    ("ScatterND", [(2, 3), [[1]], (1, 3)], {}),
    ("Pad", [(2, 3), [1, 2, 1, 2]], {"mode": "reflect"}),
    ("DepthToSpace", [(1, 8, 2, 2)], {"blocksize": 2}),
    ("SpaceToDepth", [(1, 2, 4, 6)], {"blocksize": 2}),
    ("ReverseSequence", [(4, 2), [4, 1]], {}),
    ("Reshape", [(2, 6), [3, -1]], {}),
    ("InstanceNormalization", [X, (6,), (6,)], {}),
    ("LayerNormalization", [(2, 3, 4), (3, 4), (4,)], {"axis": 1}),
]  # fmt: skip
BAD: list[tuple[str, list[Operand], dict[str, Any], str]] = [
    ("Conv", [X, (4, 5, 3, 3)], {}, "6 channels, the weights take 5"),
    ("Conv", [X, (4, 2, 3, 3)], {"group": 3}, "4 filters in 3 groups"),
    ("Conv", [X, (4, 6, 3, 3)], {"group": 0}, "4 filters in 0 groups"),
    ("Conv", [X, (4, 6, 3, 3), (3,)], {}, "a bias of 4 values"),
    ("Conv", [X, (4, 6, 3, 3)], {"kernel_shape": (5, 5)}, "kernel_shape .5, 5."),
    ("Conv", [X, (4, 6, 3, 3)], {"auto_pad": "FOO"}, "auto_pad 'FOO' does not exist"),
    ("Conv", [(1, 6, 2, 2), (4, 6, 3, 3)], {}, "the window is larger"),
    ("Clip", [X, (), (8,)], {}, "a bound is one value"),
    ("ConvTranspose", [X, (5, 4, 3, 3)], {}, "6 channels, the weights take 5"),
    ("ConvTranspose", [X, (6, 4, 3, 3), (6,)], {}, "a bias of 4 values"),
    ("AveragePool", [X], {"kernel_shape": (3, 3), "pads": (3, 0, 0, 0)}, "reach the window's size"),
    ("PRelu", [(2, 3, 1), (4,)], {}, "slope does not broadcast"),
    ("LSTM", [(5, 2, 3), (1, 16, 7), (1, 16, 4)], {"hidden_size": 4}, r"input 1 must have shape .1, 16, 3."),
    ("LSTM", [(5, 2, 3), (1, 16, 3), (1, 16, 4), (1, 16)], {"hidden_size": 4}, r"input 3 must have shape .1, 32."),
    ("RNN", [(5, 2, 3), (1, 4, 3), (1, 4, 5)], {"hidden_size": 4}, "input 2 must have shape"),
    ("Gemm", [(2, 3), (3, 4), (3,)], {}, "C does not broadcast"),
    ("Gather", [(2, 3), [2]], {}, "indices from 2 to 2 into 2 entries"),
    ("Gather", [(2, 3), [-4]], {"axis": 1}, "indices from -4 to -4 into 3"),
    ("GatherElements", [(2, 3), [[0], [1], [0]]], {"axis": 1}, "along axis 1"),
    ("GatherND", [(2, 3), [[0, 3]]], {}, "indices from 3 to 3"),
    ("ScatterElements", [(2, 3), [[0, 0, 2]], (1, 3)], {}, "indices from 0 to 2"),
    ("ScatterElements", [(2, 3), [[0, 0, 1]], (1, 2)], {}, "updates and indices differ"),
    ("ScatterND", [(2, 3), [[1]], (1, 2)], {}, "updates do not fit"),
    ("Pad", [(2, 3), [0, 3, 0, 0]], {"mode": "reflect"}, "3 added to 3 entries"),
    ("Pad", [(2, 3), [0, 0, 0, 0]], {"mode": "mirror"}, "mode 'mirror' does not exist"),
    ("DepthToSpace", [(1, 5, 2, 2)], {"blocksize": 2}, "in blocks of 2"),
    ("SpaceToDepth", [(1, 5, 3, 3)], {"blocksize": 2}, "in blocks of 2"),
    ("ReverseSequence", [(4, 2), [5, 1]], {}, "lengths outside of 0 to 4"),
    ("Reshape", [(2, 6), [4, 2]], {}, "cannot become"),
    ("InstanceNormalization", [X, (4,), (4,)], {}, "one scale and bias for each channel"),
    ("LayerNormalization", [(2, 3, 4), (3,)], {}, "input 1 does not broadcast"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "operands", "attrs"), GOOD, ids=[f"{c[0]}-{k}" for k, c in enumerate(GOOD)])
def test_operands_that_fit(op: str, operands: list[Operand], attrs: dict[str, Any]) -> None:
    check_operands(node_of(op, operands, attrs))


@pytest.mark.parametrize(("op", "operands", "attrs", "text"), BAD, ids=[f"{c[0]}-{k}" for k, c in enumerate(BAD)])
def test_operands_that_do_not(op: str, operands: list[Operand], attrs: dict[str, Any], text: str) -> None:
    with pytest.raises(ShapeError, match=text) as caught:
        check_operands(node_of(op, operands, attrs))
    assert caught.value.where.startswith(f"node 'node' ({op}), inputs ")


def test_open_dimensions_are_let_pass() -> None:
    x, w = Value("x", TensorType(DType.F32, (1, "C", 8, 8))), Value("w", TensorType(DType.F32, (4, 3, 3, 3)))
    check_operands(Node("Conv", (x, w), (Value("y", TensorType(DType.F32, (1, 4, 6, 6))),)))
