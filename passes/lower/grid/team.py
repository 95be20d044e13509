"""Threads of a work-group that work on one strip together: each takes every n-th element, and what they accumulated is
merged through shared memory, halves onto halves (Harris, Optimizing Parallel Reduction in CUDA, 2007)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from ....codegen.target import Target
from ....ir.loops import Expr, const
from ..context import KernelBuilder
from ..strided import coordinates

State = tuple[Expr, ...]

THREADS = 64
LONG = 2
"""Elements for each thread that make a strip worth a team."""


@dataclass(eq=False, slots=True)
class Team:
    """`threads` of a work-group, a power of two; `thread` is known inside the loops of `enter`."""

    threads: int
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

    def together(self, k: KernelBuilder, state: State, merge: Callable[[State, State], State]) -> State:
        """The states of all threads as one, the same for each of them; `merge` takes the lower threads' state first."""
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


def team_for(target: Target, size: int) -> Team | None:
    """A team for strips of `size` neighbouring elements; None where threads take turns or strips are short."""
    device = target.device
    if device is None or device.lanes > 1 or size < LONG * THREADS:
        return None
    return Team(min(THREADS, device.work_group))
