"""Reads between elements at run-time positions: GridSample and RoiAlign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from ...ir.loops import Buffer, Expr, binary, cast, const, maximum, minimum, select, unary
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers, strides
from .copy_axes import nest
from .gather import index_at, is_large
from .movement import operand

_CUBIC = -0.75


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: its elements, its stride, and the borders between which reflection happens."""

    size: int
    step: int
    low: float
    high: float
    dtype: DType

    def real(self, value: float) -> Expr:
        return const(value, self.dtype)


Tap = tuple[Expr, Expr]
"""Offset of a neighbour and its weight."""


@lowers("GridSample")
def lower_grid_sample(ctx: Lowering) -> None:
    """X [N, C, spatial…], grid [N, out…, rank] with coordinates in [-1, 1], last axis first → [N, C, out…]."""
    x, grid, y, attrs = operand(ctx, 0), operand(ctx, 1), ctx.output, ctx.node.attrs
    corners = bool(attrs.get("align_corners", 0))
    mode, padding = attrs.get("mode", "linear"), attrs.get("padding_mode", "zeros")
    dtype = DType.F64 if x.type.dtype is DType.F64 else DType.F32
    steps = strides(x.type)
    axes = [
        _Axis(n, s, 0.0 if corners else -0.5, n - 1.0 if corners else n - 0.5, dtype)
        for n, s in zip(x.type.dims[2:], steps[2:], strict=True)
    ]
    rank, (batch, channels), places = len(axes), y.type.dims[:2], prod(y.type.dims[2:])
    if y.type.size == 0:
        return
    k = ctx.kernel()
    data, table, out = k.tensor(x), k.tensor(grid), k.tensor(y)
    count = {"nearest": 1, "linear": 2, "cubic": 4}[mode] ** rank

    def body(index: Sequence[Expr]) -> None:
        n, p = index
        offsets, weights = k.alloc("offset", DType.I64, count), k.alloc("weight", dtype, count)
        total = k.alloc("total", dtype, 1)
        taps: list[list[Tap]] = []
        for i, axis in enumerate(axes):
            at = k.load(table, (n * places + p) * rank + (rank - 1 - i))
            taps.append(axis_taps(k, axis, source_coordinate(k, axis, cast(at, dtype), corners), mode, padding))
        for i, choice in enumerate(product(*taps)):
            k.store(offsets, i, _sum([offset for offset, _ in choice]))
            k.store(weights, i, _product([weight for _, weight in choice]))
        for c in k.loop("c", channels):
            base = k.let(n * steps[0] + c * steps[1], "base")
            k.store(total, 0, const(0.0, dtype))
            for t in k.loop("t", count):
                value = cast(k.load(data, base + k.load(offsets, t)), dtype)
                k.store(total, 0, k.load(total, 0) + value * k.load(weights, t))
            k.store(out, (n * channels + c) * places + p, cast(k.load(total, 0), y.type.dtype))

    nest(k, (batch, places), body, parallel=is_large(ctx, y.type.size))
    k.done("grid_sample")


def source_coordinate(k: KernelBuilder, axis: _Axis, x: Expr, corners: bool) -> Expr:
    """A coordinate in [-1, 1] in elements."""
    moved = (x + 1.0) * (0.5 * (axis.size - 1)) if corners else ((x + 1.0) * float(axis.size) - 1.0) * 0.5
    return k.let(moved, "x")


def axis_taps(k: KernelBuilder, axis: _Axis, x: Expr, mode: str, padding: str) -> list[Tap]:
    """Neighbours along one axis; offsets always lie inside, weights are zero where padding says so."""
    if mode == "nearest":
        x = k.let(unary("round", x), "x")
    if padding == "border":
        # ONNX's reference moves only what lies beyond the border, half an element outside of the last centre.
        inside = binary("ge", x, axis.low) & binary("le", x, axis.high)
        x = k.let(select(inside, x, _clamped(x, 0.0, axis.size - 1.0)), "x")
    elif padding == "reflection":
        x = k.let(reflected(k, axis, x), "x")
    # Far outside nothing is read, so that the conversion to an integer may be clamped (and a NaN too).
    x = k.let(_clamped(x, -4.0, axis.size + 4.0), "x")
    floor = k.let(unary("floor", x), "floor")
    ratio = k.let(x - floor, "ratio")
    first = k.let(cast(floor, DType.I64), "first")
    if mode == "nearest":
        return [_tap(k, axis, first, axis.real(1.0), padding)]
    weights = [1.0 - ratio, ratio] if mode == "linear" else cubic_weights(ratio)
    begin = 1 - len(weights) // 2
    return [_tap(k, axis, first + (begin + i), w, padding) for i, w in enumerate(weights)]


def cubic_weights(t: Expr) -> list[Expr]:
    """Keys' cubic convolution (IEEE TASSP 29, 1981) at distances 1 + t, t, 1 - t, 2 - t."""
    a = _CUBIC

    def far(d: Expr) -> Expr:
        return ((d * a - 5 * a) * d + 8 * a) * d - 4 * a

    def near(d: Expr) -> Expr:
        return (d * (a + 2) - (a + 3)) * d * d + 1.0

    return [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]


def _tap(k: KernelBuilder, axis: _Axis, index: Expr, weight: Expr, padding: str) -> Tap:
    index = k.let(index, "index")
    if padding == "zeros":
        inside = binary("ge", index, 0) & binary("lt", index, axis.size)
        weight = select(inside, weight, axis.real(0.0))
    elif padding == "reflection":
        index = k.let(cast(reflected(k, axis, cast(index, axis.dtype)), DType.I64), "index")
    return k.let(maximum(minimum(index, axis.size - 1), 0) * axis.step, "offset"), k.let(weight, "weight")


def reflected(k: KernelBuilder, axis: _Axis, x: Expr) -> Expr:
    """A coordinate mirrored at the borders until it lies between them."""
    span = axis.high - axis.low
    if span <= 0:
        return axis.real(axis.low)
    x = k.let(x, "x")
    out = k.let(maximum(axis.low - x, x - axis.high), "out")
    turns = k.let(unary("trunc", out / span), "turns")
    rest = k.let(out - turns * span, "rest")
    half = turns * 0.5
    even = binary("eq", unary("floor", half), half)
    near = k.let(binary("lt", x, axis.low), "below")
    mirrored = select(binary("eq", cast(near, DType.I32), cast(even, DType.I32)), axis.low + rest, axis.high - rest)
    return select(binary("gt", out, 0.0), mirrored, x)


def _clamped(x: Expr, low: float, high: float) -> Expr:
    return minimum(maximum(x, low), high)


def _sum(terms: Sequence[Expr]) -> Expr:
    total = terms[0]
    for t in terms[1:]:
        total = total + t
    return total


def _product(terms: Sequence[Expr]) -> Expr:
    total = terms[0]
    for t in terms[1:]:
        total = total * t
    return total


# ---- RoiAlign ----


@lowers("RoiAlign")
def lower_roi_align(ctx: Lowering) -> None:
    """X [N, C, H, W], rois [R, 4], batch_indices [R] → [R, C, h, w]: bins averaged over bilinear samples."""
    x, rois, batches, y = operand(ctx, 0), operand(ctx, 1), operand(ctx, 2), ctx.output
    dtype = DType.F64 if x.type.dtype is DType.F64 else DType.F32
    count, channels, height, width = y.type.dims
    if y.type.size == 0:
        return
    k = ctx.kernel()
    data, boxes, images, out = k.tensor(x), k.tensor(rois), k.tensor(batches), k.tensor(y)
    half = 0.5 if ctx.node.attrs.get("coordinate_transformation_mode", "half_pixel") == "half_pixel" else 0.0
    scale, ratio = float(ctx.node.attrs.get("spatial_scale", 1.0)), int(ctx.node.attrs.get("sampling_ratio", 0))
    largest = ctx.node.attrs.get("mode", "avg") == "max"
    bins = _Bins(k, data, x.type.dims, dtype, largest)

    def body(index: Sequence[Expr]) -> None:
        r, h, w = index
        corner = [k.let(cast(k.load(boxes, r * 4 + i), dtype) * scale - half, "corner") for i in range(4)]
        image = index_at(k, images, r, x.type.dims[0])
        spans = []
        for axis, (place, parts) in enumerate(((h, height), (w, width))):
            extent = corner[3 - axis] - corner[1 - axis]
            extent = extent if half else maximum(extent, 1.0)
            size = k.let(extent / float(parts), "bin")
            samples: Expr = const(ratio) if ratio > 0 else cast(_clamped(unary("ceil", size), 0.0, 4096.0), DType.I64)
            start = k.let(corner[1 - axis] + cast(place, dtype) * size, "start")
            samples = k.let(samples, "samples")
            spans.append((start, k.let(size / maximum(cast(samples, dtype), 1.0), "step"), samples))
        for c in k.loop("c", channels):
            value = bins.value(image * channels + c, spans)
            k.store(out, ((r * channels + c) * height + h) * width + w, cast(value, y.type.dtype))

    nest(k, (count, height, width), body, parallel=is_large(ctx, y.type.size))
    k.done("roi_align")


Span = tuple[Expr, Expr, Expr]
"""Start of a bin, distance of its samples, and their number."""


class _Bins:
    """Averages (or maxima) of the bilinear samples of a bin."""

    def __init__(self, k: KernelBuilder, data: Buffer, dims: Sequence[int], dtype: DType, largest: bool) -> None:
        self.k, self.data, self.dtype, self.largest = k, data, dtype, largest
        self.height, self.width = dims[2:]

    def value(self, plane: Expr, spans: Sequence[Span]) -> Expr:
        k = self.k
        (top, down, rows), (left, right, columns) = spans
        total = k.alloc("total", self.dtype, 1)
        k.store(total, 0, const(float("-inf") if self.largest else 0.0, self.dtype))
        base = k.let(plane * (self.height * self.width), "base")
        for i in k.loop("i", rows):
            y = self._axis(top + (cast(i, self.dtype) + 0.5) * down, self.height)
            for j in k.loop("j", columns):
                x = self._axis(left + (cast(j, self.dtype) + 0.5) * right, self.width)
                self._sample(total, base, y, x)
        samples = k.let(rows * columns, "samples")
        divisor = maximum(cast(samples, self.dtype), 1.0)
        none = binary("lt", samples, 1)
        return select(none, const(0.0, self.dtype), k.load(total, 0) if self.largest else k.load(total, 0) / divisor)

    def _axis(self, at: Expr, size: int) -> tuple[Expr, Expr, Expr, Expr]:
        """Both neighbours and their weights; both weights are zero outside of [-1, size]."""
        k = self.k
        at = k.let(at, "at")
        inside = k.let(binary("ge", at, -1.0) & binary("le", at, float(size)), "inside")
        at = k.let(_clamped(at, 0.0, size - 1.0), "at")
        low = k.let(cast(at, DType.I64), "low")
        high = k.let(minimum(low + 1, size - 1), "high")
        part = k.let(at - cast(low, self.dtype), "part")
        zero = const(0.0, self.dtype)
        return low, high, k.let(select(inside, 1.0 - part, zero), "w"), k.let(select(inside, part, zero), "w")

    def _sample(self, total: Buffer, base: Expr, y: Sequence[Expr], x: Sequence[Expr]) -> None:
        k = self.k
        values = [
            k.let(y[2 + i] * x[2 + j] * cast(k.load(self.data, base + y[i] * self.width + x[j]), self.dtype), "v")
            for i in range(2)
            for j in range(2)
        ]
        combine: Callable[[Expr, Expr], Expr] = maximum if self.largest else lambda a, b: a + b
        value = combine(combine(combine(values[0], values[1]), values[2]), values[3])
        k.store(total, 0, combine(k.load(total, 0), value))
