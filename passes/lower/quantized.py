"""Integer products and convolutions with exact 32-bit sums, and their quantised forms.

Operands lose their zero points first (to i16), so that borders are zero and the products are those of plain integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, broadcast, cast, const, maximum, minimum, ramp, shuffle, unary
from ...ir.types import DType, TensorType
from .context import KernelBuilder, Lowering, Site, lowers, strides
from .dynamic_levels import found_range, level
from .grid.integer_conv import convolve_integers
from .grid.levels import Levels, largest_of
from .integer_product import multiply_rows
from .integer_sums import Finish as Sums
from .matmul import batch_strides, multiply, write
from .packing import bordered, spans
from .product import Matrix, Product, whole_and_rest
from .tasks import PARALLEL_MACS, pieces, tasks
from .window import Window, window


@lowers("MatMulInteger")
def lower_matmul_integer(ctx: Lowering) -> None:
    """(A - a_zero_point) · (B - b_zero_point), i32."""
    a, b = ctx.node.inputs[:2]
    assert a is not None and b is not None

    def finish(k: KernelBuilder, site: Site, value: Expr) -> None:
        write(ctx, k, site, value)

    _integer_product(ctx, (a, ctx.node.input(2)), (b, ctx.node.input(3)), finish)


@lowers("QLinearMatMul")
def lower_qlinear_matmul(ctx: Lowering) -> None:
    """Inputs a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point."""
    a, b, out = ctx.node.inputs[0], ctx.node.inputs[3], ctx.node.output.type
    assert a is not None and b is not None

    def finish(k: KernelBuilder, site: Site, value: Expr) -> None:
        row, column = max(len(site.coords) - 2, 0), len(site.coords) - 1
        scale = _parameter(k, ctx.node.input(1), site, row) * _parameter(k, ctx.node.input(4), site, column)
        scale = scale / _parameter(k, ctx.node.input(6), site, row)
        zero = _parameter(k, ctx.node.input(7), site, row)
        write(ctx, k, site, _requantised(value, scale, zero, out.dtype))

    _integer_product(ctx, (a, ctx.node.input(2)), (b, ctx.node.input(5)), finish)


@lowers("ConvInteger")
def lower_conv_integer(ctx: Lowering) -> None:
    """Inputs x, w, x_zero_point, w_zero_point; i32."""
    x, w = ctx.node.inputs[:2]
    assert x is not None and w is not None

    def finish(k: KernelBuilder, site: Site, value: Expr) -> None:
        write(ctx, k, site, value)

    integer_convolution(ctx, (x, ctx.node.input(2)), (w, ctx.node.input(3)), finish)


@lowers("QLinearConv")
def lower_qlinear_conv(ctx: Lowering) -> None:
    """Inputs x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias."""
    x, w, out = ctx.node.inputs[0], ctx.node.inputs[3], ctx.node.output.type
    assert x is not None and w is not None
    bias = ctx.node.input(8)

    def finish(k: KernelBuilder, site: Site, value: Expr) -> None:
        if bias is not None:
            value = value + broadcast(k.load(k.tensor(bias), site.coords[1]), site.lanes)
        scale = _parameter(k, ctx.node.input(1), site, 1) * _parameter(k, ctx.node.input(4), site, 1)
        scale = scale / _parameter(k, ctx.node.input(6), site, 1)
        write(ctx, k, site, _requantised(value, scale, _parameter(k, ctx.node.input(7), site, 1), out.dtype))

    integer_convolution(ctx, (x, ctx.node.input(2)), (w, ctx.node.input(5)), finish)


@lowers("DynamicQuantizeLinear")
def lower_dynamic_quantize_linear(ctx: Lowering) -> None:
    """Outputs y (u8), y_scale and y_zero_point of a range that holds zero; constant zero has scale 1 / 255."""
    x = ctx.node.inputs[0]
    assert x is not None
    y, scale_out, zero_out = ctx.node.outputs
    size, lanes = x.type.size, ctx.lanes()
    k = ctx.kernel()
    source = k.tensor(x)
    scale, zero = found_range(k, source, const(0), size)
    k.store(k.tensor(scale_out), 0, scale)
    k.store(k.tensor(zero_out), 0, cast(zero, DType.U8))
    for at, width in spans(k, size, lanes):
        k.store(k.tensor(y), at, level(k.load(source, at, width), scale, zero, DType.U8))
    k.done("dynamic_quantize")


# --- sums


def _integer_product(
    ctx: Lowering, left: tuple[Value, Value | None], right: tuple[Value, Value | None], finish: Sums
) -> None:
    """numpy.matmul of two operands and their zero points (scalar, one a row of A, one a column of B)."""
    weights = _weights(*right)
    if weights is not None and left[0].type.rank > 1 and (left[1] is None or left[1].type.size == 1):
        return multiply_rows(ctx, *left, weights, finish)
    rows, columns = left[0].type.rank > 1, right[0].type.rank > 1
    a = _centred(ctx, "a", *left, axis=max(left[0].type.rank - 2, 0))
    b = _centred(ctx, "b", *right, axis=right[0].type.rank - 1)
    dims_a, dims_b = a.type.dims, b.type.dims
    steps_a, steps_b = strides(a.type), strides(b.type)
    batch = np.broadcast_shapes(dims_a[:-2], dims_b[:-2])

    def store(k: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
        *outer, i, j = coords
        finish(k, Site((*outer, *((i,) if rows else ()), *((j,) if columns else ())), -1, lanes), value)

    multiply(
        ctx,
        Product(
            batch,
            dims_a[-2] if rows else 1,
            dims_b[-1] if columns else 1,
            dims_a[-1],
            Matrix(a, batch_strides(dims_a, steps_a, batch), steps_a[-2] if rows else 0, 1),
            Matrix(b, batch_strides(dims_b, steps_b, batch), steps_b[-2] if columns else 1, 1 if columns else 0),
            DType.I32,
            store,
        ),
        "matmul_integer",
    )


@dataclass(frozen=True, slots=True)
class _Convolution:
    """Operands without zero points: x [N, C, *shape] with borders, w [M, C / groups, taps], both i16."""

    ctx: Lowering
    window: Window
    x: Value
    shape: tuple[int, int, int]
    w: Value
    groups: int
    channels: int
    maps: int
    finish: Sums


def integer_convolution(
    ctx: Lowering, data: tuple[Value, Value | None], weights: tuple[Value, Value | None], finish: Sums
) -> None:
    """Parallel over images, blocks of output channels and rows; a tile holds channels × one vector along the row."""
    x, w = data[0], weights[0]
    if ctx.target.device is not None and w.data is not None and (weights[1] is None or weights[1].data is not None):
        largest = ctx.node.attrs.get("largest", largest_of(*data))
        return convolve_integers(ctx, Levels(*data, largest), _without_zero(*weights, axis=0), finish)
    out, lanes = ctx.node.output.type, ctx.lanes(DType.I32)
    win, groups = window(ctx.node, x.type, out, w.type.dims[2:]), ctx.node.attrs.get("group", 1)
    vectors = ceil(win.w.out / lanes)
    needed = [(a.out - 1) * a.stride + a.reach + 1 for a in win.axes]
    needed[2] = (vectors * lanes - 1) * win.w.stride + win.w.reach + 1
    depth, height, width = (max(n, a.size + a.pad) for n, a in zip(needed, win.axes, strict=True))
    macs = out.size * w.type.dims[1] * win.taps
    zero = data[1]

    def centre(k: KernelBuilder, value: Expr) -> Expr:
        value = cast(value, DType.I16)
        return value if zero is None else value - broadcast(cast(k.load(k.tensor(zero), 0), DType.I16), value.lanes)

    pads = (win.d.pad, win.h.pad, win.w.pad)
    inner = bordered(ctx, x, DType.I16, pads, (depth, height, width), macs >= PARALLEL_MACS, centre)
    centred = _centred(ctx, "weights", *weights, axis=0)
    maps = w.type.dims[0] // groups
    c = _Convolution(ctx, win, inner, (depth, height, width), centred, groups, w.type.dims[1], maps, finish)
    rows = next(r for r in range(min(8, maps), 0, -1) if maps % r == 0 or r <= 4)
    blocks = ceil(maps / rows)
    count = out.dims[0] * groups * blocks * win.d.out * win.h.out
    k = ctx.kernel()
    for task in tasks(k, macs, count):
        h, rest = k.let(task % win.h.out, "h"), k.let(task / win.h.out, "rest")
        d, rest = k.let(rest % win.d.out, "d"), k.let(rest / win.d.out, "rest")
        block, rest = k.let(rest % blocks, "block"), k.let(rest / blocks, "rest")
        group, n = k.let(rest % groups, "g"), k.let(rest / groups, "n")
        for height_, here in whole_and_rest(k, block, maps, rows):
            for _ in here:
                for q in k.loop("q", vectors):
                    _conv_tile(c, k, (n, group, block * rows, d, h, q), height_)
    k.done("conv_integer")


def _conv_tile(c: _Convolution, k: KernelBuilder, at: tuple[Expr, ...], rows: int) -> None:
    n, group, m, d, h, q = at
    win, (depth, height, width), lanes = c.window, c.shape, c.ctx.lanes(DType.I32)
    acc = k.registers("acc", DType.I32, rows, lanes)
    for r in range(rows):
        k.store(acc, r, const(0, DType.I32, lanes))
    first = k.let(group * c.maps + m, "m")
    for channel in k.loop("c", c.channels):
        plane = (n * c.groups + group) * c.channels + channel
        for i in k.loop("i", win.d.kernel):
            for j in k.loop("j", win.h.kernel):
                row = (d * win.d.stride + i * win.d.dilation) * height + h * win.h.stride + j * win.h.dilation
                base = k.let((plane * (depth * height) + row) * width + q * (lanes * win.w.stride), "x")
                taps = k.let((first * c.channels + channel) * win.taps + (i * win.h.kernel + j) * win.w.kernel, "w")
                for s in k.loop("s", win.w.kernel):
                    source = ramp(base + s * win.w.dilation, win.w.stride, lanes)
                    if win.w.stride == 1:
                        source = base + s * win.w.dilation
                    value = k.let(cast(k.load(k.tensor(c.x), source, lanes), DType.I32), "v")
                    for r in range(rows):
                        factor = k.load(k.tensor(c.w), taps + s + r * c.channels * win.taps)
                        k.store(acc, r, broadcast(cast(factor, DType.I32), lanes) * value + k.load(acc, r))
    whole = win.w.out // lanes
    for valid, here in whole_and_rest(k, q, win.w.out, lanes):
        for _ in here:
            for r in range(rows):
                value = k.let(k.load(acc, r), "y")
                for start, part in pieces(valid) if valid < lanes else ((0, lanes),):
                    piece = value if part == lanes else shuffle(value, None, tuple(range(start, start + part)))
                    column = q * lanes + start if valid == lanes else const(whole * lanes + start)
                    c.finish(k, Site((n, first + r, *win.spatial(d, h, column)), -1, part), piece)


# --- zero points and scales


def _weights(value: Value, zero: Value | None) -> np.ndarray | None:
    """A constant matrix without its zero points, one or one a column."""
    if value.data is None or value.type.rank != 2 or 0 in value.type.dims or zero is not None and zero.data is None:
        return None
    shift = np.zeros((), np.int16) if zero is None or zero.data is None else zero.data.astype(np.int16)
    return None if shift.ndim > 1 and shift.size > 1 else value.data.astype(np.int16) - shift.reshape(-1)


def _centred(ctx: Lowering, hint: str, value: Value, zero: Value | None, axis: int) -> Value:
    """value - zero as i16; a zero point of rank 1 with several elements runs along `axis`."""
    dims = value.type.dims
    if value.data is not None and (zero is None or zero.data is not None):
        return ctx.pack(hint, _without_zero(value, zero, axis))
    out = ctx.scratch(hint, DType.I16, value.type.size)
    out.type = TensorType(DType.I16, dims)
    lanes = ctx.lanes(DType.I16)
    k = ctx.kernel()
    for t in k.loop("t", prod(dims[:-1])):
        coords = _unravel(k, t, dims[:-1])
        for i, width in spans(k, dims[-1], lanes):
            site = Site((*coords, i), -1, width)
            shift_now = _parameter(k, zero, site, axis, DType.I16)
            k.write(out, site, cast(k.read(value, site), DType.I16) - shift_now)
    k.done("centre")
    return out


def _without_zero(value: Value, zero: Value | None, axis: int) -> np.ndarray:
    """The same of constants."""
    assert value.data is not None
    shift = np.zeros((), np.int16) if zero is None or zero.data is None else zero.data.astype(np.int16)
    if shift.ndim == 1:
        shift = shift.reshape([-1 if i == axis and shift.size > 1 else 1 for i in range(value.type.rank)])
    return np.asarray(value.data.astype(np.int16) - shift)


def _unravel(k: KernelBuilder, index: Expr, dims: tuple[int, ...]) -> list[Expr]:
    coords: list[Expr] = []
    for position, d in enumerate(reversed(dims)):
        last = position == len(dims) - 1
        coords.insert(0, k.let(index if last else index % d, "i"))
        index = index / d
    return coords


def _parameter(k: KernelBuilder, value: Value | None, site: Site, axis: int, dtype: DType = DType.F32) -> Expr:
    """A scale or zero point at a site: scalar, one element for each index of `axis`, or broadcast by numpy's rules."""
    if value is None:
        return const(0, dtype, site.lanes)
    if value.type.size == 1:
        found = broadcast(k.load(k.tensor(value), 0), site.lanes)
    elif value.type.rank == 1:
        along = axis == len(site.coords) - 1
        found = k.load(k.tensor(value), site.coords[axis], site.lanes if along else 1)
        found = broadcast(found, site.lanes)
    else:
        found = k.read(value, site)
    return cast(found, dtype)


def _requantised(sums: Expr, scale: Expr, zero: Expr, dtype: DType) -> Expr:
    return _saturated(unary("round", cast(sums, DType.F32) * scale) + zero, dtype)


def _saturated(level: Expr, dtype: DType) -> Expr:
    """A whole number in f32 as an integer type's nearest value."""
    info = np.iinfo(dtype.numpy)
    return cast(minimum(maximum(level, float(info.min)), float(info.max)), dtype)
