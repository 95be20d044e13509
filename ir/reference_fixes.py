"""Corrections of onnx's reference evaluator where the installed version departs from ONNX's own text."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv as _Conv
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


FIXES: list[type[OpRun]] = [GlobalMaxPool, Conv, MaxPool]
