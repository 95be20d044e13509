"""TopK by candidates: elements that beat the worst kept so far are listed; a full list is sorted and cut to the best.

Entries are (key, index) as one integer, the least first: keys are the elements' bits in their order, so that a radix
sort of the entries by key alone, which is stable, leaves the first of equal elements in front. A vector of elements
costs one comparison; every sort drops most of what it sorts, so that all of them cost no more than the elements do.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.loops import Buffer, Expr, binary, bitcast, broadcast, cast, const, maximum, minimum, reduce, select
from ...ir.types import DType
from .context import KernelBuilder, Lowering

DIGITS = 4
BINS = 256
CHUNK = 64
"""Elements between looks at how full the list is."""
_FLOATS = (DType.F32, DType.F16, DType.BF16)
_INTEGERS = (DType.I32, DType.I16, DType.I8, DType.U16, DType.U8)


def has_keys(dtype: DType) -> bool:
    """Whether elements of a type have keys of 32 bits."""
    return dtype in _FLOATS or dtype in _INTEGERS


def capacity(n: int, count: int) -> int:
    """Entries of the list for `count` of `n` elements."""
    return min(4 * count + 2 * CHUNK, -(-n // CHUNK) * CHUNK) + CHUNK


def key_of(k: KernelBuilder, x: Expr, largest: bool) -> Expr:
    """I32 keys, the least first; a NaN comes last, and zeros of both signs are equal."""
    if x.dtype in _INTEGERS:
        key = cast(x, DType.I32)
        return ~key if largest else key
    x = k.let(cast(x, DType.F32), "x")
    bits = k.let(bitcast(select(binary("eq", x, 0.0), 0.0, x), DType.I32), "bits")
    key = binary("xor", bits, binary("shr", bits, 31) & 0x7FFFFFFF)
    last = const(0x7FFFFFFF, DType.I32, x.lanes)
    return select(binary("ne", x, x), last, ~key if largest else key)


class Candidates:
    """One worker's list: entries, as many to sort into, and the counts of every digit's values."""

    def __init__(self, ctx: Lowering, k: KernelBuilder, n: int, count: int) -> None:
        self.k, self.count, self.size = k, count, capacity(n, count)
        self.entries = k.tensor(ctx.scratch("entries", DType.I64, 2 * self.size * ctx.threads))
        self.bins = k.tensor(ctx.scratch("bins", DType.I32, DIGITS * BINS * ctx.threads))
        self.begin = k.worker * (2 * self.size)
        self.first_bin = k.worker * (DIGITS * BINS)

    def start(self) -> None:
        """An empty list for the row that follows."""
        k = self.k
        self.begin, self.first_bin = k.let(self.begin, "entries"), k.let(self.first_bin, "bins")
        self.filled = k.alloc("filled", DType.I64, 1)
        self.worst = k.alloc("worst", DType.I64, 1)
        k.store(self.filled, 0, const(0))
        k.store(self.worst, 0, const((1 << 63) - 1))

    def consider(self, keys: Expr, j: Expr) -> None:
        """A vector of keys of the elements from `j` on."""
        k, lanes = self.k, keys.lanes
        keys = k.let(keys, "keys")
        worst = k.let(cast(binary("shr", k.load(self.worst, 0), 32), DType.I32), "worst")
        near = cast(binary("le", keys, broadcast(worst, lanes)), DType.I32)
        for _ in k.when(binary("gt", reduce("max", near) if lanes > 1 else near, const(0, DType.I32))):
            held = k.alloc("held", DType.I32, lanes)
            k.store(held, 0, keys)
            least, at = k.let(k.load(self.worst, 0), "least"), k.let(k.load(self.filled, 0), "at")
            for lane in range(lanes):
                entry = k.let(binary("shl", cast(k.load(held, lane), DType.I64), 32) | (j + lane), "entry")
                k.store(self.entries, self.begin + at, entry)
                at = k.let(at + cast(binary("lt", entry, least), DType.I64), "at")
            k.store(self.filled, 0, at)

    def cut(self, last: Expr) -> None:
        """Where the list is nearly full, or at the `last` chunk: sorted, and only the best entries stay."""
        k = self.k
        filled = k.let(k.load(self.filled, 0), "filled")
        for _ in k.when(binary("gt", filled, self.size - CHUNK) | last):
            self._sort(filled)
            k.store(self.filled, 0, minimum(filled, self.count))
            k.store(self.worst, 0, k.load(self.entries, self.begin + (self.count - 1)))

    def best(self) -> Iterator[tuple[Expr, Expr]]:
        """(place, index of an element), of the best ones in order."""
        for i in self.k.loop("i", self.count):
            yield i, self.k.let(self.k.load(self.entries, self.begin + i) & 0x7FFFFFFF, "index")

    def _sort(self, filled: Expr) -> None:
        k, lanes = self.k, self.k.ctx.lanes(DType.I32)
        for i in k.loop("i", DIGITS * BINS, step=lanes):
            k.store(self.bins, self.first_bin + i, const(0, DType.I32, lanes))
        for i in k.loop("i", filled):
            entry = k.let(k.load(self.entries, self.begin + i), "entry")
            for digit in range(DIGITS):
                at = k.let(self._bin(entry, digit), "bin")
                k.store(self.bins, at, k.load(self.bins, at) + 1)
        totals = k.registers("total", DType.I32, DIGITS, 1)
        for digit in range(DIGITS):
            k.store(totals, digit, const(0, DType.I32))
        for i in k.loop("i", BINS):
            for digit in range(DIGITS):
                at = k.let(self.first_bin + (digit * BINS) + i, "bin")
                many, before = k.let(k.load(self.bins, at), "many"), k.let(k.load(totals, digit), "before")
                k.store(self.bins, at, before)
                k.store(totals, digit, before + many)
        for digit in range(DIGITS):
            of, to = (0, self.size) if digit % 2 == 0 else (self.size, 0)
            for i in k.loop("i", filled):
                entry = k.let(k.load(self.entries, self.begin + i + of), "entry")
                at = k.let(self._bin(entry, digit), "bin")
                place = k.let(k.load(self.bins, at), "place")
                k.store(self.entries, self.begin + cast(place, DType.I64) + to, entry)
                k.store(self.bins, at, place + 1)

    def _bin(self, entry: Expr, digit: int) -> Expr:
        value = binary("shr", entry, 32 + 8 * digit) & (BINS - 1)
        if digit == DIGITS - 1:
            value = binary("xor", value, BINS // 2)  # the sign comes first
        return self.first_bin + (digit * BINS) + value


def select_best(
    ctx: Lowering,
    k: KernelBuilder,
    candidates: Candidates,
    x: tuple[Buffer, Expr, int],
    n: int,
    largest: bool,
) -> Iterator[tuple[Expr, Expr]]:
    """(place, index) of the best of `n` elements at (buffer, first offset, stride)."""
    data, begin, step = x
    lanes = min(ctx.lanes(DType.I32), CHUNK) if step == 1 else 1
    whole = n // lanes * lanes

    def consider(j: Expr, width: int) -> None:
        candidates.consider(key_of(k, k.load(data, begin + j * step, width), largest), j)

    candidates.start()
    for c in k.loop("c", n, step=CHUNK):
        for j in k.loop("j", minimum(c + CHUNK, const(whole)), c, step=lanes) if whole else ():
            consider(j, lanes)
        for j in k.loop("j", minimum(c + CHUNK, const(n)), maximum(c, const(whole))) if whole < n else ():
            consider(j, 1)
        candidates.cut(binary("ge", c + CHUNK, const(n)))
    return candidates.best()
