"""Kernels of loop IR as functions that each thread of a grid runs: what OpenCL, Metal and CUDA share.

Grid and thread loops become numbers that the language gives a thread; its other loops stay. Indices are 32-bit: a
buffer of 2^31 elements or more is refused. Where threads exchange values, their numbers are made of their subgroup's
and of their place in it, as far as a language leaves open which threads are a subgroup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar

from ..ir.errors import CodegenError
from ..ir.loops import Binary, Bitcast, Buffer, Dot, Expr, For, Kernel, Load, OnMatrices, SubgroupXor, Var
from ..ir.loops_visit import exchanges, statements
from ..ir.program import Program
from ..ir.types import DType
from .c_expressions import Code, Operators, apply, cast_to, infix
from .c_style import RESERVED, CStyle
from .devices import Device
from .launch import Launch, count, launch, nest

INDEX_LIMIT = 1 << 31


class GridStyle(CStyle):
    """Writes one kernel; a dialect says how the numbers of a thread are read."""

    index_type: ClassVar[str] = "int"
    reserved: ClassVar[frozenset[str]] = RESERVED | frozenset("get_group_id get_global_id get_local_id".split())
    range_params: ClassVar[tuple[str, ...]] = ()

    def __init__(self, kernel: Kernel, operators: Operators, device: Device) -> None:
        super().__init__(kernel, operators)
        self.device = device
        self.launch: Launch = launch(kernel, device)
        self.has_threads = bool(nest(kernel).threads)
        self.flat = ""
        """Where threads exchange values, the variable that numbers them."""
        self.matrices = any(isinstance(s, OnMatrices) for s in statements(kernel.body))
        self.exchanges = exchanges(kernel)
        threads = prod(self.launch.group)
        if self.exchanges and threads % device.subgroup and device.subgroup % threads:
            raise CodegenError(
                f"{threads} threads are no whole subgroups of {device.subgroup}", where=f"kernel {kernel.name}"
            )
        for p in kernel.params:
            if p.size >= INDEX_LIMIT:
                raise CodegenError(
                    f"'{p.name}' has {p.size} elements, more than 32-bit indices reach",
                    where=f"kernel {kernel.name}", remedy="split the tensor",
                )  # fmt: skip

    # --- what a dialect says

    def group_number(self, dimension: int) -> str:
        """The number of the work-group along a dimension."""
        raise NotImplementedError

    def thread_number(self, dimension: int) -> str:
        """The number of the thread in its work-group."""
        raise NotImplementedError

    def global_number(self, dimension: int) -> str:
        """The number of the thread in the grid."""
        raise NotImplementedError

    def flat_number(self) -> str | None:
        """The number of the thread by its subgroup and its place there; None where `thread_number` is by them."""
        return None

    def exchange(self, dtype: DType, value: Code, mask: int) -> Code:
        """The value of the thread of the subgroup whose place differs in the bits of `mask`."""
        raise NotImplementedError

    private: ClassVar[str] = ""
    """Qualifier of a thread's own memory in the type of a pointer."""

    def parameters(self, p: Buffer) -> tuple[str, ...]:
        """The declarations of a buffer's parameters."""
        return (self.pointer(p, self.names[p.name]),)

    def open(self, p: Buffer) -> None:
        """What makes the buffer's first element of its parameters."""

    # --- the function

    def text(self) -> str:
        found = nest(self.kernel)
        params = [text for p in self.kernel.params for text in self.parameters(p)]
        for p in self.kernel.params:
            self.open(p)
        loops = [*zip(range(len(found.grid) - 1, -1, -1), found.grid, strict=True)]
        for dimension, loop in loops:
            self.number(loop, self.group_number(dimension) if found.threads else self.global_number(dimension))
        for dimension, loop in loops if not found.threads else ():
            if self.launch.threads[dimension] != count(loop):
                self.line(f"if ({self.names[loop.var]} >= {count(loop)})")
                self.line("    return;")
        self.block(found.between)
        self.thread_numbers(found.threads)
        self.block(found.body)
        return "\n".join([self.head(params), "{", *self.lines, "}", ""])

    def head(self, params: list[str]) -> str:
        """The function's name and parameters."""
        return f"{self.function} {self.kernel.name}({', '.join(params)})"

    def thread_numbers(self, loops: Sequence[For]) -> None:
        """The variables of thread loops, the outermost first."""
        flat = self.flat_number() if self.exchanges else None
        numbers = [self.thread_number(dimension) for dimension in range(len(loops))]
        if flat is not None:
            name = self.flat = self.fresh("thread_of_group")
            self.line(f"const int {name} = {flat};")
            x, y, _ = self.launch.group
            numbers = [f"{name} % {x}", f"{name} / {x} % {y}", f"{name} / {x * y}"]
            numbers[len(loops) - 1] = numbers[len(loops) - 1].partition(" %")[0]
        for dimension, loop in zip(range(len(loops) - 1, -1, -1), loops, strict=True):
            self.number(loop, numbers[dimension])

    def number(self, loop: For, value: str) -> None:
        """The variable of a grid or thread loop."""
        self.indices.add(loop.var)
        if loop.var in self.used:
            self.line(f"const int {self.names[loop.var]} = {value};")

    def pointer(self, p: Buffer, name: str) -> str:
        """Declaration of a pointer to the buffer's elements."""
        const = "" if p.name in self.written else "const "
        restrict = "" if self.kernel.inplace else self.restrict
        return f"{self.spaces['param']}{const}{self.operators.types[p.dtype]} *{restrict}{name}"

    def for_loop(self, stmt: For) -> None:
        if stmt.kind == "unroll" and self.device.unrolls:
            self.line(self.unroll)
        super().for_loop(stmt)

    unroll: ClassVar[str] = "#pragma unroll"

    def _regrouped(self, e: Bitcast, at: str) -> Code:
        """Byte by byte: these languages have no memcpy."""
        if e.lanes == 1 and isinstance(e.a, Load) and e.a.index.lanes == 1 and e.a.dtype.bits == 8:
            return self._joined(e.dtype, e.a)
        source, name = self.temporary(e.a), self.fresh("t")
        size, byte = e.lanes * e.dtype.nbytes, f"{self.private}uint8_t *"
        self.line(f"{self.operators.types[e.dtype]} {name}[{e.lanes}];")
        self.line(f"for (int b = 0; b < {size}; b++) (({byte}){name})[b] = (({byte}){self._first(source)})[b];")
        return Code(f"{name}[{at or '0'}]")

    def _joined(self, dtype: DType, bytes_: Load) -> Code:
        """Neighbouring bytes as one integer, the first in its lowest bits."""
        word = f"uint{dtype.bits}_t"
        total = Code("")
        for j in range(bytes_.lanes):
            byte = cast_to(word, cast_to("uint8_t", Code(self.element(bytes_.buffer, bytes_.index, str(j)))))
            total = infix("or", total, infix("shl", byte, Code(str(8 * j)))) if j else byte
        return cast_to(self.operators.types[dtype], total)

    def _first(self, value: Var) -> str:
        """The address of a value's first lane."""
        name = self.names[value.name]
        return f"&{name}" if value.lanes == 1 else name

    def _dot(self, e: Dot, at: str) -> Code:
        """Of the bytes of two words by the device's own instruction, where it has one."""
        if e.lanes == 1 and _is_word(e.a) and _is_word(e.b) and e.dtype is DType.I32:
            assert isinstance(e.a, Bitcast) and isinstance(e.b, Bitcast)
            name = f"dot_{'s' if e.a.dtype.is_signed else 'u'}{'s' if e.b.dtype.is_signed else 'u'}"
            return self.operators.help(name, self.value(e.a.a), self.value(e.b.a), self.value(e.c, at))
        return super()._dot(e, at)

    def _binary(self, e: Binary, at: str) -> Code:
        """Indices by the language's own min and max of int."""
        if e.op in ("min", "max") and self.is_index(e):
            return apply(e.op, self.value(e.a, at), self.value(e.b, at))
        return super()._binary(e, at)

    def _subgroup_xor(self, e: SubgroupXor, at: str) -> Code:
        if e.mask >= self.device.exchange:
            raise CodegenError(
                f"threads that differ by {e.mask} exchange values on no such device", where=f"kernel {self.kernel.name}"
            )
        return self.exchange(e.dtype, self.value(e.a), e.mask)

    _writers: ClassVar[dict[type, Callable[..., Code]]] = {
        **CStyle._writers,
        Binary: _binary,
        SubgroupXor: _subgroup_xor,
        Dot: _dot,
    }


def _is_word(e: Expr) -> bool:
    """Whether four bytes are those of one integer."""
    return isinstance(e, Bitcast) and e.lanes == 4 and e.dtype.bits == 8 and e.a.lanes == 1 and e.a.dtype.is_int


def node_of(program: Program, kernel: Kernel) -> str:
    """The ONNX node that a kernel was made for, with the kernel's name, for messages."""
    origin = next((s.origin for s in (*program.prepare, *program.steps) if s.kernel == kernel.name and s.origin), ())
    return f"node '{origin[-1]}', kernel {kernel.name}" if origin else f"kernel {kernel.name}"
