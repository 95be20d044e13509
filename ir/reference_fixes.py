"""Corrections of onnx's reference evaluator where the installed version departs from ONNX's own text."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv as _Conv
from onnx.reference.ops.op_lstm import LSTM as _LSTM
from onnx.reference.ops.op_max_pool import MaxPool as _MaxPool


class GlobalMaxPool(OpRun):
    """The installed one takes the maximum over two axes, whatever the rank."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class Conv(_Conv):
    """Of integers exact sums, as float32 (`c2c.IntegerConv`, whose fourth input is the zero point of the first); the
    installed one adds in their own type."""

    op_domain = ""

    def _run(self, *inputs: Any, **attrs: Any) -> Any:
        if inputs[0].dtype.kind == "f":
            return super()._run(*inputs, **attrs)  # type: ignore[no-untyped-call]
        run: Any = super()._run
        x, w, bias, zero = (None if v is None else v.astype(np.float64) for v in (*inputs, *[None] * 4)[:4])
        (sums,) = run(x if zero is None else x - zero, w, bias, **attrs)
        return (sums.astype(np.float32),)


class MaxPool(_MaxPool):
    """Of i16 as well, by way of float64."""

    op_domain = ""

    def _run(self, x: Any, **attrs: Any) -> Any:  # type: ignore[override]
        run: Any = super()._run
        if x.dtype != np.int16:
            return run(x, **attrs)
        largest, *rest = run(x.astype(np.float64), **attrs)
        return (largest.astype(np.int16), *rest)


class LSTM(_LSTM):
    """Of integers R with a scale in place of W (`c2c.DynamicLSTM`): x [steps, batch, directions · gates] is the inputs'
    part of all gates, and rows of the state become levels by their own range."""

    op_domain = ""

    def _run(self, *inputs: Any, **attrs: Any) -> Any:
        run: Any = super()._run
        if inputs[2].dtype.kind == "f":
            return run(*inputs, **attrs)
        x, scale, r, _, _, *states = (*inputs, *[None] * 7)[:7]
        none = np.zeros((len(r), x.shape[1], r.shape[2]), np.float32)
        h, c = (none if s is None else s for s in states)
        zeros = np.zeros((len(r), 3 * r.shape[2]), np.float32)
        step: Any = self._step
        parts = x.reshape(*x.shape[:2], len(r), -1)
        return step(parts, r, zeros, list(enumerate(scale)), h, c, zeros, num_directions=len(r))[: self.n_outputs]

    def _run_forward(self, X: Any, W: Any, R: Any, B: Any, P: Any, H_0: Any, C_0: Any) -> Any:
        if R.dtype.kind == "f":
            forward: Any = super()._run_forward
            return forward(X, W, R, B, P, H_0, C_0)
        (direction, scale), h, c, found = W, H_0, C_0, []
        for x in X[:, :, direction]:
            levels, step = dynamic_levels(h)
            sums = levels.astype(np.int32) @ R.astype(np.int32).T
            i, o, f, g = np.split(x + sums.astype(np.float32) * (step * scale), 4, -1)
            c = self.f(f) * c + self.f(i) * self.g(g)
            h = (self.f(o) * self.h(c)).astype(np.float32)
            found.append(h)
        return np.stack(found), h, c


def dynamic_levels(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels less their zero point and scales [rows, 1] of rows, each as DynamicQuantizeLinear has it."""
    low, high = rows.min(-1, keepdims=True, initial=0), rows.max(-1, keepdims=True, initial=0)
    scale = (np.where(high > low, high - low, np.float32(1)) / np.float32(255)).astype(np.float32)
    zero = np.rint(np.clip(-low / scale, 0, 255))
    return np.clip(np.rint(rows / scale) + zero, 0, 255) - zero, scale


FIXES: list[type[OpRun]] = [GlobalMaxPool, Conv, MaxPool, LSTM]
