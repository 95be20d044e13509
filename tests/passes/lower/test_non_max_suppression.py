"""NonMaxSuppression as compiled code against onnxruntime: the same boxes in the same order, whatever the scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import c2c

Array = np.ndarray[Any, Any]
onnxruntime: Any = pytest.importorskip("onnxruntime")
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def network(
    batch: int, classes: int, boxes: int, most: int | None, overlap: float | None, score: float | None, *,
    centered: bool = False, run_time: tuple[str, ...] = (),
) -> ModelProto:  # fmt: skip
    """One NonMaxSuppression; parameters in `run_time` are inputs."""
    inputs = [
        helper.make_tensor_value_info("boxes", FLOAT, [batch, boxes, 4]),
        helper.make_tensor_value_info("scores", FLOAT, [batch, classes, boxes]),
    ]
    constants, names = [], ["boxes", "scores"]
    for name, value, kind in (("most", most, INT64), ("overlap", overlap, FLOAT), ("score", score, FLOAT)):
        names.append("" if value is None else name)
        if name in run_time:
            inputs.append(helper.make_tensor_value_info(name, kind, [1]))
        elif value is not None:
            constants.append(helper.make_tensor(name, kind, [1], [value]))
    node = helper.make_node("NonMaxSuppression", names, ["selected"], center_point_box=int(centered))
    result = helper.make_tensor_value_info("selected", INT64, ["n", 3])
    graph = helper.make_graph([node], "nms", inputs, [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def some_boxes(rng: np.random.Generator, batch: int, boxes: int, centered: bool = False) -> Array:
    """Boxes in an area of 100 x 100, some of them empty, of any orientation."""
    middle, size = rng.random((batch, boxes, 2)) * 100, rng.random((batch, boxes, 2)) * 40
    size[rng.random((batch, boxes)) < 0.05] = 0
    sign = np.where(rng.random((batch, boxes, 2)) < 0.2, -1, 1)
    found = (middle, size) if centered else (middle - sign * size / 2, middle + sign * size / 2)
    return np.concatenate(found, -1).astype(np.float32)


def expected(model: ModelProto, feeds: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("target", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("levels", [0, 3], ids=["any scores", "few scores"])
@pytest.mark.parametrize(
    "batch,classes,boxes,most,overlap,score",
    [
        (1, 1, 1, 5, 0.5, 0.0), (2, 3, 63, 5, 0.5, 0.3), (1, 2, 64, 100, 0.2, 0.0), (1, 1, 65, 64, 0.7, None),
        (3, 1, 200, 1, 0.5, 0.9), (1, 4, 130, 1 << 40, 0.45, 0.1), (1, 2, 300, 7, None, 0.2), (1, 1, 40, 3, 0.5, 2.0),
        (1, 2, 17, 0, 0.5, 0.1), (1, 2, 17, None, None, None),
    ],
)  # fmt: skip
def test_the_boxes_of_onnxruntime(
    batch: int, classes: int, boxes: int, most: int | None, overlap: float | None, score: float | None, levels: int,
    target: str,
) -> None:  # fmt: skip
    seed = 1000 * boxes + classes
    print("seed", seed)
    rng = np.random.default_rng(seed)
    model = network(batch, classes, boxes, most, overlap, score)
    scores = rng.random((batch, classes, boxes)).astype(np.float32)
    if levels:
        scores = np.round(scores * levels).astype(np.float32) / np.float32(levels)
    feeds = {"boxes": some_boxes(rng, batch, boxes), "scores": scores}
    found = c2c.compile(model, target).run(feeds)["selected"]
    np.testing.assert_array_equal(found, expected(model, feeds))


@pytest.mark.parametrize("threads", [1, 2])
def test_boxes_by_their_middle_and_limits_at_run_time(threads: int) -> None:
    rng = np.random.default_rng(7)
    model = network(2, 50, 400, 0, 0, 0, centered=True, run_time=("most", "overlap", "score"))
    compiled = c2c.compile(model, threads=threads)
    for most, overlap, score in ((3, 0.5, 0.2), (400, 0.1, 0.0), (10**6, 0.9, 0.99), (0, 0.5, 0.5)):
        feeds: dict[str, Array] = {
            "boxes": some_boxes(rng, 2, 400, True), "scores": rng.random((2, 50, 400)).astype(np.float32),
            "most": np.asarray([most]), "overlap": np.asarray([overlap], np.float32),
            "score": np.asarray([score], np.float32),
        }  # fmt: skip
        np.testing.assert_array_equal(compiled.run(feeds)["selected"], expected(model, feeds))


def test_the_rest_of_the_rows_is_zero() -> None:
    rng = np.random.default_rng(11)
    model = network(1, 2, 30, 20, 0.3, 0.5)
    compiled = c2c.compile(model)
    (rows, count) = compiled.outputs
    assert (rows.shape, count.name, count.shape) == ((40, 3), "selected_count", ())
    given = np.full(rows.shape, -1)
    feeds = {"boxes": some_boxes(rng, 1, 30), "scores": rng.random((1, 2, 30)).astype(np.float32)}
    found = compiled.run(feeds, {"selected": given})
    assert 0 < int(found["selected_count"]) == len(found["selected"]) < 40
    assert not given[len(found["selected"]) :].any()
