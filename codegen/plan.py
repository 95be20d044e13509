"""A program as the table that a graphics driver follows (`runtime_stub/c2c_plan.h`), and that table as C."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..ir.errors import CodegenError
from ..ir.loops_verify import stored_buffers
from ..ir.loops_visit import exchanges
from ..ir.program import Program, Slot, Step
from .devices import Device
from .host_steps import HostStep, Span, host_source, host_steps
from .launch import Launch, launch

PORTS = 3
"""Buffers of the driver's own: arena, weights, prepared."""
ELEMENT_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A kernel's number, (buffer, first element, bytes of one) of each parameter, the step whose results it needs, its
    ONNX node; host: what the host runs instead of a kernel."""

    kernel: int
    args: tuple[tuple[int, int, int], ...]
    after: int
    node: str
    host: HostStep | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """kernels: name and launch. steps: those that prepare first. spans: what host steps touch."""

    program: Program
    kernels: tuple[tuple[str, Launch], ...]
    steps: tuple[PlanStep, ...]
    spans: tuple[Span, ...]
    weights_crc32: int
    subgroup: int
    """Threads in lock-step that the kernels count on; 0: on none."""

    @property
    def ports(self) -> list[tuple[str, str, int]]:
        """Name, element type and bytes of inputs and outputs."""
        ports = (*self.program.inputs, *self.program.outputs)
        return [(p.name, str(p.dtype), prod(p.shape) * p.dtype.nbytes) for p in ports]


def make_plan(program: Program, device: Device) -> Plan:
    """The plan of a verified program; raises CodegenError where a place is beyond what 32 bits count."""
    on_device = program.kernels_of(host=False)
    numbers = {name: i for i, name in enumerate(on_device)}
    kernels = tuple((name, launch(k, device)) for name, k in on_device.items())
    steps = (*program.prepare, *program.steps)
    after = _dependencies(program, steps)
    hosts, spans = host_steps(program, steps, lambda slot: _buffer(program, slot))
    made = []
    for number, (s, needed) in enumerate(zip(steps, after, strict=True)):
        host, node = hosts.get(number), s.origin[-1] if s.origin else s.symbol
        kernel, args = (numbers[s.kernel], _args(program, s)) if host is None else (0, ())
        made.append(PlanStep(kernel, args, needed, node, host))
    subgroup = device.subgroup if any(exchanges(k) for k in on_device.values()) else 0
    return Plan(program, kernels, tuple(made), tuple(spans), zlib.crc32(bytes(program.weights)), subgroup)


def _buffer(program: Program, slot: Slot) -> int:
    own = {"arena": 0, "weights": 1, "prepared": 2, "input": PORTS, "output": PORTS + len(program.inputs)}
    return own[slot.base] + slot.index


def _args(program: Program, step: Step) -> tuple[tuple[int, int, int], ...]:
    found = []
    for slot, p in zip(step.args, program.kernels[step.kernel].params, strict=True):
        at = slot.offset // p.dtype.nbytes
        if at >= ELEMENT_LIMIT:
            raise CodegenError(f"{slot.base} has more elements than 32 bits count", where=f"step {step.symbol}")
        found.append((_buffer(program, slot), at, p.dtype.nbytes))
    return tuple(found)


def _dependencies(program: Program, steps: Sequence[Step]) -> list[int]:
    """For each step the last one before it that writes what it touches, or touches what it writes; -1 without."""
    history: list[tuple[int, int, int, bool, int]] = []
    found: list[int] = []
    for number, step in enumerate(steps):
        kernel = program.kernels[step.kernel]
        written = stored_buffers(kernel)
        spans = [
            (_buffer(program, slot), slot.offset, slot.offset + p.size * p.dtype.nbytes, p.name in written)
            for slot, p in zip(step.args, kernel.params, strict=True)
        ]
        needed = -1
        for buffer, begin, end, writes, by in reversed(history):
            if any(b == buffer and begin < stop and start < end and (writes or w) for b, start, stop, w in spans):
                needed = by
                break
        found.append(needed)
        history += [(*span, number) for span in spans]
    return found


def plan_header(plan: Plan, source: str) -> str:
    """`NAME_plan.h`: constants, to be included by one C file. `source`: the kernels' text, which it holds as well."""
    program, name = plan.program, plan.program.name
    args: list[str] = []
    steps: list[str] = []
    for step in plan.steps:
        args += [f"    {{{buffer}, {at}, {size}}}," for buffer, at, size in step.args]
        first = len(args) - len(step.args)
        host = step.host
        mapped = "NULL, 0, 0" if host is None else f"{host.function}, {host.first}, {host.count}"
        steps.append(f"    {{{step.kernel}, {first}, {len(step.args)}, {step.after}, {quoted(step.node)}, {mapped}}},")
    kernels = [
        f'    {{"{k}", {{{_three(la.threads)}}}, {{{_three(la.group)}}}}},' for k, la in plan.kernels
    ]  # fmt: skip
    spans = [f"    {{{s.buffer}, {s.access}, {s.begin}, {s.end - s.begin}}}," for s in plan.spans]
    ports = [f'    {{{quoted(n)}, "{dtype}", {size}}},' for n, dtype, size in plan.ports]
    lines = [
        f"/* {name}: kernels, buffers and order of a compiled network; {name}.c includes it. */",
        '#include "c2c_plan.h"',
        *([f'#include "{name}_host.h"'] if any(s.host is not None for s in plan.steps) else []),
        "",
        f"static const char *const {name}_source[] = {{",
        *(f"    {quoted(line)}" + ("," if i % 32 == 31 else "") for i, line in enumerate(source.splitlines(True))),
        "    , NULL" if len(source.splitlines()) % 32 else "    NULL",
        "};",
        "",
        *_array("c2c_plan_kernel", f"{name}_kernels", kernels),
        "/* arena 0, weights 1, prepared 2, then inputs and outputs; first element, bytes of one */",
        *_array("c2c_plan_arg", f"{name}_arguments", args),
        "/* what the host reads (1) or changes (3): buffer, first byte, bytes */",
        *_array("c2c_plan_span", f"{name}_spans", spans),
        *_array("c2c_plan_step", f"{name}_steps", steps),
        *_array("c2c_plan_port", f"{name}_ports", ports),
        f"static const c2c_plan {name}_plan = {{",
        f'    "{name}", {name}_source, {name}_kernels, {name}_arguments, {name}_steps, {name}_ports, {name}_spans,',
        f"    {len(plan.kernels)}, {len(plan.steps)}, {len(program.prepare)}, {len(program.inputs)}, "
        f"{len(program.outputs)},",
        f"    0x{plan.weights_crc32:08x}u, {program.arena_bytes}, {len(program.weights)}, {program.prepared_bytes},",
        f"    {plan.subgroup},",
        "};",
        "",
    ]
    return "\n".join(lines)


def host_header(plan: Plan) -> str | None:
    """`NAME_host.h`, or None where the host runs nothing."""
    steps = [s.host for s in plan.steps if s.host is not None]
    return host_source(plan.program, steps) if steps else None


def _array(type_: str, name: str, rows: list[str]) -> list[str]:
    """A constant table; C has no empty ones."""
    return [f"static const {type_} {name}[] = {{", *(rows or ["    {0}"]), "};", ""]


def _three(values: tuple[int, int, int]) -> str:
    return ", ".join(map(str, values))


_ESCAPES = {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def quoted(text: str) -> str:
    """A C string literal of any text, in UTF-8; no trigraphs."""
    made = "".join(
        _ESCAPES.get(c) or (c if 31 < ord(c) < 127 else "".join(f"\\{b:03o}" for b in c.encode())) for c in text
    )
    return f'"{made}"'.replace("??", '?""?')
