"""DFT and STFT as sums over tables of sines and cosines made at compile time, vectors along the frequencies.

O(N) operations a result: exact and simple; for long transforms a factorised form would be faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, cast, const, fma, ramp
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers
from .copies import vectors
from .copy_axes import nest
from .movement import constant_input, operand, required_constant


@dataclass(frozen=True)
class Transform:
    """cos, sin: tables [n, k]; out[k] = Σ_n x[n] · (cos + i·sin)[n, k]; complex_in and real_out say what is dropped."""

    cos: np.ndarray
    sin: np.ndarray
    complex_in: bool
    real_out: bool = False


def transform(n: int, length: int, *, inverse: bool, onesided: bool, complex_in: bool) -> Transform:
    """The tables of a transform of `length` points of which `n` are given (the others are zero)."""
    if inverse and onesided:  # the missing half is the mirrored conjugate: its terms are the given ones twice
        angle = 2 * np.pi * np.outer(np.arange(n), np.arange(length)) / length
        weight = np.full((n, 1), 2.0)
        weight[0] = 1.0
        if length % 2 == 0 and n > length // 2:
            weight[length // 2] = 1.0
        weight[length // 2 + 1 :] = 0.0
        return Transform(weight * np.cos(angle) / length, weight * np.sin(angle) / length, complex_in, True)
    n, bins = min(n, length), length // 2 + 1 if onesided else length
    angle = 2 * np.pi * (np.outer(np.arange(n), np.arange(bins)) % length) / length
    scale = 1 / length if inverse else 1.0
    return Transform(np.cos(angle) * scale, np.sin(angle) * (scale if inverse else -1.0), complex_in)


@lowers("DFT")
def lower_dft(ctx: Lowering) -> None:
    """[…, n, …, 1 or 2] → […, k, …, 2] along a constant axis (one-sided inverse: […, 1])."""
    x, y, attrs = operand(ctx, 0), ctx.output, ctx.node.attrs
    given = constant_input(ctx, 2)
    axis = (-2 if given is None else int(given.reshape(-1)[0])) % x.type.rank
    n, bins = x.type.dims[axis], y.type.dims[axis]
    inverse, onesided = bool(attrs.get("inverse", 0)), bool(attrs.get("onesided", 0))
    length = constant_input(ctx, 1)
    size = (bins if inverse and onesided else n) if length is None else int(length.reshape(-1)[0])
    outer, inner = prod(x.type.dims[:axis]), prod(x.type.dims[axis + 1 : -1])
    parts = x.type.dims[-1]
    tables = transform(n, size, inverse=inverse, onesided=onesided, complex_in=parts == 2)
    k = ctx.kernel()
    sums = _Sums(ctx, k, tables, x)

    def line(index: Sequence[Expr]) -> None:
        o, i = index
        sums.emit((o * (n * inner) + i) * parts, inner * parts, o * (bins * inner) + i, inner)

    nest(k, (outer, inner), line)
    k.done("dft")


@lowers("STFT")
def lower_stft(ctx: Lowering) -> None:
    """signal [batch, length, 1 or 2] → [batch, frames, k, 2]: a DFT of every windowed frame."""
    x, y = operand(ctx, 0), ctx.output
    step = int(required_constant(ctx, 1).reshape(-1)[0])
    window, size = ctx.node.input(2), constant_input(ctx, 3)
    n = window.type.dims[0] if window is not None else int(size.reshape(-1)[0]) if size is not None else 0
    n = n if size is None else int(size.reshape(-1)[0])
    batch, length, parts = x.type.dims
    frames, bins = y.type.dims[1:3]
    tables = transform(n, n, inverse=False, onesided=bool(ctx.node.attrs.get("onesided", 1)), complex_in=parts == 2)
    if window is not None and window.data is not None:
        column = window.data.astype(np.float64)[:, None]
        tables, window = Transform(tables.cos * column, tables.sin * column, tables.complex_in), None
    k = ctx.kernel()
    sums = _Sums(ctx, k, tables, x, window)

    def frame(index: Sequence[Expr]) -> None:
        b, f = index
        sums.emit((b * length + f * step) * parts, parts, (b * frames + f) * bins, 1)

    nest(k, (batch, frames), frame)
    k.done("stft")


class _Sums:
    """The kernel's buffers, and the sums of one line."""

    def __init__(
        self, ctx: Lowering, k: KernelBuilder, tables: Transform, x: Value, window: Value | None = None
    ) -> None:
        self.k, self.real_out, self.complex_in = k, tables.real_out, tables.complex_in
        self.n, self.bins = tables.cos.shape
        self.dtype = DType.F64  # sums that should be zero stay zero in single precision
        self.lanes = ctx.lanes(self.dtype)
        self.data, self.out = k.tensor(x), k.tensor(ctx.output)
        self.window = None if window is None else k.tensor(window)
        self.cos = k.tensor(ctx.pack("cos", tables.cos.astype(self.dtype.numpy)))
        self.sin = k.tensor(ctx.pack("sin", tables.sin.astype(self.dtype.numpy)))

    def emit(self, begin: Expr, step: int, to: Expr, to_step: int) -> None:
        """x[n] at begin + n·step; result k at to + k·to_step, in complex numbers."""
        k = self.k
        for j, lanes in vectors(k, self.bins, self.lanes):
            sums = k.registers("sum", self.dtype, 2, lanes)
            for part in range(2):
                k.store(sums, part, const(0.0, self.dtype, lanes))
            for t in k.loop("t", self.n):
                self._term(sums_of=(sums, lanes), at=k.let(begin + t * step, "at"), t=t, j=j)
            parts = 1 if self.real_out else 2
            for part in range(parts):
                value = cast(k.load(sums, part), self.out.dtype)
                k.store(self.out, ramp((to + j * to_step) * parts + part, to_step * parts, lanes), value)

    def _term(self, sums_of: tuple[Buffer, int], at: Expr, t: Expr, j: Expr) -> None:
        k, (sums, lanes) = self.k, sums_of
        cos = k.let(k.load(self.cos, t * self.bins + j, lanes), "cos")
        sin = k.let(k.load(self.sin, t * self.bins + j, lanes), "sin")
        real = self._part(at, 0, t, lanes)
        re, im = fma(real, cos, k.load(sums, 0)), fma(real, sin, k.load(sums, 1))
        if self.complex_in:
            imaginary = self._part(at, 1, t, lanes)
            re, im = re - imaginary * sin, fma(imaginary, cos, im)
        k.store(sums, 0, re)
        if not self.real_out:
            k.store(sums, 1, im)

    def _part(self, at: Expr, part: int, t: Expr, lanes: int) -> Expr:
        value = cast(self.k.load(self.data, at + part), self.dtype)
        if self.window is not None:
            value = value * cast(self.k.load(self.window, t), self.dtype)
        return self.k.let(broadcast(value, lanes), "x")
