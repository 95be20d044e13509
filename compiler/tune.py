"""Measures schedules in the network: which of the best few that the cost model ranks is the fastest on this machine.

A round compiles the whole model with another candidate for many problems at once, no two of them at one node, and runs
it in turn with a base, step by step. A candidate's score is the ratio of the times of its nodes, so that a machine that
drifts hits both sides alike. Graph passes are tuned first, since kernels depend on what they choose. In the end all
winners run beside the cost model's choices, and what is not faster in this company goes back: noise never makes a
model slower.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from ..ir.errors import TuningError
from ..ir.graph import Graph
from ..passes.lower.schedule import Choice, Tuning
from .api import CompiledModel, from_compiled
from .driver import Compiled, Progress, compile_graph
from .inputs import random_inputs
from .options import CompileOptions
from .tuning import Measured

Key: TypeAlias = tuple[str, str]
Trial: TypeAlias = tuple[Choice, str]
"""A problem, and the candidate to measure for it."""

CANDIDATES = 6
"""Schedules of a problem that are measured at most, the cost model's choice among them."""

SPREAD = 1.6
"""Estimated cycles, over those of the cost model's choice, beyond which a candidate is not measured."""

GAIN = 0.98
"""Ratio of times below which a candidate counts as faster."""

CONFIRMED = 0.99
"""Ratio of times above which a winner goes back when all winners run together."""

MIN_PAIRS, MAX_PAIRS = 5, 100
"""Runs of each side in a round."""

ROUND_SECONDS = 1.0
"""Running time of a round, of both sides together."""


@dataclass(frozen=True, slots=True)
class TuneReport:
    """measured: every problem with a choice. before, after: median milliseconds of whole runs, in turn.

    rounds: variants compared; complete: whether no candidate was left out for want of time.
    """

    measured: dict[Key, Measured]
    before: float
    after: float
    rounds: int
    complete: bool

    @property
    def tuning(self) -> Tuning:
        return Tuning({key: m.name for key, m in self.measured.items()})

    def to_json(self) -> dict[str, Any]:
        rows = [{"family": k[0], "problem": k[1], **asdict(m)} for k, m in sorted(self.measured.items())]
        return {**asdict(self), "measured": rows}

    @property
    def changed(self) -> dict[Key, Measured]:
        """Problems that do not take the cost model's choice."""
        return {k: m for k, m in self.measured.items() if m.name != m.default}


@dataclass(eq=False, slots=True)
class Variant:
    """The model compiled with schedules of these names; choices: by problem, steps: those of each problem's nodes."""

    names: dict[Key, str]
    compiled: Compiled
    model: CompiledModel
    choices: dict[Key, Choice]
    steps: dict[Key, list[int]]

    def time_of(self, key: Key, times: np.ndarray) -> float:
        """Nanoseconds of a problem's nodes, of those of all steps."""
        return float(times[self.steps[key]].sum())


@dataclass(eq=False, slots=True)
class Tuner:
    """One model on this machine. seconds: the budget, compiling included; a round that has begun is finished."""

    source: Graph
    options: CompileOptions
    seconds: float
    progress: Progress = lambda stage: None
    rounds: int = 0
    _end: float = 0.0
    _cost: float = 0.0
    """Seconds of the last round."""
    _names: dict[Key, str] = field(default_factory=dict)
    """Winners so far."""
    _feeds: dict[str, np.ndarray] = field(default_factory=dict)

    def run(self) -> TuneReport:
        """Measure; an interrupt (Ctrl-C) ends the trials and keeps what they found. Raises TuningError."""
        target = self.options.target
        if target.device is None and not target.runs_here:
            raise TuningError(f"this machine cannot run {target}", remedy="tune on a machine that can, or with native")
        self._end = time.perf_counter() + self.seconds
        self._feeds = random_inputs(self.source)
        base = self._variant({})
        start, complete = base, False
        try:
            complete = self._try_all(base, base.compiled.choices)
            start = self._variant(self._names) if self._names else base
            complete &= self._try_all(start, kernels_chose(start.compiled))
        except KeyboardInterrupt:
            complete = False
        return self._confirm(base, complete)

    def _try_all(self, base: Variant, choices: Iterable[Choice]) -> bool:
        """Trials of these choices beside `base`, the likeliest first; whether there was time for all."""
        trials, best = trials_of(choices), dict[Key, float]()
        while trials and time.perf_counter() + 3 * self._cost < self._end:  # the end compiles and runs up to twice more
            now, trials = independent(trials, base.steps)
            begin = time.perf_counter()
            self.progress(
                f"round {self.rounds + 1}: {len(now)} candidates, {len(trials)} left, "
                f"{len(self._names)} better so far, {self._end - begin:.0f} s"
            )
            for key, (name, ratio) in self._round(base, now).items():
                if ratio < min(GAIN, best.get(key, 1.0)):
                    best[key], self._names[key] = ratio, name
            self._cost = time.perf_counter() - begin
        return not trials

    def _round(self, base: Variant, trials: Sequence[Trial]) -> dict[Key, tuple[str, float]]:
        """Candidate and ratio of times of each problem."""
        self.rounds += 1
        other = self._variant(base.names | {choice.key: name for choice, name in trials})
        a, b = self._in_turn(base, other)
        other.model.close()
        return {
            choice.key: (name, other.time_of(choice.key, b) / max(1.0, base.time_of(choice.key, a)))
            for choice, name in trials
            if choice.key in other.steps
        }

    def _confirm(self, base: Variant, complete: bool) -> TuneReport:
        """All winners beside the cost model's choices; what is not faster goes back."""
        self.progress("compare all winners with the cost model's choices")
        tuned = self._variant(self._names) if self._names else base
        a, b = self._in_turn(base, tuned)
        slower = [
            key for key in tuned.names.keys() & base.steps.keys() & tuned.steps.keys()
            if tuned.time_of(key, b) > CONFIRMED * base.time_of(key, a)
        ]  # fmt: skip
        if slower:
            tuned = self._variant({k: v for k, v in tuned.names.items() if k not in slower})
            a, b = self._in_turn(base, tuned)
        before, after, ratio = self._whole(base, tuned)
        if ratio >= 1.0 or not tuned.names:
            tuned, b, after = base, a, before
        return TuneReport(measured(base, a, tuned, b), before, after, self.rounds, complete)

    def _variant(self, names: dict[Key, str]) -> Variant:
        options = replace(self.options, tuning=Tuning(dict(names)))
        compiled = compile_graph(self.source, options)
        choices = {c.key: c for c in compiled.schedules}
        return Variant(dict(names), compiled, from_compiled(compiled), choices, steps_of(compiled))

    def _in_turn(self, a: Variant, b: Variant) -> tuple[np.ndarray, np.ndarray]:
        """Median nanoseconds of every step of both, which run in turn."""
        samples: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        end = time.perf_counter() + ROUND_SECONDS
        while len(samples[0]) < MIN_PAIRS or (time.perf_counter() < end and len(samples[0]) < MAX_PAIRS):
            for variant, mine in zip((a, b), samples, strict=True):
                mine.append(variant.model.trace(self._feeds, len(variant.compiled.calls)))
        return np.median(samples[0], axis=0), np.median(samples[1], axis=0)

    def _whole(self, a: Variant, b: Variant) -> tuple[float, float, float]:
        """Median milliseconds of whole runs of both, in turn, and the median ratio of neighbouring runs."""
        times: tuple[list[float], list[float]] = ([], [])
        end = time.perf_counter() + 2 * ROUND_SECONDS
        while len(times[0]) < MIN_PAIRS or (time.perf_counter() < end and len(times[0]) < MAX_PAIRS):
            for variant, mine in zip((a, b), times, strict=True):
                begin = time.perf_counter()
                variant.model.run(self._feeds)
                mine.append((time.perf_counter() - begin) * 1e3)
        return median(times[0]), median(times[1]), median(y / x for x, y in zip(*times, strict=True))


def kernels_chose(compiled: Compiled) -> Iterable[Choice]:
    return (choice for call in compiled.calls for choice in call.choices)


def trials_of(choices: Iterable[Choice]) -> list[Trial]:
    """What to measure: the second of every problem, then the third, and so on."""
    problems = {c.key: c for c in choices}
    return [
        (choice, name)
        for rank in range(1, CANDIDATES)
        for choice in problems.values()
        for name, cycles in choice.candidates[rank : rank + 1]
        if cycles <= SPREAD * choice.candidates[0][1]
    ]


def independent(trials: Sequence[Trial], steps: dict[Key, list[int]]) -> tuple[list[Trial], list[Trial]]:
    """Trials that share no step, and so no problem, as many as come first; the others."""
    now: list[Trial] = []
    later: list[Trial] = []
    used: set[int] = set()
    for trial in trials:
        mine = steps[trial[0].key]
        (later if used.intersection(mine) else now).append(trial)
        used.update(mine)
    return now, later


def steps_of(compiled: Compiled) -> dict[Key, list[int]]:
    """The steps of all nodes at which a problem was chosen for; of a graph pass: of what its ONNX nodes became."""
    found: dict[Key, list[int]] = {}
    wanted: dict[str, list[Choice]] = {}
    for choice in compiled.choices:
        for name in choice.origin:
            wanted.setdefault(name, []).append(choice)
    for i, call in enumerate(compiled.calls):
        above = {c.key for name in call.node.origin for c in wanted.get(name, ())}
        for key in sorted(above | {c.key for c in call.choices}):
            found.setdefault(key, []).append(i)
    return found


def measured(base: Variant, a: np.ndarray, tuned: Variant, b: np.ndarray) -> dict[Key, Measured]:
    """Every problem of the tuned model that has a choice, with the times of both sides."""
    return {
        key: Measured(
            choice.name,
            tuned.time_of(key, b) / 1e3,
            choice.candidates[0][0],
            base.time_of(key, a) / 1e3 if key in base.steps else None,
        )
        for key, choice in tuned.choices.items()
        if len(choice.candidates) > 1 and key in tuned.steps
    }
