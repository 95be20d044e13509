"""Random kernels for tests of passes, text and emitters: valid, terminating, free of undefined behaviour.

Every operation is exact or correctly rounded, so that all emitters must agree bit by bit (but for the bits of a NaN),
unless `inexact` adds Fma and calls.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import loops as ir
from .loops import Expr, Kernel
from .loops_builder import Builder
from .program import Port, Program, Slot, Step
from .types import DType

FLOATS = (DType.F32, DType.F64, DType.F16, DType.BF16)
INTS = (DType.I8, DType.I16, DType.I32, DType.I64, DType.U8, DType.U16, DType.U32, DType.U64)
ALL = (*FLOATS, *INTS, DType.BOOL)
LANES = (1, 1, 2, 4, 8, 16)
ROWS, ROOM = 6, 512
"""Iterations of the outer loop; elements that each of them may write."""
GROUPS, TEAM = 1, (4, 32)
"""Work-groups and their threads, of kernels whose threads exchange values."""


class RandomKernel:
    """`kernel` with one input and one output of every type in `dtypes`, ROWS · ROOM elements each. `subgroup`: where it
    is more than 1, the rows are threads, of which so many exchange values."""

    def __init__(self, seed: int, dtypes: tuple[DType, ...] = ALL, inexact: bool = False, subgroup: int = 1):
        self.rng = np.random.default_rng(seed)
        self.dtypes, self.inexact, self.subgroup = dtypes, inexact, subgroup
        self.k = Builder()
        rows = ROWS if subgroup == 1 else GROUPS * TEAM[0] * TEAM[1]
        self.inputs = {d: self.k.param(f"x_{d}", d, rows * ROOM) for d in dtypes}
        self.outputs = {d: self.k.param(f"y_{d}", d, rows * ROOM) for d in dtypes}
        self.known: list[Expr] = []
        self.used = dict.fromkeys(dtypes, 0)
        self.divergent = 0
        for row in self.rows():
            self.row = row
            self.statements(row, depth=0)
        self.kernel: Kernel = self.k.kernel(f"random_{seed}")

    def rows(self) -> Iterator[Expr]:
        """The outer loop, or those of a grid."""
        if self.subgroup == 1:
            yield from self.k.parallel("row", ROWS) if self.rng.random() < 0.7 else self.k.loop("row", ROWS)
            return
        for group in self.k.loop("group", GROUPS, kind="grid"):
            for y in self.k.loop("ty", TEAM[0], kind="thread"):
                for x in self.k.loop("tx", TEAM[1], kind="thread"):
                    yield self.k.let((group * TEAM[0] + y) * TEAM[1] + x, "row")

    def pick(self, options: tuple[object, ...] | list[object]) -> object:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def dtype(self) -> DType:
        return self.dtypes[int(self.rng.integers(len(self.dtypes)))]

    def lanes(self) -> int:
        return LANES[int(self.rng.integers(len(LANES)))]

    # --- statements

    def statements(self, i: Expr, depth: int) -> None:
        """A few statements, `i` being the innermost loop variable."""
        known = list(self.known)
        for _ in range(int(self.rng.integers(2, 6))):
            choice = self.rng.random()
            if choice < 0.45:
                e = self.k.let(self.expr(self.dtype(), self.lanes(), 3), "v")
                if not isinstance(e, ir.Const):
                    self.known.append(e)
            elif choice < 0.6 and depth < 2:
                self.loop(depth)
            elif choice < 0.7 and depth < 2:
                self.branch(i, depth)
            elif choice < 0.8:
                self.registers()
            else:
                self.store()
        if self.subgroup > 1 and not self.divergent:
            self.exchange()
        self.store()
        self.known = known

    def loop(self, depth: int) -> None:
        kind: ir.ForKind = "unroll" if self.chance(0.4) else "serial"
        begin, count, step = (int(v) for v in self.rng.integers((0, 1, 1), (3, 4, 3)))
        for j in self.k.loop("j", begin + count, begin, step, kind):
            self.statements(j, depth + 1)

    def branch(self, i: Expr, depth: int) -> None:
        cond = i < int(self.rng.integers(0, 6)) if self.chance(0.5) else self.expr(DType.BOOL, 1, 1)
        self.divergent += 1
        for _ in self.k.when(cond):
            self.statements(i, depth + 1)
        for _ in self.k.otherwise() if self.chance(0.5) else ():
            self.statements(i, depth + 1)
        self.divergent -= 1

    def exchange(self) -> None:
        """A value of another thread, which is stored as it is."""
        dtype, mask = self.dtype(), int(self.rng.integers(1, self.subgroup))
        self.known.append(self.k.let(ir.subgroup_xor(self.expr(dtype, 1, 2), mask), "other"))
        if self.used[dtype] < ROOM:
            self.k.store(self.outputs[dtype], self.row * ROOM + self.used[dtype], self.known[-1])
            self.used[dtype] += 1

    def registers(self) -> None:
        """A register tile, written and read in unrolled loops."""
        dtype, lanes, count = self.dtype(), self.lanes(), int(self.rng.integers(1, 4))
        tile = self.k.registers("acc", dtype, count, lanes)
        for j in range(count):
            self.k.store(tile, j, self.expr(dtype, lanes, 1))
        for u in self.k.loop("u", count, kind="unroll"):
            if dtype is not DType.BOOL:
                self.k.store(tile, u, ir.maximum(self.k.load(tile, u), self.expr(dtype, lanes, 1)))
        self.known.append(self.k.let(self.k.load(tile, int(self.rng.integers(count))), "r"))

    def store(self) -> None:
        """A store into the part of the output that belongs to this row."""
        dtype, lanes = self.dtype(), self.lanes()
        stride = int(self.rng.integers(1, 4)) if lanes > 1 and self.chance(0.3) else 1
        if self.used[dtype] + lanes * stride > ROOM:
            return
        at = self.row * ROOM + self.used[dtype]
        self.used[dtype] += lanes * stride
        self.k.store(self.outputs[dtype], at if stride == 1 else ir.ramp(at, stride, lanes), self.expr(dtype, lanes, 3))

    # --- expressions

    def expr(self, dtype: DType, lanes: int, depth: int) -> Expr:
        """A random value of a type."""
        same = [e for e in self.known if e.dtype is dtype and e.lanes == lanes]
        if same and self.chance(0.3):
            return same[int(self.rng.integers(len(same)))]
        if depth <= 0:
            return self.leaf(dtype, lanes)
        choice = self.rng.random()
        if choice < 0.15:
            return self.cast(dtype, lanes, depth)
        if choice < 0.25 and lanes <= 16:
            return self.mixed(dtype, lanes, depth)
        if choice < 0.33:
            cond = self.expr(DType.BOOL, lanes, depth - 1)
            return ir.select(cond, self.expr(dtype, lanes, depth - 1), self.expr(dtype, lanes, depth - 1))
        if dtype is DType.BOOL:
            return self.boolean(lanes, depth)
        return self.floating(dtype, lanes, depth) if dtype.is_float else self.integer(dtype, lanes, depth)

    def leaf(self, dtype: DType, lanes: int) -> Expr:
        if dtype is DType.I64 and lanes == 1 and self.chance(0.3):
            return self.row
        if self.chance(0.25):
            value = float(self.rng.normal()) if dtype.is_float else int(self.rng.integers(0, 2))
            return ir.const(bool(value) if dtype is DType.BOOL else value, dtype, lanes)
        buffer = self.inputs[dtype]
        at = self.row * ROOM + int(self.rng.integers(ROOM - 4 * lanes))
        if lanes > 1 and self.chance(0.3):
            gathered = ir.ramp(at, int(self.rng.integers(0, 4)), lanes)
            return self.k.load(buffer, gathered, lanes)
        return self.k.load(buffer, at, lanes)

    def cast(self, dtype: DType, lanes: int, depth: int) -> Expr:
        """A conversion that is defined and rounds once, or a bitcast of loaded bits."""
        source = self.dtype()
        if source.bits == dtype.bits and DType.BOOL not in (source, dtype) and self.chance(0.5):
            a = self.leaf(source, lanes)
            return ir.bitcast(a, dtype) if not isinstance(a, ir.Const) else self.leaf(dtype, lanes)
        a = self.expr(source, lanes, depth - 1)
        small = (DType.F16, DType.BF16)
        if source.is_float and dtype.is_int:
            low, high = (0.0, 200.0) if dtype.is_unsigned else (-120.0, 120.0)
            return ir.cast(ir.minimum(ir.maximum(a, low), high) if dtype.bits > 8 or low == 0 else
                           ir.minimum(ir.maximum(a, -100.0), 100.0), dtype)  # fmt: skip
        if dtype in small and source not in (DType.F32, DType.BOOL, dtype):
            a = ir.cast(a, DType.F32)
        return ir.cast(a, dtype)

    def mixed(self, dtype: DType, lanes: int, depth: int) -> Expr:
        """What moves values between lanes."""
        if lanes == 1:
            wide = int(self.rng.choice([2, 4, 8]))
            a = self.expr(dtype, wide, depth - 1)
            if dtype is DType.BOOL or self.chance(0.5):
                return ir.lane(a, int(self.rng.integers(wide)))
            return ir.reduce(str(self.rng.choice(["add", "min", "max"])), a)
        if self.chance(0.4):
            return ir.broadcast(self.expr(dtype, 1, depth - 1), lanes)
        if dtype is not DType.BOOL and self.chance(0.3):
            index = str(self.rng.choice(["i", "u"])) + str(dtype.bits)
            table = self.expr(dtype, int(self.rng.choice([2, 8, 16])), depth - 1)
            return ir.lookup(table, self.expr(DType(index), lanes, depth - 1))
        if dtype.is_int and lanes >= 8 and self.chance(0.2):
            bits = max(int(self.rng.choice([8, 16, 32])), lanes * dtype.bits // 64)
            return ir.bitcast(self.leaf(DType(f"u{bits}"), lanes * dtype.bits // bits), dtype)
        wide = int(self.rng.choice([2, 4, 8]))
        a = self.expr(dtype, wide, depth - 1)
        b = self.expr(dtype, wide, depth - 1) if self.chance(0.5) else None
        order = self.rng.integers(0, wide * (1 if b is None else 2), lanes)
        return ir.shuffle(a, b, tuple(int(i) for i in order))

    def boolean(self, lanes: int, depth: int) -> Expr:
        if self.chance(0.3):
            a, b = self.expr(DType.BOOL, lanes, depth - 1), self.expr(DType.BOOL, lanes, depth - 1)
            return ir.binary(str(self.rng.choice(["and", "or", "xor"])), a, b)
        if self.chance(0.2):
            return ~self.expr(DType.BOOL, lanes, depth - 1)
        d = self.dtype()
        a, b = self.expr(d, lanes, depth - 1), self.expr(d, lanes, depth - 1)
        return ir.binary(str(self.rng.choice(ir.COMPARE)), a, b)

    def floating(self, dtype: DType, lanes: int, depth: int) -> Expr:
        if self.chance(0.25):
            op = str(self.rng.choice(["neg", "abs", "sqrt", "floor", "ceil", "round", "trunc"]))
            return ir.unary(op, self.expr(dtype, lanes, depth - 1))
        a, b = self.expr(dtype, lanes, depth - 1), self.expr(dtype, lanes, depth - 1)
        if self.inexact and self.chance(0.3):
            return ir.fma(a, b, self.expr(dtype, lanes, depth - 1))
        if self.inexact and dtype in (DType.F32, DType.F64) and self.chance(0.2):
            return ir.call(str(self.rng.choice(["sin", "cos", "tanh", "erf", "atan"])), a)
        return ir.binary(str(self.rng.choice(["add", "sub", "mul", "div", "min", "max"])), a, b)

    def integer(self, dtype: DType, lanes: int, depth: int) -> Expr:
        a = self.expr(dtype, lanes, depth - 1)
        choice = self.rng.random()
        if choice < 0.15:
            return ir.unary(str(self.rng.choice(["neg", "not", *(["abs"] if dtype.is_signed else [])])), a)
        if choice < 0.3:
            by = ir.const(int(self.rng.integers(dtype.bits)), dtype, lanes)
            return ir.binary(str(self.rng.choice(["shl", "shr"])), a, by)
        if dtype is DType.I32 and choice < 0.4 and lanes <= 16:
            return self.dots(a, depth)
        b = self.expr(dtype, lanes, depth - 1)
        if choice < 0.5:  # divisors 1 to 8
            divisor = (b & ir.const(7, dtype, lanes)) + 1
            return ir.binary(str(self.rng.choice(["div", "mod"])), a, divisor)
        return ir.binary(str(self.rng.choice(["add", "sub", "mul", "min", "max", "and", "or", "xor"])), a, b)

    def dots(self, c: Expr, depth: int) -> Expr:
        """Groups of 1, 2 or 4 products of small integers."""
        group = int(self.rng.choice([1, 2, 4]))
        small = [DType.I8, DType.U8, DType.I16, DType.U16]
        types = [small[int(i)] for i in self.rng.integers(0, 4, 2)] if self.chance(0.5) else [DType.I16, DType.I16]
        a, b = (self.expr(t, c.lanes * group, depth - 1) for t in types)
        return ir.dot(a, b, c)


def random_memory(kernel: Kernel, seed: int) -> list[np.ndarray]:
    """Arguments for a kernel: all parameters filled with moderate random values."""
    rng = np.random.default_rng(seed)
    result = []
    for p in kernel.params:
        if p.dtype is DType.BOOL:
            result.append(rng.random(p.size) < 0.5)
        elif p.dtype.is_float:
            result.append((rng.normal(size=p.size) * np.exp(rng.normal(size=p.size))).astype(p.dtype.numpy))
        else:
            low, high = (-(1 << min(p.dtype.bits - 1, 62)), 1 << min(p.dtype.bits - 1, 62))
            wide = rng.integers(low, high, p.size)
            small = rng.random(p.size) < 0.5
            result.append(np.where(small, wide % 11, wide).astype(p.dtype.numpy))
    return result


def random_program(
    seeds: range, inexact: bool = False, threads: int = 2, dtypes: tuple[DType, ...] = ALL, subgroup: int = 1
) -> Program:
    """One step a random kernel: all read the same inputs, each writes its own outputs."""
    kernels = [RandomKernel(s, dtypes, inexact, subgroup).kernel for s in seeds]
    ins = [p for p in kernels[0].params if p.name.startswith("x_")]
    outs = [(n, p) for n, k in enumerate(kernels) for p in k.params if p.name.startswith("y_")]
    steps = []
    for n, k in enumerate(kernels):
        mine = {p.name: i for i, (m, p) in enumerate(outs) if m == n}
        args = [Slot("output", 0, mine[p.name]) if p.name in mine else Slot("input", 0, ins.index(p)) for p in k.params]
        steps.append(Step(k.name, tuple(args), f"step_{k.name}", (k.name,)))
    return Program(
        "fuzz",
        tuple(Port(p.name, p.dtype, (p.size,)) for p in ins),
        tuple(Port(f"{p.name}_{n}", p.dtype, (p.size,)) for n, p in outs),
        {k.name: k for k in kernels},
        tuple(steps),
        0,
        bytearray(),
        threads,
    )


def random_inputs(program: Program, seed: int) -> list[np.ndarray]:
    """Arrays for the inputs of a random program."""
    buffers = tuple(ir.Buffer(p.name, p.dtype, p.shape[0]) for p in program.inputs)
    return random_memory(Kernel("inputs", buffers, ir.Block()), seed)
