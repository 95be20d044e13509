"""How alike two networks answer on the same samples: counted answers, and how far apart the numbers are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..ir.errors import OptionsError

MARGINS = 4096
"""Answers that an expected loss is taken from, at even steps of how far they are from others."""

MEASURES = ("auto", "top1", "threshold", "cosine")


@dataclass(frozen=True, slots=True)
class Agreement:
    """measure: what was counted. same of total answers; cosine: mean over samples; noise: squared error over power.
    right: of the dense network's answers, where there are labels (measure "labels"); `same` are right ones then."""

    measure: str
    same: int
    total: int
    cosine: float
    noise: float
    right: int = 0

    @property
    def loss(self) -> float:
        """Share of answers that differ; for measure "cosine" what the mean cosine lacks to 1; for "labels" the share of
        right answers lost, below 0 where some were gained."""
        if self.measure == "labels":
            return (self.right - self.same) / max(self.total, 1)
        return 1 - self.cosine if self.measure == "cosine" else (self.total - self.same) / max(self.total, 1)

    def __str__(self) -> str:
        if self.measure == "labels":
            return f"{self.same}/{self.total} right (dense {self.right}), cosine {self.cosine:.6f}"
        counted = "" if self.measure == "cosine" else f"{self.same}/{self.total} answers, "
        return f"{counted}cosine {self.cosine:.6f}"


def pick_measure(measure: str, output: np.ndarray) -> str:
    """What "auto" stands for: the largest of several values, above or below one half for values of 0 to 1, or cosine.

    output: [samples, …] of the dense network."""
    if measure not in MEASURES:
        raise OptionsError(f"nothing is measured by '{measure}'", remedy=f"one of {', '.join(MEASURES)}")
    if measure != "auto":
        return measure
    if output.ndim >= 3 and output.shape[-1] >= 2:
        return "top1"
    return "threshold" if output.size and output.min() >= 0 and output.max() <= 1 else "cosine"


def agreement(dense: np.ndarray, small: np.ndarray, measure: str, labels: np.ndarray | None = None) -> Agreement:
    """Of two outputs [samples, …]. labels: right classes [samples, …], compared with the largest of the last axis."""
    right = 0
    if labels is not None:
        answers = (o.argmax(-1).reshape(labels.shape) == labels for o in (dense, small))
        before, alike = answers
        measure, right = "labels", int(before.sum())
    elif measure == "top1":
        alike = dense.argmax(-1) == small.argmax(-1)
    elif measure == "threshold":
        alike = (dense > 0.5) == (small > 0.5)
    else:
        alike = np.zeros(0, bool)
    a, b = (o.reshape(len(o), -1).astype(np.float64) for o in (dense, small))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.where(norms > 0, (a * b).sum(1) / np.maximum(norms, 1e-300), 1.0)
    return Agreement(
        measure, int(alike.sum()), int(alike.size), float(cosine.mean()), relative_error(dense, small), right
    )


def expected_loss(dense: np.ndarray, measure: str, noise: float) -> float:
    """The loss of answers with normal noise of this relative squared error: for counted answers from how far those of
    the dense network [samples, …] are from others, with less chance in it than a count on few samples has."""
    if measure == "cosine":
        return noise / 2
    varied = dense.astype(np.float64) - dense.mean(0, keepdims=True)
    deviation = np.sqrt(noise * np.square(varied).mean())
    if measure == "threshold":
        margin = np.abs(dense.astype(np.float64) - 0.5)
    else:
        best = np.partition(dense.astype(np.float64), -2, -1)[..., -2:]
        margin, deviation = best[..., 1] - best[..., 0], deviation * np.sqrt(2)
    far = np.sort(margin.reshape(-1)) / max(float(deviation), 1e-300)
    some = far[np.linspace(0, far.size - 1, min(far.size, MARGINS)).astype(np.int64)]
    return float(np.mean([math.erfc(min(m, 40.0) / math.sqrt(2)) / 2 for m in some]))


def relative_error(dense: np.ndarray, small: np.ndarray) -> float:
    """Squared error over the variance of the dense network's output."""
    a = dense.astype(np.float64)
    power = float(np.square(a - a.mean(0, keepdims=True)).sum()) if len(a) > 1 else float(np.square(a).sum())
    return float(np.square(a - small).sum() / max(power, 1e-30))
