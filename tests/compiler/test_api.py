"""The Python interface under careless callers: wrong buffers, wrong options, shared models, damaged bundles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

from c2c.compiler.api import CompiledModel, compile, load
from c2c.ir.errors import C2CError, OptionsError, OutputError, RunError

Save = Callable[..., Path]
X = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def model(small_cnn: onnx.ModelProto) -> CompiledModel:
    return compile(small_cnn, dims={"N": 1})


def test_any_memory_order_is_read_right(model: CompiledModel) -> None:
    expected = model.run({"x": X})["y"]
    wide = np.zeros((2, 3, 32, 16), np.float32)
    wide[::2, :, ::2] = X
    raw = np.zeros(X.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(X.shape)
    unaligned[:] = X
    for x in (np.asfortranarray(X), wide[::2, :, ::2], unaligned):
        np.testing.assert_array_equal(model.run({"x": x})["y"], expected)


def test_outputs_that_cannot_be_written_in_place_are_refused(model: CompiledModel) -> None:
    read_only = np.zeros((1, 10), np.float32)
    read_only.flags.writeable = False
    inside = X.copy()
    overlapping = inside.reshape(-1)[:10].reshape(1, 10)
    bad: list[Any] = [read_only, np.zeros((1, 10)), np.zeros((1, 20), np.float32)[:, ::2], [[0.0] * 10], overlapping]
    for y in bad:
        with pytest.raises(RunError, match="output 'y'"):
            model.run({"x": inside}, {"y": y})
    with pytest.raises(RunError, match="no output 'z'"):
        model.run({"x": X}, {"z": read_only})
    assert not read_only.any()
    np.testing.assert_array_equal(inside, X)


def test_one_model_and_its_clones_in_many_threads(model: CompiledModel) -> None:
    inputs = [X * (k + 1) for k in range(4)]
    expected = [model.run({"x": x})["y"] for x in inputs]
    wrong: list[int] = []

    def work(k: int, m: CompiledModel) -> None:
        for _ in range(500):
            if not np.array_equal(m.run({"x": inputs[k]})["y"], expected[k]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k, model if k % 2 else model.clone())) for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 0}, {"threads": True}, {"threads": 2.0}, {"level": 3}, {"winograd_error": -1.0},
        {"optimize_for": "size"},
        {"winograd_error": float("nan")}, {"dims": {"N": "1"}}, {"dims": {"N": 1.0}}, {"shapes": {"x": 3}},
        {"shapes": {"x": "1333"}}, {"shapes": {"x": (None, 3, 16, 16)}},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(small_cnn: onnx.ModelProto, wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        compile(small_cnn, **{"dims": {"N": 1}, **wrong})


def test_sizes_may_be_numpy_integers(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    manifest = compile(small_cnn, dims={"N": cast(int, np.int64(2))}).save(tmp_path / "o")
    assert manifest["options"]["dims"] == {"N": 2}


def test_a_foreign_model_is_saved_but_not_run(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    model = compile(small_cnn, "arm64-neon-macos", dims={"N": 1})
    assert model.save(tmp_path / "o", emit="obj")["options"]["emit"] == ["obj"]
    for call in (lambda: model.run({"x": X}), model.clone, lambda: load(tmp_path / "o")):
        with pytest.raises(RunError, match="arm64-neon-macos"):
            call()


@pytest.mark.parametrize("damage", ["short", "other"])
def test_weights_of_another_model_are_refused(model: CompiledModel, tmp_path: Path, damage: str) -> None:
    model.save(tmp_path, weights="file")
    file = tmp_path / "model.weights"
    data = file.read_bytes()
    file.write_bytes(data[:-1] if damage == "short" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(RunError, match=r"model\.weights is not the file"):
        load(tmp_path)


def test_a_model_without_weights_loads_from_its_empty_file(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ports = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [3]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    compile(onnx.helper.make_model(graph)).save(tmp_path, weights="file")
    assert load(tmp_path).run({"x": np.array([-1, 0, 2], np.float32)})["y"].tolist() == [0, 0, 2]


def test_what_cannot_be_saved_leaves_nothing(model: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        model.save(tmp_path / "file")
    bad: list[dict[str, Any]] = [{"emit": ("exe",)}, {"emit": ()}, {"weights": "fil"}]
    for arguments in bad:
        with pytest.raises(C2CError):
            model.save(tmp_path / "a" / "b", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
