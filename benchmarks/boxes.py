"""NonMaxSuppression on this machine, one thread: this compiler and onnxruntime.

    python benchmarks/boxes.py [--rounds 30] [--target x86-64-v3]

Boxes lie at random in an image of 640 x 640, with sides of 8 to 128; scores are the eighth power of even numbers.
Engines take turns; a figure is the least of all rounds, in milliseconds a call. Both choose the same boxes, which is
checked first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import c2c


@dataclass(frozen=True)
class Case:
    """most: boxes chosen of each class. score: the least that counts."""

    about: str
    classes: int
    boxes: int
    most: int
    overlap: float
    score: float


CASES = (
    Case("one class, YOLO's 8400 boxes", 1, 8400, 300, 0.45, 0.25),
    Case("80 classes of 8400 boxes", 80, 8400, 300, 0.45, 0.25),
    Case("80 classes of 8400 boxes, almost any score", 80, 8400, 100, 0.6, 0.001),
    Case("90 classes of SSD's 1917 boxes", 90, 1917, 100, 0.6, 0.3),
    Case("1000 proposals, all that stay", 1, 1000, 1000, 0.7, 0.0),
)


def model_of(case: Case) -> onnx.ModelProto:
    """One NonMaxSuppression."""
    parameters = (("most", TensorProto.INT64, case.most), ("overlap", 1, case.overlap), ("score", 1, case.score))
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *(n for n, _, _ in parameters)], ["chosen"])
    shapes = {"boxes": [1, case.boxes, 4], "scores": [1, case.classes, case.boxes]}
    graph = helper.make_graph(
        [node], "boxes", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info("chosen", TensorProto.INT64, ["n", 3])],
        [helper.make_tensor(n, t, [1], [v]) for n, t, v in parameters],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds_of(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    middle, size = rng.random((1, case.boxes, 2)) * 640, rng.random((1, case.boxes, 2)) * 120 + 8
    boxes = np.concatenate([middle - size / 2, middle + size / 2], -1).astype(np.float32)
    return {"boxes": boxes, "scores": (rng.random((1, case.classes, case.boxes)) ** 8).astype(np.float32)}


def least(runs: list[Callable[[], Any]], rounds: int) -> list[float]:
    """The least milliseconds of each."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            best[i] = min(best[i], 1e3 * (time.perf_counter() - begin))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--target", default="native")
    args = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    print("| boxes | chosen | onnxruntime, ms | own, ms | times as fast |\n|---|---|---|---|---|")
    for case in CASES:
        model, feeds = model_of(case), feeds_of(case)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        own = c2c.compile(model, args.target)
        chosen = np.asarray(session.run(None, feeds)[0])
        if not np.array_equal(chosen, own.run(feeds)["chosen"]):
            raise SystemExit(f"{case.about}: other boxes than onnxruntime's")
        theirs, ours = least([lambda s=session, f=feeds: s.run(None, f), lambda m=own, f=feeds: m.run(f)], args.rounds)  # type: ignore[misc]
        print(f"| {case.about} | {len(chosen)} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} |")


if __name__ == "__main__":
    main()
