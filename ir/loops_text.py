"""Text of loop IR: prints kernels and programs; `loops_parse` reads them back exactly. docs/loop-ir.md has the grammar.

Weights are not part of the text: it holds their size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct

from .loops import (
    Alloc,
    Binary,
    Bitcast,
    Block,
    Broadcast,
    Buffer,
    Call,
    Cast,
    Const,
    Dot,
    Expr,
    Fma,
    For,
    If,
    Kernel,
    Let,
    Load,
    Lookup,
    MatrixLoad,
    MatrixMultiply,
    MatrixStore,
    OnMatrices,
    Prefetch,
    Ramp,
    Reduce,
    Select,
    Shuffle,
    Stmt,
    Store,
    SubgroupXor,
    Unary,
    Var,
)
from .program import Port, Program, Slot, Step
from .types import DType

INFIX = {
    "eq": ("==", 1), "ne": ("!=", 1), "lt": ("<", 1), "le": ("<=", 1), "gt": (">", 1), "ge": (">=", 1), "or": ("|", 2),
    "xor": ("^", 3), "and": ("&", 4), "shl": ("<<", 5), "shr": (">>", 5), "add": ("+", 6), "sub": ("-", 6),
    "mul": ("*", 7), "div": ("/", 7), "mod": ("%", 7),
}  # fmt: skip
"""Sign and precedence of binary operations; the others are written as functions. All associate to the left."""

_ATOM = 8


def type_text(dtype: DType, lanes: int) -> str:
    """f32, or f32x8 for a vector."""
    return f"{dtype}x{lanes}" if lanes > 1 else str(dtype)


def print_program(program: Program) -> str:
    """The whole program; `loops_parse.parse_program` of it, with the weights, gives an equal one."""
    digest = hashlib.sha256(program.weights).hexdigest()
    prepared = f" prepared {program.prepared_bytes}" if program.prepared_bytes else ""
    lines = [f"program {json.dumps(program.name)} threads {program.threads} arena {program.arena_bytes}{prepared}"]
    if program.weights:
        lines.append(f"weights @{program.name}.weights {len(program.weights)} sha256:{digest}")
    lines += [f"input {_port(p)}" for p in program.inputs]
    lines += [f"output {_port(p)}" for p in program.outputs]
    lines += [f"note {json.dumps(k)} {json.dumps(v)}" for k, v in program.notes.items()]
    for kernel in program.kernels.values():
        lines += ["", print_kernel(kernel).rstrip("\n")]
    lines += [
        "",
        *(_step("prepare", s) for s in program.prepare),
        *(_step("host" if s.host else "step", s) for s in program.steps),
    ]
    return "\n".join(lines) + "\n"


def _port(p: Port) -> str:
    labels = f" labels [{', '.join(map(json.dumps, p.labels))}]" if p.labels else ""
    counted = "" if p.counted is None else f" counted {p.counted.axis} {json.dumps(p.counted.count)}"
    return f"{json.dumps(p.name)} {p.dtype}[{', '.join(map(str, p.shape))}]{labels}{counted}"


def _step(kind: str, s: Step) -> str:
    origin = f" of {', '.join(json.dumps(o) for o in s.origin)}" if s.origin else ""
    return f"{kind} {s.symbol} = {s.kernel}({', '.join(_slot(a) for a in s.args)}){origin}"


def _slot(s: Slot) -> str:
    base = f"{s.base} {s.index}" if s.base in ("input", "output") or s.index else s.base
    return f"{base} + {s.offset}" if s.offset else base


def print_kernel(kernel: Kernel) -> str:
    """One kernel, ending in a newline."""
    params = ", ".join(buffer_text(p) for p in kernel.params)
    flags = ("" if kernel.shaped else " unshaped") + (" inplace" if kernel.inplace else "")
    lines = [f"kernel {kernel.name}({params}){flags} {{"]
    _block(kernel.body, 1, lines)
    return "\n".join([*lines, "}", ""])


def buffer_text(b: Buffer) -> str:
    """`name: f32[100] stack align 64`; space param and alignment 0 are left out."""
    space = "" if b.space == "param" else f" {b.space}"
    align = f" align {b.align}" if b.align else ""
    return f"{b.name}: {type_text(b.dtype, b.lanes)}[{b.size}]{space}{align}"


def _block(block: Block, depth: int, lines: list[str]) -> None:
    for stmt in block.body:
        _statement(stmt, depth, lines)


def _statement(stmt: Stmt, depth: int, lines: list[str]) -> None:
    pad = "  " * depth
    match stmt:
        case For():
            step = f" step {stmt.step}" if stmt.step != 1 else ""
            bounds = f"{print_expr(stmt.begin)} to {print_expr(stmt.end)}{step}"
            lines.append(f"{pad}{stmt.kind} {stmt.var} = {bounds} {{")
            _block(stmt.body, depth + 1, lines)
            lines.append(f"{pad}}}")
        case If():
            lines.append(f"{pad}if {print_expr(stmt.cond)} {{")
            _block(stmt.then, depth + 1, lines)
            if stmt.other is not None:
                lines.append(f"{pad}}} else {{")
                _block(stmt.other, depth + 1, lines)
            lines.append(f"{pad}}}")
        case Let():
            value = stmt.value
            lines.append(f"{pad}let {stmt.name}: {type_text(value.dtype, value.lanes)} = {print_expr(value)}")
        case Alloc():
            lines.append(f"{pad}alloc {buffer_text(stmt.buffer)}")
        case Store():
            lines.append(f"{pad}store {stmt.buffer.name}[{print_expr(stmt.index)}] = {print_expr(stmt.value)}")
        case Block():
            lines.append(f"{pad}{{")
            _block(stmt, depth + 1, lines)
            lines.append(f"{pad}}}")
        case Prefetch():
            near = " near" if stmt.near else ""
            lines.append(f"{pad}prefetch {stmt.buffer.name}[{print_expr(stmt.index)}]{near}")
        case MatrixLoad() | MatrixStore() | MatrixMultiply():
            lines.append(pad + _on_matrices(stmt))
        case _:
            lines.append(f"{pad}barrier")


def _on_matrices(stmt: OnMatrices) -> str:
    match stmt:
        case MatrixLoad():
            turned = " transposed" if stmt.transposed else ""
            source = f"{stmt.buffer.name}[{print_expr(stmt.place)}; {stmt.stride}]"
            return f"matrix_load {stmt.matrix.name}[{print_expr(stmt.index)}] = {source}{turned}"
        case MatrixStore():
            target = f"{stmt.buffer.name}[{print_expr(stmt.place)}; {stmt.stride}]"
            return f"matrix_store {target} = {stmt.matrix.name}[{print_expr(stmt.index)}]"
    factors = f"{stmt.a.name}[{print_expr(stmt.a_at)}] * {stmt.b.name}[{print_expr(stmt.b_at)}]"
    return f"matrix_multiply {stmt.sums.name}[{print_expr(stmt.at)}] = {factors}"


def print_expr(e: Expr) -> str:
    """An expression; parentheses only where the tree needs them."""
    return _expr(e, 0)


def _args(*values: Expr) -> str:
    return f"({', '.join(_expr(v, 0) for v in values)})"


def _expr(e: Expr, level: int) -> str:
    """The text, parenthesised where it binds less tightly than `level`."""
    match e:
        case Const():
            return _const(e)
        case Var():
            return e.name
        case Load():
            return _load(e)
        case Binary() if e.op in INFIX:
            sign, own = INFIX[e.op]
            left = own + 1 if own == 1 else own  # comparisons do not chain
            text = f"{_expr(e.a, left)} {sign} {_expr(e.b, own + 1)}"
            return f"({text})" if own < level else text
        case Binary():
            return f"{e.op}{_args(e.a, e.b)}"
        case Unary():
            return f"{e.op}{_args(e.a)}"
        case Fma():
            return f"fma{_args(e.a, e.b, e.c)}"
        case Dot():
            return f"dot{_args(e.a, e.b, e.c)}"
        case Lookup():
            return f"lookup{_args(e.table, e.index)}"
        case Select():
            return f"select{_args(e.cond, e.a, e.b)}"
        case Call():
            return f"{e.name}{_args(*e.args)}"
    return _typed(e)


def _typed(e: Expr) -> str:
    """Nodes that carry more than their operands."""
    match e:
        case Cast():
            return f"cast<{e.dtype}>{_args(e.a)}"
        case Bitcast():
            return f"bitcast<{e.dtype}>{_args(e.a)}"
        case Broadcast():
            return f"broadcast<{e.lanes}>{_args(e.a)}"
        case Ramp():
            return f"ramp<{e.lanes}, {e.stride}>{_args(e.base)}"
        case Shuffle():
            lanes = ", ".join(map(str, e.lanes_of))
            return f"shuffle<{lanes}>{_args(e.a) if e.b is None else _args(e.a, e.b)}"
        case Reduce():
            return f"reduce<{e.op}>{_args(e.a)}"
        case SubgroupXor():
            return f"subgroup_xor<{e.mask}>{_args(e.a)}"
    raise AssertionError(f"{type(e).__name__} has no text")


def _load(e: Load) -> str:
    contiguous = e.lanes > 1 and e.buffer.lanes == 1 and e.index.lanes == 1
    return f"{e.buffer.name}[{_expr(e.index, 0)}{f'; {e.lanes}' if contiguous else ''}]"


def _const(e: Const) -> str:
    if e.dtype is DType.I64 and e.lanes == 1 and type(e.value) is int:
        return str(e.value)
    return f"{_number(e.value)}:{type_text(e.dtype, e.lanes)}"


def _number(value: float) -> str:
    """int, float or bool such that it reads back with the same Python type and bits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    value = float(value)
    if not math.isnan(value):
        return repr(value)
    bits = struct.unpack("<Q", struct.pack("<d", value))[0]
    return "nan" if bits == 0x7FF8000000000000 else f"nan({bits:#x})"
