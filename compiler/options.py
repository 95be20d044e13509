"""What a compile depends on, as one frozen value; its JSON goes into the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..codegen.target import Target
from ..ir.errors import OptionsError
from ..passes.lower.schedule import Tuning
from ..passes.select_winograd import WEIGHTS
from .pipeline import LEVELS

PRECISIONS = ("f32", "f16", "bf16")
WEIGHT_TYPES = ("f32", "f16", "bf16")
ACTIVATIONS = ("f32", "int8")
"""What `--activations` takes."""

AIMS = ("speed", "memory")
"""What `--optimize-for` takes."""


@dataclass(frozen=True, slots=True)
class Debug:
    """What the driver shows and checks between passes; never changes what is generated, but for the two limits."""

    print_after: tuple[str, ...] = ()
    print_changed: bool = False
    dump_dir: Path | None = None
    verify_each: bool = False
    check_each: bool = False
    time_passes: bool = False
    stop_after: str | None = None
    rewrite_limit: int | None = None


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """target: see `c2c targets`. threads: the most workers a run may use. level: 0, 1 or 2 (`pipeline.py`).

    dims and shapes pin symbolic dimensions; values turn an input into a constant.
    winograd_error: the largest relative error that a Winograd layer may add; 0 switches it off.
    winograd_weights: whether Winograd layers' weights are transformed by the compiler ("compile") or by the app, once
    ("load"); "auto" decides by size (`select_winograd.LOAD_BYTES`).
    precision: "f32", or "f16": convolutions and what lies between them compute in f16, or "bf16": their products are
    of bf16 and summed in f32 (`narrow-floats`).
    weight_type: "f32", or "f16", "bf16": constant matrices are rounded to it and widened in registers
    (`narrow-weights`). activations: "f32", or "int8": those of products by few-level or integer weights may be rounded,
    with what that does to results in `Program.rounded` (`round-activations`).
    optimize_for: "speed", or "memory" where a smaller arena is worth some time.
    tuning: schedules measured before (`tuning.py`); the cost model chooses for problems that it does not name.
    host_steps: whether a graphics processor's model may run steps on the host where that is expected to be faster.
    keep_constants: leave constants' data in the optimised graph, to print it; otherwise it is dropped once packed.
    """

    target: Target
    name: str = "model"
    threads: int = 1
    level: int = 2
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    winograd_error: float = 1e-4
    winograd_weights: str = "auto"
    precision: str = "f32"
    weight_type: str = "f32"
    activations: str = "f32"
    optimize_for: str = "speed"
    tuning: Tuning = field(default_factory=Tuning)
    host_steps: bool = True
    taps: bool = False
    keep_constants: bool = False
    debug: Debug = field(default_factory=Debug)

    def __post_init__(self) -> None:
        limit = self.debug.rewrite_limit
        for wrong, what, remedy in (
            (
                type(self.threads) is not int or self.threads < 1,
                f"{self.threads!r} threads make no sense",
                "from 1",
            ),
            (self.level not in LEVELS, f"there is no optimisation level {self.level!r}", f"one of {sorted(LEVELS)}"),
            (not self.winograd_error >= 0, f"a Winograd error of {self.winograd_error!r} makes no sense", "0 or more"),
            (
                self.winograd_weights not in WEIGHTS,
                f"Winograd weights cannot be transformed at '{self.winograd_weights}'",
                f"one of {', '.join(WEIGHTS)}",
            ),
            (self.precision not in PRECISIONS, f"there is no precision {self.precision!r}", f"one of {PRECISIONS}"),
            (
                self.precision == "f16" and not self.target.has_fp16 and self.target.device is None,
                f"target {self.target} has no arithmetic in f16",
                "a target with it, such as arm64-neon+fp16",
            ),
            (
                self.precision == "bf16" and not self.target.has_bf16,
                f"target {self.target} has no products of bf16",
                "a target with them, such as arm64-neon+bf16 or x86-64-v4+avx512bf16; --weight-type bf16 runs anywhere",
            ),
            (
                self.weight_type not in WEIGHT_TYPES,
                f"there is no type of weights {self.weight_type!r}",
                f"one of {WEIGHT_TYPES}",
            ),
            (
                self.activations not in ACTIVATIONS,
                f"activations cannot be rounded to {self.activations!r}",
                f"one of {ACTIVATIONS}",
            ),
            (self.optimize_for not in AIMS, f"nothing optimises for {self.optimize_for!r}", f"one of {list(AIMS)}"),
            (limit is not None and limit < 0, f"a limit of {limit} rewrites makes no sense", "0 or more"),
        ):
            if wrong:
                raise OptionsError(what, remedy=f"give {remedy}")

    def describe(self) -> dict[str, Any]:
        """The options that decide the generated bytes, JSON-ready and in a fixed order."""
        return {
            "target": str(self.target),
            "cpu": self.target.cpu,
            "features": list(self.target.has),
            "name": self.name,
            "threads": self.threads,
            "level": self.level,
            "dims": dict(sorted(self.dims.items())),
            "shapes": {k: list(v) for k, v in sorted(self.shapes.items())},
            "values": {k: np.asarray(v).tolist() for k, v in sorted(self.values.items())},
            "winograd_error": self.winograd_error,
            "winograd_weights": self.winograd_weights,
            "precision": self.precision,
            "weight_type": self.weight_type,
            "activations": self.activations,
            "optimize_for": self.optimize_for,
            "host_steps": self.host_steps,
            "tuning": self.tuning.digest,
        }
