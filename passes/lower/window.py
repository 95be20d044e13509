"""Sliding windows over spatial axes: what convolution and pooling share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir.errors import UnsupportedOpError
from ...ir.graph import Node
from ...ir.loops import Expr, const, maximum, minimum
from ...ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: output position o reads inputs o·stride - pad + t·dilation for taps t in [0, kernel)."""

    size: int = 1
    out: int = 1
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    pad: int = 0
    pad_end: int = 0

    @property
    def reach(self) -> int:
        """Distance from the first to the last tap."""
        return (self.kernel - 1) * self.dilation

    @property
    def is_inside(self) -> bool:
        """Whether every tap of every output position is inside the input."""
        return self.pad <= 0 and (self.out - 1) * self.stride - self.pad + self.reach < self.size

    @property
    def is_pointwise(self) -> bool:
        return self.kernel == self.stride == 1 and self.pad == 0 and self.size == self.out

    def taps(self, o: int) -> range:
        """Taps of output position `o` that lie inside the input."""
        first = o * self.stride - self.pad
        begin = max(0, -(first // self.dilation) if first < 0 else 0)
        end = min(self.kernel, -(-(self.size - first) // self.dilation))
        return range(begin, max(begin, end))

    def tap_range(self, o: Expr) -> tuple[Expr, Expr]:
        """`taps` of a position known at run time, as [begin, end)."""
        if self.is_inside:
            return const(0), const(self.kernel)
        first = o * self.stride - self.pad
        begin = maximum((self.dilation - 1) - first, 0) / self.dilation
        end = minimum((self.size + self.dilation - 1 - first) / self.dilation, self.kernel)
        return begin, end

    def padded(self) -> Axis:
        """The axis with its padding as part of the input."""
        return replace(self, size=self.pad + self.size + self.pad_end, pad=0, pad_end=0)

    def interior(self) -> range:
        """Output positions all of whose taps are inside."""
        begin = min(self.out, max(0, -(-self.pad // self.stride)))
        end = min(self.out, (self.size - 1 - self.reach + self.pad) // self.stride + 1)
        return range(begin, max(begin, end))


@dataclass(frozen=True, slots=True)
class Window:
    """Depth, height and width of a 1-D, 2-D or 3-D window; missing axes come first and have size 1."""

    rank: int
    d: Axis
    h: Axis
    w: Axis

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        return self.d, self.h, self.w

    @property
    def is_pointwise(self) -> bool:
        return all(a.is_pointwise for a in self.axes)

    @property
    def taps(self) -> int:
        return self.d.kernel * self.h.kernel * self.w.kernel

    @property
    def pixels(self) -> int:
        """Output positions."""
        return self.d.out * self.h.out * self.w.out

    @property
    def pixels_in(self) -> int:
        return self.d.size * self.h.size * self.w.size

    @property
    def is_column(self) -> bool:
        """Whether the last axis has one position, so that the height may take its place: their strides are equal."""
        return self.w.is_pointwise and self.w.size == 1 and self.h.size > 1

    def turned(self) -> Window:
        """A column as a row; coordinates along it stand in the last axis."""
        return replace(self, h=Axis(), w=self.h)

    def merged(self) -> Window:
        """A pointwise window as one axis."""
        assert self.is_pointwise
        return replace(self, d=Axis(), h=Axis(), w=Axis(self.pixels, self.pixels))

    @property
    def kernel(self) -> str:
        """Kernel and stride, for instance 3x3/2."""
        return f"{self.h.kernel}x{self.w.kernel}/{self.h.stride}"

    @property
    def image(self) -> str:
        """Rows and columns of the result."""
        return f"{self.h.out}x{self.w.out}"

    def __str__(self) -> str:
        """Kernel/stride*dilation size->out of the axes that are more than one position; it decides schedules."""
        axes = [a for a in self.axes if a.size > 1 or a.kernel > 1] or [self.w]
        kernel, stride, dilation, size, out = (
            "x".join(str(getattr(a, part)) for a in axes) for part in ("kernel", "stride", "dilation", "size", "out")
        )
        return f"{kernel}/{stride}*{dilation} {size}->{out}"

    def spatial(self, d: Expr, h: Expr, w: Expr) -> tuple[Expr, ...]:
        """Coordinates of the axes that the tensor has."""
        return (d, h, w)[3 - self.rank :]


def window(node: Node, x: TensorType, y: TensorType, kernel: tuple[int, ...]) -> Window:
    """The window of a node with ONNX's attributes strides, dilations, pads and auto_pad.

    Raises UnsupportedOpError for more than three spatial axes.
    """
    rank = x.rank - 2
    if not 1 <= rank <= 3:
        raise UnsupportedOpError(f"{node.op} with {rank} spatial axes is not supported", where=node.where)
    strides = node.attrs.get("strides") or [1] * rank
    dilations = node.attrs.get("dilations") or [1] * rank
    axes = [
        Axis(x.dims[2 + i], y.dims[2 + i], kernel[i], strides[i], dilations[i], *pads)
        for i, pads in enumerate(_pads(node, x, kernel, strides, dilations))
    ]
    d, h, w = [*[Axis()] * (3 - rank), *axes]
    return Window(rank, d, h, w)


def _pads(
    node: Node, x: TensorType, kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """Padding before and after each axis."""
    rank = len(kernel)
    mode = node.attrs.get("auto_pad") or "NOTSET"
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode == "NOTSET":
        pads = node.attrs.get("pads") or [0] * 2 * rank
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if mode == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, k, s, d in zip(x.dims[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return found
