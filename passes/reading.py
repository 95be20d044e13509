"""How a convolution may read an image that is padded by reflection or enlarged: from the source, by a map of positions.

Position i of the padded image along one axis stands for pixel u = i - before of the enlarged one, mirrored or clamped
where it lies beyond, and so for pixel u / factor of the source. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.graph import Node, Value
from .lower.resize_taps import Axis, Interpolation
from .pattern import required
from .rules_windows import spatial_pads

OPERATORS = ("Pad", "Resize")


@dataclass(frozen=True, slots=True)
class Line:
    """One axis: `size` pixels of the enlarged image, `before` positions of padding, `mode` beyond the image.

    mode: zero, reflect or edge. factor: how often a source pixel is repeated.
    """

    size: int
    before: int
    factor: int = 1
    mode: str = "zero"

    @property
    def pixels(self) -> int:
        """Pixels of the source."""
        return self.size // self.factor

    def holds(self, length: int) -> bool:
        """Whether the first `length` positions are all inside the image."""
        return self.before <= 0 and length - self.before <= self.size

    def offset(self, step: int) -> int:
        """Source pixels from the one where a tile stands (at a multiple of `factor`) to position `step` of the tile."""
        return (step - self.before) // self.factor


@dataclass(frozen=True, slots=True)
class Reading:
    """The image that is read in place of the convolution's input, and its rows and columns."""

    source: Value
    rows: Line
    columns: Line


def reading_of(nodes: Sequence[Node], pads: Sequence[int]) -> Reading | None:
    """What a 2-D convolution with `pads` (begins, ends) reads behind `nodes`: a Resize, a Pad, or both in this order.

    None where they are something else than a repetition of whole pixels and a padding of the image by itself.
    """
    by_op = {n.op: n for n in nodes}
    if not nodes or [n.op for n in nodes] not in (["Resize"], ["Pad"], ["Resize", "Pad"]):
        return None
    source = required(nodes[0])
    if source.type.rank != 4 or not source.type.is_static:
        return None
    factor = whole_factor(by_op["Resize"]) if "Resize" in by_op else 1
    if factor is None:
        return None
    rows, columns = (Line(n * factor, p, factor) for n, p in zip(source.type.dims[2:], pads[:2], strict=True))
    if "Pad" not in by_op:
        return Reading(source, rows, columns)
    pad, mode = by_op["Pad"], by_op["Pad"].attrs.get("mode", "constant")
    amounts = spatial_pads(pad)
    if any(pads) or amounts is None or mode not in ("reflect", "edge") or min(amounts) < 0:
        return None
    if mode == "reflect" and any(a >= n for a, n in zip(amounts, (rows.size, columns.size) * 2, strict=True)):
        return None
    rows, columns = (replace(line, before=b, mode=mode) for line, b in zip((rows, columns), amounts, strict=False))
    return Reading(source, rows, columns)


def whole_factor(resize: Node) -> int | None:
    """How often a Resize of an image repeats each pixel along both axes; None where it does something else."""
    attrs, x, y = resize.attrs, required(resize).type, resize.output.type
    mode = attrs.get("coordinate_transformation_mode", "half_pixel")
    if attrs.get("mode", "nearest") != "nearest" or mode == "tf_crop_and_resize" or "keep_aspect_ratio_policy" in attrs:
        return None
    if not y.is_static or x.rank != 4 or x.dims[:2] != y.dims[:2]:
        return None
    factor = y.dims[2] // x.dims[2]
    scales, axes = resize.constant(2), attrs.get("axes") or range(4)
    if any(m != n * factor for n, m in zip(x.dims[2:], y.dims[2:], strict=True)) or factor < 2:
        return None
    if scales is not None and scales.size:
        wanted = [factor if int(a) % 4 >= 2 else 1 for a in axes]
        if scales.reshape(-1).tolist() != wanted:
            return None
    elif resize.constant(3) is None:
        return None
    rules = Interpolation("nearest", mode, attrs.get("nearest_mode", "round_prefer_floor"))
    for n, m in zip(x.dims[2:], y.dims[2:], strict=True):
        if not np.array_equal(rules.taps(Axis(n, m, factor)).index[:, 0], np.repeat(np.arange(n), factor)):
            return None
    return factor
