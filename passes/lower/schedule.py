"""The one place where a schedule is chosen: kernel families and graph passes list what they could do, with its cost.

A tuning names schedules for problems; problems that it does not name take the schedule of least estimated cycles.
Every choice is recorded with all its candidates, for reports and for the tuner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ...ir.errors import TuningError
from ...ir.graph import Node

T = TypeVar("T")

DENSE = "dense"
"""The name of schedules that read weights element by element, where others read lists or indices."""


@dataclass(frozen=True, slots=True)
class Schedule(Generic[T]):
    """One way to compute a node.

    name: stable and unique among the candidates, e.g. "tile=6x2 rows=4 chunks=2"; stands in tuning files and reports.
    cycles: the cost model's estimate for the whole node on one core. plan: what the family needs to write the kernel.
    """

    name: str
    cycles: float
    plan: T


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a node: `candidates` are (name, cycles), the cheapest first; `origin` names ONNX nodes.

    note: what reports say beside it.
    """

    family: str
    problem: str
    name: str
    candidates: tuple[tuple[str, float], ...]
    origin: tuple[str, ...] = ()
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.family, self.problem

    @property
    def cycles(self) -> float:
        """Estimated cycles of what was chosen."""
        return dict(self.candidates)[self.name]

    @property
    def reason(self) -> str:
        """The note, or how the estimate compares where weights could be read dense or in another form."""
        if self.note:
            return f" ({self.note})"
        others = {name: cycles for name, cycles in self.candidates if (name == DENSE) != (self.name == DENSE)}
        if DENSE not in dict(self.candidates) or not others or not self.cycles:
            return ""
        name = min(others, key=lambda n: others[n])
        return f" ({others[name] / self.cycles:.1f}x as fast as {name} by estimate)"

    @property
    def rank(self) -> int:
        """Place of what was chosen in the cost model's order, from 0."""
        return [name for name, _ in self.candidates].index(self.name)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Schedule names by (family, problem), measured on some machine."""

    names: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all that it decides; empty where that is nothing."""
        text = json.dumps(sorted([*key, name] for key, name in self.names.items()))
        return hashlib.sha256(text.encode()).hexdigest() if self.names else ""


class Chooser(Protocol):
    """Who chooses: `Lowering` and `PassContext`."""

    @property
    def tuning(self) -> Tuning: ...
    @property
    def choices(self) -> list[Choice]: ...


def choose(
    ctx: Chooser, family: str, problem: str, candidates: Sequence[Schedule[T]], *nodes: Node, note: str = ""
) -> T:
    """The plan that the tuning names for (family, problem), else the one of least cycles (of equal ones the first).

    family: kebab-case, e.g. "winograd". problem: shapes and whatever else decides the candidates, as stable text, e.g.
    "1x1/1 56x56 64->256 f32 threads 1"; equal problems have equal candidates. nodes: whom it is for, where `ctx` is not
    the Lowering of one. note: for reports. Raises TuningError where the tuning names a schedule that is no candidate.
    """
    assert candidates, f"{family} {problem}: no candidates"
    ranked = sorted(candidates, key=lambda s: s.cycles)
    by_name = {s.name: s for s in ranked}
    assert len(by_name) == len(ranked), f"{family} {problem}: two schedules have one name"
    wanted = ctx.tuning.names.get((family, problem), ranked[0].name)
    if wanted not in by_name:
        raise TuningError(
            f"the tuning asks for a schedule that this version of c2c does not have: {wanted}",
            where=f"{family} {problem}",
            remedy="tune again with this version, or compile without the tuning",
        )
    origin = tuple(dict.fromkeys(name for n in nodes for name in n.origin))
    ctx.choices.append(Choice(family, problem, wanted, tuple((s.name, s.cycles) for s in ranked), origin, note))
    return by_name[wanted].plan
