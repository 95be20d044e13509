"""Kernel calls for a grid of threads: a call's kernel becomes as many kernels as its loops need (`loops/spread.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .loops.simplify import simplify
from .loops.spread import spread
from .lower.context import Call


def on_grid(calls: Sequence[Call]) -> list[Call]:
    """The calls in order, with kernels whose loops are a grid's."""
    made: list[Call] = []
    for call in calls:
        kernels = spread(simplify(call.kernel))
        places = {p.name: value for p, value in zip(call.kernel.params, call.args, strict=True)}
        for kernel in kernels:
            args = tuple(places[p.name] for p in kernel.params)
            made.append(replace(call, kernel=kernel, args=args, over=call.over if len(kernels) == 1 else ()))
    return made
