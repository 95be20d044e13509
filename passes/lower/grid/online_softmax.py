"""What forms of attention share: scores of a row come in blocks, with a running maximum and a running sum of powers;
what has been summed is corrected when the maximum grows (Milakov and Gimelshein, Online Normalizer Calculation for
Softmax, 2018; Dao et al., FlashAttention, NeurIPS 2022).
"""

from __future__ import annotations

from math import inf, nan

from ....ir.loops import Expr, cast, minimum, select
from ....ir.types import DType
from ...attention import Form
from ..attention import applied, heads_of
from ..context import KernelBuilder, Site
from ..math_functions import exp_nonpositive
from ..product import Product
from .tiles import GROUPS

FUNCTION = 12
"""Multiply-adds that a power takes."""

BARRIER = 16
"""Multiply-adds that a barrier takes."""


def idle(groups: int) -> float:
    """How much longer so few work-groups take than as many as keep a device busy."""
    return max(1.0, GROUPS / groups)


def scored(
    k: KernelBuilder, form: Form, scores: Product, place: tuple[tuple[Expr, ...], Expr, Expr], value: Expr, block: int
) -> Expr:
    """The product of a row of q and a key as a score of f32, -inf beyond the last key. place: head, row and key, which
    may lie beyond the last ones; block: keys that come together."""
    batch, row, key = place
    value = k.let(value * form.scale if form.scale != 1.0 else value, "score")
    key = k.let(key, "of")
    if form.scores.nodes:
        at = (minimum(row, scores.m - 1), minimum(key, scores.n - 1))
        site = Site((*heads_of(form, batch), *(k.let(p, "at") for p in at)))
        given = cast(value, form.scores.source.type.dtype)
        value = k.let(cast(applied(k, form.scores, site, given), DType.F32), "score")
    return value if not scores.n % block else select(key < scores.n, value, -inf)


def below(k: KernelBuilder, largest: Expr) -> Expr:
    """What is taken from scores before they are raised: a row of nothing but -inf has powers of 0 until the end."""
    return k.let(select(largest > -inf, largest, 0.0), "below")


def power(k: KernelBuilder, score: Expr, under: Expr) -> Expr:
    return k.let(exp_nonpositive(k, k.let(score - under)), "power")


def share_of(k: KernelBuilder, largest: Expr, total: Expr) -> Expr:
    """What sums of values are to be multiplied by in the end. A row all of whose scores are -inf is NaN."""
    return k.let(select(largest > -inf, 1.0 / total, nan), "share")
