"""The named graph passes of each optimisation level, in order; nothing else."""

from __future__ import annotations

_CLEAN = ("fold-constants", "canonicalize", "eliminate-common-subexpressions")

LEVELS: dict[int, tuple[str, ...]] = {
    0: ("narrow-weights", "round-activations", "eliminate-dead-code", "own-outputs"),
    1: (
        "integer-arithmetic",
        *_CLEAN,
        "fold-batch-norm",
        "narrow-weights",
        "round-activations",
        "fuse",
        "place-concats",
        "own-outputs",
    ),
    2: (
        "integer-arithmetic",
        *_CLEAN,
        "roll-recurrences",
        "eliminate-transposes",
        "fuse-attention",
        "fold-batch-norm",
        *_CLEAN,
        "share-factors",
        "absorb-transposes",
        "narrow-weights",
        "select-winograd",
        "narrow-floats",
        "pack-strides",
        "sparse-products",
        "round-activations",
        "choose-layout",
        "fuse",
        "chain-convolutions",
        "place-concats",
        "own-outputs",
    ),
}


LOOPS_ONLY = frozenset(
    (
        "share-factors",
        "pack-strides",
        "sparse-products",
        "round-activations",
        "choose-layout",
        "chain-convolutions",
    )
)
"""Passes for what has no form for a grid of threads: blocked layouts and what rests on them, and operators that only
processors' loops compute."""


def pipeline(level: int, *, grid: bool = False) -> tuple[str, ...]:
    """Pass names of -O`level`, in order; `grid`: for graphics processors."""
    return tuple(n for n in LEVELS[level] if not (grid and n in LOOPS_ONLY))
