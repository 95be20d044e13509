"""Lookups in tables that lie in registers, as LLVM IR text: permutations where the target has them, else memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.loops import Lookup
from ..ir.types import DType
from .llvm_types import splat, value_type, vector
from .llvm_writer import Writer
from .target import Target


@dataclass(frozen=True, slots=True)
class _Permutation:
    """An intrinsic that looks up `lanes` indices of `bits` in a table of `entries`, registers of `lanes` in `type_`.

    between: the indices stand between the two registers of the table. masked: only indices in range have a meaning.
    """

    name: str
    feature: str
    bits: int
    lanes: int
    entries: int
    type_: str
    between: bool = False
    masked: bool = False


_PERMUTATIONS = (
    _Permutation("llvm.x86.avx512.permvar.sf.512", "avx512f", 32, 16, 16, "float"),
    _Permutation("llvm.x86.avx512.vpermi2var.ps.512", "avx512f", 32, 16, 32, "float", between=True),
    _Permutation("llvm.x86.avx512.permvar.hi.512", "avx512bw", 16, 32, 32, "i16"),
    _Permutation("llvm.x86.avx512.vpermi2var.hi.512", "avx512bw", 16, 32, 64, "i16", between=True),
    _Permutation("llvm.x86.avx512.permvar.qi.512", "avx512vbmi", 8, 64, 64, "i8"),
    _Permutation("llvm.x86.avx512.pshuf.b.512", "avx512bw", 8, 64, 16, "i8", masked=True),
    _Permutation("llvm.x86.avx2.permps", "avx2", 32, 8, 8, "float"),
    _Permutation("llvm.x86.avx2.pshuf.b", "avx2", 8, 32, 16, "i8", masked=True),
    _Permutation("llvm.x86.ssse3.pshuf.b.128", "ssse3", 8, 16, 16, "i8", masked=True),
    _Permutation("llvm.aarch64.neon.tbl1.v16i8", "neon", 8, 16, 16, "i8", masked=True),
    _Permutation("llvm.aarch64.neon.tbl2.v16i8", "neon", 8, 16, 32, "i8", masked=True),
    _Permutation("llvm.aarch64.neon.tbl4.v16i8", "neon", 8, 16, 64, "i8", masked=True),
)
"""Of those that the target has, the first that holds the table is taken, or else the largest for parts of it."""

_BYTE_TABLE = 64
"""Bytes of the largest table that `tbl` reads."""


def lookup(w: Writer, target: Target, e: Lookup, table: str, index: str) -> str:
    """The operand that holds `e`, of the operands table and index."""
    bits, entries, result = e.dtype.bits, e.table.lanes, value_type(e.dtype, e.lanes)
    table = _as(w, table, value_type(e.dtype, entries), vector(f"i{bits}", entries))
    found = _Search(w, target, bits).find(table, entries, index, e.lanes)
    return _as(w, found, vector(f"i{bits}", e.lanes), result)


def _as(w: Writer, value: str, type_: str, to: str) -> str:
    return value if type_ == to else w.op(f"bitcast {type_} {value} to {to}")


@dataclass(frozen=True, slots=True)
class _Search:
    """Lookups of elements of `bits`, as integers."""

    w: Writer
    target: Target
    bits: int

    def find(self, table: str, entries: int, index: str, lanes: int, *, inside: bool = False) -> str:
        """table[index mod entries]; inside: the indices are below `entries`."""
        rows = [r for r in _PERMUTATIONS if r.bits == self.bits and r.feature in self.target.has]
        by_bytes = self.target.arch == "aarch64" and self.bits in (16, 32)
        largest = _BYTE_TABLE * 8 // self.bits if by_bytes else max((r.entries for r in rows), default=0)
        if lanes == 1 or not largest:
            return self._by_memory(table, entries, index, lanes)
        if entries > largest:
            return self._by_halves(table, entries, index, lanes)
        if by_bytes:
            return self._by_bytes(table, entries, index, lanes)
        row = next(r for r in rows if r.entries >= entries)
        if row.masked and not inside:
            index = self.w.op(f"and {self._type(lanes)} {index}, {splat(f'i{self.bits}', str(entries - 1), lanes)}")
        parts = [self._permuted(row, table, entries, index, lanes, at) for at in range(0, lanes, row.lanes)]
        return self._joined(parts, row.lanes, lanes)

    def _type(self, lanes: int) -> str:
        return vector(f"i{self.bits}", lanes)

    def _permuted(self, row: _Permutation, table: str, entries: int, index: str, lanes: int, first: int) -> str:
        """`row.lanes` results from lane `first` on, those beyond the last one without a meaning."""
        w, register = self.w, vector(row.type_, row.lanes)
        registers = []
        for start in range(0, max(row.entries, row.lanes), row.lanes):
            taken = tuple(i % entries for i in range(start, start + row.lanes))
            part = w.shuffle(self._type(entries), table, "poison", taken)
            registers.append((register, _as(w, part, self._type(row.lanes), register)))
        if row.lanes != lanes:
            taken = tuple(min(i, lanes - 1) for i in range(first, first + row.lanes))
            index = w.shuffle(self._type(lanes), index, "poison", taken)
        where = (self._type(row.lanes), index)
        operands = (registers[0], where, registers[1]) if row.between else (*registers, where)
        return _as(w, w.call(row.name, register, *operands), register, self._type(row.lanes))

    def _joined(self, parts: list[str], width: int, lanes: int) -> str:
        """The first `lanes` lanes of values of `width`, one after another."""
        w, whole, have = self.w, parts[0], width
        for part in parts[1:]:
            padded = tuple(min(i, width - 1) for i in range(have))
            part = part if have == width else w.shuffle(self._type(width), part, "poison", padded)
            taken = tuple(i if i < have else have + i - have for i in range(have + width))
            whole = w.shuffle(self._type(have), whole, part, taken)
            have += width
        return whole if have == lanes else w.shuffle(self._type(have), whole, "poison", tuple(range(lanes)))

    def _by_halves(self, table: str, entries: int, index: str, lanes: int) -> str:
        """Both halves of the table, of which the bit above the others selects one."""
        w, half, type_ = self.w, entries // 2, self._type(lanes)
        low, high = (w.shuffle(self._type(entries), table, "poison", tuple(range(at, at + half))) for at in (0, half))
        found = [self.find(part, half, index, lanes) for part in (low, high)]
        bit = w.op(f"and {type_} {index}, {splat(f'i{self.bits}', str(half), lanes)}")
        test = w.op(f"icmp ne {type_} {bit}, {splat(f'i{self.bits}', '0', lanes)}")
        return w.op(f"select {vector('i1', lanes)} {test}, {type_} {found[1]}, {type_} {found[0]}")

    def _by_bytes(self, table: str, entries: int, index: str, lanes: int) -> str:
        """Elements by their bytes: element i lies at bytes i·n to i·n + n."""
        w, type_, n = self.w, self._type(lanes), self.bits // 8
        step, first = (sum(v << 8 * i for i, v in enumerate(bytes_)) for bytes_ in ([n] * n, range(n)))
        for op, number in (("and", entries - 1), ("mul", step), ("add", first)):
            index = w.op(f"{op} {type_} {index}, {splat(f'i{self.bits}', str(number), lanes)}")
        table = _as(w, table, self._type(entries), vector("i8", entries * n))
        index = _as(w, index, type_, vector("i8", lanes * n))
        found = _Search(w, self.target, 8).find(table, entries * n, index, lanes * n, inside=True)
        return _as(w, found, vector("i8", lanes * n), type_)

    def _by_memory(self, table: str, entries: int, index: str, lanes: int) -> str:
        w, scalar = self.w, f"i{self.bits}"
        place = w.local("table", f"[{entries} x {scalar}]", self.bits // 8)
        w.line(f"store {self._type(entries)} {table}, ptr {place}, align {self.bits // 8}")
        results = []
        for i in range(lanes):
            at = w.op(f"and {scalar} {w.extract(scalar, lanes, index, i)}, {entries - 1}")
            at = at if self.bits == DType.I64.bits else w.op(f"zext {scalar} {at} to i64")
            pointer = w.op(f"getelementptr {scalar}, ptr {place}, i64 {at}")
            results.append(w.op(f"load {scalar}, ptr {pointer}, align {self.bits // 8}"))
        return w.build(scalar, results)
