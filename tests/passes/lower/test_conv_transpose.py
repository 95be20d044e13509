"""ConvTranspose against onnxruntime: phases, borders, groups, one to three axes, both layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from c2c.codegen.target import native
from c2c.ir.graph import Node, Value
from c2c.ir.types import DType
from c2c.passes.base import PassContext, run_pipeline
from c2c.tests.passes.lower.harness import Array, Case, in_blocks, run_graph, run_ops

onnxruntime: Any = pytest.importorskip("onnxruntime")
SEED = 5
FORMS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 5, 5), (3, 2, 2, 2), {"strides": [2, 2]}),
    ((1, 3, 4, 13), (3, 5, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 2, 3, 19), (2, 1, 3, 3), {}),
    ((2, 4, 3, 9), (4, 3, 3, 3), {"group": 2, "strides": [3, 3], "pads": [1, 0, 0, 1]}),
    ((1, 4, 3, 3), (4, 1, 4, 4), {"group": 4, "strides": [2, 4], "pads": [1, 0, 1, 0]}),
    ((1, 2, 3, 3), (2, 2, 2, 3), {"dilations": [2, 3], "strides": [2, 2]}),
    ((1, 2, 17), (2, 3, 5), {"strides": [3]}),
    ((1, 2, 5), (2, 3, 4), {"strides": [5]}),
    ((1, 2, 2, 3, 4), (2, 3, 2, 3, 2), {"strides": [1, 2, 2], "pads": [0, 1, 0, 0, 1, 0]}),
    ((1, 1, 3, 3), (1, 2, 3, 3), {"strides": [3, 2], "output_shape": [10, 8]}),
    ((1, 1, 3, 3), (1, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 3, 3), (1, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 2, 2), (1, 2, 3, 3), {"strides": [9, 8]}),  # a phase for every element: no tile
    ((1, 1, 1, 2), (1, 1, 2, 3), {"strides": [2, 7], "pads": [0, 0, 1, 1]}),
]


def cases(constant: bool) -> list[Case]:
    rng = np.random.default_rng(SEED)
    made = []
    for x, w, attrs in FORMS:
        shapes = (x, w, (w[1] * attrs.get("group", 1),))
        arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
        made.append(Case("ConvTranspose", arrays, attrs, frozenset({1, 2} if constant else ())))
    return made


def expected(case: Case) -> Array:
    names = ["x", "w", "b"]
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", names, ["y"], **case.attrs)],
        "g",
        [helper.make_tensor_value_info(n, 1, np.shape(a)) for n, a in zip(names, case.arrays, strict=True)],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(zip(names, case.inputs, strict=True)))[0])


def check(got: Array, case: Case) -> None:
    shapes = [a.shape for a in case.arrays]
    np.testing.assert_allclose(got, expected(case), atol=2e-5, err_msg=f"{shapes} {case.attrs} seed {SEED}")


@pytest.mark.parametrize("target", ["native", "x86-64"])
@pytest.mark.parametrize("constant", [True, False])
def test_forms(target: str, constant: bool) -> None:
    made = cases(constant)
    for case, (got,) in zip(made, run_ops(made, target=target), strict=True):
        check(got, case)


def test_two_threads() -> None:
    rng = np.random.default_rng(SEED)
    shapes = ((1, 16, 12, 30), (16, 9, 3, 3), (9,))
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    case = Case("ConvTranspose", arrays, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, frozenset({1, 2}))
    ((one,),), ((two,),) = run_ops([case], threads=1), run_ops([case], threads=2)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(two, expected(case), atol=1e-4)


BLOCKED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 24, 5, 9), (24, 24, 2, 2), {"strides": [2, 2]}),
    ((2, 12, 7, 5), (12, 20, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 16, 6, 11), (16, 9, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
    ((1, 16, 5, 17), (16, 8, 3, 4), {"strides": [2, 3], "pads": [0, 1, 2, 1]}),
    ((1, 16, 4, 6), (16, 8, 3, 3), {"group": 2, "strides": [2, 2], "pads": [2, 2, 0, 0]}),
    ((1, 8, 9, 6), (8, 17, 3, 2), {"dilations": [3, 5], "strides": [2, 2]}),
    ((1, 8, 9, 6), (8, 8, 3, 3), {"dilations": [2, 1], "pads": [2, 1, 1, 0]}),
    ((1, 8, 1, 1), (8, 8, 5, 4), {"strides": [3, 2], "output_shape": [6, 3]}),
    ((1, 8, 3, 4), (8, 8, 2, 2), {"strides": [3, 3]}),  # outputs without taps
    ((1, 8, 4, 5), (8, 8, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
]


@pytest.mark.parametrize("form", BLOCKED, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_blocked_images(form: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], threads: int) -> None:
    x, w, attrs = form
    rng = np.random.default_rng(SEED)
    shapes = (x, w, (w[1] * attrs.get("group", 1),))
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    case = Case("ConvTranspose", arrays, attrs, frozenset({1, 2}))
    block = native().lanes(DType.F32)
    (got,) = run_graph(in_blocks(case, block), arrays[:1], threads=threads)
    check(got, case)


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((1, 24, 5, 17), (24, 1, 2, 2), {"strides": [2, 2]}),
        ((2, 13, 3, 19), (13, 3, 1, 2), {"strides": [1, 2]}),
        ((1, 16, 4, 16), (16, 1, 2, 4), {"strides": [2, 4]}),
        ((1, 7, 2, 21), (7, 2, 4, 1), {"strides": [4, 1]}),
        ((2, 16, 18), (16, 2, 2), {"strides": [2]}),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_patches(x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any], threads: int) -> None:
    """Blocked images to plain ones, with a tail."""
    rng = np.random.default_rng(SEED)
    data, weights, bias = (rng.standard_normal(s).astype(np.float32) for s in (x, w, (w[1],)))
    case = Case("ConvTranspose", [data, weights, bias], attrs, frozenset({1, 2}))
    graph = in_blocks(case, native().lanes(DType.F32))
    node = next(n for n in graph.nodes if n.op == "ConvTranspose")
    y = graph.nodes[-1].output
    graph.nodes[-1:] = []
    node.outputs = (Value("patches", y.type),)
    graph.nodes.append(Node("Relu", node.outputs, (y,)))
    run_pipeline(graph, ("fuse",), PassContext(native()))
    assert any(n.op == "c2c.Fused" for n in graph.nodes)
    (got,) = run_graph(graph, [data], threads=threads)
    np.testing.assert_allclose(got, np.maximum(expected(case), 0), atol=2e-5)


@pytest.mark.parametrize("index", [1, 3, 6, 8])
def test_blocked_layouts(index: int) -> None:
    case = cases(True)[index]
    (got,) = run_graph(in_blocks(case, 8), [a for i, a in enumerate(case.inputs) if a is not None and i == 0])
    check(got, case)
