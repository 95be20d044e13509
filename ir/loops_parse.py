"""Reads the text that `loops_text` prints."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, get_args

from .errors import ParseError
from .loops import (
    BINARY,
    CALLS,
    COMPARE,
    UNARY,
    Alloc,
    Barrier,
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
    ForKind,
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
    Space,
    Stmt,
    Store,
    SubgroupXor,
    Unary,
    Var,
)
from .loops_text import INFIX, type_text
from .program import Base, Port, Program, Slot, Step
from .types import Counted, DType

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<number>-?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+|inf\b|nan\b(?:\(0x[0-9a-f]+\))?)|(?:true|false)(?=:))
    |(?P<file>@[^\s]+)
    |(?P<digest>sha256:[0-9a-f]{64})
    |(?P<typed>(?:cast|bitcast|broadcast|ramp|shuffle|reduce|subgroup_xor)<)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<sign><<|>>|<=|>=|==|!=|[-+*/%&|^<>(){}\[\],:;=])""",
    re.VERBOSE,
)
_SIGNS = {sign: (op, level) for op, (sign, level) in INFIX.items()}
_KINDS = get_args(ForKind)
_SPACES = get_args(Space)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse_program(text: str, weights: bytes | bytearray = b"") -> Program:
    """A program from its text and the bytes of its weights; raises ParseError, also where the weights are others."""
    parser = _Parser(text)
    try:
        return parser.program(weights)
    except RecursionError:
        parser.refuse("nested too deeply")


def parse_kernel(text: str) -> Kernel:
    """One kernel from its text; raises ParseError."""
    parser = _Parser(text)
    try:
        kernel = parser.kernel()
    except RecursionError:
        parser.refuse("nested too deeply")
    parser.end()
    return kernel


class _Parser:
    """Recursive descent; scope maps names in sight to buffers and types."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._scan())
        self.position = 0
        self.buffers: dict[str, Buffer] = {}
        self.names: dict[str, tuple[DType, int]] = {}

    # --- tokens

    def _scan(self) -> Iterator[_Token]:
        at = 0
        while at < len(self.text):
            found = _TOKEN.match(self.text, at)
            if found is None or found.lastgroup is None:
                self.fail(f"unexpected character {self.text[at]!r}", at)
            if found.lastgroup != "space":
                yield _Token(found.lastgroup, found.group(), at)
            at = found.end()
        yield _Token("end", "", at)

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        position = self.peek.at if at is None else at
        line = self.text.count("\n", 0, position) + 1
        start = self.text.rfind("\n", 0, position) + 1
        end = self.text.find("\n", position)
        shown = self.text[start : end if end >= 0 else len(self.text)]
        raise ParseError(what, where=f"{line}:{position - start + 1}: {shown.strip()}")

    def refuse(self, what: str) -> NoReturn:
        """Fail at the token that was read last."""
        self.fail(what, self.tokens[max(self.position - 1, 0)].at)

    @property
    def peek(self) -> _Token:
        return self.tokens[self.position]

    def next(self) -> _Token:
        token = self.tokens[self.position]
        self.position += token.kind != "end"
        return token

    def accept(self, text: str) -> bool:
        found = self.peek.text == text and self.peek.kind in ("name", "sign")
        self.position += found
        return found

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected '{text}', found '{self.peek.text}'")

    def take(self, kind: str) -> str:
        if self.peek.kind != kind:
            self.fail(f"expected a {kind}, found '{self.peek.text}'")
        return self.next().text

    def end(self) -> None:
        if self.peek.kind != "end":
            self.fail(f"unexpected '{self.peek.text}'")

    def string(self) -> str:
        text = self.take("string")
        try:
            return str(json.loads(text))
        except ValueError:
            self.refuse(f"{text} is no string: escapes as in JSON")

    def integer(self) -> int:
        text = self.peek.text
        if self.peek.kind != "number" or not re.fullmatch(r"-?\d+", text):
            self.fail(f"expected an integer, found '{text}'")
        return int(self.next().text)

    def listed(self, close: str, item: Any) -> list[Any]:
        """Comma-separated items up to `close`."""
        items: list[Any] = []
        while not self.accept(close):
            if items:
                self.expect(",")
            items.append(item())
        return items

    def dtype(self, text: str) -> DType:
        try:
            return DType(text)
        except ValueError:
            self.refuse(f"unknown element type '{text}'")

    def type(self) -> tuple[DType, int]:
        spelled, _, lanes = self.take("name").partition("x")
        if lanes and not lanes.isdigit():
            self.refuse(f"'{spelled}x{lanes}' is no type")
        return self.dtype(spelled), int(lanes or 1)

    # --- program

    def program(self, weights: bytes | bytearray) -> Program:
        self.expect("program")
        name = self.string()
        self.expect("threads")
        threads = self.integer()
        self.expect("arena")
        result = Program(name, (), (), {}, (), self.integer(), bytearray(weights), threads)
        result.prepared_bytes = self.integer() if self.accept("prepared") else 0
        declared = 0
        while self.peek.kind != "end":
            if self.accept("weights"):
                declared = self.weights(weights)
            elif self.accept("input"):
                result.inputs += (self.port(),)
            elif self.accept("output"):
                result.outputs += (self.port(),)
            elif self.accept("note"):
                key = self.string()
                result.notes[key] = self.string()
            elif self.accept("step"):
                result.steps += (self.step(),)
            elif self.accept("host"):
                result.steps += (replace(self.step(), host=True),)
            elif self.accept("prepare"):
                result.prepare += (self.step(),)
            else:
                kernel = self.kernel()
                result.kernels[kernel.name] = kernel
        if declared != len(weights):
            self.refuse(f"{len(weights)} bytes of weights for a program that has {declared}")
        return result

    def weights(self, given: bytes | bytearray) -> int:
        self.take("file")
        size = self.integer()
        digest = self.take("digest")
        if len(given) != size or f"sha256:{hashlib.sha256(given).hexdigest()}" != digest:
            self.refuse(f"the weights are not the {size} bytes that the text names")
        return size

    def port(self) -> Port:
        name = self.string()
        dtype = self.dtype(self.take("name"))
        self.expect("[")
        shape = tuple(self.listed("]", self.integer))
        labels: tuple[str, ...] = ()
        if self.accept("labels"):
            self.expect("[")
            labels = tuple(self.listed("]", self.string))
        counted = Counted(self.integer(), self.string()) if self.accept("counted") else None
        return Port(name, dtype, shape, labels, counted)

    def step(self) -> Step:
        symbol = self.take("name")
        self.expect("=")
        kernel = self.take("name")
        self.expect("(")
        args = tuple(self.listed(")", self.slot))
        origin = [self.string()] if self.accept("of") else []
        while origin and self.accept(","):
            origin.append(self.string())
        return Step(kernel, args, symbol, tuple(origin))

    def slot(self) -> Slot:
        base = self.take("name")
        if base not in get_args(Base):
            self.refuse(f"unknown base '{base}'")
        index = self.integer() if self.peek.kind == "number" else 0
        offset = self.integer() if self.accept("+") else 0
        return Slot(base, offset, index)  # type: ignore[arg-type]  # checked above

    # --- kernel and statements

    def kernel(self) -> Kernel:
        self.expect("kernel")
        name = self.take("name")
        self.buffers, self.names = {}, {"worker": (DType.I64, 1)}
        self.expect("(")
        params = tuple(self.listed(")", self.buffer))
        shaped = not self.accept("unshaped")
        inplace = self.accept("inplace")
        return Kernel(name, params, self.block(), shaped, inplace)

    def buffer(self) -> Buffer:
        name = self.take("name")
        self.expect(":")
        dtype, lanes = self.type()
        self.expect("[")
        size = self.integer()
        self.expect("]")
        space: Any = self.next().text if self.peek.text in _SPACES else "param"
        align = self.integer() if self.accept("align") else 0
        self.buffers[name] = Buffer(name, dtype, size, space, lanes, align)
        return self.buffers[name]

    @contextmanager
    def scope(self) -> Iterator[None]:
        buffers, names = dict(self.buffers), dict(self.names)
        yield
        self.buffers, self.names = buffers, names

    def block(self) -> Block:
        self.expect("{")
        body: list[Stmt] = []
        with self.scope():
            while not self.accept("}"):
                body.append(self.statement())
        return Block(tuple(body))

    def statement(self) -> Stmt:
        if self.peek.text == "{":
            return self.block()
        word = self.take("name")
        if word in _KINDS:
            return self.loop(word)
        if word == "if":
            cond = self.expr()
            then = self.block()
            return If(cond, then, self.block() if self.accept("else") else None)
        if word == "let":
            return self.let()
        if word == "alloc":
            return Alloc(self.buffer())
        if word == "store":
            return self.store()
        if word == "prefetch":
            buffer = self.known_buffer(self.take("name"))
            self.expect("[")
            index = self.expr()
            self.expect("]")
            return Prefetch(buffer, index, self.accept("near"))
        if word == "barrier":
            return Barrier()
        if word in ("matrix_load", "matrix_store", "matrix_multiply"):
            return self.on_matrices(word)
        self.refuse(f"expected a statement, found '{word}'")

    def loop(self, kind: Any) -> For:
        var = self.take("name")
        self.expect("=")
        begin = self.expr()
        self.expect("to")
        end = self.expr()
        step = self.integer() if self.accept("step") else 1
        with self.scope():
            self.names[var] = (DType.I64, 1)
            return For(var, begin, end, step, kind, self.block())

    def let(self) -> Let:
        name = self.take("name")
        self.expect(":")
        declared = self.type()
        self.expect("=")
        value = self.expr()
        if (value.dtype, value.lanes) != declared:
            self.refuse(
                f"'{name}' is declared {type_text(*declared)}, its value is {type_text(value.dtype, value.lanes)}"
            )
        self.names[name] = declared
        return Let(name, value)

    def store(self) -> Store:
        buffer = self.known_buffer(self.take("name"))
        self.expect("[")
        index = self.expr()
        self.expect("]")
        self.expect("=")
        return Store(buffer, index, self.expr())

    def on_matrices(self, word: str) -> OnMatrices:
        first = self.element()
        self.expect("=")
        second = self.element()
        if word == "matrix_load":
            return MatrixLoad(first[0], first[1], *second, self.accept("transposed"))
        if word == "matrix_store":
            return MatrixStore(*first, second[0], second[1])
        self.expect("*")
        return MatrixMultiply(*first[:2], *second[:2], *self.element()[:2])

    def element(self) -> tuple[Buffer, Expr, int]:
        """`buffer[index]` or `buffer[index; stride]`; 0 without a stride."""
        buffer = self.known_buffer(self.take("name"))
        self.expect("[")
        index = self.expr()
        stride = self.integer() if self.accept(";") else 0
        self.expect("]")
        return buffer, index, stride

    def known_buffer(self, name: str) -> Buffer:
        if name not in self.buffers:
            self.refuse(f"no buffer '{name}' in sight")
        return self.buffers[name]

    # --- expressions

    def expr(self, level: int = 1) -> Expr:
        left = self.atom()
        while self.peek.kind == "sign" and self.peek.text in _SIGNS and _SIGNS[self.peek.text][1] >= level:
            op, own = _SIGNS[self.next().text]
            right = self.expr(own + 1)
            left = Binary(DType.BOOL if op in COMPARE else left.dtype, left.lanes, op, left, right)
        return left

    def atom(self) -> Expr:
        if self.accept("("):
            inner = self.expr()
            self.expect(")")
            return inner
        if self.peek.kind == "number":
            return self.const()
        if self.peek.kind == "typed":
            return self.typed(self.next().text[:-1])
        name = self.take("name")
        if self.accept("["):
            return self.load(self.known_buffer(name))
        if self.accept("("):
            return self.function(name, tuple(self.listed(")", self.expr)))
        if name not in self.names:
            self.refuse(f"no variable '{name}' in sight")
        return Var(*self.names[name], name)

    def const(self) -> Const:
        text = self.take("number")
        value = _value(text)
        if self.accept(":"):
            return Const(*self.type(), value)
        if type(value) is not int:
            self.refuse(f"'{text}' needs a type")
        return Const(DType.I64, 1, value)

    def load(self, buffer: Buffer) -> Load:
        index = self.expr()
        lanes = self.integer() if self.accept(";") else max(buffer.lanes, index.lanes)
        self.expect("]")
        return Load(buffer.dtype, lanes, buffer, index)

    def function(self, name: str, args: tuple[Expr, ...]) -> Expr:
        if not args or name not in _ARITY or _ARITY[name] != len(args):
            self.refuse(f"no function '{name}' of {len(args)} arguments")
        dtype, lanes = args[0].dtype, args[0].lanes
        if name == "fma":
            return Fma(args[2].dtype, args[2].lanes, *args)
        if name == "dot":
            return Dot(args[2].dtype, args[2].lanes, *args)
        if name == "lookup":
            return Lookup(dtype, args[1].lanes, *args)
        if name == "select":
            return Select(args[1].dtype, args[1].lanes, *args)
        if name in UNARY:
            return Unary(dtype, lanes, name, args[0])
        if name in CALLS:
            return Call(dtype, lanes, name, args)
        return Binary(dtype, lanes, name, *args)

    def typed(self, name: str) -> Expr:
        """`name<parameters>(operands)`."""
        parameters = self.listed(">", lambda: self.next().text)
        self.expect("(")
        args = self.listed(")", self.expr)
        if len(args) != 1 and not (name == "shuffle" and len(args) == 2) or not parameters:
            self.refuse(f"wrong number of operands of {name}")
        a = args[0]
        if name == "cast":
            return Cast(self.dtype(parameters[0]), a.lanes, a)
        if name == "bitcast":
            to = self.dtype(parameters[0])
            return Bitcast(to, max(1, a.lanes * a.dtype.bits // to.bits), a)
        if name == "reduce":
            return Reduce(a.dtype, 1, parameters[0], a)
        try:
            numbers = tuple(int(p) for p in parameters)
        except ValueError:
            self.refuse(f"parameters of {name} are integers")
        if name == "broadcast":
            return Broadcast(a.dtype, numbers[0], a)
        if name == "subgroup_xor" and len(numbers) == 1:
            return SubgroupXor(a.dtype, a.lanes, a, numbers[0])
        if name == "ramp" and len(numbers) == 2:
            return Ramp(DType.I64, numbers[0], a, numbers[1])
        if name == "shuffle":
            return Shuffle(a.dtype, len(numbers), a, args[1] if len(args) > 1 else None, numbers)
        self.refuse(f"wrong number of parameters of {name}")


_ARITY = {
    "fma": 3, "dot": 3, "lookup": 2, "select": 3, **dict.fromkeys(UNARY, 1), **dict.fromkeys(CALLS, 1), "pow": 2,
    "fmod": 2, **{op: 2 for op in BINARY if op not in INFIX},
}  # fmt: skip


def _value(text: str) -> int | float | bool:
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("nan(") or text.startswith("-nan("):
        bits = int(text[text.index("(") + 1 : -1], 16)
        value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
        return value
    if text == "nan":
        return math.nan  # one object, so that equal constants compare equal
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
