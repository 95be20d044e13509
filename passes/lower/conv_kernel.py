"""What all convolution kernels share: the problem, its epilogue over blocks of channels, and coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...ir.graph import Node, Value, constant
from ...ir.loops import Binary, Buffer, Const, Expr, Load, const, select, shuffle
from ...ir.types import DType, TensorType
from ..reading import Around
from .context import INDEX, KernelBuilder, Lowering, Site, offset, strides
from .tasks import pieces
from .window import Axis, Window


@dataclass(frozen=True, slots=True)
class Convolution:
    """y[n, k] = bias[k] + Σ x[n, c] * weights[k, c]: weights [K, C / groups, D, H, W], bias [K], of the type of x:
    float32, or f16 between blocked tensors of f16, whose sums are f16 as well, or bf16, whose sums and bias are f32, or
    i16 or bytes, whose sums are i32.
    zero: what is taken away from bytes x, and lies around their image; their weights are i8. in_floats: sums of levels
    in i16 are f32, which holds them exactly, as weights and bias then are. around: what lies around the image instead
    of zeros."""

    x: Value
    y: TensorType
    weights: np.ndarray
    bias: np.ndarray | None
    groups: int
    window: Window
    zero: int = 0
    in_floats: bool = False
    around: Around | None = None

    @property
    def dtype(self) -> DType:
        """Type of the elements."""
        return self.x.type.dtype

    @property
    def sums(self) -> DType:
        """Type of the sums: of integers i32, which are exact."""
        if self.in_floats or self.dtype is DType.BF16:
            return DType.F32
        return DType.I32 if self.dtype.is_int else self.dtype

    @property
    def batch(self) -> int:
        return self.x.type.dims[0]

    @property
    def rows(self) -> Axis:
        """The height as far as taps go: with what lies around the image they are all inside."""
        return self.window.h if self.around is None else self.window.h.padded()

    def columns(self, start: int, tap: int, pixels: range) -> list[int]:
        """Columns that a tap reads in pixels of a tile at output `start` of an image that goes on beyond its border,
        counted from the one that the tile's first tap would read without it."""
        axis = self.window.w
        assert self.around is not None, "zeros lie around the image"
        places = [(start + p) * axis.stride + tap * axis.dilation for p in pixels]
        return [self.around.columns[at] - (start * axis.stride - axis.pad) for at in places]

    @property
    def channels_in(self) -> int:
        """Input channels of one group."""
        return int(self.weights.shape[1])

    @property
    def channels_out(self) -> int:
        """Output channels of one group."""
        return int(self.weights.shape[0]) // self.groups

    @property
    def macs(self) -> int:
        return self.batch * self.window.pixels * self.weights.size

    @property
    def weight_bytes(self) -> int:
        return self.weights.nbytes

    @property
    def reads_planes(self) -> bool:
        """Whether each channel of the result reads one channel."""
        return self.channels_in == 1

    def __str__(self) -> str:
        """Kernel, shape of the result and channels; it decides how the layer is chained."""
        channels = f"{self.channels_in * self.groups}->{self.channels_out * self.groups}"
        return f"{'dw' if self.groups > 1 else ''}{self.window.kernel} {self.batch}x{self.window.image} {channels}"


@dataclass(frozen=True, slots=True)
class Image:
    """The rows of an image that a buffer holds, from element `first` on: all of them, or row h in place h % `rows`.

    slot: the place of row `h` once a kernel has entered it; a ring holds all rows from there to h + r.
    table: where rows begin, the one that lies `before` rows above the image first; of a ring those from `h` on.
    """

    first: Expr
    rows: int
    ring: bool = False
    slot: Expr = INDEX
    table: Buffer | None = None
    before: int = 0

    def enter(self, k: KernelBuilder, h: Expr, reach: int, row: int) -> Image:
        """The image as seen from row `h`, which may lie before the first, and the `reach` rows below it."""
        if self.table is not None:
            return replace(self, slot=k.let(h + self.before, "slot"))
        if not self.ring:
            return self
        slot = k.let((h % self.rows + self.rows) % self.rows, "slot")
        if not reach:
            return replace(self, slot=slot)
        table = k.alloc("lines", DType.I64, reach + 1)
        for r in range(reach + 1):
            at = slot + r
            k.store(table, r, select(at >= self.rows, at - self.rows, at) * row)
        return replace(self, table=table)

    def base(self, h: Expr, row: int) -> Expr:
        """The part of row h + r's element offset that does not depend on r; a row has `row` elements."""
        return INDEX if self.ring or self.table is not None else h * row

    def step(self, r: Expr, row: int) -> Expr:
        """The part that does."""
        if self.table is not None:
            return Load(self.table.dtype, 1, self.table, self.slot + r)
        return (self.slot if self.ring else r) * row


class ConvKernel(KernelBuilder):
    """A kernel builder that knows channels as multiples of the block, so that offsets need no division."""

    def image(self, value: Value, n: Expr, rows: int) -> Image:
        """Where image `n` of `rows` rows lies in the tensor's buffer; a hook for kernels that keep some rows only."""
        return Image(n * strides(value.type)[0], rows)

    def enter_row(self, value: Value, h: Expr) -> None:
        """Row `h` of the value is written next; a hook for what its place needs."""

    def image_of(self, conv: Convolution, n: Expr, rows: int) -> Image:
        """`image` of a convolution's input, with what lies around it; a row is as long as the window's axis."""
        image = self.image(conv.x, n, rows)
        if conv.around is None:
            return image
        row = conv.window.w.size * max(1, conv.x.type.layout.block)
        key = ("around", conv.around.rows, row)
        if key not in self.ctx.memo:
            self.ctx.memo[key] = self.ctx.pack("rows", np.array(conv.around.rows, np.int64) * row)
        return replace(image, table=self.tensor(self.ctx.memo[key], "rows"), before=conv.window.h.pad)

    def entered(self, conv: Convolution, image: Image, h: Expr) -> Iterator[Image]:
        """The image as output row `h` of a convolution sees it. Where something goes on around it, a body for rows that
        are inside, whose places are computed, then one for the others."""
        axis, block = conv.window.h, max(1, conv.x.type.layout.block)
        first = h * axis.stride - axis.pad
        entered = image.enter(self, first, axis.reach, conv.window.w.size * block)
        if conv.around is None:
            yield entered
            return
        for _ in self.when((first >= 0) & (first < axis.size - axis.reach)):
            yield replace(image, table=None)
        for _ in self.otherwise():
            yield entered

    def meanwhile(self) -> None:
        """Between the products of a tile; a hook for kernels that ask for what they will read later."""

    def place(self, value: Value, coords: Sequence[Expr]) -> Expr:
        """Element offset of a vector of channels in the value's buffer."""
        return self.blocked_offset(value.type, coords)

    def blocked_offset(self, type_: TensorType, coords: Sequence[Expr]) -> Expr:
        block = type_.layout.block
        known = _divide(coords[1], block) if block else None
        if known is None:
            return offset(type_, coords)
        index, lane = known
        steps = strides(type_)
        total = coords[0] * steps[0] + index * steps[1]
        for c, s in zip(coords[2:], steps[2:-1], strict=True):
            total = total + c * s
        return total + lane


def _divide(channel: Expr, block: int) -> tuple[Expr, int] | None:
    """(block index, lane) of a channel written as multiples of the block and a constant."""
    match channel:
        case Const():
            index, lane = divmod(int(channel.value), block)
            return const(index), lane
        case Binary(op="mul", a=a, b=Const(value=value)) if int(value) % block == 0:
            return a * (int(value) // block), 0
        case Binary(op="add", a=a, b=b):
            left, right = _divide(a, block), _divide(b, block)
            if left is not None and right is not None and left[1] + right[1] < block:
                return left[0] + right[0], left[1] + right[1]
    return None


def finish(k: KernelBuilder, coords: tuple[Expr, ...], valid: int, value: Expr) -> None:
    """Apply the fused tail to a vector of channels and store its first `valid` lanes."""
    ctx = k.ctx
    if valid == value.lanes:
        site = Site(coords, 1, valid)
        k.write(ctx.output, site, ctx.epilogue(k, site, value))
        return
    value = k.let(value, "y")
    for first, width in pieces(valid):
        part = shuffle(value, None, tuple(range(first, first + width)))
        site = Site((coords[0], coords[1] + first, *coords[2:]), 1, width)
        k.write(ctx.output, site, ctx.epilogue(k, site, part))


def pad_operands(ctx: Lowering, lanes: int) -> bool:
    """Pad constants with one element a channel to whole vectors; whether whole vectors may then be stored.

    They may not where the result is plain, or an operand of the tail that is not constant ends with the last channel.
    """
    channels = ctx.node.output.type.dims[1]
    if channels % lanes == 0:
        return True
    safe = ctx.output.type.layout.block == lanes
    made = {v for n in ctx.tail for v in n.outputs} | {ctx.node.output}
    tail = []
    for node in ctx.tail:
        inputs = [v if v is None or v in made else _padded(ctx, v, lanes) for v in node.inputs]
        safe = safe and all(v is None or v in made or not _has_channels(ctx, v) for v in inputs)
        tail.append(Node(node.op, tuple(inputs), node.outputs, node.attrs, node.origin))
    ctx.tail = tuple(tail)
    return safe


def _axis(ctx: Lowering, value: Value) -> int:
    """The channel axis of an operand of the tail, negative where it has none."""
    return 1 - (ctx.node.output.type.rank - value.type.rank)


def _has_channels(ctx: Lowering, value: Value) -> bool:
    """Whether a plain operand has exactly one element for each channel along its channel axis."""
    axis = _axis(ctx, value)
    channels = ctx.node.output.type.dims[1]
    return axis >= 0 and not value.type.layout.block and value.type.dims[axis] == channels > 1


def _padded(ctx: Lowering, value: Value, lanes: int) -> Value:
    if value.data is None or not _has_channels(ctx, value):
        return value
    axis = _axis(ctx, value)
    pad = [(0, 0)] * value.type.rank
    pad[axis] = (0, -value.type.dims[axis] % lanes)
    return constant(f"{value.name}.padded", np.pad(value.data, pad))


def flattens(ctx: Lowering) -> bool:
    """Whether the tail's operands span all spatial axes or none, so that these may be counted as one."""
    spatial = ctx.node.output.type.dims[2:]
    made = {v for n in ctx.tail for v in n.outputs} | {ctx.node.output}
    for value in (v for n in ctx.tail for v in n.inputs if v is not None and v not in made):
        mine = ((1,) * len(spatial) + value.type.dims)[-len(spatial) :]
        if mine != spatial and any(d != 1 for d in mine):
            return False
    return True


def overwritable(k: KernelBuilder, x: Value) -> tuple[Value, ...]:
    """Operands of the tail of the result's type and layout: element i of them is read where element i is written."""
    y = k.ctx.output
    return tuple(v for v in k.bound if v not in (y, x) and not v.is_constant and v.type == y.type)


def padded_bias(ctx: Lowering, bias: np.ndarray | None, groups: int, lanes: int) -> Value | None:
    """The bias of each group as whole vectors."""
    if bias is None:
        return None
    out = bias.size // groups
    padded = np.zeros((groups, -(-out // lanes) * lanes), bias.dtype)
    padded[:, :out] = bias.reshape(groups, out)
    return ctx.pack("bias", padded.reshape(-1))


def start(k: KernelBuilder, bias: Value | None, at: Expr, lanes: int, dtype: DType = DType.F32) -> Expr:
    """First value of an accumulator."""
    return const(0, dtype, lanes) if bias is None else k.load(k.tensor(bias), at, lanes)


def unravel(k: KernelBuilder, index: Expr, dims: Sequence[int]) -> list[Expr]:
    """Row-major coordinates of a linear index, each named."""
    coords: list[Expr] = []
    for position, d in enumerate(reversed(dims)):
        last = position == len(dims) - 1
        coords.append(INDEX if d == 1 else k.let(index if last else index % d, "i"))
        index = index if d == 1 or last else k.let(index / d, "i")
    return coords[::-1]
