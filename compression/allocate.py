"""One price of a bit for the whole network decides every layer's: the Lagrangian of error against size.

The loss is the sum over layers of sensitivity · error / power; at the optimum each layer trades error for bits at the
same slope (Shoham and Gersho 1988), so that a layer's own price is price · power / sensitivity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..packing.frames import entropy
from .codebook import PRICE


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a layer before anything is compressed. power: of its results, summed over channels. slope: the
    geometric mean of its inputs' conditional powers (`reconstruct.step_for`). sample: some of its weights."""

    name: str
    size: int
    power: float
    slope: float
    sensitivity: float
    sample: np.ndarray

    def price(self, price: float) -> float:
        """This layer's price of a bit, in squared error of its results a position."""
        return price * self.power / self.sensitivity

    def step(self, price: float) -> float:
        """The step of the grid at a price of the network's."""
        return float(np.sqrt(self.price(price) / PRICE / max(self.slope, 1e-30)))

    def bits(self, price: float) -> float:
        """Bits that the layer's indices are expected to take."""
        step = max(self.step(price), float(np.abs(self.sample).max(initial=0.0)) / 127, 1e-30)
        _, counts = np.unique(np.round(self.sample / step), return_counts=True)
        return self.size * entropy(counts.astype(np.float64))


def expected_bytes(surveys: list[Survey], price: float) -> float:
    return sum(s.bits(price) for s in surveys) / 8


def price_for(surveys: list[Survey], size: float) -> float:
    """The price at which the indices are expected to take `size` bytes."""
    low, high = 1e-16, 1e3
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        if expected_bytes(surveys, middle) > size:
            low = middle
        else:
            high = middle
    return high
