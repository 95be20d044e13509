"""Innermost loops in assembly text, and what llvm-mca says of them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

CORES = ("cortex-a55", "cortex-a76", "cortex-x1", "apple-m1")
ITERATIONS = 100


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of an innermost loop with its branch; `fma`: vector multiply-adds among them."""

    kernel: str
    body: tuple[str, ...]

    @property
    def fma(self) -> int:
        return sum(line.startswith(("fmla", "fmls")) for line in self.body)


def loops(assembly: str, least: int = 8) -> list[Loop]:
    """Innermost loops with at least so many multiply-adds, that with most of them for each kernel."""
    found: dict[str, Loop] = {}
    kernel, lines, labels, inner = "", [], {}, -1  # type: str, list[str], dict[str, int], int
    for raw in assembly.splitlines():
        line = raw.split("//")[0].strip()
        if match := re.fullmatch(r"(\.?[\w.$]+):", line):
            if match[1].startswith(".L"):
                labels[match[1]] = len(lines)
            else:
                kernel, lines, labels, inner = match[1], [], {}, -1
        elif line and not line.startswith("."):
            lines.append(line.replace("\t", " "))
            target = re.search(r"(\.LBB\w+)$", line)
            begin = labels.get(target[1]) if target else None
            if begin is None:
                continue
            body = tuple(lines[begin:])
            if begin <= inner:  # it has a loop inside
                continue
            inner = begin
            loop = Loop(kernel, body)
            if loop.fma >= least and loop.fma > (found[kernel].fma if kernel in found else 0):
                found[kernel] = loop
    return list(found.values())


def analysed(mca: str, core: str, loop: Loop) -> float:
    """Cycles of one iteration on a core."""
    text = "\n".join(["loop:", *(re.sub(r"\.LBB\w+$", "loop", line) for line in loop.body)])
    command = [mca, "-mtriple=aarch64-linux-gnu", f"-mcpu={core}", f"-iterations={ITERATIONS}", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    cycles = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert cycles is not None
    return int(cycles[1]) / ITERATIONS
