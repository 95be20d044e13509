"""The named graph passes of each optimisation level, in order; nothing else."""

from __future__ import annotations

from ..passes import own_outputs  # noqa: F401  (registers its pass)

LEVELS: dict[int, tuple[str, ...]] = {
    0: ("own-outputs",),
    1: ("own-outputs",),
    2: ("own-outputs",),
}


def pipeline(level: int) -> tuple[str, ...]:
    """Pass names of -O`level`, in order."""
    return LEVELS[level]
