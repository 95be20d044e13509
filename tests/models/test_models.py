"""Real trained models and the benchmark networks against onnxruntime: native at 1 and 2 threads, arm64 emulated, and
through the C driver on an OpenCL device."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import c2c
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program

from ..opencl import needs_opencl

ROOT = Path(__file__).parent.parent.parent
for folder in ("examples", "benchmarks"):
    sys.path.insert(0, str(ROOT / folder))
fetch_models: Any = importlib.import_module("fetch_models")
nets: Any = importlib.import_module("nets")
onnxruntime: Any = pytest.importorskip("onnxruntime")

Feeds = dict[str, np.ndarray]
SEED = 17
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Subject:
    """A model, the shapes that its inputs are pinned to, and a smaller form for the emulator."""

    name: str
    load: Callable[[], onnx.ModelProto]
    shapes: dict[str, tuple[int, ...]]
    load_small: Callable[[], onnx.ModelProto]
    shapes_small: dict[str, tuple[int, ...]]


def real(name: str, small: dict[str, tuple[int, ...]] | None = None) -> Subject:
    def load() -> onnx.ModelProto:
        try:
            return onnx.load(fetch_models.fetch(name) / "model.onnx")
        except fetch_models.FetchError as e:
            pytest.skip(f"model {name} is not here: {e}")

    shapes = fetch_models.MODELS[name].shapes
    return Subject(name, load, shapes, load, small or shapes)


def network(name: str, small: Callable[[], onnx.ModelProto] | None = None) -> Subject:
    return Subject(name, nets.NETS[name], {}, small or nets.NETS[name], {})


SUBJECTS = [
    real("mnist_cnn"),
    real("magika"),
    *(real(f"mtcnn_{stage}") for stage in ("pnet", "rnet", "onet")),
    network("mlp_b1"),
    network("mlp_b64"),
    network("lstm_100"),
    network("squeezenet11", lambda: nets.squeezenet11(64)),
    real("efficientnet_lite0"),
    real("silero_vad_16k_sequence"),
    real("ppocrv4_det", {"x": (1, 3, 96, 160)}),
    real("ppocrv4_rec"),
    real("ppocr_cls"),
    real("minilm_l3"),
    real("centerface", {"input.1": (1, 3, 96, 128)}),
    real("basic_pitch"),
    real("ppocrv6_det_tiny", {"x": (1, 3, 96, 160)}),
    real("ppocrv6_rec_tiny"),
    network("mobilenet_v1", lambda: nets.mobilenet_v1(96)),
    network("mobilenet_v2", lambda: nets.mobilenet_v2(96)),
    network("resnet18", lambda: nets.resnet18(64)),
    network("resnet50", lambda: nets.resnet50(64)),
    network("vgg16", lambda: nets.vgg16(32)),
    network("style_256", lambda: nets.style_256(64)),
    network("style_480x640", lambda: nets.style_256(48)),
    network("minilm_128"),
]
QUICK = {s.name for s in SUBJECTS[:9]}
EMULATED_QUICK = {"mnist_cnn", "magika", "mtcnn_rnet", "lstm_100"}
ON_DEVICE_QUICK = {"mnist_cnn", "mtcnn_rnet", "mlp_b1"}


def chosen(quick: set[str]) -> list[Any]:
    return [
        pytest.param(subject, id=subject.name, marks=() if subject.name in quick else pytest.mark.slow)
        for subject in SUBJECTS
    ]


def feeds_of(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], name: str) -> Feeds:
    """Inputs in the range that the model is made for."""
    rng = np.random.default_rng(SEED)
    weights = {w.name for w in model.graph.initializer}
    feeds: Feeds = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        shape = shapes.get(value.name) or tuple(d.dim_value for d in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if value.name == "attention_mask":
            feeds[value.name] = (np.arange(shape[1]) < shape[1] * 3 // 4)[None].astype(dtype)
        elif dtype.kind in "iu":
            feeds[value.name] = rng.integers(0, 257 if name == "magika" else 30000, shape).astype(dtype)
        elif name == "centerface":
            feeds[value.name] = rng.integers(0, 256, shape).astype(dtype)
        elif name.startswith("ppocr"):
            feeds[value.name] = page(rng, shape).astype(dtype)
        else:
            feeds[value.name] = (rng.standard_normal(shape) * 0.5).astype(dtype)
    return feeds


def page(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Dark strokes in lines on white paper, in [-1, 1]: detectors answer noise with nothing but rounding errors."""
    picture = np.ones(shape)
    height, width = shape[2:]
    for top in range(8, height - 31, 40):
        for left in range(8, width - 17, 20):
            for _ in range(4):
                y, x = top + rng.integers(0, 28), left + rng.integers(0, 12)
                tall, wide = (16, 3) if rng.random() < 0.5 else (3, 14)
                picture[:, :, y : min(y + tall, top + 32), x : x + wide] = -0.9
    return picture + rng.normal(0, 0.05, shape)


def expected(model: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in model.graph.output]
    return dict(zip(names, session.run(names, feeds), strict=True))


def check(name: str, got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float = TOLERANCE) -> None:
    assert list(got) == list(want)
    for output, reference in want.items():
        assert got[output].shape == reference.shape and got[output].dtype == reference.dtype
        if reference.size:
            wide = reference.astype(np.float64)
            error = float(np.abs(got[output].astype(np.float64) - wide).max() / max(np.abs(wide).max(), 1e-30))
            assert error <= tolerance, f"{name}, output {output}: error {error:.2g}, seed {SEED}"


@pytest.mark.parametrize("subject", chosen(QUICK))
def test_native(subject: Subject) -> None:
    """Right at one thread, and the same bits at two."""
    small = subject.name == "squeezenet11"
    model = subject.load_small() if small else subject.load()
    feeds = feeds_of(model, subject.shapes, subject.name)
    shapes = {k: v.shape for k, v in feeds.items()}
    one = c2c.compile(model, shapes=shapes).run(feeds)
    check(subject.name, one, expected(model, feeds))
    two = c2c.compile(model, shapes=shapes, threads=2).run(feeds)
    for output, array in one.items():
        assert np.array_equal(array, two[output], equal_nan=True), f"{output} differs between thread counts"


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("subject", chosen(EMULATED_QUICK))
def test_arm64(subject: Subject) -> None:
    model = subject.load_small()
    feeds = feeds_of(model, subject.shapes_small, subject.name)
    shapes = {k: v.shape for k, v in feeds.items()}
    options = CompileOptions(Target.parse("arm64-neon"), name="model", shapes=shapes)
    compiled = compile_file(model.SerializeToString(), options)
    check(subject.name, run_as_program(compiled, feeds), expected(model, feeds))


@needs_opencl
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("subject", chosen(ON_DEVICE_QUICK))
def test_opencl(subject: Subject) -> None:
    """Kernels for any device, built and run by the driver that an app links."""
    model = subject.load_small()
    feeds = feeds_of(model, subject.shapes_small, subject.name)
    shapes = {k: v.shape for k, v in feeds.items()}
    check(subject.name, c2c.compile(model, "opencl", shapes=shapes).run(feeds), expected(model, feeds))
