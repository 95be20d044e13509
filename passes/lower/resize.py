"""Resize: index and weight tables from compile time, vectors along whatever is contiguous and not resized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, cast, const, fma, maximum, minimum, unary
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers, strides
from .copies import Dim, Region, copy_regions, copy_row, nest, raw, vectors
from .gather import is_large
from .movement import constant_input, operand
from .resize_taps import Axis, Interpolation, Taps

_COMPUTE = {
    DType.F64: DType.F64,
    DType.I64: DType.F64,
    DType.U64: DType.F64,
    DType.I32: DType.F64,
    DType.U32: DType.F64,
}
_MAX_COMBINATIONS = 1024


@lowers("Resize")
def lower_resize(ctx: Lowering) -> None:
    """All modes and coordinate transformations; roi, scales and sizes constant. Blocked: batch and spatial axes."""
    x, y, attrs = operand(ctx, 0), ctx.output, ctx.node.attrs
    rules = Interpolation(
        attrs.get("mode", "nearest"),
        attrs.get("coordinate_transformation_mode", "half_pixel"),
        attrs.get("nearest_mode", "round_prefer_floor"),
        float(attrs.get("cubic_coeff_a", -0.75)),
        bool(attrs.get("antialias", 0)),
        bool(attrs.get("exclude_outside", 0)),
    )
    crop = rules.coordinates == "tf_crop_and_resize"
    taps: dict[int, Taps] = {}
    for i, axis in enumerate(resized_axes(ctx, crop)):
        if axis.size != axis.result or abs(axis.scale - 1) > 1e-9 or (crop and axis.roi != (0.0, 1.0)):
            assert not x.type.layout.block or i != 1, "channels of a blocked layout cannot be resized"
            taps[i] = rules.taps(axis)
    if y.type.size == 0:
        return
    outside = not all(t.inside.all() for t in taps.values())
    if not outside and all(t.count == 1 and (t.weight == 1).all() for t in taps.values()):
        _nearest(ctx, x, y, {i: t.index[:, 0] for i, t in taps.items()})
    else:
        if prod(t.count for t in taps.values()) > _MAX_COMBINATIONS:
            raise ctx.unsupported("Resize reads too many neighbours an element", "resize in two steps")
        _weighted(ctx, x, y, taps, float(attrs.get("extrapolation_value", 0.0)) if outside else None)


def resized_axes(ctx: Lowering, crop: bool) -> list[Axis]:
    """Sizes, exact scales and regions of interest of every axis."""
    x, y, attrs = operand(ctx, 0), ctx.output, ctx.node.attrs
    rank = x.type.rank
    axes = [int(a) % rank for a in attrs.get("axes") or range(rank)]
    given, sizes = constant_input(ctx, 2), constant_input(ctx, 3)
    scale = [1.0] * rank
    if given is not None and given.size:
        for a, s in zip(axes, given.reshape(-1), strict=True):
            scale[a] = float(s)
    elif sizes is not None:
        exact = {a: int(s) / x.type.dims[a] for a, s in zip(axes, sizes.reshape(-1), strict=True)}
        policy = attrs.get("keep_aspect_ratio_policy", "stretch")
        common = {"not_larger": min, "not_smaller": max}.get(policy)
        for a in axes:
            scale[a] = exact[a] if common is None else common(exact.values())
    roi = [(0.0, 1.0)] * rank
    if crop and (box := constant_input(ctx, 1)) is not None and box.size:
        flat = box.reshape(-1)
        for i, a in enumerate(axes):
            roi[a] = (float(flat[i]), float(flat[i + len(axes)]))
    return [Axis(n, m, s, r) for n, m, s, r in zip(x.type.dims, y.type.dims, scale, roi, strict=True)]


# ---- nearest ----


def _nearest(ctx: Lowering, x: Value, y: Value, index: dict[int, np.ndarray]) -> None:
    """Copies: whole factors as one strided copy, else by a table for each axis."""
    to, of, sizes = strides(y.type), strides(x.type), y.type.physical
    factors = {i: _factor(table, x.type.dims[i]) for i, table in index.items()}
    if all(factors.values()):
        dims: list[Dim] = []
        for i, n in enumerate(sizes):
            f = factors.get(i) or 1
            dims += [Dim(n // f, to[i] * f, of[i]), Dim(f, to[i], 0)]
        copy_regions(ctx, y, [Region(tuple(dims), source=x)], "resize")
        return
    k = ctx.kernel()
    data, out = raw(k, x), raw(k, y)
    tables = {i: k.tensor(ctx.pack("index", table.astype(np.int64))) for i, table in index.items()}
    last = max(index)
    inner = prod(sizes[last + 1 :])

    def body(at: Sequence[Expr]) -> None:
        begin: Expr = const(0)
        for i, c in enumerate(at):
            begin = begin + (k.load(tables[i], c) if i in tables else c) * of[i]
        to_row = sum((c * to[i] for i, c in enumerate(at)), const(0))
        begin, to_row = k.let(begin, "begin"), k.let(to_row, "to")
        if inner > 1:
            copy_row(k, (out, to_row, 1), (data, begin, 1), inner)
            return
        for j, lanes in vectors(k, sizes[last], ctx.lanes(DType.I64)):
            k.store(out, to_row + j, k.load(data, k.load(tables[last], j, lanes) + begin, lanes))

    nest(k, sizes[: last + (inner > 1)], body, parallel=is_large(ctx, y.type.size))
    k.done("resize")


def _factor(index: np.ndarray, size: int) -> int:
    """The whole factor by which every source element is repeated, 0 where there is none."""
    f = len(index) // size
    return f if f * size == len(index) and np.array_equal(index, np.repeat(np.arange(size), f)) else 0


# ---- weighted ----


@dataclass(frozen=True)
class _Table:
    """Buffers of one axis: indices and weights [K, O], inside [O]."""

    index: Buffer
    weight: Buffer
    inside: Buffer | None
    taps: Taps

    def at(self, k: KernelBuilder, t: int, place: Expr, lanes: int = 1) -> tuple[Expr, Expr]:
        """Index and weight of tap `t` at result `place`."""
        o = len(self.taps.inside)
        return k.load(self.index, place + t * o, lanes), k.load(self.weight, place + t * o, lanes)


def _weighted(ctx: Lowering, x: Value, y: Value, taps: dict[int, Taps], outside: float | None) -> None:
    """Sums over the product of the axes' neighbours, in the result's type or a wider one."""
    dtype = _COMPUTE.get(x.type.dtype, DType.F32)
    to, of, sizes = strides(y.type), strides(x.type), y.type.physical
    k = ctx.kernel()
    data, out = k.tensor(x), k.tensor(y)
    tables = {i: _tables(ctx, k, t, dtype, outside is not None) for i, t in taps.items()}
    last = max(taps)
    inner = prod(sizes[last + 1 :])
    along = last if inner == 1 else -1
    fixed = [i for i in taps if i != along]
    lanes_full = ctx.lanes(dtype)

    def rows(at: Sequence[Expr]) -> list[tuple[Expr, Expr | None]]:
        """Offset and weight of every combination of neighbours along the axes that are not vectorised."""
        base = sum((c * of[i] for i, c in enumerate(at) if i not in taps), const(0))
        found: list[tuple[Expr, Expr | None]] = []
        for choice in product(*(range(taps[i].count) for i in fixed)):
            begin, weight = base, None
            for i, t in zip(fixed, choice, strict=True):
                index, w = tables[i].at(k, t, at[i])
                begin = begin + index * of[i]
                weight = w if weight is None else weight * w
            found.append((k.let(begin, "begin"), None if weight is None else k.let(weight, "w")))
        return found

    def body(at: Sequence[Expr]) -> None:
        to_row = k.let(sum((c * to[i] for i, c in enumerate(at)), const(0)), "to")
        places = rows(at)
        for j, lanes in vectors(k, sizes[last] if along >= 0 else inner, lanes_full):
            total: Expr = const(0.0, dtype, lanes)
            if along < 0:
                for begin, w in places:
                    assert w is not None
                    total = fma(broadcast(w, lanes), cast(k.load(data, begin + j, lanes), dtype), total)
            else:
                for t in range(taps[along].count):
                    index, weight = tables[along].at(k, t, j, lanes)
                    index, weight = k.let(index, "index"), k.let(weight, "w")
                    for begin, w in places:
                        scale = weight if w is None else weight * w
                        total = fma(scale, cast(k.load(data, index + begin, lanes), dtype), total)
            if outside is not None:
                total = total + _uncovered(k, tables, at, (along, j, lanes), dtype) * outside
            k.store(out, to_row + j, _narrowed(total, x.type.dtype))

    nest(k, sizes[: last + (along < 0)], body, parallel=is_large(ctx, y.type.size))
    k.done("resize")


def _tables(ctx: Lowering, k: KernelBuilder, taps: Taps, dtype: DType, crop: bool) -> _Table:
    index = k.tensor(ctx.pack("index", np.ascontiguousarray(taps.index.T).astype(np.int64)))
    weight = k.tensor(ctx.pack("weight", np.ascontiguousarray(taps.weight.T).astype(dtype.numpy)))
    inside = k.tensor(ctx.pack("inside", taps.inside.astype(dtype.numpy))) if crop else None
    return _Table(index, weight, inside, taps)


def _uncovered(
    k: KernelBuilder, tables: dict[int, _Table], at: Sequence[Expr], vector: tuple[int, Expr, int], dtype: DType
) -> Expr:
    """1 where the result lies outside along any axis, else 0."""
    along, j, lanes = vector
    covered: Expr = const(1.0, dtype, lanes)
    for i, table in tables.items():
        assert table.inside is not None
        covered = covered * (k.load(table.inside, j, lanes) if i == along else k.load(table.inside, at[i]))
    return const(1.0, dtype, lanes) - covered


def _narrowed(value: Expr, dtype: DType) -> Expr:
    """To an integer type with rounding and saturation, to a float type as is."""
    if not dtype.is_int:
        return cast(value, dtype)
    info = np.iinfo(dtype.numpy)
    return cast(minimum(maximum(unary("round", value), float(info.min)), float(info.max)), dtype)
