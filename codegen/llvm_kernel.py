"""A kernel of the loop IR as the text of one LLVM function `(params…, i64 begin, i64 end, i64 worker)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..ir.errors import CodegenError
from ..ir.loops import Alloc, Barrier, Block, Buffer, Const, Expr, For, If, Kernel, Let, Prefetch, Store, Unary
from ..ir.types import DType
from .llvm_streams import streams
from .llvm_types import memory_type, value_type
from .llvm_values import Values, affine, vector_align
from .llvm_writer import Writer
from .target import Target

LINE = 64
"""Alignment of stack buffers: a cache line, and the widest register."""


@dataclass(slots=True)
class Loops:
    """Loop metadata of a module: numbers are handed out in order."""

    lines: list[str] = field(default_factory=lambda: [
        '!0 = !{!"llvm.loop.vectorize.enable", i1 false}',
        '!1 = !{!"llvm.loop.unroll.disable"}',
        '!2 = !{!"llvm.loop.interleave.count", i32 1}',
    ])  # fmt: skip

    def hand_shaped(self) -> str:
        """A loop that LLVM's vectoriser and unroller leave alone."""
        number = len(self.lines)
        self.lines.append(f"!{number} = distinct !{{!{number}, !0, !1, !2}}")
        return f"!llvm.loop !{number}"


def kernel_text(kernel: Kernel, name: str, target: Target, loops: Loops) -> tuple[str, dict[str, str]]:
    """The function's text and the declarations that it needs."""
    printer = KernelPrinter(kernel, target, loops)
    return printer.function(name), printer.w.intrinsics


class KernelPrinter:
    """Prints statements; expressions are left to `Values`."""

    def __init__(self, kernel: Kernel, target: Target, loops: Loops) -> None:
        self.kernel, self.loops = kernel, loops
        self.w = Writer()
        self.values = Values(self.w, target, kernel.shaped)
        self.stored: set[Buffer] = set()

    def function(self, name: str) -> str:
        v, kernel = self.values, self.kernel
        for i, p in enumerate(kernel.params):
            v.pointers[p] = f"%p{i}"
        v.names["worker"] = "%worker"
        v.indices.add("worker")
        if kernel.parallel is not None:
            self._loop(kernel.parallel, "%begin", "%end")
        else:
            self.block(kernel.body)
        params = [f"ptr {self._attributes(p)} %p{i}" for i, p in enumerate(kernel.params)]
        count = iterations(kernel) + 1
        params += [f"i64 range(i64 0, {count}) %begin", f"i64 range(i64 0, {count}) %end", "i64 %worker"]
        head = f"define internal void @{name}({', '.join(params)}) #0 {{"
        return "\n".join([head, "entry:", *self.w.entry, *self.w.lines, "  ret void", "}", ""])

    def _attributes(self, p: Buffer) -> str:
        alias = "" if self.kernel.inplace else "noalias "
        access = "" if p in self.stored else "readonly "
        return f"{alias}captures(none) {access}align {max(p.align, p.dtype.nbytes)}"

    def block(self, block: Block) -> None:
        """Statements in order; names and buffers live until the end."""
        names, pointers = self.values.names, self.values.pointers
        self.values.names, self.values.pointers = dict(names), dict(pointers)
        for s in block.body:
            self.TABLE[type(s)](self, s)
        self.values.names, self.values.pointers = names, pointers

    def _let(self, s: Let) -> None:
        v = self.values
        if v.is_index(s.value):
            v.names[s.name] = v.index(s.value)
            v.indices.add(s.name)
        else:
            v.names[s.name] = v.value(s.value)
            v.defined.pop(s.name, None)
            if isinstance(s.value, Unary) and s.value.op == "round":
                v.defined[s.name] = s.value
            v.indices.discard(s.name)

    def _alloc(self, s: Alloc) -> None:
        b = s.buffer
        align = vector_align(b) if b.space == "register" else LINE
        self.values.pointers[b] = self.w.local(b.name, f"[{b.size} x {memory_type(b.dtype, b.lanes)}]", align)

    def _store(self, s: Store) -> None:
        v, b = self.values, s.buffer
        self.stored.add(b)
        value = v.value(s.value)
        if b.lanes > 1:
            self._store_at(v.address(b, s.index, b.lanes), b.dtype, s.value.lanes, value, vector_align(b))
            return
        line = affine(s.index) if s.index.lanes > 1 else (s.index, 1)
        if line is not None and line[1] == 1:
            self._store_at(v.address(b, line[0]), b.dtype, s.value.lanes, value, b.dtype.nbytes)
            return
        self._scatter(s, value)

    def _store_at(self, pointer: str, dtype: DType, lanes: int, value: str, align: int) -> None:
        type_ = memory_type(dtype, lanes)
        if dtype is DType.BOOL:
            value = self.w.op(f"zext {value_type(dtype, lanes)} {value} to {type_}")
        self.w.line(f"store {type_} {value}, ptr {pointer}, align {align}")

    def _scatter(self, s: Store, value: str) -> None:
        v, b, lanes = self.values, s.buffer, s.index.lanes
        positions = v.value(s.index)
        for i in range(lanes):
            at = self.w.extract("i64", lanes, positions, i)
            one = self.w.extract(value_type(b.dtype), lanes, value, i)
            pointer = self.w.op(f"getelementptr inbounds {memory_type(b.dtype)}, ptr {v.pointers[b]}, i64 {at}")
            self._store_at(pointer, b.dtype, 1, one, b.dtype.nbytes)

    def _if(self, s: If) -> None:
        w, cond = self.w, self.values.value(s.cond)
        then, end = w.fresh("then"), w.fresh("endif")
        other = w.fresh("else") if s.other is not None else end
        w.line(f"br i1 {cond}, label %{then}, label %{other}")
        w.label(then)
        self.block(s.then)
        w.line(f"br label %{end}")
        if s.other is not None:
            w.label(other)
            self.block(s.other)
            w.line(f"br label %{end}")
        w.label(end)

    def _for(self, s: For) -> None:
        if s.kind == "unroll":
            self._unrolled(s)
        elif s.kind == "serial":
            self._loop(s, self.values.index(s.begin), self.values.index(s.end))
        else:
            raise CodegenError(
                f"kernel {self.kernel.name}: a {s.kind} loop over '{s.var}' cannot stand here in code for a processor"
            )

    def _unrolled(self, s: For) -> None:
        if not isinstance(s.begin, Const) or not isinstance(s.end, Const):
            raise CodegenError(
                f"kernel {self.kernel.name}: bounds of the unrolled loop over '{s.var}' are not constant"
            )
        for i in range(int(s.begin.value), int(s.end.value), s.step):
            self.block(Block((Let(s.var, Const(DType.I64, 1, i)), *s.body.body)))

    def _loop(self, s: For, begin: str, end: str) -> None:
        """Test at the bottom; a guard in front unless it is known to run."""
        w, v = self.w, self.values
        body, done = w.fresh("loop"), w.fresh("done")
        var, following = w.fresh(f"%{s.var}."), w.fresh("%next")
        found = streams(s, v.target) if self.kernel.shaped and s.kind == "serial" else {}
        carried = list(dict.fromkeys(stream for stream, _ in found.values()))
        starts = [v.address(c.buffer, c.start) for c in carried]
        if _runs(s.begin, s.end) and s.kind != "parallel":
            w.line(f"br label %{body}")
        else:
            test = w.op(f"icmp slt i64 {begin}, {end}")
            w.line(f"br i1 {test}, label %{body}, label %{done}")
        before = w.block
        w.label(body)
        at = len(w.lines)
        w.line("")
        for c in carried:
            c.pointer, c.at = w.fresh("%at"), c.first
        pointers = [c.pointer for c in carried]
        v.streams = found
        names, indices = dict(v.names), set(v.indices)
        v.names[s.var] = var
        v.indices.add(s.var)
        self.block(s.body)
        v.names, v.indices = names, indices
        v.streams = {}
        nexts = [w.hidden(v.advance(c, c.first + c.step)) for c in carried]
        phis = [("i64", var, begin, following), *zip(["ptr"] * len(carried), pointers, starts, nexts, strict=True)]
        w.lines[at] = "\n".join(
            f"  {result} = phi {type_} [ {first}, %{before} ], [ {then}, %{w.block} ]"
            for type_, result, first, then in phis
        )
        w.line(f"{following} = add nsw i64 {var}, {s.step}")
        test = w.op(f"icmp slt i64 {following}, {end}")
        shaped = f", {self.loops.hand_shaped()}" if self.kernel.shaped else ""
        w.line(f"br i1 {test}, label %{body}, label %{done}{shaped}")
        w.label(done)

    def _block(self, s: Block) -> None:
        self.block(s)

    def _prefetch(self, s: Prefetch) -> None:
        """A plain address computation, since the element may lie outside."""
        v, b = self.values, s.buffer
        at = v.index(s.index)
        pointer = self.w.op(f"getelementptr {memory_type(b.dtype)}, ptr {v.pointers[b]}, i64 {at}")
        locality = 3 if s.near else 2
        arguments = f"ptr {pointer}, i32 0, i32 {locality}, i32 1"
        self.w.intrinsics["llvm.prefetch.p0"] = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"
        self.w.line(f"call void @llvm.prefetch.p0({arguments})")

    def _barrier(self, s: Barrier) -> None:
        raise CodegenError(f"kernel {self.kernel.name}: a barrier has no meaning in code for a processor")

    TABLE: ClassVar[dict[type[Any], Callable[[KernelPrinter, Any], None]]] = {
        For: _for, If: _if, Let: _let, Alloc: _alloc, Store: _store, Block: _block, Prefetch: _prefetch,
        Barrier: _barrier,
    }  # fmt: skip


def iterations(kernel: Kernel) -> int:
    """Iterations of the parallel loop, 1 without one."""
    loop = kernel.parallel
    if loop is None:
        return 1
    assert isinstance(loop.end, Const), "bounds of a parallel loop are constants"
    return int(loop.end.value)


def _runs(begin: Expr, end: Expr) -> bool:
    return isinstance(begin, Const) and isinstance(end, Const) and begin.value < end.value
