"""Right answers of a network and of compressed forms of it, on the same labelled images.

usage: python examples/training/score.py TEST.npz DENSE.onnx SMALL.onnx...        needs onnxruntime
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime


def answers(path: str, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: x[i : i + 500]})[0] for i in range(0, len(x), 500)]
    return np.concatenate(parts).argmax(1)


def main(test: str, dense: str, *others: str) -> None:
    with np.load(test) as file:
        x, y = file["x"], file["y"]
    before = answers(dense, x) == y
    print(f"{dense}: {before.sum()}/{len(y)} right")
    for path in others:
        now = answers(path, x) == y
        lost, gained = int((before & ~now).sum()), int((now & ~before).sum())
        print(
            f"{path}: {now.sum()}/{len(y)} right, lost {lost}, gained {gained}: {(gained - lost) / len(y):+.2%} points"
        )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
