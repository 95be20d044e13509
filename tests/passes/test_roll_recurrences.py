"""Cells written out step by step become one recurrent operator; what only looks like them stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from c2c.ir.graph import Graph, Value
from c2c.ir.types import DType
from c2c.passes.base import run_pipeline
from c2c.tests.passes.build import CONTEXT, Array, Net, check, i64, op_names

PASSES = ("fold-constants", "canonicalize", "eliminate-common-subexpressions", "roll-recurrences")
X, H, B, T = 5, 4, 3, 4


class Weights:
    """Weights of one layer, all gates side by side [X or H, gates·H]."""

    def __init__(self, net: Net, gates: int, inputs: int = X) -> None:
        self.gates = gates
        self.w, self.r = net.random(inputs, gates * H, scale=0.5), net.random(H, gates * H, scale=0.5)
        self.b, self.c = net.random(gates * H), net.random(gates * H)

    def columns(self, a: Array, gate: int) -> Array:
        return np.ascontiguousarray(a[..., gate * H : (gate + 1) * H])


Cell = Callable[[Net, Weights, Value, Any, Any], tuple[Value, Any]]
"""New h and c of x, h, c."""


def split(net: Net, x: Value, parts: int) -> tuple[Value, ...]:
    found: tuple[Value, ...] = net.ops("Split", x, i64(*[H] * parts), outputs=parts, axis=1)
    return found


def lstm_of(net: Net, gates: Sequence[Value], c: Any) -> tuple[Value, Value]:
    i, f, g, o = gates
    kept = net.op("Mul", net.op("Sigmoid", f), c)
    c = net.op("Add", kept, net.op("Mul", net.op("Sigmoid", i), net.op("Tanh", g)))
    return net.op("Mul", net.op("Sigmoid", o), net.op("Tanh", c)), c


def lstm_of_two_gemms(net: Net, w: Weights, x: Value, h: Any, c: Any) -> tuple[Value, Value]:
    total = net.op("Add", net.op("Gemm", x, w.w, w.b), net.op("Gemm", h, np.ascontiguousarray(w.r.T), w.c, transB=1))
    return lstm_of(net, split(net, total, 4), c)


def lstm_of_one_product(net: Net, w: Weights, x: Value, h: Any, c: Any) -> tuple[Value, Value]:
    """TensorFlow's BasicLSTMCell: [x, h] in one product, gates i, g, f, o, one added to f; slices, no split."""
    both = net.op("MatMul", net.op("Concat", x, h, axis=1), np.concatenate([w.w, w.r]))
    total = net.op("Add", both, w.b)
    i, g, f, o = (net.op("Slice", total, i64(k * H), i64((k + 1) * H), i64(1)) for k in range(4))
    return lstm_of(net, (i, net.op("Add", f, 1.0), g, o), c)


def lstm_of_gates(net: Net, w: Weights, x: Value, h: Any, c: Any) -> tuple[Value, Value]:
    """Eight products a step."""
    gates = [
        net.op(
            "Add",
            net.op("Gemm", x, w.columns(w.w, k), w.columns(w.b, k)),
            net.op("MatMul", h, w.columns(w.r, k)),
        )
        for k in range(4)
    ]
    return lstm_of(net, gates, c)


def lstm_of_joint_sigmoid(net: Net, w: Weights, x: Value, h: Any, c: Any) -> tuple[Value, Value]:
    """One sigmoid over three gates."""
    total = net.op("Add", net.op("Gemm", x, w.w, w.b), net.op("MatMul", h, w.r))
    three, g = net.ops("Split", total, i64(3 * H, H), outputs=2, axis=1)
    i, f, o = split(net, net.op("Sigmoid", three), 3)
    c = net.op("Add", net.op("Mul", i, net.op("Tanh", g)), net.op("Mul", c, f))
    return net.op("Mul", net.op("Tanh", c), o), c


def gru_after(net: Net, w: Weights, x: Value, h: Any, c: Any) -> tuple[Value, Any]:
    """PyTorch's GRUCell: r, z, n."""
    a, b = split(net, net.op("Gemm", x, w.w, w.b), 3), split(net, net.op("Gemm", h, w.r, w.c), 3)
    r, z = (net.op("Sigmoid", net.op("Add", a[k], b[k])) for k in range(2))
    n = net.op("Tanh", net.op("Add", a[2], net.op("Mul", r, b[2])))
    return net.op("Add", n, net.op("Mul", net.op("Sub", h, n), z)), c


def gru_before(net: Net, w: Weights, x: Value, h: Any, c: Any) -> tuple[Value, Any]:
    """Keras with reset_after=False: z, r, n."""
    a = split(net, net.op("Gemm", x, w.w, w.b), 3)
    z, r = (
        net.op("Sigmoid", net.op("Add", a[k], net.op("MatMul", h, w.columns(w.r, k)))) for k in range(2)
    )  # fmt: skip
    gated = net.op("MatMul", net.op("Mul", r, h), w.columns(w.r, 2))
    n = net.op("Tanh", net.op("Add", a[2], gated))
    return net.op("Add", net.op("Mul", z, h), net.op("Mul", net.op("Sub", 1.0, z), n)), c


def rnn(activation: str) -> Cell:
    def cell(net: Net, w: Weights, x: Value, h: Any, c: Any) -> tuple[Value, Any]:
        return net.op(activation, net.op("Add", net.op("Gemm", x, w.w, w.b), net.op("Gemm", h, w.r, w.c))), c

    return cell


CELLS: dict[str, tuple[str, int, Cell]] = {
    "two gemms": ("LSTM", 4, lstm_of_two_gemms),
    "one product": ("LSTM", 4, lstm_of_one_product),
    "gates": ("LSTM", 4, lstm_of_gates),
    "joint sigmoid": ("LSTM", 4, lstm_of_joint_sigmoid),
    "gru after": ("GRU", 3, gru_after),
    "gru before": ("GRU", 3, gru_before),
    "tanh": ("RNN", 1, rnn("Tanh")),
}
each_cell = pytest.mark.parametrize("name", CELLS)


def moments(net: Net, form: str) -> list[Value]:
    """x of each step."""
    if form == "apart":
        return [net.input(B, X) for _ in range(T)]
    axis = 1 if form == "batch first" else 0
    x = net.input(*((B, T, X) if axis else (T, B, X)))
    if form == "split":
        return [net.op("Squeeze", v, i64(0)) for v in net.ops("Split", x, i64(*[1] * T), outputs=T, axis=0)]
    steps = reversed(range(T)) if form == "backwards" else range(T)
    return [net.op("Gather", x, np.asarray(t, np.int64), axis=axis) for t in steps]


def walk(net: Net, cell: Cell, w: Weights, xs: list[Value], h: Any, c: Any) -> tuple[list[Value], Any]:
    """All states, and the last c."""
    states = []
    for x in xs:
        h, c = cell(net, w, x, h, c)
        states.append(h)
    return states, c


def stacked(net: Net, states: list[Value], axis: int = 0) -> Value:
    return net.op("Concat", *[net.op("Unsqueeze", h, i64(axis)) for h in states], axis=axis)


def rolled(graph: Graph) -> list[str]:
    check(graph, *PASSES, tolerance=2e-6)
    return [n for n in op_names(graph) if n in ("LSTM", "GRU", "RNN")]


def zeros() -> Array:
    return np.zeros((B, H), np.float32)


@each_cell
@pytest.mark.parametrize("form", ["time first", "batch first", "backwards", "split", "apart"])
def test_a_sequence_from_zeros(name: str, form: str) -> None:
    op, gates, cell = CELLS[name]
    net = Net()
    states, _ = walk(net, cell, Weights(net, gates), moments(net, form), zeros(), zeros())
    graph = net.done(stacked(net, states))
    assert rolled(graph) == [op]
    assert not {"MatMul", "Sigmoid"} & set(op_names(graph))
    if form == "time first":
        assert op_names(graph) == [op, "Reshape"]


@each_cell
def test_given_states_and_single_results(name: str) -> None:
    op, gates, cell = CELLS[name]
    net = Net()
    h, c = net.input(B, H), net.input(B, H)
    states, last = walk(net, cell, Weights(net, gates), moments(net, "time first"), h, c)
    results = [states[1], states[-1], *([last] if op == "LSTM" else [])]
    graph = net.done(*results)
    assert rolled(graph) == [op]
    assert not {"MatMul", "Sigmoid"} & set(op_names(graph))


@each_cell
def test_layers_and_both_directions(name: str) -> None:
    """Two layers, the second one backwards over the results of the first, stacked with the batch first."""
    op, gates, cell = CELLS[name]
    net = Net()
    below, _ = walk(net, cell, Weights(net, gates), moments(net, "batch first"), zeros(), zeros())
    above, _ = walk(net, cell, Weights(net, gates, H), below[::-1], zeros(), zeros())
    graph = net.done(stacked(net, above[::-1], 1))
    assert rolled(graph) == [op, op]
    assert not {"MatMul", "Sigmoid", "Concat", "Gather"} & set(op_names(graph))


def test_a_first_step_from_other_constants_stays() -> None:
    net = Net()
    w = Weights(net, 4)
    states, _ = walk(net, lstm_of_two_gemms, w, moments(net, "time first"), net.random(B, H), zeros())
    graph = net.done(states[-1])
    assert rolled(graph) == ["LSTM"]
    assert "Sigmoid" in op_names(graph)


def test_relu_is_an_activation_of_rnn() -> None:
    """ONNX's evaluator knows no RNN with it: checked by form."""
    net = Net()
    states, _ = walk(net, rnn("Relu"), Weights(net, 1), moments(net, "time first"), zeros(), zeros())
    graph = net.done(stacked(net, states))
    run_pipeline(graph, PASSES, CONTEXT)
    assert op_names(graph) == ["RNN", "Reshape"]
    assert graph.nodes[0].attrs["activations"] == ["Relu"]


def stays(graph: Graph) -> bool:
    return rolled(graph) == []


@each_cell
def test_two_steps_stay(name: str) -> None:
    _, gates, cell = CELLS[name]
    net = Net()
    states, _ = walk(net, cell, Weights(net, gates), moments(net, "apart")[:2], zeros(), zeros())
    assert stays(net.done(states[-1]))


@each_cell
def test_results_fed_back_stay(name: str) -> None:
    """A decoder: the next input is made of the state."""
    _, gates, cell = CELLS[name]
    net = Net()
    w, back = Weights(net, gates), net.random(H, X)
    x, h, c = net.input(B, X), net.input(B, H), net.input(B, H)
    for _ in range(T):
        h, c = cell(net, w, x, h, c)
        x = net.op("Softmax", net.op("MatMul", h, back), axis=1)
    assert stays(net.done(x))


@each_cell
def test_other_weights_in_every_step_stay(name: str) -> None:
    _, gates, cell = CELLS[name]
    net = Net()
    h, c = net.input(B, H), net.input(B, H)
    for x in moments(net, "time first"):
        h, c = cell(net, Weights(net, gates), x, h, c)
    assert stays(net.done(h))


@pytest.mark.parametrize("changed", ["w", "r", "b"])
def test_other_weights_in_one_step_cut_the_chain(changed: str) -> None:
    net = Net()
    w, other = Weights(net, 4), Weights(net, 4)
    for same in {"w", "r", "b", "c"} - {changed}:
        setattr(other, same, getattr(w, same))
    h, c = net.input(B, H), net.input(B, H)
    for t, x in enumerate(moments(net, "time first")):
        h, c = lstm_of_two_gemms(net, other if t == 2 else w, x, h, c)
    assert stays(net.done(h))


def test_inner_values_that_are_read_stay() -> None:
    net = Net()
    w = Weights(net, 4)
    h, c = net.input(B, H), net.input(B, H)
    cells = []
    for x in moments(net, "time first"):
        h, c = lstm_of_two_gemms(net, w, x, h, c)
        cells.append(c)
    assert stays(net.done(h, cells[1]))


def test_peepholes_and_coupled_gates_stay() -> None:
    for coupled in (False, True):
        net = Net()
        w, peephole = Weights(net, 4), net.random(H)
        h, c = net.input(B, H), net.input(B, H)
        for x in moments(net, "time first"):
            total = net.op("Add", net.op("Gemm", x, w.w, w.b), net.op("MatMul", h, w.r))
            i, f, g, o = split(net, total, 4)
            if coupled:
                f = net.op("Sigmoid", f)
                kept = net.op("Mul", f, c)
                c = net.op("Add", kept, net.op("Mul", net.op("Sub", 1.0, f), net.op("Tanh", g)))
                h = net.op("Mul", net.op("Sigmoid", o), net.op("Tanh", c))
            else:
                h, c = lstm_of(net, (net.op("Add", i, net.op("Mul", c, peephole)), f, g, o), c)
        assert stays(net.done(h))


def test_a_reset_gate_of_another_state_stays() -> None:
    """The candidate reads r times the state before the last."""
    net = Net()
    w = Weights(net, 3)
    h = older = net.input(B, H)
    for x in moments(net, "time first"):
        a = split(net, net.op("Gemm", x, w.w, w.b), 3)
        z, r = (net.op("Sigmoid", net.op("Add", a[k], net.op("MatMul", h, w.columns(w.r, k)))) for k in range(2))
        gated = net.op("MatMul", net.op("Mul", r, older), w.columns(w.r, 2))
        n = net.op("Tanh", net.op("Add", a[2], gated))
        older, h = h, net.op("Add", net.op("Mul", z, h), net.op("Mul", net.op("Sub", 1.0, z), n))
    assert stays(net.done(h))


def test_one_input_for_all_rows_stays() -> None:
    """The product with x [1, X] is added to every row of the batch."""
    net = Net()
    w, h = Weights(net, 1), net.input(B, H)
    for _ in range(T):
        total = net.op("Add", net.op("Gemm", net.input(1, X), w.w, w.b), net.op("MatMul", h, w.r))
        h = net.op("Tanh", total)
    assert stays(net.done(h))


def test_half_precision_stays() -> None:
    net = Net()
    w, h = Weights(net, 1), net.input(B, H, dtype=DType.F16)
    half = [a.astype(np.float16) for a in (w.w, w.r)]
    for _ in range(T):
        x = net.input(B, X, dtype=DType.F16)
        h = net.op("Tanh", net.op("Add", net.op("MatMul", x, half[0]), net.op("MatMul", h, half[1])))
    graph = net.done(h)
    check(graph, *PASSES, tolerance=1e-2)
    assert "RNN" not in op_names(graph)
