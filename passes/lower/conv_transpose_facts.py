"""ConvTranspose as facts of a node: phases of its outputs, which share their taps.

Output o of one axis reads input i through tap t where o + pad = i·stride + t·dilation. So outputs of one *phase*
o mod stride share their taps, which step through the input at dilation / gcd(stride, dilation).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, gcd, prod

from ...ir.graph import Value
from ...ir.loops import Expr
from ...ir.types import DType
from ..pattern import required
from .context import Lowering
from .matmul import ACCUMULATORS


@dataclass(frozen=True, slots=True)
class Phase:
    """Outputs first, first + stride, … of one axis: output number q reads input q + at - j·step through tap taps[j]."""

    taps: tuple[int, ...]
    at: int
    step: int


@dataclass(frozen=True)
class Axis:
    """One spatial axis."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    pad: int

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Phases of outputs 0, 1, … stride - 1 (those that exist)."""
        common = gcd(self.stride, self.dilation)
        found = []
        for first in range(min(self.stride, self.out)):
            q, r = divmod(first + self.pad, self.stride)
            taps = tuple(t for t in range(self.kernel) if t * self.dilation % self.stride == r)
            start = (taps[0] * self.dilation - r) // self.stride if taps else 0
            found.append(Phase(taps, q - start, self.dilation // common))
        return tuple(found)

    @property
    def border(self) -> tuple[int, int]:
        """Elements that the taps read before and after the input."""
        low, high = 0, self.size - 1
        for first, phase in enumerate(self.phases):
            if phase.taps:
                last = (self.out - 1 - first) // self.stride
                low = min(low, phase.at - (len(phase.taps) - 1) * phase.step)
                high = max(high, last + phase.at)
        return -low, high - (self.size - 1)


@dataclass(frozen=True)
class Transposed:
    """The facts of one node; 1-D and 2-D forms get leading axes of one."""

    ctx: Lowering
    axes: tuple[Axis, Axis, Axis]
    batch: int
    groups: int
    channels: int
    maps: int
    acc: DType

    @property
    def x(self) -> Value:
        return required(self.ctx.node)

    @cached_property
    def lanes(self) -> int:
        return self.ctx.lanes(self.acc)

    @property
    def rank(self) -> int:
        """Spatial axes of the node."""
        return self.ctx.node.output.type.rank - 2

    @cached_property
    def vectors(self) -> int:
        """Vectors that hold one phase of a row of the output."""
        last = self.axes[2]
        longest = ceil(last.out / last.stride)
        return ceil(longest / self.lanes)

    @cached_property
    def rows(self) -> int:
        """Output channels of a tile."""
        most = max(1, (self.ctx.target.registers - 4) // len(self.axes[2].phases))
        most = min(most, self.maps, 8)
        return next((r for r in range(most, most // 2, -1) if self.maps % r == 0), most)

    @cached_property
    def padded(self) -> tuple[int, int, int]:
        """Spatial shape of the input with its borders; rows are long enough for whole vectors at every tap."""
        d, h, w = (a.size + sum(a.border) for a in self.axes)
        last = self.axes[2]
        reach = max((p.at for p in last.phases if p.taps), default=0) + last.border[0]
        return d, h, max(w, reach + self.vectors * self.lanes)

    @property
    def macs(self) -> int:
        taps = prod(-(-a.kernel // a.stride) for a in self.axes)
        return self.batch * self.groups * self.maps * self.channels * taps * prod(a.out for a in self.axes)

    def coords(self, *spatial: Expr) -> tuple[Expr, ...]:
        """The node's own spatial coordinates out of three."""
        return spatial[3 - self.rank :]


def read_transposed(ctx: Lowering) -> Transposed:
    x, w = ctx.node.inputs[:2]
    assert x is not None and w is not None
    attrs, out = ctx.node.attrs, ctx.node.output.type
    n, c, *size = x.type.dims
    rank = len(size)
    if rank > 3:
        raise ctx.unsupported(f"transposed convolution over {rank} axes is not supported")
    kernel = w.type.dims[2:]
    strides, dilations = (attrs.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads = _pads(ctx, size, kernel, strides, dilations)
    axes = [Axis(*row) for row in zip(size, out.dims[2:], kernel, strides, dilations, pads, strict=True)]
    first, second, third = [Axis(1, 1, 1, 1, 1, 0)] * (3 - rank) + axes
    groups = attrs.get("group", 1)
    acc = ACCUMULATORS.get(out.dtype, out.dtype)
    return Transposed(ctx, (first, second, third), n, groups, c // groups, w.type.dims[1], acc)


def _pads(
    ctx: Lowering, size: list[int], kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[int]:
    """Padding at the beginning of each axis (the end's follows from the output's shape)."""
    attrs, rank = ctx.node.attrs, len(size)
    auto = attrs.get("auto_pad", "NOTSET")
    if not attrs.get("output_shape") and auto in ("NOTSET", "VALID", ""):
        return [0] * rank if auto == "VALID" else list((attrs.get("pads") or [0] * 2 * rank)[:rank])
    extra = attrs.get("output_padding") or [0] * rank
    pads = []
    for i, out in enumerate(ctx.node.output.type.dims[2:]):
        total = max(0, strides[i] * (size[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - out)
        pads.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return pads
