"""Which kernel calls of a model for a graphics processor run on the host.

A call of one thread, or of few, may take a device longer than it takes the host with the way there and back. Where
calls run is a minimum cut of a network whose capacities are times: what each call takes on either side, and what
handing over takes for each value that calls of both sides touch. Inputs and outputs of the model lie on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from ..codegen.target import Target
from ..ir.graph import Graph, Value
from ..ir.loops import Barrier, For, Kernel
from ..ir.loops_visit import statements, uses_type
from ..ir.types import DType
from .loops.count import effort
from .lower.context import Call
from .minimum_cut import Network
from .views import View, locate

_DEVICE, _HOST = 0, 1
_NEVER = 1 << 50


@dataclass(frozen=True, slots=True)
class Times:
    """Nanoseconds that a call is expected to take; host: None where it has no form for a host. lacks: what the device
    has not that the call needs, so that it takes forever there."""

    device: float
    host: float | None
    lacks: str = ""


def expected(call: Call, kernels: Sequence[Kernel], target: Target) -> Times:
    """Of a call, whose `kernels` are what runs on the device."""
    pace = target.device
    assert pace is not None
    device = 0.0
    for kernel in kernels:
        found = effort(kernel)
        device += pace.launch + max(found.total * pace.operation, found.thread * pace.thread_operation)
    if call.once or not _is_for_host(call.kernel):
        return Times(device, None)
    lacks = next((lack for k in kernels if (lack := lacking(k, target))), "")
    return Times(_NEVER if lacks else device, effort(call.kernel).total * pace.host_operation, lacks)


def lacking(kernel: Kernel, target: Target) -> str:
    """What a device has not that a kernel needs; "" where it runs it."""
    device = target.device
    assert device is not None
    if not device.f64 and uses_type(kernel, DType.F64):
        return "64-bit floats"
    if device.tensors is not None and len(kernel.params) > device.tensors:
        return f"kernels of {len(kernel.params)} tensors"
    return ""


@dataclass(frozen=True, slots=True)
class Model:
    """What calls belong to: a graph, and which of its values lie inside others."""

    graph: Graph
    views: Mapping[Value, View]
    target: Target


def on_host(calls: Sequence[Call], times: Sequence[Times], model: Model) -> set[int]:
    """Numbers of the calls that run on the host; of equal times the device's."""
    device = model.target.device
    assert device is not None
    found = _Network(len(calls))
    for number, time in enumerate(times):
        found.side(number, time)
    for value, touched in _touched(calls, model.graph, model.views).items():
        cost = device.hand_over + value.type.nbytes * device.hand_over_byte
        found.together(touched, ceil(cost))
    return found.hosts()


def _is_for_host(kernel: Kernel) -> bool:
    """Whether a processor can run the kernel: one that is no grid's and shares nothing between threads."""
    return not any(isinstance(s, Barrier) or isinstance(s, For) and s.kind in ("grid", "thread")
                   for s in statements(kernel.body))  # fmt: skip


def _touched(calls: Sequence[Call], graph: Graph, views: Mapping[Value, View]) -> dict[Value, list[int]]:
    """Variables of the calls that touch each tensor that is no constant, the device's first where the app does."""
    borders = {locate(views, v).root for v in (*graph.inputs, *graph.outputs)}
    found: dict[Value, list[int]] = {}
    for number, call in enumerate(calls):
        for root in dict.fromkeys(locate(views, v).root for v in call.args):
            if not root.is_constant:
                found.setdefault(root, [_DEVICE] if root in borders else []).append(2 + number)
    return found


class _Network:
    """Variables 0 and 1 are the sides, then calls."""

    def __init__(self, count: int) -> None:
        self.calls = count
        self.count = 2 + count
        self.arcs: list[tuple[int, int, int]] = []

    def side(self, number: int, time: Times) -> None:
        self.arcs.append((_DEVICE, 2 + number, _NEVER if time.host is None else ceil(time.host)))
        self.arcs.append((2 + number, _HOST, ceil(time.device)))

    def together(self, touched: Sequence[int], cost: int) -> None:
        """Pay `cost` once where these are not all on one side."""
        if len(touched) < 2:
            return
        some_host, some_device = self.count, self.count + 1
        self.count += 2
        first, *others = touched
        self.arcs += [(first, some_host, cost), (some_device, first, cost)]
        for other in others:
            self.arcs += [(some_host, other, _NEVER), (other, some_device, _NEVER)]

    def hosts(self) -> set[int]:
        network = Network(self.count)
        for a, b, capacity in self.arcs:
            network.add(a, b, capacity)
        return {v - 2 for v in network.sink_side(_DEVICE, _HOST) if 2 <= v < 2 + self.calls}
