"""Mixed precision: which tensors and weights get 16 bits, and which layers stay in floats, so that the loss fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnx import ModelProto

from ..compression.acceptance import Agreement
from ..ir.errors import C2CError
from .costs import measure_costs
from .judge import Judge
from .onnx_qdq import write_quantized
from .precision import Costs, Precision, widened, widest
from .session import ALL_BYTES, Fit, Session, read_by

AIM = 0.7
"""Of the loss that is allowed, that the first choice is expected to have: samples held out are few."""

FIRST = 0.5
"""Of the noise with 8 bits, that the first choice leaves at most: they lost too much."""

STEP = 0.4
"""What the next choice aims at, over the noise that the one before aimed at."""

MOST_TRIES = 5
"""Choices of 16 bits before all numbers get them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A written network, what it was fitted to, its precision and how it agrees on the samples held out."""

    fit: Fit
    precision: Precision
    model: ModelProto
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Found:
    """kept: the network of least cost in time that fits; costs: of 8 bits, where they were measured; tried: all."""

    kept: Outcome
    costs: Costs | None
    tried: list[Outcome]


def search(session: Session, judge: Judge, most: float) -> Found:
    """The network whose loss is at most `most` with 16 bits for as few operations as will do, and if they do not
    suffice with as few layers in floats; those come first that cost the output most. Raises C2CError."""
    tried: list[Outcome] = []

    def tries(precision: Precision) -> Outcome:
        tried.append(_outcome(session, judge, session.fit(precision), precision))
        return tried[-1]

    full = tries(ALL_BYTES)
    if full.agreement.loss <= most:
        return Found(full, None, tried)
    costs = measure_costs(session, full.fit, judge.output)
    found = _widest(session, judge, costs, tried, most, tries)
    if found is None:
        found = _with_floats(session, judge, costs, tried, most)
    return Found(found, costs, tried)


def _widest(
    session: Session,
    judge: Judge,
    costs: Costs,
    tried: list[Outcome],
    most: float,
    tries: Callable[[Precision], Outcome],
) -> Outcome | None:
    """More and more numbers of 16 bits until the loss fits; None where it does not with all of them.

    How far the noise has to fall follows from how far answers are from others; costs have to fall as far."""
    noise = tried[0].agreement.noise
    readers = {p: [v for v in session.layers if v in session.integer and read_by(v) in p.values] for p in costs.places}
    aim = costs.total * min(judge.noise_for(AIM * most, noise) / max(noise, 1e-30), FIRST)
    before: Precision | None = None
    for i in range(MOST_TRIES + 1):
        precision = widened(costs, readers, aim) if i < MOST_TRIES else widest(costs)
        aim *= STEP
        if precision == before:
            continue
        before = precision
        found = tries(precision)
        if found.agreement.loss <= most:
            return found
    return None


def _with_floats(session: Session, judge: Judge, costs: Costs, tried: list[Outcome], most: float) -> Outcome:
    """The last that was tried with the fewest layers in floats."""
    base = tried[-1]
    cost = {layer: costs.of(layer, read_by(layer)) for layer in base.fit.weights}
    order = sorted(cost, key=lambda layer: (-cost[layer], session.layers.index(layer)))

    def without(count: int) -> Outcome:
        precision = base.precision.without(order[:count])
        tried.append(_outcome(session, judge, _reduced(session, base.fit, precision), precision))
        return tried[-1]

    best = _fewest(without, len(order), lambda o: o.agreement.loss <= most)
    if best is None:
        raise C2CError(
            f"no layer left in floats brings the loss to {most:.2%}: {tried[-1].agreement}",
            remedy="give more samples, or allow more loss",
        )
    return best


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
    good = len(found.precision.floats)
    while good - bad > 1:
        middle = (good + bad) // 2
        tried = without(middle)
        if fits(tried):
            good, found = middle, tried
        else:
            bad = middle
    return found


def _reduced(session: Session, full: Fit, precision: Precision) -> Fit:
    """The same levels for fewer layers; what only the others read needs none."""
    weights = {layer: w for layer, w in full.weights.items() if layer not in precision.floats}
    inputs = {layer: g for layer, g in full.inputs.items() if layer not in precision.floats}
    held = {v for place in session.places(inputs) for v in place.values}
    return replace(full, weights=weights, inputs=inputs, grids={v: g for v, g in full.grids.items() if v in held})


def _outcome(session: Session, judge: Judge, found: Fit, precision: Precision) -> Outcome:
    session.progress("judge")
    model = write_quantized(session.model, found.weights, found.inputs, {v.name: g for v, g in found.grids.items()})
    agreement = judge.agreement(judge.compiled(model))
    wide, floats = len(precision.values) + len(precision.weights), len(precision.floats)
    session.progress(f"{wide} tensors of 16 bits, {floats} layers in floats: {agreement}")
    return Outcome(found, precision, model, agreement)
