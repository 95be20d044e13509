"""How a convolution may read an image that is padded by itself or enlarged: from the source, by a map of positions.

Position i of the padded image along one axis stands for pixel u = i - before of the enlarged one, mirrored or clamped
where it lies beyond, and so for pixel u / factor of the source. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.graph import Node, Value
from .lower.pad import positions
from .lower.resize_taps import Axis, Interpolation
from .lower.tile import MAX_BORDER_TILES
from .pattern import int_list, required
from .rules_windows import spatial_pads

OPERATORS = ("Pad", "Resize", "Concat")

MODES = ("reflect", "edge", "wrap", "constant")
"""Modes of Pad."""

MAX_TAPS = {True: 7, False: 16}
"""Longest row of a filter whose taps at the border are written out, by whether the image is blocked: a tap has then a
block of channels."""


@dataclass(frozen=True, slots=True)
class Line:
    """One axis: `size` pixels of the enlarged image, `before` positions of padding, `mode` beyond the image.

    mode: zero, or one of MODES. factor: how often a source pixel is repeated.
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
    """The image that is read in place of the convolution's input from channel `first` on, its rows and columns, and
    what is around where their mode is constant."""

    source: Value
    rows: Line
    columns: Line
    fill: float = 0.0
    first: int = 0


@dataclass(frozen=True, slots=True)
class Around:
    """What goes on around an image, or a line of one row: the source row and column of each position, from the first
    padded one on."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


def around_of(pad: Node, conv: Node) -> Around | None:
    """What a direct convolution reads behind a Pad of its image by itself; None where its own pads add to that, where
    constants or crops are wanted, or where so many of its tiles touch the border that they get no code of their own."""
    x, amounts, mode = required(pad).type, spatial_pads(pad), pad.attrs.get("mode", "constant")
    if conv.op != "Conv" or x.rank not in (3, 4) or not x.is_static or any(int_list(conv.attrs["pads"])):
        return None
    kernel = required(conv, 1).type.dims[-1]
    if amounts is None or mode == "constant" or min(amounts) < 0 or kernel > MAX_TAPS[x.layout.block > 0]:
        return None
    before, after = amounts[: x.rank - 2], amounts[x.rank - 2 :]
    stride, out = int_list(conv.attrs.get("strides", (1, 1)))[-1], conv.output.type.dims[-1]
    ends = required(conv).type.dims[-1] - after[-1] - 1
    reach = (kernel - 1) * int_list(conv.attrs.get("dilations", (1, 1)))[-1]
    inside = [o for o in range(out) if o * stride >= before[-1] and o * stride + reach <= ends]
    if out - len(inside) > MAX_BORDER_TILES:
        return None
    *rows, columns = (
        tuple(positions(mode, n, a, b).tolist()) for n, a, b in zip(x.dims[2:], before, after, strict=True)
    )
    return Around(rows[0] if rows else (0,), columns)


def readings_of(nodes: Sequence[Node], pads: Sequence[int]) -> tuple[Reading, ...] | None:
    """What a 2-D convolution with `pads` (begins, ends) reads behind `nodes`, which end in the one that it reads, by
    channels: each source behind a Resize, a Pad, or both in this order, with one concatenation of channels among them.

    None where they are something else than a repetition of whole pixels and a padding of the image by itself.
    """
    made = {n.output: n for n in nodes}
    behind: list[Node] = []
    value = nodes[-1].output
    while value in made and made[value].op != "Concat":
        behind.insert(0, made[value])
        value = required(made[value])
    if value not in made:
        reading = _reading(value, behind, pads)
        return None if reading is None else (reading,)
    found: list[Reading] = []
    first = 0
    for part in made[value].inputs:
        assert part is not None
        inner = [made[part]] if part in made else []
        reading = _reading(required(inner[0]) if inner else part, [*inner, *behind], pads)
        if reading is None or made[value].attrs["axis"] % part.type.rank != 1:
            return None
        found.append(replace(reading, first=first))
        first += part.type.dims[1]
    return tuple(found)


def _reading(source: Value, nodes: Sequence[Node], pads: Sequence[int]) -> Reading | None:
    """What is read of `source` behind nodes in a row."""
    by_op = {n.op: n for n in nodes}
    if [n.op for n in nodes] not in ([], ["Resize"], ["Pad"], ["Resize", "Pad"]):
        return None
    if source.type.rank != 4 or not source.type.is_static:
        return None
    factor = whole_factor(by_op["Resize"]) if "Resize" in by_op else 1
    if factor is None:
        return None
    rows, columns = (Line(n * factor, p, factor) for n, p in zip(source.type.dims[2:], pads[:2], strict=True))
    if "Pad" not in by_op:
        return Reading(source, rows, columns)
    pad, mode = by_op["Pad"], by_op["Pad"].attrs.get("mode", "constant")
    amounts, fill = spatial_pads(pad), constant_fill(pad)
    if any(pads) or amounts is None or mode not in MODES or min(amounts) < 0 or fill is None:
        return None
    most = {"reflect": -1, "wrap": 0}.get(mode)
    if most is not None and any(a > n + most for a, n in zip(amounts, (rows.size, columns.size) * 2, strict=True)):
        return None
    rows, columns = (replace(line, before=b, mode=mode) for line, b in zip((rows, columns), amounts, strict=False))
    return Reading(source, rows, columns, fill)


def constant_fill(pad: Node) -> float | None:
    """What a Pad writes in mode constant; 0 in others, None where it is computed."""
    value = pad.input(2)
    if value is None or pad.attrs.get("mode", "constant") != "constant":
        return 0.0
    if value.data is None:
        return None
    return float(value.data.reshape(-1)[0]) if value.data.size else 0.0


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
