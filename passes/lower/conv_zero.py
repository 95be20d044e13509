"""Zero points of bytes in direct convolutions: products are those of the levels themselves.

Over all taps Σ (x - zero) w = Σ x w - zero Σ w, whose last term is part of the bias. Taps beyond the image, which the
kernel leaves out, give it back: zero Σ w over their channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, const
from .context import KernelBuilder, Lowering
from .conv_kernel import Convolution
from .tile import Segment
from .window import Window


def shifted_bias(conv: Convolution) -> np.ndarray | None:
    """The bias less zero Σ w."""
    if not conv.zero:
        return conv.bias
    sums = conv.zero * conv.weights.astype(np.int64).reshape(len(conv.weights), -1).sum(1)
    return _wrapped((0 if conv.bias is None else conv.bias.astype(np.int64)) - sums)


def _wrapped(sums: np.ndarray) -> np.ndarray:
    return sums.astype(np.int64).astype(np.uint32).view(np.int32)


@dataclass(frozen=True, slots=True)
class MissingTaps:
    """zero Σ w over channels: `taps` [height, width, outputs] and, over whole rows, `rows` [height, outputs]."""

    window: Window
    taps: Value
    rows: Value
    outputs: int
    lanes: int

    @staticmethod
    def of(ctx: Lowering, conv: Convolution, lanes: int) -> MissingTaps | None:
        """None where no tap gives anything back."""
        if not conv.zero or all(a.is_inside for a in conv.window.axes):
            return None
        assert conv.window.d.is_inside
        filters, outputs = conv.channels_out, -(-conv.channels_out // lanes) * lanes
        sums = conv.zero * conv.weights.astype(np.int64).sum((1, 2))
        taps = np.zeros((*sums.shape[1:], conv.groups, outputs), np.int64)
        taps[..., :filters] = sums.reshape(conv.groups, filters, *sums.shape[1:]).transpose(2, 3, 0, 1)
        by_tap = ctx.pack("missing_taps", _wrapped(taps).reshape(-1))
        by_row = ctx.pack("missing_rows", _wrapped(taps.sum(1)).reshape(-1))
        return MissingTaps(conv.window, by_tap, by_row, conv.groups * outputs, lanes)

    def with_rows(self, k: KernelBuilder, firsts: list[Expr], at: Expr, h: Expr) -> list[Expr]:
        """First values of sums for the channels from `at` on, with the rows that output row `h` does not have."""
        if self.window.h.is_inside:
            return firsts
        found = k.registers("first", firsts[0].dtype, len(firsts), self.lanes)
        for v, first in enumerate(firsts):
            k.store(found, v, first)
        begin, end = self.window.h.tap_range(h)
        for low, high in ((const(0), begin), (end, const(self.window.h.kernel))):
            for r in k.loop("r", high, low):
                self._add(k, found, range(len(firsts)), self.rows, at + r * self.outputs)
        return [k.let(k.load(found, v), "first") for v in range(len(firsts))]

    def add_columns(self, k: KernelBuilder, acc: Buffer, s: Segment, at: Expr, place: tuple[Expr, Expr]) -> None:
        """Give back the columns that pixels of a tile at output row and column `place` do not have."""
        h, w = place
        axis, begin_end = self.window.w, self.window.h.tap_range(h)
        vectors = acc.size // s.pixels
        for r in k.loop("r", begin_end[1], begin_end[0]):
            row = k.let(at + r * (axis.kernel * self.outputs), "row")
            if s.dynamic:
                begin, end = axis.tap_range(w)
                for low, high in ((const(0), begin), (end, const(axis.kernel))):
                    for t in k.loop("s", high, low):
                        self._add(k, acc, range(vectors), self.taps, row + t * self.outputs)
                continue
            for p in range(s.pixels):
                here = axis.taps(s.start + p)
                for tap in (t for t in range(axis.kernel) if t not in here):
                    self._add(k, acc, range(p * vectors, (p + 1) * vectors), self.taps, row + tap * self.outputs)

    def _add(self, k: KernelBuilder, acc: Buffer, places: range, table: Value, at: Expr) -> None:
        for v, i in enumerate(places):
            k.store(acc, i, k.load(acc, i) + k.load(k.tensor(table), at + v * self.lanes, self.lanes))
