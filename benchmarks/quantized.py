"""Quantised networks beside their floats and other engines, one thread: milliseconds, and errors against plain QDQ.

usage: python benchmarks/quantized.py NETWORK.onnx... [--seconds 10] [--folder DIR] [--target T]

Each network is quantised by onnxruntime's quantize_static (weights i8 a channel, activations u8, calibrated on random
inputs by seed; accuracy means nothing here), compiled by c2c both ways, and run in turn with onnxruntime and, where it
is installed, OpenVINO on the same quantised model. The reference of the errors is onnxruntime without optimisations,
which computes the QDQ form as it is written. Needs c2c and onnxruntime in one environment. With a --target of
fewer features ONEDNN_MAX_CPU_ISA=AVX2 or AVX512_CORE in the environment holds OpenVINO to them; onnxruntime has no such
switch.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import c2c

BURST = 0.1
"""Seconds of one side's turn."""


class RandomData(CalibrationDataReader):  # type: ignore[misc]
    """A few random inputs by seed."""

    def __init__(self, path: Path) -> None:
        self.feeds = iter([random_feed(path, seed) for seed in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def random_feed(path: Path, seed: int) -> dict[str, np.ndarray]:
    port = onnx.load(path, load_external_data=False).graph.input[0]
    shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
    return {port.name: np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def quantized(path: Path, folder: Path) -> Path:
    """The QDQ form of a network, made once."""
    plain, made = folder / f"{path.stem}_pre.onnx", folder / f"{path.stem}_qdq.onnx"
    if not made.exists():
        quant_pre_process(str(path), str(plain), skip_symbolic_shape=True)
        types = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
        quantize_static(
            str(plain), str(made), RandomData(path), quant_format=QuantFormat.QDQ, per_channel=True, **types
        )
    return made


def session(path: Path, *, plain: bool = False) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def calls(path: Path, made: Path, feed: dict[str, np.ndarray], target: str) -> dict[str, Callable[[], np.ndarray]]:
    """What runs each side once and gives its first output."""
    small, large, other = c2c.compile(made, target), c2c.compile(path, target), session(made)
    found: dict[str, Callable[[], np.ndarray]] = {
        "c2c int8": lambda: next(iter(small.run(feed).values())),
        "c2c f32": lambda: next(iter(large.run(feed).values())),
        "onnxruntime": lambda: other.run(None, feed)[0],
    }
    try:
        openvino = importlib.import_module("openvino")
    except ImportError:
        return found
    request = openvino.Core().compile_model(str(made), "CPU", {"INFERENCE_NUM_THREADS": 1}).create_infer_request()
    found["openvino"] = lambda: np.asarray(next(iter(request.infer(list(feed.values())).values())))
    return found


def measured(sides: dict[str, Callable[[], np.ndarray]], seconds: float) -> dict[str, float]:
    """Medians in milliseconds of calls in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in sides.items():
            call()
            stop = time.perf_counter() + BURST
            while time.perf_counter() < stop:
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path("build/quantized"))
    parser.add_argument("--target", default="native", help="of c2c")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for path in args.networks:
        made, feed = quantized(path, args.folder), random_feed(path, 7)
        sides = calls(path, made, feed, args.target)
        want = session(made, plain=True).run(None, feed)[0]
        errors = {n: float(np.abs(call() - want).max() / np.abs(want).max()) for n, call in sides.items()}
        for name, ms in measured(sides, args.seconds).items():
            print(f"{path.stem:16} {name:12} {ms:8.2f} ms   error {errors[name]:.1e}", flush=True)


if __name__ == "__main__":
    main()
