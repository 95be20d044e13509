"""Resize: one axis after another, with index and weight tables from compile time.

Vectors run along what is contiguous and not resized. Where nothing is (the last axis of a plain tensor), as many rows
as a vector has lanes are transposed in registers, resized with lanes across rows, and transposed back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, cast, const, fma, maximum, minimum, unary
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers, strides
from .copies import RAW, copy_regions, copy_row, raw, vectors
from .copy_axes import Dim, Region, nest
from .gather import is_large
from .movement import constant_input, operand
from .resize_taps import Axis, Interpolation, Taps
from .transposes import transposed

_COMPUTE = {
    DType.F64: DType.F64,
    DType.I64: DType.F64,
    DType.U64: DType.F64,
    DType.I32: DType.F64,
    DType.U32: DType.F64,
}
_MAX_LANES = 16
"""The most lanes of a register transpose."""

_UNROLLED = 8
"""Neighbours along an axis that are summed without a loop."""

Term: TypeAlias = Callable[[Expr, int], tuple[Expr, Expr]]
"""Value and weight of a tap, which is known by number where taps are unrolled (-1 where they are not)."""


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
    if all(_is_choice(t) for t in taps.values()):
        factors = {i: _factor(t.index[:, 0], x.type.dims[i]) for i, t in taps.items()}
        if all(factors.values()):
            _repeated(ctx, x, y, factors)
            return
        dtype = RAW[x.type.dtype.bits]
    else:
        dtype = _COMPUTE.get(x.type.dtype, DType.F32)
    _by_axis(ctx, x, y, taps, dtype)


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


# ---- whole factors ----


def _is_choice(taps: Taps) -> bool:
    """Whether every result is one source element."""
    return taps.count == 1 and bool(taps.inside.all()) and bool((taps.weight == 1).all())


def _factor(index: np.ndarray, size: int) -> int:
    """The whole factor by which every source element is repeated, 0 where there is none."""
    f = len(index) // size
    return f if f * size == len(index) and np.array_equal(index, np.repeat(np.arange(size), f)) else 0


def _repeated(ctx: Lowering, x: Value, y: Value, factors: dict[int, int]) -> None:
    """Nearest neighbours by whole factors: one strided copy."""
    dims: list[Dim] = []
    for i, (n, to, of) in enumerate(zip(y.type.physical, strides(y.type), strides(x.type), strict=True)):
        f = factors.get(i, 1)
        dims += [Dim(n // f, to * f, of), Dim(f, to, 0)]
    copy_regions(ctx, y, [Region(tuple(dims), source=x)], "resize")


# ---- axis by axis ----


def _by_axis(ctx: Lowering, x: Value, y: Value, taps: dict[int, Taps], dtype: DType) -> None:
    """Shrinking axes first, so that little is read twice; of growing ones the innermost, whose rows cost most."""

    def rank(axis: int) -> tuple[float, int]:
        ratio = len(taps[axis].inside) / x.type.dims[axis]
        return ratio, -axis if ratio > 1 else axis

    order = sorted(taps, key=rank)
    shape, source = list(x.type.physical), x
    for axis in order:
        outer, size, inner = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
        shape[axis] = len(taps[axis].inside)
        result = y if axis == order[-1] else ctx.scratch("resized", dtype, prod(shape))
        _Axis(ctx, (source, result), (outer, size, inner), taps[axis], dtype).write()
        source = result


class _Axis:
    """One axis: [outer, size, inner] → [outer, results, inner], computed in `dtype` (raw bits: copied)."""

    def __init__(
        self, ctx: Lowering, values: tuple[Value, Value], sizes: tuple[int, int, int], taps: Taps, dtype: DType
    ) -> None:
        self.ctx, self.taps, self.dtype, self.values = ctx, taps, dtype, values
        self.outer, self.size, self.inner = sizes
        self.results = len(taps.inside)
        self.copies = dtype.is_int
        self.lanes = min(ctx.lanes(dtype), _MAX_LANES)
        self.large = is_large(ctx, self.outer * self.results * self.inner)
        self.index = ctx.pack("index", np.ascontiguousarray(taps.index.T).astype(np.int64))
        self.weight = None if self.copies else ctx.pack("weight", np.ascontiguousarray(taps.weight.T, dtype.numpy))
        fill = np.where(taps.inside, 0, ctx.node.attrs.get("extrapolation_value", 0.0))
        self.fill = None if taps.inside.all() else ctx.pack("outside", fill.astype(dtype.numpy))

    def write(self) -> None:
        lanes = self.lanes
        near = self.size * lanes * self.dtype.nbytes <= self.ctx.target.l1_bytes
        if self.inner > 1:
            self._rows()
        elif min(self.outer, self.size, self.results) >= lanes > 1 and near:
            self._across(self.outer // lanes, 0)
            if self.outer % lanes:
                self._across(1, self.outer - lanes)
        else:
            self._gathered()

    def _kernel(self) -> tuple[KernelBuilder, Buffer, Buffer]:
        k = self.ctx.kernel()
        x, y = self.values
        return (k, raw(k, x), raw(k, y)) if self.copies else (k, k.tensor(x), k.tensor(y))

    def _rows(self) -> None:
        """Vectors along `inner`."""
        k, x, y = self._kernel()
        unrolled = self.taps.count <= _UNROLLED

        def body(at: Sequence[Expr]) -> None:
            outer, place = at
            begin = k.let(outer * (self.size * self.inner), "begin")
            to = k.let((outer * self.results + place) * self.inner, "to")
            if self.copies:
                row = begin + self._index(k, const(0), place) * self.inner
                copy_row(k, (y, to, 1), (x, k.let(row, "row"), 1), self.inner)
                return
            known = [self._tap(k, const(t), place) for t in range(self.taps.count if unrolled else 0)]
            for j, lanes in vectors(k, self.inner, self.lanes):
                total = self._sum(k, term_of(begin, place, known, j, lanes), lanes)
                k.store(y, to + j, self._finished(k, total, place))

        def term_of(begin: Expr, place: Expr, known: list[tuple[Expr, Expr]], j: Expr, lanes: int) -> Term:
            def term(t: Expr, number: int) -> tuple[Expr, Expr]:
                index, weight = known[number] if known else self._tap(k, t, place)
                return k.load(x, begin + index * self.inner + j, lanes), broadcast(weight, lanes)

            return term

        nest(k, (self.outer, self.results), body, parallel=self.large)
        k.done("resize")

    def _across(self, groups: int, first: int) -> None:
        """Groups of `lanes` rows from row `first` on: their columns as vectors."""
        k, x, y = self._kernel()
        lanes = self.lanes

        def body(at: Sequence[Expr]) -> None:
            columns = k.alloc("columns", self.dtype, self.size * lanes)
            row = k.let(at[0] * lanes + first, "row")
            for j, _ in vectors(k, self.size, lanes):
                begin = k.let(row * self.size + j, "begin")
                loaded = [k.let(self._load(k, x, begin + r * self.size, lanes), "r") for r in range(lanes)]
                for c, column in enumerate(transposed(k, loaded)):
                    k.store(columns, (j + c) * lanes, column)
            for o, _ in vectors(k, self.results, lanes):
                made = [self._finished(k, self._sum(k, term_of(columns, o + c), lanes), o + c) for c in range(lanes)]
                to = k.let(row * self.results + o, "to")
                for r, vector in enumerate(transposed(k, made)):
                    k.store(y, to + r * self.results, vector)

        def term_of(columns: Buffer, place: Expr) -> Term:
            def term(t: Expr, _: int) -> tuple[Expr, Expr]:
                index, weight = self._tap(k, t, place)
                return k.load(columns, index * lanes, lanes), broadcast(weight, lanes)

            return term

        nest(k, (groups,), body, parallel=groups > 1 and self.large)
        k.done("resize")

    def _gathered(self) -> None:
        """Vectors along the results, whose sources are gathered."""
        k, x, y = self._kernel()

        def body(at: Sequence[Expr]) -> None:
            begin, to = k.let(at[0] * self.size, "begin"), k.let(at[0] * self.results, "to")
            for j, lanes in vectors(k, self.results, min(self.lanes, self.ctx.lanes(DType.F32))):
                total = self._sum(k, term_of(begin, j, lanes), lanes)
                k.store(y, to + j, self._finished(k, total, j, lanes))

        def term_of(begin: Expr, place: Expr, lanes: int) -> Term:
            def term(t: Expr, _: int) -> tuple[Expr, Expr]:
                index, weight = self._tap(k, t, place, lanes)
                return k.load(x, index + begin, lanes), weight

            return term

        nest(k, (self.outer,), body, parallel=self.large)
        k.done("resize")

    def _load(self, k: KernelBuilder, x: Buffer, at: Expr, lanes: int) -> Expr:
        value = k.load(x, at, lanes)
        return value if self.copies else cast(value, self.dtype)

    def _index(self, k: KernelBuilder, t: Expr, place: Expr, lanes: int = 1) -> Expr:
        return k.load(k.tensor(self.index), t * self.results + place, lanes)

    def _tap(self, k: KernelBuilder, t: Expr, place: Expr, lanes: int = 1) -> tuple[Expr, Expr]:
        """Index and weight of tap `t` at result `place`."""
        index = k.let(self._index(k, t, place, lanes), "index")
        if self.weight is None:
            return index, const(1, self.dtype, lanes)
        return index, k.let(k.load(k.tensor(self.weight), t * self.results + place, lanes), "w")

    def _sum(self, k: KernelBuilder, term: Term, lanes: int) -> Expr:
        """Σ value · weight over the taps, in order."""
        if self.copies:
            return term(const(0), 0)[0]
        if self.taps.count <= _UNROLLED:
            value, weight = term(const(0), 0)
            total = cast(value, self.dtype) * weight
            for t in range(1, self.taps.count):
                value, weight = term(const(t), t)
                total = fma(cast(value, self.dtype), weight, total)
            return total
        acc = k.registers("acc", self.dtype, 1, lanes)
        k.store(acc, 0, const(0.0, self.dtype, lanes))
        for tap in k.loop("t", self.taps.count):
            value, weight = term(tap, -1)
            k.store(acc, 0, fma(cast(value, self.dtype), weight, k.load(acc, 0)))
        return k.load(acc, 0)

    def _finished(self, k: KernelBuilder, total: Expr, place: Expr, lanes: int = 1) -> Expr:
        """A sum with what lies outside filled, in the result's type; `place` has the filling of `lanes` results."""
        if self.copies:
            return k.let(total, "y")
        if self.fill is not None:
            total = total + broadcast(k.load(k.tensor(self.fill), place, lanes), total.lanes)
        return k.let(_narrowed(total, self.values[1].type.dtype), "y")


def _narrowed(value: Expr, dtype: DType) -> Expr:
    """To an integer type with rounding and saturation, to a float type as is."""
    if not dtype.is_int:
        return cast(value, dtype)
    info = np.iinfo(dtype.numpy)
    return cast(minimum(maximum(unary("round", value), float(info.min)), float(info.max)), dtype)
