"""Products of integers with exact 32-bit sums on a grid, in the form that takes the device least time.

Dots: four bytes of the depth lie in a word, for the device's dot products. Floats: sums of products of bytes are exact
in float32 below 2^24, so that a device without dot products multiplies them at its full rate; longer sums go to
integers on the way. Integers: 32-bit products, for larger numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ....ir.loops import Expr, cast
from ....ir.types import DType
from ..context import KernelBuilder, Lowering
from ..schedule import Schedule, choose
from .multiply import Write, schedules
from .rows import FEW, multiply_rows
from .tiles import Factor, Finish, GridProduct
from .words import dot_work, multiply_words

INTEGER = 4.0
"""What a 32-bit product and sum take, in multiply-adds of floats: phones' processors multiply 16 bits at a time."""
GATHERED = 6.0
"""What bringing a word near takes on the average of both sides: the bytes of one of them lie apart."""
EXACT = 1 << 24
"""Whole numbers below are exact in f32."""

Correction = Callable[[KernelBuilder, Expr, Expr, Expr], Expr]


@dataclass(frozen=True, slots=True)
class IntegerProduct:
    """`batch` products of [m, depth] and [depth, n] of whole numbers.

    levels: both sides' numbers less their zero points, i32. words: words of four signed bytes, `word_depth` of them;
    the right side's zero point is still in them, and `correction` takes it from the sums. exact: so many products
    together are exact in f32. finish takes i32.
    """

    batch: int
    m: int
    n: int
    depth: int
    levels: tuple[Factor, Factor]
    words: tuple[Factor, Factor] | None
    word_depth: int
    correction: Correction | None
    exact: int
    finish: Finish

    @property
    def problem(self) -> str:
        """What decides the schedule."""
        bytes_ = f" words {self.word_depth}" if self.words is not None else ""
        return f"{self.batch} x {self.m}x{self.n}x{self.depth}{bytes_} exact {self.exact}"


def exact_depth(weights: np.ndarray, largest: int) -> int:
    """How many products of a row of `weights` [..., depth] with numbers of magnitudes up to `largest` f32 adds exactly,
    in any order."""
    size = np.abs(weights.astype(np.int64))
    if size.sum(-1).max(initial=0) * largest < EXACT:
        return max(1, int(weights.shape[-1]))
    return int((EXACT - 1) // max(1, int(size.max(initial=1)) * largest))


def multiply_integers(ctx: Lowering, p: IntegerProduct, family: str) -> None:
    """Append the kernel of a product to the node's calls."""
    found: list[Schedule[Write]] = []
    for name, product in _forms(ctx, p).items():
        found += _schedules(ctx, name, product, family)
    choose(ctx, "grid-integer", p.problem, found, note=note(ctx, found))()


def _forms(ctx: Lowering, p: IntegerProduct) -> dict[str, GridProduct]:
    made = {
        "integers": GridProduct(
            p.batch, p.m, p.n, p.depth, *p.levels, DType.I32, None, p.finish, work=INTEGER
        )
    }  # fmt: skip
    floats = replace(made["integers"], acc=DType.F32, work=1.0)
    if p.exact >= p.depth:
        made["floats"] = replace(floats, finish=_as_integers(p.finish))
    elif p.exact >= EXACT_STEPS:
        made["floats"] = replace(floats, exact=p.exact)
    if p.words is not None:
        made["dots"] = GridProduct(
            p.batch, p.m, p.n, p.word_depth, *p.words, DType.I32, p.correction, p.finish, DType.I32, multiply_words,
            dot_work(ctx), GATHERED,
        )  # fmt: skip
    return made


EXACT_STEPS = 128
"""Sums of floats that have to be moved to integers more often are not worth their while."""


def _as_integers(finish: Finish) -> Finish:
    """Takes whole sums of floats."""

    def finish_floats(k: KernelBuilder, batch: Expr, row: Expr, column: Expr, value: Expr) -> None:
        finish(k, batch, row, column, cast(value, DType.I32))

    return finish_floats


def _schedules(ctx: Lowering, form: str, p: GridProduct, family: str) -> list[Schedule[Write]]:
    """Tiles, or rows where there are few."""
    if min(p.m, p.n) >= FEW:
        return [Schedule(f"{form} {s.name}", s.cycles, s.plan) for s in schedules(ctx, p, family)]
    turned = p if p.m < FEW else _turned(p)
    cost = p.batch * p.m * p.n * p.depth * (p.work + p.fetch)
    return [Schedule(f"{form} rows", cost, lambda: multiply_rows(ctx, turned, family))]


def _turned(p: GridProduct) -> GridProduct:
    """The product of the transposed factors."""
    start = p.start

    def finish(k: KernelBuilder, batch: Expr, row: Expr, column: Expr, value: Expr) -> None:
        p.finish(k, batch, column, row, value)

    def begin(k: KernelBuilder, batch: Expr, row: Expr, column: Expr) -> Expr:
        assert start is not None
        return start(k, batch, column, row)

    return replace(
        p, m=p.n, n=p.m, a=p.b, b=p.a, finish=finish, start=None if start is None else begin,
        multiply=lambda a, b, c: p.multiply(b, a, c),
    )  # fmt: skip


def note(ctx: Lowering, found: list[Schedule[Write]]) -> str:
    """Why a device does without dot products, for reports."""
    device = ctx.target.device
    assert device is not None
    best = min(found, key=lambda s: s.cycles).name.split()[0]
    if best == "dots" or not any(s.name.startswith("dots") for s in found):
        return ""
    why = "the device has no dot products of bytes" if device.dots is None else "words would be mostly empty"
    return without_dots(best, why)


def without_dots(form: str, why: str) -> str:
    """What reports say of a form that is not dot products."""
    return f"in {form}, with the same bits: {why}"
