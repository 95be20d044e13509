"""What the host runs of a graphics processor's model, as C99: kernels and, for each step, a function of mapped memory.

Host steps that follow each other share spans: their memory is mapped before the first and given back after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.loops_verify import stored_buffers
from ..ir.program import Program, Slot, Step
from .c_expressions import Operators
from .c_source import call_text
from .c_style import CStyle

READ, WRITE = 1, 2

Buffers = Callable[[Slot], int]


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [begin, end) of one of the plan's buffers; access: READ, or READ | WRITE."""

    buffer: int
    begin: int
    end: int
    access: int


@dataclass(frozen=True, slots=True)
class HostStep:
    """A step's function, and the spans whose addresses it is called with: `count` from number `first`."""

    function: str
    first: int
    count: int
    text: str


def host_steps(program: Program, steps: Sequence[Step], buffer: Buffers) -> tuple[dict[int, HostStep], list[Span]]:
    """The host steps of `steps` by their number, and all their spans."""
    spans: list[Span] = []
    found: dict[int, HostStep] = {}
    for first, count in _runs(steps):
        mine = _merged([s for step in steps[first : first + count] for s in _spans(program, step, buffer)])
        for number in range(first, first + count):
            name = f"{program.name}_host_{number}"
            text = _function(program, steps[number], name, mine, buffer)
            found[number] = HostStep(name, len(spans), len(mine), text)
        spans += mine
    return found, spans


def host_source(program: Program, steps: Sequence[HostStep]) -> str:
    """`NAME_host.h`: static functions, to be included by one C file."""
    operators = Operators()
    kernels = [CStyle(k, operators).text() for k in program.kernels_of(host=True).values()]
    head = f"/* {program.name}: what the host runs of a compiled network; {program.name}_plan.h includes it. */\n"
    includes = "#include <math.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n"
    return "\n".join([head + includes, *operators.helpers.values(), *kernels, *(s.text for s in steps)])


def _runs(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """First and count of host steps that follow each other."""
    found: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        if not step.host:
            continue
        if found and sum(found[-1]) == number:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((number, 1))
    return found


def _spans(program: Program, step: Step, buffer: Buffers) -> list[Span]:
    """What a step touches; parameters without elements lie nowhere."""
    kernel = program.kernels[step.kernel]
    written = stored_buffers(kernel)
    return [
        Span(buffer(slot), slot.offset, slot.offset + p.size * p.dtype.nbytes, READ | WRITE * (p.name in written))
        for slot, p in zip(step.args, kernel.params, strict=True)
        if p.size
    ]


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Spans that share bytes as one."""
    found: list[Span] = []
    for s in sorted(spans, key=lambda s: (s.buffer, s.begin)):
        last = found[-1] if found else None
        if last is not None and last.buffer == s.buffer and s.begin < last.end:
            found[-1] = Span(s.buffer, last.begin, max(last.end, s.end), last.access | s.access)
        else:
            found.append(s)
    return found


def _function(program: Program, step: Step, name: str, spans: Sequence[Span], buffer: Buffers) -> str:
    def address(slot: Slot) -> str:
        for number, s in enumerate(spans):
            if s.buffer == buffer(slot) and s.begin <= slot.offset < s.end:
                return f"(spans[{number}] + {slot.offset - s.begin})" if slot.offset > s.begin else f"spans[{number}]"
        return "NULL"

    unused = [] if spans else ["    (void)spans;"]
    call = call_text(program, step, address, "0, {count}, 0")
    return "\n".join([f"static void {name}(char *const *spans)", "{", *unused, f"    {call}", "}", ""])
