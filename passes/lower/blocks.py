"""Col2Im, Det and TfIdfVectorizer: loops of their own, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ...ir.loops import Buffer, Expr, binary, cast, const, select, unary
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers
from .copy_axes import nest
from .movement import fill, operand, required_constant

_WIDE = {DType.F16: DType.F32, DType.BF16: DType.F32}


@lowers("Col2Im")
def lower_col2im(ctx: Lowering) -> None:
    """[N, C·block, L] → [N, C, image…]: overlapping blocks summed."""
    x, y, attrs = operand(ctx, 0), ctx.output, ctx.node.attrs
    image = [int(d) for d in required_constant(ctx, 1)]
    block = [int(d) for d in required_constant(ctx, 2)]
    rank = len(image)
    step = attrs.get("strides") or (1,) * rank
    dilation = attrs.get("dilations") or (1,) * rank
    pads = attrs.get("pads") or (0,) * (2 * rank)
    counts = [
        (image[i] + pads[i] + pads[rank + i] - dilation[i] * (block[i] - 1) - 1) // step[i] + 1 for i in range(rank)
    ]
    batch, channels = y.type.dims[:2]
    fill(ctx, y, 0)
    k = ctx.kernel()
    data, out = k.tensor(x), k.tensor(y)
    of, to = strides_of([batch * channels, *block, *counts]), strides_of([batch * channels, *image])

    def body(index: Sequence[Expr]) -> None:
        plane, inside, outside = index[0], index[1 : 1 + rank], index[1 + rank :]
        at = [
            k.let(o * step[i] + b * dilation[i] - pads[i], "at")
            for i, (b, o) in enumerate(zip(inside, outside, strict=True))
        ]
        valid: Expr = const(True, DType.BOOL)
        for i, a in enumerate(at):
            valid = valid & binary("ge", a, 0) & binary("lt", a, image[i])
        for _ in k.when(valid):
            place = k.let(_dot([plane, *at], to), "place")
            k.store(out, place, k.load(out, place) + k.load(data, _dot(index, of)))

    nest(k, [batch * channels, *block, *counts], body)
    k.done("col2im")


def strides_of(sizes: Sequence[int]) -> list[int]:
    """Row-major strides."""
    return [prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _dot(index: Sequence[Expr], steps: Sequence[int]) -> Expr:
    at: Expr = const(0)
    for i, step in zip(index, steps, strict=True):
        at = at + i * step
    return at


@lowers("Det")
def lower_det(ctx: Lowering) -> None:
    """Determinants of [..., n, n] by elimination with partial pivoting."""
    x, y = operand(ctx, 0), ctx.output
    n = x.type.dims[-1]
    if y.type.size == 0:
        return
    dtype = _WIDE.get(x.type.dtype, x.type.dtype)
    matrix = ctx.scratch("matrix", dtype, max(n * n, 1))
    k = ctx.kernel()
    data, work, out = k.tensor(x), k.tensor(matrix), k.tensor(y)
    for b in k.loop("b", y.type.size):
        det, pivot = k.alloc("det", dtype, 1), k.alloc("pivot", DType.I64, 1)
        k.store(det, 0, const(1.0, dtype))
        for i in k.loop("i", n * n):
            k.store(work, i, cast(k.load(data, b * (n * n) + i), dtype))
        for c in k.loop("c", n):
            _eliminate(k, work, det, pivot, n, c)
        k.store(out, b, cast(k.load(det, 0), y.type.dtype))
    k.done("det")


def _eliminate(k: KernelBuilder, work: Buffer, det: Buffer, pivot: Buffer, n: int, c: Expr) -> None:
    """Column `c`: the largest element becomes the pivot, the rows below lose the column."""
    k.store(pivot, 0, c)
    for r in k.loop("r", n, begin=c):
        larger = unary("abs", k.load(work, r * n + c)) > unary("abs", k.load(work, k.load(pivot, 0) * n + c))
        k.store(pivot, 0, select(larger, r, k.load(pivot, 0)))
    row = k.let(k.load(pivot, 0), "row")
    for j in k.loop("j", n):
        a, b = k.let(k.load(work, c * n + j), "a"), k.let(k.load(work, row * n + j), "b")
        k.store(work, c * n + j, b)
        k.store(work, row * n + j, a)
    p = k.let(k.load(work, c * n + c), "p")
    sign = select(binary("eq", row, c), const(1.0, p.dtype), const(-1.0, p.dtype))
    k.store(det, 0, k.load(det, 0) * p * sign)
    safe = k.let(select(binary("eq", p, 0.0), const(1.0, p.dtype), p), "safe")
    for r in k.loop("r", n, begin=c + 1):
        f = k.let(k.load(work, r * n + c) / safe, "f")
        for j in k.loop("j", n, begin=c):
            k.store(work, r * n + j, k.load(work, r * n + j) - f * k.load(work, c * n + j))


@lowers("TfIdfVectorizer")
def lower_tf_idf(ctx: Lowering) -> None:
    """Counts of n-grams (with skips) in rows of integers, weighted by mode TF, IDF or TFIDF."""
    x, y, attrs = operand(ctx, 0), ctx.output, ctx.node.attrs
    size, length = y.type.dims[-1], x.type.dims[-1] if x.type.rank else 1
    rows = x.type.size // max(length, 1)
    fill(ctx, y, 0)
    k = ctx.kernel()
    data, out = k.tensor(x), k.tensor(y)
    count = k.alloc("count", DType.F32, 1)
    for gram, (pool, places) in _grams(attrs).items():
        table, place = k.tensor(ctx.pack("grams", pool)), k.tensor(ctx.pack("places", places))
        skips = 1 if gram == 1 else int(attrs["max_skip_count"]) + 1
        for b in k.loop("b", rows):
            for g in k.loop("g", len(places)):
                k.store(count, 0, const(0.0, DType.F32))
                for d in range(1, skips + 1):
                    for p in k.loop("p", max(length - (gram - 1) * d, 0)):
                        same: Expr = const(True, DType.BOOL)
                        for t in range(gram):
                            token = cast(k.load(data, b * length + p + t * d), DType.I64)
                            same = same & binary("eq", token, k.load(table, g * gram + t))
                        k.store(count, 0, k.load(count, 0) + cast(same, DType.F32))
                to = k.let(b * size + k.load(place, g), "to")
                k.store(out, to, k.load(out, to) + k.load(count, 0))
    _weigh(ctx, k, out, rows, size)
    k.done("tf_idf")


def _weigh(ctx: Lowering, k: KernelBuilder, out: Buffer, rows: int, size: int) -> None:
    mode, given = ctx.node.attrs["mode"], ctx.node.attrs.get("weights")
    if mode == "TF" or (mode == "TFIDF" and not given):
        return
    values = np.asarray(given if given else np.ones(size), np.float32)
    weight = k.tensor(ctx.pack("weights", values))
    for b in k.loop("b", rows):
        for i in k.loop("i", size):
            value, w = k.let(k.load(out, b * size + i), "value"), k.load(weight, i)
            k.store(out, b * size + i, value * w if mode == "TFIDF" else select(value > 0.0, w, const(0.0, DType.F32)))


def _grams(attrs: dict[str, object]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """For each length of n-gram that counts: its n-grams [count, n] and their places in the result."""
    pool = np.asarray(attrs.get("pool_int64s") or (), np.int64)
    starts = [int(i) for i in np.asarray(attrs["ngram_counts"])]
    places = np.asarray(attrs["ngram_indexes"], np.int64)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    first = 0
    for gram, (begin, end) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), 1):
        n = (end - begin) // gram
        if n and np.asarray(attrs["min_gram_length"]) <= gram <= np.asarray(attrs["max_gram_length"]):
            found[gram] = (pool[begin : begin + n * gram].reshape(n, gram), places[first : first + n])
        first += n
    return found
