"""Constants of quantised tensors as integer arithmetic needs them: scales, zero points, weights and biases of nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Node, Value
from ..ir.reference import evaluate_node
from ..ir.types import DType
from .pattern import made_by, required, scalar

BYTES = (DType.U8, DType.I8)
LEVELS = (*BYTES, DType.U16, DType.I16)

WIDEST = 32767
"""Levels of 16 bits, and levels less their zero point, are at most this large where they are computed with."""

MOVING = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Identity")
"""Operators whose results are elements of their operands: they commute with an increasing function of each."""

PARTS = {"Concat"}


@dataclass(frozen=True, slots=True)
class Scale:
    """value = scale · (level - zero), one scale a tensor or one for each index of the axis."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int

    @property
    def is_single(self) -> bool:
        return self.scale.size == 1 and self.zero.size == 1

    @property
    def step(self) -> np.float32:
        return np.float32(self.scale.reshape(-1)[0])

    @property
    def offset(self) -> int:
        return int(self.zero.reshape(-1)[0])


def scale_of(node: Node | None) -> Scale | None:
    """Constant scale and zero point of a QuantizeLinear or DequantizeLinear of f32, not of blocks."""
    if node is None or node.attrs.get("block_size", 0):
        return None
    scale, zero = node.constant(1), node.input(2)
    if scale is None or scale.dtype != np.float32 or not np.all(scale > 0) or zero is not None and zero.data is None:
        return None
    offset = np.zeros((), np.uint8) if zero is None or zero.data is None else zero.data
    return Scale(scale, offset.astype(np.int32), node.attrs.get("axis", 1))


def dequantized(value: Value | None) -> tuple[Value, Scale] | None:
    """Levels of 8 or 16 bits and the scale of a value that a DequantizeLinear makes of them."""
    node = made_by(value, "DequantizeLinear")
    scale = scale_of(node)
    if node is None or scale is None or required(node).type.dtype not in LEVELS:
        return None
    return required(node), scale


def level_range(dtype: DType) -> tuple[int, int]:
    limits = np.iinfo(dtype.numpy)
    return int(limits.min), int(limits.max)


def level_bounds(levels: Value, scale: Scale) -> tuple[int, int]:
    """Least and largest level of a tensor: of its type, or of what is known to be cut off before it is quantised."""
    low, high = level_range(levels.type.dtype)
    node = levels.producer
    if node is None or levels.type.dtype in BYTES:
        return low, high
    if node.op in MOVING:
        parts = node.inputs if node.op in PARTS else node.inputs[:1]
        found = [level_bounds(v, scale) for v in parts if v is not None]
        return min(f[0] for f in found), max(f[1] for f in found)
    if node.op != "QuantizeLinear":
        return low, high
    zero = scale.offset
    _, low, high = cut_off(required(node), scale.step, low - zero, high - zero)
    return low + zero, high + zero


def cut_off(
    x: Value, step: np.float32, low: int, high: int, resolve: Callable[[Value], Value] = lambda v: v
) -> tuple[Value, int, int]:
    """Activations that only cut off as bounds of levels less their zero point: what they read, and the bounds."""
    while (node := made_by(x, "Relu", "Clip")) is not None:
        ends: list[float | None] = [0.0, None]
        if node.op == "Clip":
            values = [node.input(1), node.input(2)]
            if any(v is not None and scalar(v) is None for v in values):
                break
            ends = [None if v is None else scalar(v) for v in values]
        a, b = (None if e is None else int(np.clip(np.rint(np.float32(e) / step), low, high)) for e in ends)
        low, high = low if a is None else a, high if b is None else b
        x = resolve(required(node))
    return x, low, high


def sums_are_exact(w: np.ndarray, bias: np.ndarray | None, largest: int, *, depthwise: bool) -> bool:
    """Whether no sum of products of levels up to `largest` with `w` [K, …] leaves an i32; depthwise ones of levels of
    16 bits are summed as floats, which hold 24 bits."""
    sums = np.abs(w.astype(np.int64)).reshape(len(w), -1).sum(1) * largest
    if bias is not None:
        sums += np.abs(bias.astype(np.int64))
    return bool(sums.max(initial=0) < (1 << 24 if depthwise else 1 << 31))


def shift_between(dtype: DType, zero: int, form: DType) -> int:
    """What is added to levels of a type to keep them in another: all of their range fits."""
    if form is DType.I16:
        return -zero
    return level_range(form)[0] - level_range(dtype)[0]


def weights_of(value: Value | None, axis: int | None = 0) -> tuple[np.ndarray, np.ndarray] | None:
    """Constant levels less their zero points, in i8 or i16, and scales: for `axis` one or one an index of it, with None
    in a form that broadcasts to the levels."""
    node = made_by(value, "DequantizeLinear")
    scale = scale_of(node)
    if node is None or scale is None:
        return None
    levels, inner = node.constant(0), made_by(node.input(0), "QuantizeLinear")
    if levels is None and inner is not None and all(v is None or v.data is not None for v in inner.inputs):
        (levels,) = evaluate_node(inner, [None if v is None else v.data for v in inner.inputs])
    if levels is None or levels.dtype not in (np.int8, np.uint8, np.int16, np.uint16):
        return None
    along = scale.axis % levels.ndim
    if not scale.is_single and axis is not None and along != axis:
        return None

    def placed(a: np.ndarray) -> np.ndarray:
        return a.reshape([-1 if i == along else 1 for i in range(levels.ndim)]) if a.size > 1 else a.reshape(())

    centred = levels.astype(np.int32) - placed(scale.zero)
    if np.abs(centred).max(initial=0) > WIDEST:
        return None
    dtype = np.int8 if centred.min(initial=0) >= -128 and centred.max(initial=0) <= 127 else np.int16
    return centred.astype(dtype), scale.scale.reshape(-1) if axis is not None else placed(scale.scale)


def bias_of(node: Node, steps: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """The bias as (i32 in units of `steps`, f32): the first where it was given so; None where it is not constant."""
    value, filters = node.input(2), node.output.type.dims[1]
    if value is None:
        return None, None
    made = made_by(value, "DequantizeLinear")
    if made is None:
        data = value.data
        return None if data is None else (None, np.broadcast_to(data.reshape(-1), (filters,)).astype(np.float32))
    levels, scale = made.constant(0), scale_of(made)
    if levels is None or scale is None or levels.dtype != np.int32 or np.any(scale.zero):
        return None
    if levels.size == filters and np.allclose(scale.scale.reshape(-1), steps.reshape(-1), rtol=1e-5, atol=0):
        return levels.reshape(-1), None
    (data,) = evaluate_node(made, [None if v is None else v.data for v in made.inputs])
    return None, np.broadcast_to(data.reshape(-1), (filters,)).astype(np.float32)
