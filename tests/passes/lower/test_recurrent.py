"""LSTM, GRU and RNN against onnxruntime (or ONNX's reference where onnxruntime declines)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from c2c.codegen.target import native
from c2c.ir import reference
from c2c.ir.errors import UnsupportedOpError
from c2c.passes.lower import lower_node
from c2c.tests.passes.lower.harness import Array, Case, run_op, run_ops

onnxruntime: Any = pytest.importorskip("onnxruntime")
SEED = 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
X, W, R, B, LENGTHS, H0, C0, P = range(8)


def case(
    op: str,
    steps: int,
    batch: int,
    hidden: int,
    *,
    constant: bool = True,
    bias: bool = True,
    state: bool = False,
    peephole: bool = False,
    lengths: list[int] | None = None,
    **attrs: Any,
) -> Case:
    """A node on 4 inputs a step with random weights."""
    rng = np.random.default_rng(SEED)
    directions = 2 if attrs.get("direction") == "bidirectional" else 1

    def normal(*shape: int) -> Array:
        return np.asarray(rng.standard_normal(shape) / max(2, hidden**0.5), np.float32)

    inputs: list[Array | None] = [None] * (8 if op == "LSTM" else 6)
    by_batch = attrs.get("layout", 0)
    states = (batch, directions, hidden) if by_batch else (directions, batch, hidden)
    inputs[X] = normal(*((batch, steps, 4) if by_batch else (steps, batch, 4)))
    inputs[W], inputs[R] = normal(directions, GATES[op] * hidden, 4), normal(directions, GATES[op] * hidden, hidden)
    if bias:
        inputs[B] = normal(directions, 2 * GATES[op] * hidden)
    if lengths:
        inputs[LENGTHS] = np.array(lengths, np.int32)
    if state:
        inputs[H0] = normal(*states)
        if op == "LSTM":
            inputs[C0] = normal(*states)
    if peephole:
        inputs[P] = normal(directions, 3 * hidden)
    while inputs[-1] is None:
        inputs.pop()
    constants = {W, R, B, P} & set(range(len(inputs))) if constant else ()
    return Case(op, inputs, {"hidden_size": hidden, **attrs}, frozenset(constants), 3 if op == "LSTM" else 2)


def expected(c: Case) -> list[Array]:
    names = [f"i{i}" if a is not None else "" for i, a in enumerate(c.inputs)]
    outputs = [f"o{i}" for i in range(c.outputs)]
    feeds = {n: a for n, a in zip(names, c.inputs, strict=True) if a is not None}
    graph = helper.make_graph(
        [helper.make_node(c.op, names, outputs, **c.attrs)],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(n, 1, None) for n in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if c.attrs.get("layout"):  # onnxruntime has no batch-wise form
        return [np.asarray(a) for a in reference.evaluate_node(c.node(), list(c.inputs))]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def check(cases: list[Case], **options: Any) -> None:
    for c, found in zip(cases, run_ops(cases, **options), strict=True):
        for got, want in zip(found, expected(c), strict=True):
            shapes = [None if a is None else a.shape for a in c.inputs]
            np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f"{c.op} {shapes} {c.attrs} seed {SEED}")


@pytest.mark.parametrize("target", ["native", "x86-64"])
@pytest.mark.parametrize("op", list(GATES))
def test_forms(op: str, target: str) -> None:
    cases = [
        case(op, 3, 1, 16),
        case(op, 3, 5, 7, state=True, direction="bidirectional"),
        case(op, 3, 2, 21, state=True, constant=False, direction="reverse"),
        case(op, 4, 3, 9, state=True, lengths=[4, 2, 3]),
        case(op, 4, 3, 9, lengths=[4, 1, 3], direction="bidirectional"),
        case(op, 3, 2, 5, bias=False, clip=0.4),
        case(op, 3, 2, 5, state=True, layout=1),
    ]
    check(cases, target=target)


def test_two_threads() -> None:
    check([case(op, 9, 4, 48, state=True, direction="bidirectional") for op in GATES], threads=2)


@pytest.mark.parametrize("constant", [True, False])
def test_gru_with_reset_after_the_product(constant: bool) -> None:
    check([case("GRU", 3, 2, 18, constant=constant, direction="bidirectional", linear_before_reset=1)])


def test_lstm_options() -> None:
    check([
        case("LSTM", 3, 2, 18, peephole=True, constant=False, direction="bidirectional"),
        case("LSTM", 3, 2, 18, peephole=True),
        case("LSTM", 3, 2, 18, input_forget=1),
    ])  # fmt: skip


def test_activations() -> None:
    rows: list[tuple[str, list[float], list[float]]] = [
        ("Relu", [], []), ("Sigmoid", [], []), ("Softsign", [], []), ("Softplus", [], []),
        ("Affine", [0.3], [0.1]), ("LeakyRelu", [0.3], []), ("ThresholdedRelu", [0.3], []),
        ("ScaledTanh", [0.3], [0.7]), ("HardSigmoid", [0.3], [0.4]), ("Elu", [1.2], []),
    ]  # fmt: skip
    cases = []
    for name, alpha, beta in rows:
        values = {"activation_alpha": alpha, "activation_beta": beta}
        given: dict[str, Any] = {k: v for k, v in values.items() if v}
        cases.append(case("RNN", 3, 2, 6, activations=[name], **given))
    check(cases)
    mixed = ["HardSigmoid", "Softsign", "Elu"]
    check([case("LSTM", 3, 2, 6, activations=mixed, activation_alpha=[0.3, 1.2], activation_beta=[0.4])])


def test_unknown_activation_is_refused() -> None:
    c = case("RNN", 3, 2, 6, activations=["Wiggle"])
    with pytest.raises(UnsupportedOpError, match=r"activation Wiggle is not supported\n  at: node .* \(RNN\)"):
        run_op(c.op, c.inputs, c.attrs, outputs=2)


def test_short_products_stay_on_the_thread_of_the_serial_loop() -> None:
    """A batch of one has no parallel loop over time: waking a thread before it takes longer than a small product."""
    parallel = []
    for batch, steps in ((1, 30), (1, 10_000), (8, 30)):
        node = case("LSTM", steps, batch, 96).node()
        parallel.append([c.kernel.parallel is not None for c in lower_node(node, native(), 2)])
    assert parallel[0][:2] == [False, False] and parallel[1][0] and parallel[2][0]
