"""How a kernel is spread over work-groups: read off its grid and thread loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ..ir.loops import Block, Const, For, Kernel
from .devices import Device

GROUP = 64
"""Threads of a work-group of kernels that share no memory: a multiple of what processors run in lock-step."""

GROUPS_ALONG = 65535
"""Work-groups along the second and third dimension that CUDA launches at most; where there are more, all lie along the
first."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Threads in all and in a work-group, by dimension, the fastest first; three dimensions."""

    threads: tuple[int, int, int]
    group: tuple[int, int, int]

    @property
    def groups(self) -> int:
        """Work-groups in all."""
        return prod(t // g for t, g in zip(self.threads, self.group, strict=True))


@dataclass(frozen=True, slots=True)
class Nest:
    """A kernel's grid and thread loops, outermost first, what stands between them, and what a thread does."""

    grid: tuple[For, ...]
    between: Block
    threads: tuple[For, ...]
    body: Block


def nest(kernel: Kernel) -> Nest:
    """The loops that a grid replaces; verified kernels have at most three of each kind."""
    grid, block = _peel(kernel.body, "grid")
    *between, last = block.body or (None,)
    if isinstance(last, For) and last.kind == "thread":
        threads, body = _peel(Block((last,)), "thread")
        return Nest(tuple(grid), Block(tuple(between)), tuple(threads), body)
    return Nest(tuple(grid), Block(), (), block)


def _peel(block: Block, kind: str) -> tuple[list[For], Block]:
    loops: list[For] = []
    while len(block.body) == 1 and isinstance(block.body[0], For) and block.body[0].kind == kind:
        loops.append(block.body[0])
        block = block.body[0].body
    return loops, block


def count(loop: For) -> int:
    """Iterations of a grid or thread loop."""
    assert isinstance(loop.end, Const)
    return int(loop.end.value)


def launch(kernel: Kernel, device: Device) -> Launch:
    """The kernel's threads; dimensions without a group of their own are rounded up to whole groups."""
    found = nest(kernel)
    grid = _three([count(loop) for loop in found.grid])
    if found.threads:
        group = _three([count(loop) for loop in found.threads])
        return Launch(_zip_three(grid, group, lambda n, g: n * g), group)
    left, sizes = min(GROUP, device.work_group), []
    for n in grid:
        size = min(left, 1 << (n - 1).bit_length())
        sizes.append(size)
        left //= size
    group = _three(sizes[::-1])
    return Launch(_zip_three(grid, group, lambda n, g: -(-n // g) * g), group)


def _three(outermost_first: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = [*reversed(outermost_first), 1, 1, 1][:3]
    return x, y, z


def _zip_three(a: tuple[int, int, int], b: tuple[int, int, int], f: Callable[[int, int], int]) -> tuple[int, int, int]:
    x, y, z = (f(i, j) for i, j in zip(a, b, strict=True))
    return x, y, z
