"""Kernel calls for a graphics processor: a call's kernel becomes as many kernels as its loops need (`loops/spread.py`),
or runs on the host as it is (`host_steps.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.loops import Kernel
from .host_steps import Model, Times, expected, on_host
from .loops import optimise_kernel
from .loops.simplify import simplify
from .loops.spread import spread
from .lower.context import Call
from .lower.schedule import Choice


def on_grid(calls: Sequence[Call], model: Model | None = None) -> list[Call]:
    """The calls in order, with kernels whose loops are a grid's; or, of a `model`, as they are and marked as the host's
    where that is faster."""
    made_of = {id(call.kernel): spread(simplify(call.kernel)) for call in {id(c.kernel): c for c in calls}.values()}
    kernels = [made_of[id(call.kernel)] for call in calls]
    hosts: dict[int, Times] = {}
    if model is not None:
        times = [expected(c, k, model.target) for c, k in zip(calls, kernels, strict=True)]
        hosts = {number: times[number] for number in on_host(calls, times, model)}
    made: list[Call] = []
    for number, (call, spreads) in enumerate(zip(calls, kernels, strict=True)):
        made += [_hosted(call, hosts[number])] if number in hosts else _launched(call, spreads)
    return made


def _launched(call: Call, kernels: Sequence[Kernel]) -> list[Call]:
    places = {p.name: value for p, value in zip(call.kernel.params, call.args, strict=True)}
    over = call.over if len(kernels) == 1 else ()
    return [replace(call, kernel=k, args=tuple(places[p.name] for p in k.params), over=over) for k in kernels]


def _hosted(call: Call, time: Times) -> Call:
    assert time.host is not None
    times = f"{time.device / max(time.host, 1):.1f}x as fast as on the device by estimate"
    note = f"the device has no {time.lacks}" if time.lacks else times
    choice = Choice("side", call.kernel.name, "host", (("host", time.host),), call.node.origin, note)
    return replace(call, kernel=optimise_kernel(call.kernel), host=True, choices=(*call.choices, choice))
