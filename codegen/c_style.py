"""Kernels of loop IR as functions of a C-like language.

A vector statement becomes a loop over lanes (`for (int l = 0; l < 8; l++)`) whose body is the expression as a function
of the lane; what mixes lanes (Shuffle, Reduce) is computed into temporaries before the statement. Vector lets and
register buffers are local arrays. A dialect is a subclass that overrides the spellings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from ..ir.errors import CodegenError
from ..ir.loops import (
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
from ..ir.loops_verify import stored_buffers
from ..ir.loops_visit import expressions, operands, statements, walk
from ..ir.types import DType
from .c_expressions import ADD, COMPARISON, TERNARY, Code, Operators, cast_to, infix
from .c_helpers import C_TYPES

RESERVED = frozenset(
    """auto break case char const continue default do double else enum extern float for goto if inline int long register
    restrict return short signed sizeof static struct switch typedef union unsigned void volatile while main l begin end
    frame base args abs exp log log1p expm1 pow sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf fmod
    sqrt floor ceil rint trunc fabs memcpy y0 y1 yn j0 j1 jn gamma signgam NAN NULL INFINITY HUGE_VAL linux unix
    """.split()
)
"""Names that a variable may not have: keywords, functions of <math.h>, what the emitter itself names."""

_INDEX_OPS = ("add", "sub", "mul", "div", "mod", "min", "max")


def _used(kernel: Kernel) -> tuple[set[str], set[str]]:
    """Names of variables and of buffers that what is stored or decided depends on."""
    lets: dict[str, Expr] = {}
    work: list[Expr] = []
    variables, buffers = set(), stored_buffers(kernel)
    for stmt in statements(kernel.body):
        if isinstance(stmt, Let):
            lets[stmt.name] = stmt.value
        else:
            work.extend(expressions(stmt))
    while work:
        for x in walk(work.pop()):
            if isinstance(x, Load):
                buffers.add(x.buffer.name)
            elif isinstance(x, Var) and x.name not in variables:
                variables.add(x.name)
                work.extend([lets[x.name]] if x.name in lets else [])
    return variables, buffers


class CStyle:
    """Writes one kernel; `text()` is its definition, `operators` collects the helpers of all kernels."""

    function: ClassVar[str] = "static void"
    restrict: ClassVar[str] = "restrict "
    spaces: ClassVar[dict[str, str]] = {"param": "", "constant": "", "stack": "", "register": ""}
    range_params: ClassVar[tuple[str, ...]] = ("int64_t begin", "int64_t end", "int64_t worker")
    reserved: ClassVar[frozenset[str]] = RESERVED
    index_type: ClassVar[str] = "int64_t"
    """What counts loops and elements."""

    def __init__(self, kernel: Kernel, operators: Operators) -> None:
        self.kernel = kernel
        self.operators = operators
        self.lines: list[str] = []
        self.depth = 1
        self.written = stored_buffers(kernel)
        self.used, self.touched = _used(kernel)
        self.taken: set[str] = set()
        self.names: dict[str, str] = {"worker": "worker"}
        self.indices: set[str] = {"worker"}
        self._collect()

    def _collect(self) -> None:
        """Names that are used, and a C name for each."""
        defined = [p.name for p in self.kernel.params]
        for stmt in statements(self.kernel.body):
            match stmt:
                case For():
                    defined.append(stmt.var)
                case Let():
                    defined.append(stmt.name)
                case Alloc():
                    defined.append(stmt.buffer.name)
        self.taken = {*defined, *self.reserved}
        for name in defined:
            clash = (
                name in self.reserved or name.startswith("c2c_") or f"{name}_t" in C_TYPES.values() or name[0] == "_"
            )
            self.names[name] = self.fresh(f"v_{name}") if clash else name

    def fresh(self, hint: str) -> str:
        """A C name that the kernel does not have yet."""
        name, count = hint, 0
        while name in self.taken:
            name, count = f"{hint}_{count}", count + 1
        self.taken.add(name)
        return name

    # --- the function

    def text(self) -> str:
        k = self.kernel
        params = [*(self.parameter(p) for p in k.params), *self.range_params]
        head = f"{self.function} {k.name}({', '.join(params)})"
        parallel = k.parallel
        ignored = [] if "worker" in self.used else ["worker"]
        if parallel is None:
            ignored += ["begin", "end"]
        ignored += [self.names[p.name] for p in k.params if p.name not in self.touched]
        if ignored:
            self.line(" ".join(f"(void){name};" for name in ignored))
        if parallel is None:
            self.block(k.body)
        else:
            var = self.names[parallel.var]
            self.indices.add(parallel.var)
            self.loop(f"int64_t {var} = begin; {var} < end; {var}++", parallel.body)
        return "\n".join([head, "{", *self.lines, "}", ""])

    def parameter(self, p: Buffer) -> str:
        const = "" if p.name in self.written else "const "
        restrict = "" if self.kernel.inplace else self.restrict
        text = f"{self.spaces[p.space]}{const}{self.operators.types[p.dtype]} *{restrict.strip()} {self.names[p.name]}"
        return text.replace("* ", "*")

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def loop(self, head: str, body: Block) -> None:
        self.line(f"for ({head}) {{")
        self.nested(body)
        self.line("}")

    def nested(self, body: Block) -> None:
        self.depth += 1
        self.block(body)
        self.depth -= 1

    # --- statements

    def block(self, block: Block) -> None:
        for stmt in block.body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case For():
                self.for_loop(stmt)
            case If():
                self.line(f"if ({self.value(stmt.cond).text}) {{")
                self.nested(stmt.then)
                if stmt.other is not None:
                    self.line("} else {")
                    self.nested(stmt.other)
                self.line("}")
            case Let():
                self.let(stmt)
            case Alloc():
                self.alloc(stmt.buffer)
            case Store():
                self.store(stmt)
            case Block():
                self.line("{")
                self.nested(stmt)
                self.line("}")
            case Prefetch():  # C99 has no such hint; names that serve it alone are used
                self.line(f"(void)({self.value(stmt.index).text});")
            case Barrier():
                self.barrier()
            case MatrixLoad() | MatrixStore() | MatrixMultiply():
                self.on_matrices(stmt)

    def on_matrices(self, stmt: OnMatrices) -> None:
        raise CodegenError("no matrices of a subgroup on this target", where=f"kernel {self.kernel.name}")

    def barrier(self) -> None:
        raise CodegenError("a barrier needs a GPU target", where=f"kernel {self.kernel.name}")

    def for_loop(self, stmt: For) -> None:
        begin = self.value(stmt.begin).text
        end = self.value(stmt.end)
        if not self.is_index(stmt.end):  # C evaluates it in every iteration
            name = self.fresh("stop")
            self.line(f"const {self.index_type} {name} = {end.text};")
            end = Code(name)
        var = self.names[stmt.var]
        self.indices.add(stmt.var)
        step = f"{var}++" if stmt.step == 1 else f"{var} += {stmt.step}"
        self.loop(f"{self.index_type} {var} = {begin}; {var} < {end.within(COMPARISON + 1)}; {step}", stmt.body)

    def let(self, stmt: Let) -> None:
        if stmt.name not in self.used:
            return
        if self.is_index(stmt.value):
            self.indices.add(stmt.name)
        self.define(self.names[stmt.name], stmt.value)

    def define(self, name: str, value: Expr) -> None:
        """A constant, or a filled local array, of a value."""
        c = self.index_type if value.lanes == 1 and self.is_index(value) else self.operators.types[value.dtype]
        if value.lanes == 1:
            self.line(f"const {c} {name} = {self.value(value).text};")
            return
        text = self.value(value, "l").text
        self.line(f"{c} {name}[{value.lanes}];")
        self.line(f"for (int l = 0; l < {value.lanes}; l++) {name}[l] = {text};")

    def alloc(self, buffer: Buffer) -> None:
        if buffer.space not in self.spaces:
            raise CodegenError(f"no {buffer.space} memory on this target", where=f"kernel {self.kernel.name}")
        extent = f"[{max(buffer.size, 1)}]" + (f"[{buffer.lanes}]" if buffer.lanes > 1 else "")
        self.line(f"{self.spaces[buffer.space]}{self.operators.types[buffer.dtype]} {self.names[buffer.name]}{extent};")

    def store(self, s: Store) -> None:
        value, index, lanes = s.value, s.index, s.value.lanes
        if lanes > 1 and self._reads(index, s.buffer):
            index = self.temporary(index)
        if lanes > 1 and self._mixes(s):
            value = self.temporary(value)
        at = "l" if lanes > 1 else ""
        text = self.value(value, at).text
        statement = f"{self.element(s.buffer, index, at)} = {text};"
        self.line(f"for (int l = 0; l < {lanes}; l++) {statement}" if lanes > 1 else statement)

    def _reads(self, e: Expr, buffer: Buffer) -> bool:
        """Whether an expression may read memory of `buffer`."""
        shared = self.kernel.inplace and buffer.space == "param"
        loads = [x for x in walk(e) if isinstance(x, Load)]
        return any(x.buffer.name == buffer.name or (shared and x.buffer.space == "param") for x in loads)

    def _mixes(self, s: Store) -> bool:
        """Whether a lane of the value may read what an earlier lane of the same store has written."""
        if not self._reads(s.value, s.buffer):
            return False
        if s.buffer.space != "register":
            return not (isinstance(s.value, Load) and s.value.buffer is s.buffer and s.value.index == s.index)
        return any(isinstance(x, Shuffle) and self._reads(x, s.buffer) for x in walk(s.value))

    def temporary(self, e: Expr) -> Var:
        """The value under a new name; evaluated here, before the statement that is being written."""
        name = self.fresh("t")
        self.names[name] = name
        if self.is_index(e):
            self.indices.add(name)
        self.define(name, e)
        return Var(e.dtype, e.lanes, name)

    # --- expressions

    def is_index(self, e: Expr) -> bool:
        """Whether an i64 expression is made of loop variables and constants alone, so that it never overflows."""
        match e:
            case Const():
                return e.dtype is DType.I64 and abs(e.value) < 1 << 31
            case Var():
                return e.name in self.indices
            case Binary():
                return e.op in _INDEX_OPS and self.is_index(e.a) and self.is_index(e.b)
            case Broadcast() | Ramp():
                return all(self.is_index(x) for x in operands(e))
        return False

    def value(self, e: Expr, at: str = "") -> Code:
        """The C expression for lane `at` of a value (of a scalar: for the value)."""
        writer = self._writers.get(type(e))
        assert writer is not None, f"{type(e).__name__} has no C form"
        return writer(self, e, at)

    def element(self, buffer: Buffer, index: Expr, at: str) -> str:
        """The lvalue of lane `at` at `index` of a buffer."""
        name = self.names[buffer.name]
        if buffer.lanes > 1:
            return f"{name}[{self.value(index).text}][{at}]"
        if index.lanes > 1:
            return f"{name}[{self.value(index, at).text}]"
        where = self.value(index)
        if not at or at == "0":
            return f"{name}[{where.text}]"
        return f"{name}[{at}]" if where.text == "0" else f"{name}[{where.within(ADD)} + {at}]"

    def _const(self, e: Const, at: str) -> Code:
        return self.operators.constant(e.dtype, e.value)

    def _var(self, e: Var, at: str) -> Code:
        return Code(f"{self.names[e.name]}[{at}]" if e.lanes > 1 else self.names[e.name])

    def _load(self, e: Load, at: str) -> Code:
        return Code(self.element(e.buffer, e.index, at if e.lanes > 1 else ""))

    def _binary(self, e: Binary, at: str) -> Code:
        a, b = self.value(e.a, at), self.value(e.b, at)
        index = self.is_index(e)
        if index and isinstance(e.a, Const) and isinstance(e.b, Const):
            a = cast_to(self.index_type, a)
        return self.operators.binary(e.op, e.a.dtype, a, b, index=index)

    def _unary(self, e: Unary, at: str) -> Code:
        return self.operators.unary(e.op, e.dtype, self.value(e.a, at))

    def _fma(self, e: Fma, at: str) -> Code:
        return self.operators.fma(e.dtype, self.value(e.a, at), self.value(e.b, at), self.value(e.c, at))

    def _dot(self, e: Dot, at: str) -> Code:
        """Each group's products one after another, in unsigned arithmetic, which wraps."""
        a, b, group = self._named(e.a), self._named(e.b), e.a.lanes // e.lanes
        if e.dtype is DType.F32:
            return self._float_dot(e, a, b, at)
        total = cast_to("uint32_t", self.value(e.c, at))
        for j in range(group):
            lane = f"{at} * {group} + {j}" if at else str(j)
            factors = [cast_to("int32_t", self.value(x, lane if x.lanes > 1 else "")) for x in (a, b)]
            total = infix("add", total, cast_to("uint32_t", infix("mul", *factors)))
        return cast_to("int32_t" if e.dtype is DType.I32 else "int16_t", total)

    def _lookup(self, e: Lookup, at: str) -> Code:
        table = self.temporary(e.table) if not isinstance(e.table, Var) else e.table
        unsigned = f"uint{e.index.dtype.bits}_t"
        place = infix("and", cast_to(unsigned, self.value(e.index, at)), Code(str(table.lanes - 1)))
        return Code(f"{self.names[table.name]}[{place.text}]")

    def _float_dot(self, e: Dot, a: Expr, b: Expr, at: str) -> Code:
        """Pairs of products of bf16 in f32."""
        total = self.value(e.c, at)
        for j in range(2):
            lane = f"{at} * 2 + {j}" if at else str(j)
            factors = [
                self.operators.cast(DType.F32, x.dtype, self.value(x, lane if x.lanes > 1 else "")) for x in (a, b)
            ]
            total = self.operators.fma(DType.F32, factors[0], factors[1], total)
        return total

    def _cast(self, e: Cast, at: str) -> Code:
        return self.operators.cast(e.dtype, e.a.dtype, self.value(e.a, at))

    def _bitcast(self, e: Bitcast, at: str) -> Code:
        if e.lanes != e.a.lanes:
            return self._regrouped(e, at)
        return self.operators.bitcast(e.dtype, e.a.dtype, self.value(e.a, at))

    def _regrouped(self, e: Bitcast, at: str) -> Code:
        """Lane `at` of the same bits in another number of lanes."""
        source, name = self.temporary(e.a), self.fresh("t")
        self.line(f"{self.operators.types[e.dtype]} {name}[{e.lanes}];")
        self.line(f"memcpy({name}, {'&' if e.a.lanes == 1 else ''}{self.names[source.name]}, sizeof {name});")
        return Code(f"{name}[{at or '0'}]")

    def _select(self, e: Select, at: str) -> Code:
        cond, a, b = (self.value(x, at) for x in (e.cond, e.a, e.b))
        return Code(f"{cond.within(COMPARISON)} ? {a.within(TERNARY + 1)} : {b.within(TERNARY + 1)}", TERNARY)

    def _broadcast(self, e: Broadcast, at: str) -> Code:
        return self.value(e.a)

    def _ramp(self, e: Ramp, at: str) -> Code:
        steps = Code(at) if e.stride == 1 else infix("mul", Code(at), self.operators.constant(DType.I64, e.stride))
        if e.stride != 1:
            steps = infix("mul", cast_to(self.index_type, Code(at)), self.operators.constant(DType.I64, e.stride))
        return infix("add", self.value(e.base), steps)

    def _call(self, e: Call, at: str) -> Code:
        return self.operators.call(e.name, e.dtype, [self.value(a, at) for a in e.args])

    def _shuffle(self, e: Shuffle, at: str) -> Code:
        if len(e.lanes_of) == 1:
            return self._lane(e.a, e.b, e.lanes_of[0])
        a = self._named(e.a)
        b = None if e.b is None else self._named(e.b)
        name = self.fresh("t")
        lanes = ", ".join(self._lane(a, b, i).text for i in e.lanes_of)
        self.line(f"const {self.operators.types[e.dtype]} {name}[{e.lanes}] = {{{lanes}}};")
        return Code(f"{name}[{at}]")

    def _named(self, e: Expr) -> Expr:
        return e if isinstance(e, Var | Const) else self.temporary(e)

    def _lane(self, a: Expr, b: Expr | None, i: int) -> Code:
        """Lane i of the concatenation of a and b."""
        if i < a.lanes:
            return self.value(a, str(i))
        assert b is not None
        return self.value(b, str(i - a.lanes))

    def _reduce(self, e: Reduce, at: str) -> Code:
        name, c = self.fresh("t"), self.operators.types[e.dtype]
        text, lanes = self.value(e.a, "l").text, e.a.lanes
        if lanes == 1:
            return self.value(e.a)
        self.line(f"{c} {name}[{lanes}];")
        self.line(f"for (int l = 0; l < {lanes}; l++) {name}[l] = {text};")
        combined = self.operators.binary(e.op, e.dtype, Code(f"{name}[l]"), Code(f"{name}[l + h]")).text
        self.line(f"for (int h = {lanes // 2}; h > 0; h /= 2)")
        self.line(f"    for (int l = 0; l < h; l++) {name}[l] = {combined};")
        return Code(f"{name}[0]")

    def _subgroup_xor(self, e: SubgroupXor, at: str) -> Code:
        raise CodegenError("an exchange of values needs a GPU target", where=f"kernel {self.kernel.name}")

    _writers: ClassVar[dict[type, Callable[..., Code]]] = {
        Const: _const, Var: _var, Load: _load, Binary: _binary, Unary: _unary, Fma: _fma, Dot: _dot,
        Lookup: _lookup, Cast: _cast,
        Bitcast: _bitcast, Select: _select, Broadcast: _broadcast, Ramp: _ramp, Call: _call, Shuffle: _shuffle,
        Reduce: _reduce, SubgroupXor: _subgroup_xor,
    }  # fmt: skip
