"""Products of rows of levels by a constant matrix on a grid with exact 32-bit sums: words hold four levels of a row."""

from __future__ import annotations

from math import prod

import numpy as np

from ....ir.loops import Expr, bitcast, cast, const, minimum
from ....ir.types import DType
from ..context import KernelBuilder, Lowering, Site
from ..integer_sums import Finish
from ..product import Matrix, Product
from ..strided import coordinates
from .integer_product import EXACT_STEPS, IntegerProduct, exact_depth, multiply_integers
from .levels import Correction, Levels
from .memory_product import multiply_from_memory
from .tiles import Factor
from .words import TOGETHER, fits_words, joined, words_of

FAMILY = "integer_product"


def multiply_integer_rows(ctx: Lowering, levels: Levels, weights: np.ndarray, finish: Finish) -> None:
    """Append the kernels of (levels - zero) · weights, weights [K, N] of i16, to the node's calls."""
    device = ctx.target.device
    assert device is not None
    rows = _Rows(ctx, levels, weights, finish)
    if device.shares:
        rows.by_product()
    else:
        rows.from_memory()


class _Rows:
    def __init__(self, ctx: Lowering, levels: Levels, weights: np.ndarray, finish: Finish) -> None:
        self.ctx, self.levels, self.weights, self.sums = ctx, levels, weights, finish
        self.outer = levels.value.type.dims[:-1]
        self.m, (self.k, self.n) = prod(self.outer), weights.shape
        self.exact = exact_depth(weights.T, levels.largest)

    def by_product(self) -> None:
        sides = Factor(self._level, True), self._columns(_narrowed(self.weights))
        words, correction = None, None
        if fits_words(self.weights) and self.levels.are_bytes:
            words = Factor(self._word, True), self._columns(words_of(self.weights.T).T)
            correction = Correction(self.ctx, self.levels, self.weights.T)
        known = correction

        def start(k: KernelBuilder, batch: Expr, row: Expr, column: Expr) -> Expr:
            assert known is not None
            return known.at(k, column)

        def finish(k: KernelBuilder, batch: Expr, row: Expr, column: Expr, value: Expr) -> None:
            self._finish(k, row, column, value)

        multiply_integers(
            self.ctx,
            IntegerProduct(
                1, self.m, self.n, self.k, sides, words, -(-self.k // TOGETHER),
                start if known is not None and known.value is not None else None, self.exact, finish,
            ),
            FAMILY,
        )  # fmt: skip

    def from_memory(self) -> None:
        """Levels become floats or i16 without their zero point first: each serves many columns."""
        ctx, acc = self.ctx, DType.F32 if self.exact >= min(self.k, EXACT_STEPS) else DType.I32
        near = acc if acc is DType.F32 else DType.I16
        rows = ctx.scratch("rows", near, self.m * self.k)
        k = ctx.kernel()
        for i in k.loop("i", self.m * self.k):
            k.store(k.tensor(rows), i, cast(self.levels.number(k, k.load(k.tensor(self.levels.value), i)), near))
        k.done("integer_rows")

        def finish(k: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
            self._finish(k, coords[0], coords[1], cast(value, DType.I32))

        a = Matrix(rows, (), self.k, 1)
        b = Matrix(ctx.pack("weights", _narrowed(self.weights)), (), self.n, 1)
        exact = self.exact if acc is DType.F32 and self.exact < self.k else None
        multiply_from_memory(ctx, Product((), self.m, self.n, self.k, a, b, acc, finish), FAMILY, exact)

    def _finish(self, k: KernelBuilder, row: Expr, column: Expr, value: Expr) -> None:
        coords = coordinates(k, row, self.outer) if self.m > 1 else (const(0),) * len(self.outer)
        self.sums(k, Site((*coords, column), -1, value.lanes), value)

    # --- readers: (kernel, batch, depth, row or column)

    def _columns(self, matrix: np.ndarray) -> Factor:
        """A constant [depth, N]."""
        value = self.ctx.pack("weights", np.ascontiguousarray(matrix))

        def read(k: KernelBuilder, batch: Expr, depth: Expr, column: Expr) -> Expr:
            return k.load(k.tensor(value, "w"), depth * self.n + column)

        return Factor(read, False)

    def _level(self, k: KernelBuilder, batch: Expr, depth: Expr, row: Expr) -> Expr:
        return self.levels.number(k, k.load(k.tensor(self.levels.value, "x"), row * self.k + depth))

    def _word(self, k: KernelBuilder, batch: Expr, depth: Expr, row: Expr) -> Expr:
        source, first = k.tensor(self.levels.value, "x"), k.let(depth * TOGETHER, "first")
        if not self.k % TOGETHER:
            return self.levels.signed(bitcast(k.load(source, row * self.k + first, TOGETHER), DType.I32))
        places = [minimum(first + j, self.k - 1) for j in range(TOGETHER)]
        return self.levels.signed(joined([k.load(source, row * self.k + p) for p in places]))


def _narrowed(weights: np.ndarray) -> np.ndarray:
    return weights.astype(np.int8 if fits_words(weights) else np.int16)
