"""Remapped images: each row and each column of some channels is one of a source's, or filled.

Pads, enlargements of whole pixels, concatenations of channels and changes of layout. What a window reads behind such
operators is computed row by row, into memory that stays near (`remap_rows`); the tensor that they make is never there
as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...codegen.target import Target
from ...ir.graph import Node, Value
from ...ir.types import DType, TensorType
from ..pattern import required
from ..reading import constant_fill
from ..rules_windows import spatial_pads
from .context import Lowering
from .pad import positions
from .resize import resized_axes
from .resize_taps import Interpolation
from .window import Axis, Window

OUTSIDE = -1
"""The source position of what is filled."""


@dataclass(frozen=True, slots=True)
class Part:
    """y[n, first + c, i, j] = x[n, c, rows[i], columns[j]], or `fill` where one of them is OUTSIDE."""

    x: Value
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    fill: float = 0.0
    first: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it is the source as it is."""
        height, width = self.x.type.dims[2:]
        return self.rows == (*range(height),) and self.columns == (*range(width),)


@dataclass(frozen=True, slots=True)
class Remap:
    """The image y, the channels of its parts in order; y: type of the result."""

    parts: tuple[Part, ...]
    y: TensorType

    @property
    def x(self) -> Value:
        """The largest source."""
        return max((p.x for p in self.parts), key=lambda v: v.type.nbytes)

    def between(self, before: int, after: int) -> Remap:
        """The same with so many columns more on its sides, filled."""
        parts = (replace(p, columns=(OUTSIDE,) * before + p.columns + (OUTSIDE,) * after) for p in self.parts)
        *dims, width = self.y.dims
        return Remap(tuple(parts), self.y.with_shape((*dims, before + width + after)))

    @property
    def copied(self) -> int:
        """Bytes that operators of their own would write: all but sources that could be made where they are read."""
        apart = self._are_apart
        moved = (p for p in self.parts if apart or not p.is_whole or p.x.type.layout != self.y.layout)
        return sum(self.y.nbytes * p.x.type.dims[1] // self.y.dims[1] for p in moved)

    @property
    def _are_apart(self) -> bool:
        """Whether parts are not the bytes of the image one after another."""
        block = self.y.layout.block or 1
        return len(self.parts) > 1 and (self.batch > 1 or any(p.first % block for p in self.parts))

    @property
    def window(self) -> Window:
        """Each row of the result by itself."""
        return Window(2, Axis(), *(Axis(n, n) for n in self.y.dims[2:]))

    @property
    def batch(self) -> int:
        return self.y.dims[0]

    @property
    def macs(self) -> int:
        return 0

    @property
    def weight_bytes(self) -> int:
        return 0

    @property
    def reads_planes(self) -> bool:
        return True

    def __str__(self) -> str:
        """Shape of the result and channels; it decides how the layer is chained."""
        channels = "+".join(str(p.x.type.dims[1]) for p in self.parts)
        return f"remap {self.batch}x{self.window.image} {channels}"


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator: the source position of each row and column; fill: None where nothing is filled."""

    rows: np.ndarray
    columns: np.ndarray
    fill: float | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """A part in the making."""

    x: Value
    rows: np.ndarray
    columns: np.ndarray
    fill: float | None = None
    first: int = 0

    def behind(self, step: _Step) -> _Source | None:
        """The same seen through one more operator; None where two constants would be filled in."""
        if step.fill is not None and self.fill is not None:
            return None
        rows, columns = _composed(self.rows, step.rows), _composed(self.columns, step.columns)
        return replace(self, rows=rows, columns=columns, fill=self.fill if step.fill is None else step.fill)

    def done(self) -> Part:
        return Part(self.x, tuple(self.rows.tolist()), tuple(self.columns.tolist()), self.fill or 0.0, self.first)


def read_remap(nodes: Sequence[Node], target: Target) -> Remap | None:
    """`nodes`, which end in the last one's result, as one remapping of what they read; None where they do something
    else.

    They are Pads along rows and columns by known amounts, at most one of them around a source with a known constant,
    Resizes to nearest pixels, concatenations of channels and reorders, of images [N, C, H, W] of float32.
    """
    y = nodes[-1].output.type
    if any(not _is_image(v.type) for n in nodes for v in (*_images(n), n.output)):
        return None
    sources = _sources(nodes[-1].output, {n.output: n for n in nodes}, target)
    return None if sources is None else Remap(tuple(s.done() for s in sources), y)


def is_step(node: Node, target: Target) -> bool:
    """Whether a node by itself is a remapping."""
    return len(node.outputs) == 1 and read_remap([node], target) is not None


def _is_image(type_: TensorType) -> bool:
    return type_.rank == 4 and type_.dtype is DType.F32 and type_.is_static and type_.size > 0


def _images(node: Node) -> list[Value]:
    """What a remapping moves."""
    return [v for v in node.inputs if v is not None] if node.op == "Concat" else [required(node)]


def _sources(value: Value, made: Mapping[Value, Node], target: Target) -> list[_Source] | None:
    """The parts of a value, down to what `made` does not make."""
    node = made.get(value)
    if node is None:
        rows, columns = (np.arange(n) for n in value.type.dims[2:])
        return [_Source(value, rows, columns)]
    if node.op == "Concat":
        return _joined(node, made, target) if node.attrs["axis"] % 4 == 1 else None
    found, step = _sources(required(node), made, target), _step(node, target)
    if found is None or step is None:
        return None
    seen = [s.behind(step) for s in found]
    return None if None in seen else [s for s in seen if s is not None]


def _joined(concat: Node, made: Mapping[Value, Node], target: Target) -> list[_Source] | None:
    parts: list[_Source] = []
    first = 0
    for value in _images(concat):
        found = None if value.is_constant else _sources(value, made, target)
        if found is None:
            return None
        parts += [replace(s, first=s.first + first) for s in found]
        first += value.type.dims[1]
    return parts


def _composed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.where(after == OUTSIDE, OUTSIDE, before[after])


def _step(node: Node, target: Target) -> _Step | None:
    if node.op == "c2c.Reorder":
        rows, columns = (np.arange(n) for n in node.output.type.dims[2:])
        return _Step(rows, columns)
    return _pad(node) if node.op == "Pad" else _resize(node, target) if node.op == "Resize" else None


def _pad(node: Node) -> _Step | None:
    amounts, mode, fill = spatial_pads(node), node.attrs.get("mode", "constant"), constant_fill(node)
    if amounts is None or fill is None:
        return None
    height, width = required(node).type.dims[2:]
    top, left, bottom, right = amounts
    rows, columns = positions(mode, height, top, bottom), positions(mode, width, left, right)
    return _Step(rows, columns, fill if mode == "constant" else None)


def _resize(node: Node, target: Target) -> _Step | None:
    attrs, x = node.attrs, required(node).type
    coordinates = attrs.get("coordinate_transformation_mode", "half_pixel")
    if attrs.get("mode", "nearest") != "nearest" or coordinates == "tf_crop_and_resize":
        return None
    if any(node.input(i) is not None and node.constant(i) is None for i in (2, 3)):
        return None
    axes = resized_axes(Lowering(node, target, 1), crop=False)
    if any(a.size != a.result or a.scale != 1 for a in axes[:2]) or x.rank != 4:
        return None
    rules = Interpolation("nearest", coordinates, attrs.get("nearest_mode", "round_prefer_floor"))
    rows, columns = (rules.taps(a) for a in axes[2:])
    if any(t.count != 1 or not t.inside.all() for t in (rows, columns)):
        return None
    return _Step(rows.index[:, 0], columns.index[:, 0])
