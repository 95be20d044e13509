"""Which rows, keys and subgroups attention by matrices takes (`attention_matrices.py`), and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, TypeAlias

from ....codegen.target import Target
from ....ir.loops import MATRIX, MATRIX_THREADS
from ....ir.types import DType
from ..product import Product
from ..schedule import Schedule
from .matrices import Near, pitch
from .online_softmax import BARRIER, FUNCTION, idle
from .tiles import FETCH

SUBGROUPS = ((2, 2), (4, 1), (1, 4), (2, 1), (1, 2))
"""Of a work-group, along rows of q and along keys or columns of v."""
ROWS = (32, 16, 8)
KEYS = (32, 16)
Back: TypeAlias = Literal["back", "query", "near"]
WAYS: dict[DType, tuple[tuple[bool, Back], ...]] = {
    DType.F32: ((True, "query"), (False, "back"), (False, "near")),
    DType.F16: ((True, "back"), (False, "back")),
}
"""Whether q is held, and where results go through, by the type of factors."""
CAN_WIN = 2.0
"""Tiles that take so many times the best one's cost are no candidates."""
SHARE = MATRIX * MATRIX // MATRIX_THREADS
"""Elements of a matrix that a thread has."""


@dataclass(frozen=True)
class AttentionTile:
    """Rows of q and keys that a work-group takes at a time, and its subgroups. near: of factors in shared memory. held:
    matrices of q stay with their subgroup. back: the shared memory that results go through: their own, that which q has
    come through, where it is held, or that of keys and values, between two more barriers."""

    size: int
    wide: int
    rows: int
    keys: int
    subgroups: tuple[int, int]
    near: DType
    held: bool = False
    back: Back = "back"

    def __str__(self) -> str:
        held, back = " held" * self.held, f" back={self.back}" * (self.back == "near")
        return (
            f"simdgroup rows={self.rows} keys={self.keys} subgroups={self.subgroups[0]}x{self.subgroups[1]}{held}{back}"
        )

    @property
    def threads(self) -> int:
        return self.subgroups[0] * self.subgroups[1] * MATRIX_THREADS

    @property
    def across(self) -> int:
        """Threads that share a row."""
        return self.threads // self.rows

    @property
    def is_whole(self) -> bool:
        """Whether each subgroup has as many matrices as the others, and each thread of a row as many scores."""
        sy, sx = self.subgroups
        whole = not (self.rows % (sy * MATRIX) or self.keys % (sx * MATRIX) or self.columns % sx)
        return whole and 1 <= self.across <= min(MATRIX_THREADS, self.keys)

    @property
    def depth(self) -> int:
        """Matrices of a row of q."""
        return -(-self.size // MATRIX)

    @property
    def columns(self) -> int:
        """Matrices of a row of v."""
        return -(-self.wide // MATRIX)

    @property
    def own(self) -> tuple[int, int, int]:
        """Matrices of a subgroup: of rows, of keys and of columns of v."""
        sy, sx = self.subgroups
        return self.rows // MATRIX // sy, self.keys // MATRIX // sx, self.columns // sx

    @cached_property
    def lies(self) -> tuple[Near, Near, Near]:
        """q, keys and values in shared memory."""
        size, wide = self.depth * MATRIX, self.columns * MATRIX
        return (
            Near.of(True, self.rows, size, self.near),
            Near.of(True, self.keys, size, self.near),
            Near.of(False, wide, self.keys, self.near),
        )

    @cached_property
    def pitches(self) -> dict[str, int]:
        """Elements from row to row of scores, their powers and results in shared memory."""
        return {
            "scores": pitch(self.keys, DType.F32),
            "powers": pitch(self.keys, self.near),
            "back": pitch(self.columns * MATRIX, DType.F32),
        }

    @property
    def results(self) -> int:
        """Of a thread."""
        return -(-self.wide // self.across)

    @property
    def shared(self) -> dict[str, tuple[DType, int]]:
        """Buffers in shared memory, with their elements."""
        query, keys, values = self.lies
        scores, back = (self.rows * self.pitches[name] for name in ("scores", "back"))
        made = {
            "query": (self.near, query.elements), "near": (self.near, max(keys.elements, values.elements)),
            "scores": (DType.F32, scores), "back": (DType.F32, 0),
        }  # fmt: skip
        dtype, size = made[self.back]
        assert dtype is DType.F32, "results are f32"
        made[self.back] = dtype, max(size, back)
        if self.near is not DType.F32:
            made["powers"] = self.near, self.rows * self.pitches["powers"]
        return {name: (dtype, size) for name, (dtype, size) in made.items() if size}

    @property
    def barriers(self) -> int:
        """Of a block of keys."""
        return 6 if self.back == "near" else 4

    @property
    def shared_bytes(self) -> int:
        return sum(dtype.nbytes * count for dtype, count in self.shared.values())

    @property
    def registers(self) -> int:
        """Of 32 bits: matrices of q, of a product's sums and one step's factors; the thread's results and scores."""
        rows, keys, columns = self.own
        factor = self.near.nbytes / 4
        held = factor * rows * self.depth if self.held else 0
        product = max(rows * n + factor * (rows + n) for n in (keys, columns))
        return int(SHARE * (held + product)) + self.results + 2 * self.keys // self.across

    @property
    def accesses(self) -> int:
        """Of shared memory by a thread, for a block of keys; what it brings near counts, too."""
        rows, keys, columns = self.own
        scores = self.depth * (keys + (0 if self.held else rows)) + rows * keys
        values = self.keys // MATRIX * (rows + columns) + rows * columns
        lines = self.results + 2 * self.keys // self.across
        return SHARE * (scores + values) + lines + self.brought

    @property
    def brought(self) -> int:
        """Elements of keys and values that a thread brings near for a block."""
        return sum(-(-self.keys * n * MATRIX // self.threads) for n in (self.depth, self.columns))

    @property
    def multiply_adds(self) -> int:
        """Of a thread, for a block of keys."""
        rows, keys, columns = self.own
        return (rows * keys * self.depth + rows * columns * (self.keys // MATRIX)) * MATRIX * SHARE


def matrix_schedules(target: Target, scores: Product, values: Product) -> list[Schedule[AttentionTile]]:
    """The tiles that fit a device whose subgroups multiply matrices, with what they take."""
    device = target.device
    if device is None or not device.matrices or device.exchange < MATRIX_THREADS:
        return []
    factors = {p.value.type.dtype for p in (scores.a, scores.b, values.b)}
    near = DType.F16 if factors == {DType.F16} and device.fp16 else DType.F32
    tiles = [
        AttentionTile(scores.k, values.n, rows, keys, subgroups, near, held, back)
        for rows in ROWS for keys in KEYS for subgroups in SUBGROUPS for held, back in WAYS[near]
    ]  # fmt: skip
    fitting = [
        t for t in tiles
        if t.is_whole and t.threads <= device.work_group
        and t.shared_bytes <= device.local_bytes and t.registers <= device.registers
    ]  # fmt: skip
    made = [Schedule(str(t), _cost(scores, t), t) for t in fitting]
    least = min((s.cycles for s in made), default=0.0)
    return [s for s in made if s.cycles <= CAN_WIN * least]


def _cost(scores: Product, t: AttentionTile) -> float:
    """As of products by matrices, in multiply-adds."""
    groups = prod(scores.batch) * -(-scores.m // t.rows)
    powers = t.keys // t.across + 1
    step = t.multiply_adds + 0.5 * (t.accesses - t.brought) + FETCH * t.brought + FUNCTION * powers
    step += BARRIER * t.barriers
    return groups * t.threads * -(-scores.n // t.keys) * step * idle(groups)
