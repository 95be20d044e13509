"""A step of a recurrence: products of its states with recurrent weights, and what units make of the sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ...ir.loops import Expr
from .context import KernelBuilder
from .grid.team import Team
from .recurrence import Memory, Sequence

Gates: TypeAlias = list[Expr]


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of a few rows of the batch in one direction; `odd`: 1 in every other one, which reads the state `old`
    elements from its beginning and writes it `new` elements from there. inputs: of each row, where the inputs' part
    lies. active: whether the sequence still has the step; None where all have."""

    k: KernelBuilder
    direction: int
    batch: tuple[Expr, ...]
    old: Expr
    new: Expr
    inputs: tuple[Expr, ...]
    odd: Expr
    team: Team | None = None
    active: Expr | None = None

    def together(self) -> None:
        """What a team has written is there for all of it."""
        if self.team is not None:
            self.k.barrier()

    def blocks(self, count: int) -> Iterator[Expr]:
        """Blocks of units, in odd steps from the last one on: weights that a step read last are near for the next. Of a
        team those of the thread."""
        if self.team is not None:
            for _ in self.while_active():
                yield from self.team.along(self.k, count)
            return
        for block in self.k.loop("block", count):
            yield self.k.let(block + self.odd * (count - 1 - block * 2), "unit") if count > 1 else block

    def while_active(self) -> Iterator[None]:
        """What is left out where threads that come to all barriers are beyond the end of their sequence."""
        return iter((None,)) if self.active is None else self.k.when(self.active)


@dataclass(frozen=True, slots=True)
class Phase:
    """The product of a state with the weights of `gates`, and what a row's block of units makes of its sums.

    memory: the state, `hidden`, and the weights. update: (moment, row of its batch, block, sums of the gates). begin:
    where the last gate's sums begin instead of the inputs' part. once: the state has no other half that is old. sums:
    another product, of a moment and then of a block, a list a row.
    """

    memory: Memory
    gates: range
    update: Callable[[Moment, int, Expr, Gates], None]
    begin: Callable[[Moment, Expr], Expr] | None = None
    once: bool = False
    sums: Callable[[Moment], Callable[[Expr], list[Gates]]] | None = None


def input_part(seq: Sequence, memory: Memory, now: Moment, row: Expr, gate: int, block: Expr) -> Expr:
    """The input's part of a gate for a block of units."""
    return now.k.load(now.k.tensor(memory.inputs), row + block * seq.lanes + gate * seq.hidden, seq.lanes)


def beginnings(seq: Sequence, phase: Phase, now: Moment, row: int, block: Expr) -> Gates:
    """Where a row's sums of a block of units begin."""
    last = None if phase.begin is None else phase.begin(now, block)
    found = [
        input_part(seq, phase.memory, now, now.inputs[row], gate, block)
        for gate in (phase.gates if last is None else phase.gates[:-1])
    ]
    return found if last is None else [*found, last]
