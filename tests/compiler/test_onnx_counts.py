"""Networks behind NonMaxSuppression, NonZero and Compress, as detectors have them, against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import c2c
from c2c.compiler.onnx_import import import_model
from c2c.ir.errors import UnsupportedOpError
from c2c.ir.graph_text import large_constants, parse_graph, print_graph
from c2c.ir.types import Counted

Array = np.ndarray[Any, Any]
onnxruntime: Any = pytest.importorskip("onnxruntime")
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node

CONSTANTS: dict[str, Array] = {
    "zero": np.asarray(0),
    "one": np.asarray(1),
    "col2": np.asarray([2]),
    "first": np.asarray([0]),
    "second": np.asarray([1]),
    "five": np.asarray([5]),
    "three": np.asarray([3]),
    "last": np.asarray([-1]),
    "end": np.asarray([2**63 - 1]),
    "many": np.asarray([40]),
    "half": np.asarray([0.5], np.float32),
    "low": np.asarray([0.3], np.float32),
    "level": np.asarray(0.4, np.float32),
    "ones": np.ones(1, np.float32),
    "matrix": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "flat": np.asarray([-1]),
    "axes01": np.asarray([0, 1]),
    "img": np.asarray([2, 2]),
}


def network(
    nodes: Sequence[NodeProto], outputs: Sequence[str], kinds: Sequence[int], extra: bool = False
) -> ModelProto:
    """boxes [1, 30, 4], scores [1, 2, 30], x [6, 5], keep (bool [6])."""
    inputs = [("boxes", FLOAT, [1, 30, 4]), ("scores", FLOAT, [1, 2, 30]), ("x", FLOAT, [6, 5]), ("keep", BOOL, [6])]
    used = {i for n in nodes for i in n.input}
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in CONSTANTS.items() if k in used]
    graph = helper.make_graph(
        list(nodes), "counted", [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs if n in used],
        [helper.make_tensor_value_info(o, t, None) for o, t in zip(outputs, kinds, strict=True)], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


NMS = node("NonMaxSuppression", ["boxes", "scores", "many", "half", "low"], ["sel"])
BOXES = [
    NMS,
    node("Gather", ["sel", "col2"], ["col"], axis=1),
    node("Squeeze", ["col", "second"], ["which"]),
    node("Gather", ["boxes", "which"], ["found"], axis=1),
    node("Squeeze", ["found", "first"], ["rows"]),
]
"""Boxes of the selected rows [n, 4]."""
SCORES = [node("GatherND", ["scores", "sel_"], ["values"]), node("Slice", ["sel", "first", "end", "second"], ["sel_"])]
SHAPE = [node("Shape", ["rows"], ["shape"]), node("Gather", ["shape", "zero"], ["n"])]
BEST = [
    node("Reshape", ["n", "flat"], ["n1d"]), node("Concat", ["n1d", "five"], ["both"], axis=0),
    node("ReduceMin", ["both"], ["k"], keepdims=0), node("Reshape", ["k", "flat"], ["k1d"]),
]  # fmt: skip
POINTS = [node("Greater", ["x", "level"], ["over"]), node("NonZero", ["over"], ["at"])]
ROWS = [node("Compress", ["x", "keep"], ["kept"], axis=0)]

FILTERED = [
    node("Squeeze", ["scores", "first"], ["s2"]),
    node("Greater", ["s2", "level"], ["above"]),
    node("NonZero", ["above"], ["pairs"]),
    node("Gather", ["pairs", "zero"], ["class"], axis=0),
    node("Gather", ["pairs", "one"], ["box"], axis=0),
    node("Squeeze", ["boxes", "first"], ["b2"]),
    node("Gather", ["b2", "box"], ["some"], axis=0),
    node("Transpose", ["pairs"], ["places"], perm=[1, 0]),
    node("GatherND", ["s2", "places"], ["worth"]),
    node("ReduceMax", ["b2"], ["far"], keepdims=0),
    node("Cast", ["class"], ["number"], to=FLOAT),
    node("Mul", ["number", "far"], ["shift"]),
    node("Unsqueeze", ["shift", "second"], ["shift2"]),
    node("Add", ["some", "shift2"], ["apart"]),
    node("Unsqueeze", ["apart", "first"], ["apart3"]),
    node("Unsqueeze", ["worth", "axes01"], ["worth3"]),
    node("NonMaxSuppression", ["apart3", "worth3", "many", "half"], ["sel"]),
    node("Gather", ["sel", "col2"], ["which"], axis=1),
    node("Reshape", ["which", "flat"], ["which1"]),
    node("Gather", ["some", "which1"], ["rows"], axis=0),
    node("Gather", ["class", "which1"], ["kinds"], axis=0),
]
"""As torchvision exports boxes of all classes: those above a score, put apart by class, of which the best stay."""

CASES: dict[str, tuple[list[NodeProto], list[tuple[str, int]]]] = {
    "boxes of all classes": (FILTERED, [("rows", FLOAT), ("kinds", INT64)]),
    "boxes": (BOXES, [("rows", FLOAT), ("sel", INT64)]),
    "elementwise": ([*BOXES, node("Mul", ["rows", "half"], ["h"]), node("Add", ["h", "rows"], ["y"])], [("y", FLOAT)]),
    "scores of boxes": (
        [
            NMS,
            *SCORES[::-1],
        ],
        [("values", FLOAT)],
    ),
    "product": ([*BOXES, node("MatMul", ["rows", "matrix"], ["y"]), node("Softmax", ["y"], ["z"])], [("z", FLOAT)]),
    "count": ([*BOXES, *SHAPE], [("n", INT64)]),
    "size": ([*BOXES, node("Size", ["rows"], ["n"])], [("n", INT64)]),
    "sum": ([*BOXES, node("ReduceSum", ["rows", "first"], ["y"], keepdims=0)], [("y", FLOAT)]),
    "largest": (
        [*BOXES, node("Neg", ["rows"], ["neg"]), node("ReduceMax", ["neg", "first"], ["y"], keepdims=0)],
        [("y", FLOAT)],
    ),
    "least": ([*BOXES, node("ReduceMin", ["rows", "first"], ["y"])], [("y", FLOAT)]),
    "index of the largest": (
        [*BOXES, node("Neg", ["rows"], ["neg"]), node("ArgMax", ["neg"], ["y"], axis=0)],
        [("y", INT64)],
    ),
    "along the rows": ([*BOXES, node("Softmax", ["rows"], ["y"], axis=0)], [("y", FLOAT)]),
    "transposed": ([*BOXES, node("Transpose", ["rows"], ["y"], perm=[1, 0])], [("y", FLOAT)]),
    "sides": (
        [*BOXES, node("Split", ["rows"], ["a", "b"], axis=1, num_outputs=2), node("Sub", ["b", "a"], ["y"])],
        [("y", FLOAT)],
    ),
    "joined": (
        [*BOXES, node("Cast", ["col"], ["c"], to=FLOAT), node("Concat", ["rows", "c"], ["y"], axis=-1)],
        [("y", FLOAT)],
    ),
    "first five": ([*BOXES, node("Slice", ["rows", "first", "five", "first"], ["y"])], [("y", FLOAT)]),
    "from the third": ([*BOXES, node("Slice", ["rows", "three", "end", "first"], ["y"])], [("y", FLOAT)]),
    "places": ([*BOXES, *SHAPE, node("Range", ["zero", "n", "one"], ["y"])], [("y", INT64)]),
    "filled": (
        [
            *BOXES,
            *SHAPE,
            node("ConstantOfShape", ["shape"], ["y"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        ],
        [("y", FLOAT)],
    ),
    "expanded": (
        [*BOXES, *SHAPE, node("Expand", ["ones", "shape"], ["e"]), node("Add", ["e", "rows"], ["y"])],
        [("y", FLOAT)],
    ),
    "by shape": (
        [
            *BOXES,
            *SHAPE,
            node("Slice", ["shape", "first", "second"], ["s0"]),
            node("Concat", ["s0", "img"], ["to"], axis=0),
            node("Reshape", ["rows", "to"], ["y"]),
        ],
        [("y", FLOAT)],
    ),
    "best of all": (
        [
            NMS,
            *SCORES[::-1],
            node("Shape", ["values"], ["shape"]),
            node("Gather", ["shape", "zero"], ["n"]),
            *BEST,
            node("TopK", ["values", "k1d"], ["v", "i"], axis=0),
            node("Gather", ["sel", "i"], ["y"], axis=0),
        ],
        [("v", FLOAT), ("y", INT64)],
    ),
    "points": (
        [*POINTS, node("Transpose", ["at"], ["p"], perm=[1, 0]), node("GatherND", ["x", "p"], ["v"])],
        [("at", INT64), ("v", FLOAT)],
    ),
    "points as rows": (
        [*POINTS, node("Gather", ["at", "zero"], ["r"], axis=0), node("Gather", ["x", "r"], ["y"], axis=0)],
        [("y", FLOAT)],
    ),
    "points of points": (
        [
            *POINTS,
            node("Transpose", ["at"], ["p"], perm=[1, 0]),
            node("GatherND", ["x", "p"], ["v"]),
            node("Less", ["v", "half"], ["l"]),
            node("NonZero", ["l"], ["y"]),
        ],
        [("y", INT64)],
    ),
    "kept rows": (
        [*ROWS, node("ReduceMax", ["kept", "second"], ["m"]), node("Sub", ["kept", "m"], ["y"])],
        [("y", FLOAT)],
    ),
    "kept elements": (
        [
            node("Greater", ["x", "level"], ["o"]),
            node("Reshape", ["o", "flat"], ["f"]),
            node("Compress", ["x", "f"], ["y"]),
        ],
        [("y", FLOAT)],
    ),
    "kept of kept": (
        [
            *ROWS,
            node("Gather", ["kept", "zero"], ["c"], axis=1),
            node("Greater", ["c", "level"], ["g"]),
            node("Compress", ["kept", "g"], ["y"], axis=0),
        ],
        [("y", FLOAT)],
    ),
}


def feeds_of(model: ModelProto, rng: np.random.Generator, number: int) -> dict[str, Array]:
    """Inputs of which ever fewer rows count: nothing in the last but one, everything in the last."""
    middle, size = rng.random((1, 30, 2)) * 100, rng.random((1, 30, 2)) * 30 + 5
    scale = (1.0, 0.6, 0.2, 4.0)[number]
    keep = [rng.random(6) < 0.5, np.arange(6) == 2, np.zeros(6, bool), np.ones(6, bool)][number]
    every: dict[str, Array] = {
        "boxes": np.concatenate([middle - size / 2, middle + size / 2], -1).astype(np.float32),
        "scores": (rng.random((1, 2, 30)) * scale).astype(np.float32), "keep": keep,
        "x": (rng.random((6, 5)) * scale).astype(np.float32) + (1 if number == 3 else 0),
    }  # fmt: skip
    return {v.name: every[v.name] for v in model.graph.input}


def reductions(name: str) -> bool:
    return name in ("largest", "least", "index of the largest")


@pytest.mark.parametrize("name", CASES)
def test_as_onnxruntime_has_it(name: str) -> None:
    seed = 3
    print("seed", seed)
    rng = np.random.default_rng(seed)
    nodes, outputs = CASES[name]
    model = network(nodes, [o for o, _ in outputs], [t for _, t in outputs])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    compiled = c2c.compile(model)
    for number in range(4):
        if number == 2 and reductions(name):
            continue  # of no rows at all there is no largest
        feeds = feeds_of(model, rng, number)
        expected = [np.asarray(r) for r in session.run(None, feeds)]
        found = compiled.run(feeds)
        for (output, _), e in zip(outputs, expected, strict=True):
            assert found[output].shape == e.shape, (number, output)
            np.testing.assert_allclose(found[output], e, rtol=1e-5, atol=1e-6)


def test_outputs_of_one_number_share_it() -> None:
    nodes, outputs = CASES["boxes"]
    graph = import_model(network(nodes, [o for o, _ in outputs], [t for _, t in outputs]))
    assert graph.output_names == ["rows", "sel", "rows_count"]
    assert graph.counts == {"rows": Counted(0, "rows_count"), "sel": Counted(0, "rows_count")}
    text = print_graph(graph)
    again = parse_graph(text, large_constants(graph))
    assert (again.counts, print_graph(again)) == (graph.counts, text)


def test_a_bundle_knows_the_number(tmp_path: Path) -> None:
    nodes, outputs = CASES["points"]
    model = network(nodes, [o for o, _ in outputs], [t for _, t in outputs])
    compiled = c2c.compile(model, name="points")
    manifest = compiled.save(tmp_path / "out")
    at, values, count = manifest["outputs"]
    assert at["counted"] == {"axis": 1, "count": count["name"]} and values["counted"]["axis"] == 0
    header = (tmp_path / "out" / "points.h").read_text()
    assert "int64_t *at_count;" in header and "along axis 1 the first *at_count are results" in header
    loaded = c2c.load(tmp_path / "out")
    feeds = feeds_of(model, np.random.default_rng(1), 0)
    for name, value in compiled.run(feeds).items():
        np.testing.assert_array_equal(loaded.run(feeds)[name], value)


@pytest.mark.parametrize(
    "more",
    [
        [node("Concat", ["rows", "rows"], ["y"], axis=0)],
        [node("Gather", ["rows", "zero"], ["y"], axis=0)],
        [node("ReduceMean", ["rows", "first"], ["y"])],
        [node("Reshape", ["rows", "flat"], ["y"])],
        [node("Transpose", ["rows"], ["t"], perm=[1, 0]), node("MatMul", ["rows", "t"], ["y"])],
        [node("CumSum", ["rows", "zero"], ["y"], reverse=1)],
        [node("Slice", ["rows", "last", "end", "first"], ["y"])],
        [
            *SHAPE,
            node("Reshape", ["n", "flat"], ["n1"]),
            node("Sub", ["n1", "three"], ["s"]),
            node("Slice", ["rows", "s", "end", "first"], ["y"]),
        ],
        [*SHAPE, node("Reshape", ["n", "flat"], ["n1"]), node("Slice", ["rows", "first", "n1", "second"], ["y"])],
    ],
    ids=lambda more: "-".join(n.op_type for n in more),
)
def test_what_mixes_results_is_refused(more: list[NodeProto]) -> None:
    model = network([*BOXES, *more], ["y"], [FLOAT])
    with pytest.raises(UnsupportedOpError, match="mixes results of which the number is known at run time only") as e:
        c2c.compile(model)
    assert more[-1].op_type in str(e.value) and "cut the model before this node" in str(e.value)
