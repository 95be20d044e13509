"""Operators that move data, on this machine, one thread: GB/s (read and written) of each beside a plain copy.

    python benchmarks/movement.py [--only transpose] [--seconds 0.3] [--save FOLDER]

Each case is a model of one node; its time is that of its steps, the least of many runs. The last column is the rate
over that of `memcpy` moving as many bytes. `--save` writes the models, to time other engines on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.compiler.machine import least

F32 = TensorProto.FLOAT


@dataclass(frozen=True)
class Case:
    """One node: shapes of its float inputs, constant inputs behind them, attributes."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[np.ndarray | None, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[int, ...] = (F32,)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op} {' '.join('x'.join(map(str, s)) for s in self.shapes)} {self.note}".rstrip()

    def model(self) -> onnx.ModelProto:
        inputs = [f"x{i}" for i in range(len(self.shapes))]
        fixed = [("" if c is None else f"c{i}", c) for i, c in enumerate(self.constants)]
        outputs = [f"y{i}" for i in range(len(self.outputs))]
        node = helper.make_node(self.op, [*inputs, *(name for name, _ in fixed)], outputs, name=self.op, **self.attrs)
        graph = helper.make_graph(
            [node],
            "case",
            [helper.make_tensor_value_info(n, F32, s) for n, s in zip(inputs, self.shapes, strict=True)],
            [helper.make_tensor_value_info(n, t, None) for n, t in zip(outputs, self.outputs, strict=True)],
            [numpy_helper.from_array(c, name) for name, c in fixed if c is not None],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def _i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _resize(shape: tuple[int, ...], scale: float, note: str, **attrs: Any) -> Case:
    scales = np.array([1, 1, scale, scale], np.float32)
    return Case("Resize", (shape,), (None, scales), attrs, note=note)


def _transposes() -> list[Case]:
    wanted: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((1024, 1024), (1, 0)),
        ((1000, 1037), (1, 0)),
        ((1, 64, 128, 128), (0, 2, 3, 1)),
        ((1, 128, 128, 64), (0, 3, 1, 2)),
        ((1, 3, 512, 512), (0, 2, 3, 1)),
        ((1, 512, 512, 3), (0, 3, 1, 2)),
        ((12, 128, 12, 64), (0, 2, 1, 3)),
        ((8, 12, 128, 64), (0, 1, 3, 2)),
        ((64, 32, 16, 32), (2, 1, 0, 3)),
        ((64, 64, 256), (2, 1, 0)),
    ]
    return [Case("Transpose", (s,), attrs={"perm": list(p)}, note=f"perm {p}") for s, p in wanted]


def _cases() -> list[Case]:
    rng = np.random.default_rng(0)
    image = (1, 32, 256, 256)
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    return [
        *_transposes(),
        Case("Concat", ((1, 32, 128, 128), (1, 32, 128, 128)), attrs={"axis": 1}),
        Case("Concat", ((1, 128, 128, 32), (1, 128, 128, 32)), attrs={"axis": 3}),
        Case("Concat", ((65536, 3), (65536, 5)), attrs={"axis": 1}, note="narrow"),
        Case("Slice", ((1, 64, 256, 64),), (_i64(8), _i64(56), _i64(3)), note="inner range"),
        Case("Slice", ((1, 64, 256, 128),), (_i64(0), _i64(128), _i64(3), _i64(2)), note="step 2"),
        Case("Pad", (image,), (_i64(0, 0, 1, 1, 0, 0, 1, 1),), {"mode": "reflect"}, note="reflect 1"),
        Case("Pad", (image,), (_i64(0, 0, 3, 3, 0, 0, 3, 3),), {"mode": "constant"}, note="zeros 3"),
        Case("Expand", ((1, 64, 1, 256),), (_i64(8, 64, 16, 256),)),
        Case("Tile", ((8, 128, 128),), (_i64(1, 4, 2),)),
        Case("DepthToSpace", ((1, 48, 128, 128),), attrs={"blocksize": 4}),
        Case("SpaceToDepth", ((1, 3, 512, 512),), attrs={"blocksize": 4}),
        _resize((1, 32, 128, 128), 2, "nearest 2", mode="nearest", coordinate_transformation_mode="asymmetric"),
        _resize((1, 32, 128, 128), 1.5, "nearest 1.5", mode="nearest"),
        _resize((1, 32, 128, 128), 2, "linear 2", mode="linear"),
        _resize(
            (1, 32, 128, 128), 2, "linear 2 aligned", mode="linear", coordinate_transformation_mode="align_corners"
        ),
        _resize((1, 32, 256, 256), 0.5, "linear 0.5", mode="linear"),
        _resize((1, 32, 128, 128), 2, "cubic 2", mode="cubic"),
        Case("MaxPool", (image,), attrs={"kernel_shape": [2, 2], "strides": [2, 2]}, note="2/2"),
        Case("MaxPool", (image,), attrs=window, note="3/2"),
        Case("AveragePool", (image,), attrs=window, note="3/2"),
        Case("AveragePool", (image,), attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, note="3/1"),
        Case("GlobalAveragePool", (image,)),
        Case("Gather", ((30000, 384),), (rng.integers(0, 30000, (1, 2048)),), {"axis": 0}, note="rows"),
        Case("Gather", ((512, 1024),), (rng.integers(0, 1024, 1024),), {"axis": 1}, note="columns"),
        Case("GatherElements", ((512, 1024),), (rng.integers(0, 512, (512, 1024)),), {"axis": 0}),
        Case("TopK", ((64, 8192),), (_i64(5),), outputs=(F32, TensorProto.INT64), note="5"),
        Case("TopK", ((64, 8192),), (_i64(200),), outputs=(F32, TensorProto.INT64), note="200"),
        Case("TopK", ((1, 65536),), (_i64(1000),), outputs=(F32, TensorProto.INT64), note="1000"),
        Case("Add", (image, image)),
        Case("Relu", (image,)),
        Case("Mul", (image, (1, 32, 1, 1))),
        Case("Add", ((1, 256, 256, 32), (32,)), note="rows"),
        Case("CumSum", ((512, 2048),), (np.array(1),), note="rows"),
        Case("ArgMax", ((512, 2048),), attrs={"axis": 1}, outputs=(TensorProto.INT64,)),
    ]


def measure(case: Case, seconds: float) -> tuple[float, int]:
    """Nanoseconds and bytes read and written; of a table only what is gathered counts."""
    model = c2c.compile(case.model())
    rng = np.random.default_rng(1)
    feeds = {p.name: rng.standard_normal(p.shape, np.float32) for p in model.inputs}
    written = sum(v.nbytes for v in model.run(feeds).values())
    read = written if case.op in ("Gather", "Slice") else sum(v.nbytes for v in feeds.values())
    steps = len(model.compiled.program.steps)
    return least(lambda: float(model.trace(feeds, steps).sum()), seconds), read + written


def copy_rate(size: int, seconds: float, known: dict[int, float]) -> float:
    """GB/s of `memcpy` that reads and writes `size` bytes together."""
    if size not in known:
        a, b = np.ones(size // 2, np.uint8), np.empty(size // 2, np.uint8)
        known[size] = size / least(_timed(lambda: np.copyto(b, a)), seconds)
    return known[size]


def _timed(call: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter_ns()
        call()
        return float(time.perf_counter_ns() - start)

    return run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--seconds", type=float, default=0.3, help="a case")
    parser.add_argument("--save", type=Path, help="write the models there")
    args = parser.parse_args(argv)
    known: dict[int, float] = {}
    for number, case in enumerate(c for c in _cases() if args.only.lower() in str(c).lower()):
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            onnx.save(case.model(), args.save / f"{number:02d}_{str(case).replace(' ', '_').replace('/', '-')}.onnx")
        time_ns, size = measure(case, args.seconds)
        top = copy_rate(size, args.seconds, known)
        print(f"{case!s:58} {time_ns / 1e3:9.1f} us {size / time_ns:7.1f} GB/s {size / time_ns / top:6.0%} of a copy")


if __name__ == "__main__":
    main()
