"""Mixed precision: which layers stay in floats so that the loss fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnx import ModelProto

from ..compression.acceptance import Agreement
from ..compression.layers import Layer
from ..ir.errors import C2CError
from .judge import Judge
from .onnx_qdq import write_quantized
from .session import Fit, Session


@dataclass(frozen=True, slots=True)
class Outcome:
    """A written network, what it was fitted to, its layers left in floats and how it agrees on the samples held out."""

    fit: Fit
    floats: tuple[Layer, ...]
    model: ModelProto
    agreement: Agreement


def search(session: Session, judge: Judge, most: float) -> tuple[Outcome, dict[Layer, float], list[Outcome]]:
    """The network with the fewest layers in floats whose loss is at most `most`: those are left out first that alone
    cost the output most. Also each layer's cost (empty where nothing had to be left out), and all that was tried."""
    full = session.fit()
    tried = [_outcome(session, judge, full, ())]
    if tried[0].agreement.loss <= most:
        return tried[0], {}, tried
    costs = session.sensitivities(full, judge.output)
    order = sorted(costs, key=lambda layer: (-costs[layer], session.layers.index(layer)))

    def without(count: int) -> Outcome:
        floats = tuple(order[:count])
        tried.append(_outcome(session, judge, _reduced(session, full, floats), floats))
        return tried[-1]

    best = _fewest(without, len(order), lambda o: o.agreement.loss <= most)
    if best is None:
        raise C2CError(
            f"no layer left in floats brings the loss to {most:.2%}: {tried[-1].agreement}",
            remedy="give more samples, or allow more loss",
        )
    refitted = _outcome(session, judge, session.fit(best.floats), best.floats)
    tried.append(refitted)
    if refitted.agreement.loss <= most and refitted.agreement.noise < best.agreement.noise:
        best = refitted
    return best, costs, tried


def _fewest(without: Callable[[int], Outcome], total: int, fits: Callable[[Outcome], bool]) -> Outcome | None:
    """1, 2, 4, … until it fits, then halving between."""
    bad, count = 0, 1
    while True:
        found = without(min(count, total))
        if fits(found):
            break
        if count >= total:
            return None
        bad, count = count, 2 * count
    good = len(found.floats)
    while good - bad > 1:
        middle = (good + bad) // 2
        tried = without(middle)
        if fits(tried):
            good, found = middle, tried
        else:
            bad = middle
    return found


def _reduced(session: Session, full: Fit, floats: tuple[Layer, ...]) -> Fit:
    """The same levels for fewer layers; what only the others read needs none."""
    weights = {layer: w for layer, w in full.weights.items() if layer not in floats}
    inputs = {layer: g for layer, g in full.inputs.items() if layer not in floats}
    held = {v for place in session.places(inputs) for v in place.values}
    return replace(full, weights=weights, inputs=inputs, grids={v: g for v, g in full.grids.items() if v in held})


def _outcome(session: Session, judge: Judge, found: Fit, floats: tuple[Layer, ...]) -> Outcome:
    session.progress("judge")
    model = write_quantized(session.model, found.weights, found.inputs, {v.name: g for v, g in found.grids.items()})
    agreement = judge.agreement(judge.compiled(model))
    session.progress(f"{len(floats)} layers in floats: {agreement}")
    return Outcome(found, floats, model, agreement)
