"""From a budget to a price: passes at different prices of a bit until size or loss fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.errors import C2CError, OptionsError
from .allocate import expected_bytes, price_for
from .session import Pass, Session

RATIOS = (5.0, 8.0, 12.0, 18.0, 27.0, 40.0)
"""Of the points that `--pareto` tries: fp32 bytes over packed bytes."""

_START_RATIO = 8.0
_MOST_PASSES = 9
_CLOSE = 0.93
_FINE = 1.3


class DoesNotFit(C2CError):
    """No pass is as small as the budget demands."""


@dataclass(frozen=True, slots=True)
class Budget:
    """max_size: bytes. max_loss: share of answers that may differ. Neither: the whole front."""

    max_size: int | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        if self.max_size is not None and self.max_loss is not None:
            raise OptionsError("a largest size and a largest loss are given", remedy="give one of them")
        if self.max_size is not None and self.max_size < 1:
            raise OptionsError(f"a size of {self.max_size} bytes makes no sense")
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise OptionsError(f"a loss of {self.max_loss!r} makes no sense", remedy="a share, such as 0.5%")


def search(session: Session, budget: Budget, known: Sequence[Pass] = ()) -> tuple[Pass, list[Pass]]:
    """The pass to keep, and all that were made. known: passes of a search for another size."""
    session.survey()
    if budget.max_size is not None:
        return _by_size(session, budget.max_size, known)
    if budget.max_loss is not None:
        return _by_loss(session, budget.max_loss)
    return _front(session)


def _price(session: Session, size: float) -> float:
    return price_for(list(session.surveys.values()), size)


def _by_loss(session: Session, most: float) -> tuple[Pass, list[Pass]]:
    """The highest price whose loss is allowed: away from the start by factors of four, then halving in logarithms."""

    def fits(p: Pass) -> bool:
        return p.agreement.loss <= most

    passes = [session.run(_price(session, session.original_bytes / _START_RATIO))]
    factor = 4.0 if fits(passes[0]) else 0.25
    while len(passes) < _MOST_PASSES - 3 and fits(passes[-1]) == (factor > 1):
        passes.append(session.run(passes[-1].price * factor))
    good, bad = _bracket(passes, fits)
    if good is None:
        raise C2CError(
            f"no size gives a loss of {most:.2%} or less: {passes[-1].agreement} at {passes[-1].size.total} bytes",
            remedy="give more samples, or allow more loss",
        )
    while bad is not None and len(passes) < _MOST_PASSES and bad / good.price > _FINE:
        passes.append(session.run(float(np.sqrt(good.price * bad))))
        good, bad = _bracket(passes, fits)
        assert good is not None
    return good, passes


def _bracket(passes: list[Pass], fits: Callable[[Pass], bool]) -> tuple[Pass | None, float | None]:
    """The smallest pass that fits, and the least price above it that does not."""
    good = [p for p in passes if fits(p)]
    if not good:
        return None, None
    best = min(good, key=lambda p: p.size.total)
    above = [p.price for p in passes if not fits(p) and p.price > best.price]
    return best, min(above, default=None)


def _by_size(session: Session, most: int, known: Sequence[Pass] = ()) -> tuple[Pass, list[Pass]]:
    """The lowest price whose size is allowed: a first guess, then a secant of the logarithms between two passes that
    enclose it. known: passes that were made before, from which on it goes on."""
    aim = most * 0.97
    price = _price(session, 0.9 * min(aim, expected_bytes(list(session.surveys.values()), 0.0)))
    passes = list(known)
    while len(passes) < len(known) + _MOST_PASSES:
        if any(_CLOSE * most <= p.size.total <= most for p in passes):
            break
        passes.append(session.run(_next_price(passes, aim) if passes else price))
    good = [p for p in passes if p.size.total <= most]
    if not good:
        least = min(p.size.total for p in passes)
        raise DoesNotFit(f"the model does not fit into {most} bytes; the smallest try took {least}")
    return max(good, key=lambda p: p.size.total), passes


def _next_price(passes: list[Pass], aim: float) -> float:
    """A price nearer to where the size is `aim`."""
    large = min((p for p in passes if p.size.total > aim), key=lambda p: p.size.total, default=None)
    small = max((p for p in passes if p.size.total <= aim), key=lambda p: p.size.total, default=None)
    if large is None or small is None:
        ratio = float(passes[-1].size.total / aim)
        return float(passes[-1].price * np.clip(ratio**4, 1 / 64, 64) * (1.2 if ratio > 1 else 1 / 1.2))
    span = np.log(large.size.total / small.size.total)
    share = float(np.clip(np.log(large.size.total / aim) / span, 0.1, 0.9))
    return float(large.price ** (1 - share) * small.price**share)


def _front(session: Session) -> tuple[Pass, list[Pass]]:
    """A pass for each ratio; kept is the smallest whose loss is at most 1 %, or the best."""
    passes = [session.run(_price(session, session.original_bytes / r)) for r in RATIOS]
    good = [p for p in passes if p.agreement.loss <= 0.01]
    if good:
        return min(good, key=lambda p: p.size.total), passes
    return min(passes, key=lambda p: p.agreement.loss), passes
