"""Strided copies: the one kernel form to which transposes, slices, concatenations, pads, tiles and reorders reduce.

A `Region` is a box of elements with a stride in the destination and one in the source for every axis. Its kernel keeps
contiguous rows as vectors, transposes lanes × lanes blocks in registers where the two sides are contiguous along
different axes, and goes element by element elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

from ...codegen.target import Target
from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, const, shuffle
from ...ir.types import DType, TensorType
from .context import KernelBuilder, Lowering, strides
from .copy_axes import Dim, Region, merged, nest, offset_along, region
from .transposes import register_block, transpose

RAW = {8: DType.U8, 16: DType.U16, 32: DType.U32, 64: DType.U64}
"""Bytes move as integers of their width, so that equal copies share a kernel and bool lanes stay bytes."""

PARALLEL_BYTES = 1 << 18
"""Smaller copies stay on one thread."""


def raw(k: KernelBuilder, value: Value) -> Buffer:
    """The parameter of a value as integers of its width; raises UnsupportedOpError for strings."""
    dtype = value.type.dtype
    if dtype is DType.STRING:
        raise k.ctx.unsupported("string tensors are not supported", "keep text processing outside of the model")
    if value not in k.bound:
        k.bound[value] = k.param("p", RAW[dtype.bits], value.type.nbytes // dtype.nbytes)
    return k.bound[value]


def copy_regions(
    ctx: Lowering,
    dst: Value,
    regions: Sequence[Region],
    family: str,
    fill: Callable[[KernelBuilder], Expr] | None = None,
) -> None:
    """Kernels that copy `regions`, disjoint in `dst`; those without a source are filled with the scalar `fill`."""
    width = dst.type.dtype.nbytes
    regions = [r for r in regions if r.size]
    large = [r for r in regions if ctx.threads > 1 and r.size * width >= PARALLEL_BYTES]
    small = [r for r in regions if r not in large]
    for r in large:
        for part in _chunked(r, ctx):
            _kernel(ctx, dst, [part], family, fill, parallel=part.size * width >= PARALLEL_BYTES)
    if small:
        _kernel(ctx, dst, small, family, fill, parallel=False)


def _chunked(r: Region, ctx: Lowering) -> list[Region]:
    """A region whose outer axes feed all threads; long rows are cut into chunks and a remainder."""
    dims = merged(r.dims)
    outer = prod(d.size for d in dims[:-1])
    if outer >= 4 * ctx.threads or dims[-1].size < 8192:
        return [r]
    last, chunk = dims[-1], 4096
    n = last.size // chunk
    head = [*dims[:-1], Dim(n, last.dst * chunk, last.src * chunk), Dim(chunk, last.dst, last.src)]
    tail = [*dims[:-1], Dim(last.size % chunk, last.dst, last.src)]
    at = n * chunk
    parts = [Region(tuple(head), r.dst, r.src, r.source)]
    if last.size % chunk:
        parts.append(Region(tuple(tail), r.dst + at * last.dst, r.src + at * last.src, r.source))
    return parts


def _kernel(
    ctx: Lowering,
    dst: Value,
    regions: Sequence[Region],
    family: str,
    fill: Callable[[KernelBuilder], Expr] | None,
    *,
    parallel: bool,
) -> None:
    k = ctx.kernel()
    y = raw(k, dst)
    shaped = True
    for r in regions:
        shaped &= _emit(k, y, r, fill, parallel=parallel)
    k.done(family, shaped=shaped)


def _emit(
    k: KernelBuilder, y: Buffer, r: Region, fill: Callable[[KernelBuilder], Expr] | None, *, parallel: bool
) -> bool:
    """One region's loops; False where LLVM's vectoriser is welcome."""
    if r.source is not None:
        return copy_region(k, y, raw(k, r.source), r, parallel=parallel)
    assert fill is not None
    *outer, inner = merged(r.dims) or [Dim(1, 1, 1)]

    def row(index: Sequence[Expr]) -> None:
        store_row(k, y, offset_along(r.dst, index, [d.dst for d in outer]), inner.size, inner.dst, fill(k))

    nest(k, [d.size for d in outer], row, parallel=parallel)
    return inner.dst == 1


def copy_region(
    k: KernelBuilder, y: Buffer, x: Buffer, r: Region, *, parallel: bool = False, near: bool = False
) -> bool:
    """The loops of a region between two buffers, as a part of a kernel; False where LLVM's vectoriser is welcome.

    near: `y` lies in the nearest cache.
    """
    dims = merged(r.dims) or [Dim(1, 1, 1)]
    if (block := register_block(k.ctx, y.dtype, dims)) is not None:
        transpose(k, (y, x), r, dims, block, parallel=parallel, near=near)
        return True
    if _parts(k.ctx.target, y.dtype) and (axis := _interleaved(dims)) is not None:
        _part(k, (y, x), r, dims, axis, parallel=parallel)
        return True
    if _is_repeat(dims):
        _repeat(k, (y, x), r, dims, parallel=parallel)
        return True
    *outer, inner = dims

    def row(index: Sequence[Expr]) -> None:
        at = offset_along(r.dst, index, [d.dst for d in outer])
        begin = offset_along(r.src, index, [d.src for d in outer])
        copy_row(k, (y, at, inner.dst), (x, begin, inner.src), inner.size)

    nest(k, [d.size for d in outer], row, parallel=parallel)
    return inner.dst == 1 and inner.src in (-1, 0, 1)


# ---- rows ----


def store_row(k: KernelBuilder, y: Buffer, at: Expr, n: int, step: int, value: Expr) -> None:
    """The same scalar into `n` elements."""
    if step != 1:
        for i in k.loop("j", n):
            k.store(y, at + i * step, value)
        return
    for i, lanes in vectors(k, n, k.ctx.lanes(y.dtype)):
        k.store(y, at + i, broadcast(value, lanes))


def copy_row(k: KernelBuilder, dst: tuple[Buffer, Expr, int], src: tuple[Buffer, Expr, int], n: int) -> None:
    """`n` elements between (buffer, first offset, stride)s."""
    (y, at, step), (x, begin, stride) = dst, src
    if stride == 0:
        store_row(k, y, at, n, step, k.let(k.load(x, begin)))
    elif step == 1 and stride in (1, -1):
        for i, lanes in vectors(k, n, k.ctx.lanes(y.dtype)):
            k.store(y, at + i, _load_row(k, x, begin + i if stride == 1 else begin - i, stride, lanes))
    else:
        for i in k.loop("j", n):
            k.store(y, at + i * step, k.load(x, begin + i * stride))


def _load_row(k: KernelBuilder, x: Buffer, at: Expr, stride: int, lanes: int) -> Expr:
    if lanes == 1 or stride == 1:
        return k.load(x, at, lanes)
    return shuffle(k.load(x, at - (lanes - 1), lanes), None, tuple(range(lanes - 1, -1, -1)))


def vectors(k: KernelBuilder, n: int, lanes: int) -> Iterator[tuple[Expr, int]]:
    """Position and lanes of vectors that cover `n` elements; the last may overlap the one before it.

    Only for stores that may be repeated. A loop as those of Builder: the body runs to its end.
    """
    lanes = min(lanes, 64)
    while lanes > n:
        lanes //= 2
    for i in k.loop("j", n // lanes * lanes, step=lanes):
        yield i, lanes
    if n % lanes:
        yield const(n - lanes), lanes


# ---- interleaved planes ----


def _parts(target: Target, dtype: DType) -> bool:
    """Whether shuffles part planes faster than they are copied element by element: those of bytes across a whole
    vector of 512 bits take an instruction of their own."""
    if dtype is DType.U8 and target.vector_bits == 512:
        return target.permutes_bytes
    return target.vector_bits >= 256


def _interleaved(dims: Sequence[Dim]) -> int | None:
    """The axis over two or three planes of which the source has one element each in a row."""
    last = dims[-1]
    planes = (i for i, d in enumerate(dims[:-1]) if d.src == 1 and d.size in (2, 3) and d.size == last.src)
    return next(planes, None) if last.dst == 1 and last.size >= 4 else None


def _part(
    k: KernelBuilder, buffers: tuple[Buffer, Buffer], r: Region, dims: Sequence[Dim], axis: int, *, parallel: bool
) -> None:
    """A load for each plane; from them a vector of every plane."""
    (y, x), planes, row = buffers, dims[axis], dims[-1]
    outer = [d for i, d in enumerate(dims[:-1]) if i != axis]

    def body(index: Sequence[Expr]) -> None:
        at = k.let(offset_along(r.dst, index, [d.dst for d in outer]), "at")
        begin = k.let(offset_along(r.src, index, [d.src for d in outer]), "begin")
        for i, lanes in vectors(k, row.size, k.ctx.lanes(y.dtype)):
            loaded = [k.let(k.load(x, begin + (i * planes.size + v * lanes), lanes), "r") for v in range(planes.size)]
            for c in range(planes.size):
                k.store(y, at + (i + c * planes.dst), _every(k, loaded, c))

    nest(k, [d.size for d in outer], body, parallel=parallel)


def _every(k: KernelBuilder, loaded: Sequence[Expr], first: int) -> Expr:
    """Of vectors in a row the elements `first`, `first` + their number, and so on."""
    lanes, (value, *others) = loaded[0].lanes, loaded
    places = [first + i * len(loaded) for i in range(lanes)]
    for known, other in enumerate(others, 1):
        end = (known + 1) * lanes
        here = [i if p < known * lanes and known > 1 else p - (known - 1) * lanes for i, p in enumerate(places)]
        value = k.let(shuffle(value, other, tuple(h if p < end else 0 for h, p in zip(here, places, strict=True))), "s")
    return value


# ---- repeats ----


def _is_repeat(dims: Sequence[Dim]) -> bool:
    """Whether contiguous elements are each written a few times in a row (nearest neighbour by a whole factor)."""
    if len(dims) < 2:
        return False
    row, times = dims[-2:]
    return times.src == 0 and times.dst == 1 and row.src == 1 and row.dst == times.size <= 8 and row.size >= 4


def _repeat(
    k: KernelBuilder, buffers: tuple[Buffer, Buffer], r: Region, dims: Sequence[Dim], *, parallel: bool
) -> None:
    """One load, and a shuffle and a store for each vector of repeated elements."""
    (y, x), (*outer, row, times) = buffers, dims
    factor = times.size

    def body(index: Sequence[Expr]) -> None:
        at = offset_along(r.dst, index, [d.dst for d in outer])
        begin = offset_along(r.src, index, [d.src for d in outer])
        for i, lanes in vectors(k, row.size, k.ctx.lanes(y.dtype)):
            loaded = k.let(k.load(x, begin + i, lanes), "r")
            for part in range(factor):
                order = tuple((part * lanes + lane) // factor for lane in range(lanes))
                k.store(y, at + i * factor + part * lanes, shuffle(loaded, None, order))

    nest(k, [d.size for d in outer], body, parallel=parallel)


# ---- boxes ----


def copy_box(
    dst: tuple[TensorType, Sequence[int]],
    src: tuple[TensorType, Sequence[int]],
    sizes: Sequence[int],
    steps: Sequence[int] | None = None,
    source: Value | None = None,
) -> list[Region]:
    """Regions that copy a box of logical `sizes` between (type, first coordinates), whatever the two layouts.

    steps: of the source along each axis, not 0; along channels of a blocked source 1.
    """
    (to, first), (of, begin) = dst, src
    steps = steps or (1,) * len(sizes)
    if not to.layout.block and not of.layout.block:
        a, b = strides(to), strides(of)
        at = (sum(i * s for i, s in zip(first, a, strict=True)), sum(i * s for i, s in zip(begin, b, strict=True)))
        return [region(sizes, a, [s * t for s, t in zip(b, steps, strict=True)], at, source)]
    assert steps[1] == 1, "channels of a blocked layout are taken in order"
    a, b = _outer_strides(to), _outer_strides(of)
    rest = [i for i in range(len(sizes)) if i != 1]
    at = (sum(first[i] * a[i] for i in rest), sum(begin[i] * b[i] for i in rest))
    dims = [Dim(sizes[i], a[i], b[i] * steps[i]) for i in rest]
    return [
        Region((*dims, *runs), at[0] + to_channel, at[1] + of_channel, source)
        for runs, to_channel, of_channel in _channel_runs(to, first[1], of, begin[1], sizes[1])
    ]


def _outer_strides(t: TensorType) -> tuple[int, ...]:
    """Element strides by logical axis; that of channels is not meant to be used in a blocked layout."""
    steps = strides(t)
    return steps[:-1] if t.layout.block else steps


def _channel(t: TensorType, c: int) -> int:
    """Offset of channel `c`."""
    block, steps = t.layout.block, strides(t)
    return c // block * steps[1] + c % block if block else c * steps[1]


def _channel_runs(
    to: TensorType, first: int, of: TensorType, begin: int, count: int
) -> list[tuple[tuple[Dim, Dim], int, int]]:
    """Channels cut at block boundaries, pieces of one form joined: (axes over pieces and lanes, both offsets)."""
    blocks = to.layout.block, of.layout.block
    lane = 1 if blocks[0] else strides(to)[1], 1 if blocks[1] else strides(of)[1]
    forms: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    c = 0
    while c < count:
        ends = [b - (c + s) % b for b, s in zip(blocks, (first, begin), strict=True) if b]
        n = min(count - c, *ends)
        form = (n, *((c + s) % b for b, s in zip(blocks, (first, begin), strict=True) if b))
        forms.setdefault(form, []).append((_channel(to, first + c), _channel(of, begin + c)))
        c += n
    found: list[tuple[tuple[Dim, Dim], int, int]] = []
    for (n, *_), places in forms.items():
        step = (places[1][0] - places[0][0], places[1][1] - places[0][1]) if len(places) > 1 else (0, 0)
        found.append(((Dim(len(places), *step), Dim(n, *lane)), *places[0]))
    return found
