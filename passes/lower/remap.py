"""Remapped images: each row and each column is one of the source's, or filled. Pads and enlargements of whole pixels.

What a window reads behind such operators is computed row by row, into memory that stays near (`remap_rows`); the tensor
that they make is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
class Remap:
    """y[n, c, i, j] = x[n, c, rows[i], columns[j]], or `fill` where one of them is OUTSIDE; y: type of the result."""

    x: Value
    y: TensorType
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    fill: float = 0.0

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
        return f"remap {self.batch}x{self.window.image} {self.y.dims[1]}"


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator: the source position of each row and column; fill: None where nothing is filled."""

    rows: np.ndarray
    columns: np.ndarray
    fill: float | None = None


def read_remap(nodes: Sequence[Node], target: Target) -> Remap | None:
    """`nodes` in a row as one remapping of the first one's input; None where they do something else.

    They are Pads along rows and columns by known amounts, at most one of them with a known constant, and Resizes to
    nearest pixels, of images [N, C, H, W] of float32 in one layout.
    """
    x, y = required(nodes[0]), nodes[-1].output.type
    if x.type.rank != 4 or x.type.dtype is not DType.F32 or x.type.layout != y.layout:
        return None
    if any(not v.is_static or v.size == 0 for v in (x.type, *(n.output.type for n in nodes))):
        return None
    rows, columns = (np.arange(n) for n in x.type.dims[2:])
    fills: list[float] = []
    for node in nodes:
        step = _pad(node) if node.op == "Pad" else _resize(node, target) if node.op == "Resize" else None
        if step is None:
            return None
        rows, columns = _composed(rows, step.rows), _composed(columns, step.columns)
        fills += [] if step.fill is None else [step.fill]
    if len(fills) > 1:
        return None
    return Remap(x, y, tuple(rows.tolist()), tuple(columns.tolist()), fills[0] if fills else 0.0)


def _composed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.where(after == OUTSIDE, OUTSIDE, before[after])


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
