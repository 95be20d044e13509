"""Convolutions of integers by constant weights on a grid, with exact 32-bit sums.

Words hold four channels of a pixel. Σ (x - zero) w = Σ x w - zero Σ w: they keep their zero point, which also lies
around the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ....ir.loops import Expr, cast, const, minimum, select
from ....ir.types import DType
from ..context import KernelBuilder, Lowering, Site, strides
from ..integer_sums import Finish
from ..strided import coordinates
from .convolve import GridConv, convolve
from .integer_product import EXACT_STEPS, IntegerProduct, exact_depth, multiply_integers, without_dots
from .levels import Correction, Levels
from .planes import Planes, arranged
from .rows import FEW
from .tiles import Factor
from .words import TOGETHER, fits_words, joined, words_of


def convolve_integers(ctx: Lowering, levels: Levels, weights: np.ndarray, finish: Finish) -> None:
    """Append the kernels of a convolution by `weights` [K, C / groups, …], without zero points, to the node's calls."""
    convolve(ctx, _IntegerConv(ctx, levels, weights, finish))


class _IntegerConv(GridConv):
    """One convolution. acc: of sums in a thread that reads single levels; exact: how many products f32 adds exactly."""

    direct = "conv_integer_direct"

    def __init__(self, ctx: Lowering, levels: Levels, weights: np.ndarray, finish: Finish) -> None:
        narrow = fits_words(weights)
        super().__init__(ctx, levels.value, ctx.pack("weights", weights.astype(np.int8 if narrow else np.int16)))
        self.levels, self.weights, self.finish, self.narrow = levels, weights, finish, narrow
        self.rows_of_weights = weights.reshape(len(weights), -1)
        self.exact = exact_depth(self.rows_of_weights, levels.largest)
        self.places = self.batch * prod(self.outs)
        self.bias = None  # `finish` adds what there is
        device = ctx.target.device
        assert device is not None
        enough = min(self.depth, self.depth if device.shares else max(EXACT_STEPS, self.window.taps))
        self.acc = DType.F32 if self.exact >= enough else DType.I32

    @property
    def together(self) -> int:
        whole = self.acc is DType.I32 or self.exact >= self.depth
        return self.channels_in if whole else self.exact // self.window.taps

    @property
    def note(self) -> str:
        return without_dots(
            "floats" if self.acc is DType.F32 else "integers", "the device has no dot products of bytes"
        )

    def by_product(self) -> None:
        """For each group [K, C · taps] · [C · taps, N · pixels]."""
        assert self.w.data is not None
        sides = (self._weights(self.w.data.reshape(len(self.weights), -1)), Factor(self._pixel, False))
        words, correction = None, None
        blocks = -(-self.channels_in // TOGETHER)
        if self.narrow and self.levels.are_bytes:
            words, correction = self._words(blocks), Correction(self.ctx, self.levels, self.rows_of_weights)
        known = correction

        def start(k: KernelBuilder, group: Expr, channel: Expr, place: Expr) -> Expr:
            assert known is not None
            return known.at(k, group * self.channels_out + channel)

        def finish(k: KernelBuilder, group: Expr, channel: Expr, place: Expr, value: Expr) -> None:
            image, *at = coordinates(k, place, (self.batch, *self.outs))
            self.store(k, image, group * self.channels_out + channel, at, value)

        multiply_integers(
            self.ctx,
            IntegerProduct(
                self.groups, self.channels_out, self.places, self.depth, sides, words,
                blocks * self.window.taps, start if known is not None and known.value is not None else None,
                self.exact, finish,
            ),
            "conv_integer",
        )  # fmt: skip

    def planes(self, slack: int) -> Planes:
        """x less its zero point, as the sums take it."""
        near = DType.F32 if self.acc is DType.F32 else DType.I16

        def element(k: KernelBuilder, level: Expr) -> Expr:
            return cast(self.levels.number(k, level), near)

        if self.x.type.dtype is near and self.levels.zero is None:
            return super().planes(slack)
        return arranged(self.ctx, self.x, self.window, slack, near, element)

    def store(self, k: KernelBuilder, image: Expr, channel: Expr, at: Sequence[Expr], value: Expr) -> None:
        """Sums of neighbouring results from position `at` on."""
        site = Site((image, channel, *self.window.spatial(at[0], at[1], at[2])), -1, value.lanes)
        self.finish(k, site, cast(value, DType.I32))

    def _weights(self, rows: np.ndarray) -> Factor:
        """Weights [K, depth], or levels in words of them; neighbours are those that threads side by side read."""
        depth, few = rows.shape[1], self.places < FEW
        data = rows.reshape(self.groups, self.channels_out, depth)
        data = data.transpose(0, 2, 1) if few else data
        value = self.ctx.pack("weights", np.ascontiguousarray(data).reshape(-1))
        steps = (1, self.channels_out) if few else (depth, 1)

        def read(k: KernelBuilder, group: Expr, at: Expr, channel: Expr) -> Expr:
            first = group * (self.channels_out * depth)
            return k.load(k.tensor(value, "w"), first + channel * steps[0] + at * steps[1])

        return Factor(read, not few)

    # --- single levels

    def _pixel(self, k: KernelBuilder, group: Expr, depth: Expr, place: Expr) -> Expr:
        channel, *taps = coordinates(k, depth, (self.channels_in, *self.taps))
        image, *at = coordinates(k, place, (self.batch, *self.outs))
        return self.read(k, image, group * self.channels_in + channel, at, taps)

    def read(self, k: KernelBuilder, image: Expr, channel: Expr, at: Sequence[Expr], taps: Sequence[Expr]) -> Expr:
        """A level less the zero point, i32."""
        offset, inside = self.position(k, image, channel, at, taps)
        value = self.levels.number(k, k.load(k.tensor(self.x, "x"), offset))
        return value if inside is None else select(inside, value, const(0, DType.I32))

    # --- words

    def _words(self, blocks: int) -> tuple[Factor, Factor]:
        """Readers of weights [K][blocks · taps] and of pixels."""
        taps, last = self.window.taps, self.channels_in - 1
        by_taps = self.weights.reshape(-1, self.channels_in, taps).transpose(0, 2, 1)
        words = words_of(by_taps).transpose(0, 2, 1).reshape(len(self.weights), -1)
        step = strides(self.x.type)[1]

        def pixel(k: KernelBuilder, group: Expr, depth: Expr, place: Expr) -> Expr:
            block, *tap = coordinates(k, depth, (blocks, *self.taps))
            image, *at = coordinates(k, place, (self.batch, *self.outs))
            first = k.let(block * TOGETHER, "channel")
            offset, inside = self.position(k, image, group * self.channels_in + first, at, tap)
            offset, source = k.let(offset, "from"), k.tensor(self.x, "x")
            whole = not self.channels_in % TOGETHER
            apart = [const(j) if whole else minimum(first + j, last) - first for j in range(TOGETHER)]
            word = self.levels.signed(joined([k.load(source, offset + a * step) for a in apart]))
            return word if inside is None else select(inside, word, self.levels.empty(k))

        return self._weights(words), Factor(pixel, False)
