"""What products on a grid should move from and to global memory by their tiles, and what Oclgrind counts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from c2c.codegen.launch import count, launch
from c2c.compiler.bundle import write_bundle
from c2c.compiler.driver import Compiled
from c2c.ir.graph import Node, Value
from c2c.ir.loops import Block, For, Kernel, Let, const
from c2c.ir.program import Step
from c2c.passes.lower.context import unfold
from c2c.passes.lower.grid.rows import COLUMNS

from .oclgrind import global_bytes, simulate


@dataclass(frozen=True)
class Traffic:
    """A product of [m, depth] and [depth, n], `batch` times, in tiles. heights: of images read and written. least:
    bytes that its tiles need."""

    node: str
    kernel: str
    batch: int
    m: int
    n: int
    depth: int
    rows: int
    columns: int
    operands: int
    heights: frozenset[int]

    @property
    def problem(self) -> str:
        return f"{self.m}x{self.n}x{self.depth}"

    @property
    def tile(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def least(self) -> int:
        """Each tile its rows and columns of the factors; each result, and each element of it that the tail reads."""
        factors = -(-self.n // self.columns) * self.m + -(-self.m // self.rows) * self.n
        return 4 * self.batch * (factors * self.depth + self.m * self.n * (1 + self.operands))


def tiles_of(compiled: Compiled) -> list[Traffic]:
    """Convolutions and products of a model, those that share a kernel once."""
    found: dict[str, Traffic] = {}
    for call, step in zip(compiled.calls, compiled.program.steps, strict=True):
        body = unfold(call.node) if call.node.op == "c2c.Fused" else [call.node]
        anchor = next((n for n in body if n.op in ("Conv", "Gemm", "MatMul", "c2c.MatMul")), None)
        if anchor is not None and not step.kernel.endswith("planes"):
            found.setdefault(step.kernel, _traffic(call.node, anchor, step, body, [c.name for c in call.choices]))
    return list(found.values())


def _traffic(node: Node, anchor: Node, step: Step, body: list[Node], choices: list[str]) -> Traffic:
    x, w, y = anchor.inputs[0], anchor.inputs[1], anchor.output
    assert x is not None and w is not None
    if anchor.op == "Conv":
        m, depth = w.type.dims[0], prod(w.type.dims[1:])
        batch, n = 1, y.type.dims[0] * prod(y.type.dims[2:])
        heights = frozenset((x.type.dims[2], y.type.dims[2]))
    else:
        *outer, m, n = y.type.dims
        batch, depth, heights = prod(outer), prod(w.type.dims[-2:]) // n, frozenset()
    tile = next((t for c in choices if (t := re.match(r"tile=(\d+)x(\d+)", c))), None)
    rows, columns = (int(tile[1]), int(tile[2])) if tile else (1, COLUMNS)
    tail: list[Value] = [v for b in body for v in b.inputs if v is not None and v not in (x, w)]
    operands = sum(v.type.size == y.type.size and all(v is not b.output for b in body) for v in tail)
    return Traffic(node.origin[-1], step.kernel, batch, m, n, depth, rows, columns, operands, heights)


def sampled(compiled: Compiled, nodes: list[Traffic], folder: Path) -> dict[str, int]:
    """Bytes by kernel, of which one work-group runs: all of them move as many."""
    program, options = compiled.program, compiled.options
    device = options.target.device
    assert device is not None
    first = {s.kernel: s for s in reversed(program.steps)}
    small = replace(
        program,
        kernels={t.kernel: _one_group(program.kernels[t.kernel]) for t in nodes},
        steps=tuple(first[t.kernel] for t in nodes),
    )
    write_bundle(small, options, folder)
    counted = global_bytes(simulate(folder, program.name, timeout=3000, INST_COUNTS="1"))
    return {t.kernel: counted[t.kernel] * launch(program.kernels[t.kernel], device).groups for t in nodes}


def _one_group(kernel: Kernel) -> Kernel:
    """The kernel of the work-group in the middle, away from the edges of images."""

    def once(block: Block, chosen: tuple[Let, ...]) -> Block:
        (stmt,) = block.body if len(block.body) == 1 else (None,)
        if not isinstance(stmt, For) or stmt.kind != "grid":
            return Block((*chosen, *block.body))
        chosen = (*chosen, Let(stmt.var, const(count(stmt) // 2)))
        return Block((replace(stmt, var=f"{stmt.var}_one", end=const(1), body=once(stmt.body, chosen)),))

    return replace(kernel, body=once(kernel.body, ()))
