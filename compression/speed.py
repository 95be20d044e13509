"""Masks that make a layer faster on a target, by the compiler's cost models, and what its time is worth in bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..codegen.target import Target
from ..compiler.driver import compile_graph
from ..compiler.estimate import expected_cycles
from ..compiler.options import CompileOptions
from .layers import Layer, alone
from .mask import PATTERNS
from .reconstruct import Form

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
"""Zeros that masks are tried with."""
TIME_WORTH = 4.0
"""Percent of bits that a percent of time is worth."""
GAIN = 0.95
"""Part of the dense layer's time below which a mask is worth trying."""
_LEVELS = 64


@dataclass(frozen=True, slots=True)
class Mask:
    """A form with a mask, and the cycles that the layer is expected to take with it."""

    form: Form
    cycles: float


@dataclass(eq=False, slots=True)
class LayerSpeeds:
    """Cycles of layers by form on one target, each compiled once, with made-up weights of that structure."""

    target: Target
    dense: dict[Layer, float] = field(default_factory=dict)
    found: dict[Layer, list[Mask]] = field(default_factory=dict)

    def of(self, layer: Layer) -> float:
        """Cycles of the layer with a code book and no mask."""
        if layer not in self.dense:
            self.dense[layer] = self._cycles(layer, Form())
        return self.dense[layer]

    def at(self, layer: Layer, zeros: float) -> float:
        """Cycles with a fraction of zeros that nobody demanded."""
        same = [m.cycles for m in self.masks(layer) if m.form.pattern == PATTERNS[0] and m.form.sparsity <= zeros]
        return min([self.of(layer), *same])

    def masks(self, layer: Layer) -> list[Mask]:
        """What makes the layer faster."""
        if layer not in self.found:
            most = GAIN * self.of(layer)
            tried = [Mask(f, self._cycles(layer, f)) for f in forms()] if self._may_gain(layer) else []
            self.found[layer] = [m for m in tried if m.cycles < most]
        return self.found[layer]

    def _may_gain(self, layer: Layer) -> bool:
        """Whether the sparsest mask does: the others need not be compiled where it does not."""
        return layer.kind == "conv" and self._cycles(layer, Form(SPARSITIES[-1], "4x1")) < GAIN * self.of(layer)

    def _cycles(self, layer: Layer, form: Form) -> float:
        if layer.kind not in ("conv", "matmul"):
            return 0.0
        graph = alone(layer, _example(layer, form))
        return expected_cycles(compile_graph(graph, CompileOptions(self.target, name="layer", keep_constants=True)))


def forms() -> Sequence[Form]:
    """Every mask that is tried."""
    return [Form(0.5 if p == "2:4" else s, p) for p in PATTERNS for s in (SPARSITIES if p != "2:4" else (0.5,))]


def _example(layer: Layer, form: Form) -> np.ndarray:
    """Weights of few levels with the form's zeros."""
    rng = np.random.default_rng(0)
    groups, rows, d = layer.rows(layer.dense).shape
    values = rng.integers(1, _LEVELS, (groups, rows, d)).astype(np.float32) / _LEVELS
    if form.sparsity:
        height = 4 if form.pattern == "4x1" else 1
        kept = rng.random((groups, -(-rows // height), d)) >= form.sparsity
        values *= np.repeat(kept, height, 1)[:, :rows]
    return layer.tensor(values)
