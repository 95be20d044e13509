"""Threads of a work-group that work on one strip together: each takes every n-th element, and what they accumulated is
merged by exchanges within subgroups, pairs of ever more threads (Luitjens, Faster Parallel Reductions on Kepler, 2014),
or without them through shared memory, halves onto halves (Harris, Optimizing Parallel Reduction in CUDA, 2007)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from ....codegen.target import Target
from ....ir.loops import Expr, const, select, subgroup_xor
from ..context import KernelBuilder
from ..strided import coordinates

State = tuple[Expr, ...]
Merge = Callable[[State, State], State]
"""Of two threads' states, the lower thread's first."""

THREADS = 64
LONG = 2
"""Elements for each thread that make a strip worth a team."""


@dataclass(eq=False, slots=True)
class Team:
    """`threads` of a work-group, a power of two, of which `subgroup` exchange values; `thread` is known inside the
    loops of `enter`."""

    threads: int
    subgroup: int = 1
    thread: Expr = field(default_factory=lambda: const(0))

    def enter(self, k: KernelBuilder, sizes: Sequence[int]) -> Iterator[tuple[Expr, ...]]:
        """Coordinates over `sizes`, one work-group each."""
        for i in k.loop("strip", prod(sizes), kind="grid"):
            for t in k.loop("thread", self.threads, kind="thread"):
                self.thread = t
                yield coordinates(k, i, sizes)

    def along(self, k: KernelBuilder, size: int) -> Iterator[Expr]:
        """The thread's positions of a row."""
        yield from k.loop("j", size, self.thread, self.threads)

    def together(self, k: KernelBuilder, state: State, merge: Merge) -> State:
        """The states of all threads as one, the same for each of them."""
        if self.subgroup == 1:
            return self._by_halves(k, state, merge)
        within = min(self.subgroup, self.threads)
        state = merge_across(k, state, self.thread, within, merge)
        return state if within == self.threads else self._by_subgroups(k, state, merge)

    def _by_subgroups(self, k: KernelBuilder, state: State, merge: Merge) -> State:
        """Subgroups' states through shared memory; every thread merges them all."""
        count = self.threads // self.subgroup
        shared = [k.alloc("shared", x.dtype, count, "shared") for x in state]
        for _ in k.when(self.thread % self.subgroup < 1):
            for buffer, x in zip(shared, state, strict=True):
                k.store(buffer, self.thread / self.subgroup, x)
        k.barrier()
        states = [tuple(k.let(k.load(b, i)) for b in shared) for i in range(count)]
        while len(states) > 1:
            pairs = [merge(low, high) for low, high in zip(states[::2], states[1::2], strict=True)]
            states = [tuple(k.let(x) for x in s) for s in pairs]
        return states[0]

    def _by_halves(self, k: KernelBuilder, state: State, merge: Merge) -> State:
        shared = [k.alloc("shared", x.dtype, self.threads, "shared") for x in state]
        for buffer, x in zip(shared, state, strict=True):
            k.store(buffer, self.thread, x)
        k.barrier()
        half = self.threads // 2
        while half:
            for _ in k.when(self.thread < half):
                low, high = (
                    tuple(k.let(k.load(b, self.thread + at)) for b in shared) for at in (0, half)
                )  # fmt: skip
                for buffer, x in zip(shared, merge(low, high), strict=True):
                    k.store(buffer, self.thread, x)
            k.barrier()
            half //= 2
        return tuple(k.let(k.load(b, 0)) for b in shared)


def merge_across(k: KernelBuilder, state: State, thread: Expr, threads: int, merge: Merge) -> State:
    """The states of neighbours, `threads` of them (a power of two), as one: the same for each, since each merges the
    same pairs in the same order."""
    state, mask = tuple(k.let(x) for x in state), 1
    while mask < threads:
        other = [k.let(subgroup_xor(x, mask), "other") for x in state]
        lower = k.let(thread / mask % 2 < 1, "lower")
        pairs = [(select(lower, x, y), select(lower, y, x)) for x, y in zip(state, other, strict=True)]
        low, high = (tuple(k.let(pair[i]) for pair in pairs) for i in (0, 1))
        state, mask = tuple(k.let(x) for x in merge(low, high)), mask * 2
    return state


def team_for(target: Target, size: int) -> Team | None:
    """A team for strips of `size` neighbouring elements; None where threads take turns or strips are short."""
    device = target.device
    if device is None or device.lanes > 1 or size < LONG * THREADS:
        return None
    return Team(min(THREADS, device.work_group), device.exchange)
