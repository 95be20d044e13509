"""The named graph passes of each optimisation level, in order; nothing else."""

from __future__ import annotations

from ..passes import (  # noqa: F401  (each registers its pass)
    canonicalize,
    choose_layout,
    eliminate_common_subexpressions,
    eliminate_dead_code,
    eliminate_transposes,
    fold_batch_norm,
    fold_constants,
    fuse,
    own_outputs,
    place_concats,
    select_winograd,
)

_CLEAN = ("fold-constants", "canonicalize", "eliminate-common-subexpressions")

LEVELS: dict[int, tuple[str, ...]] = {
    0: ("eliminate-dead-code", "own-outputs"),
    1: (*_CLEAN, "fold-batch-norm", "fuse", "place-concats", "own-outputs"),
    2: (
        *_CLEAN,
        "eliminate-transposes",
        "fold-batch-norm",
        *_CLEAN,
        "choose-layout",
        "fuse",
        "place-concats",
        "own-outputs",
    ),
}


def pipeline(level: int) -> tuple[str, ...]:
    """Pass names of -O`level`, in order."""
    return LEVELS[level]
