"""Matrices of floats in fewer bytes, every bit kept: codes of four bits for the byte that holds sign and exponent.

Weights of a layer are of like size: sixteen values of the highest byte cover nearly all of them. It is stored as a
code of four bits, the bytes below as they are: 3.5 bytes for a float32, 1.5 for one that is a bfloat16. Elements with
another highest byte get the nearest one of their sign, and what is missing is added from a list. (That exponents carry
few bits: Zhang et al., 70% Size, 100% Accuracy: Lossless LLM Compression via Dynamic-Length Float, 2025; codes of one
length are what registers expand.)

Weights stand as kernels expand them (`plane_product.py`): a group is four rows of a vector of columns, 4 · lanes of
them: low halves (none of bfloat16), then the bytes above them, then codes, two to a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np

from ...ir.structure import exact_half
from ...ir.types import DType

ROWS = 4
"""Rows of a group."""
CODES = 16
MOST_OTHERS = 1 / 256
"""Fraction of elements with another highest byte, beyond which their list takes too long."""
_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class Form:
    """table: the sixteen highest bytes; halves: whether the elements' low halves are stored, which are zeros in
    bfloat16."""

    table: np.ndarray
    halves: bool

    def group_bytes(self, lanes: int) -> int:
        """Bytes of four rows of a vector."""
        return lanes * ROWS * (7 if self.halves else 3) // 2


def form_of(matrix: np.ndarray) -> Form | None:
    """How a float32 matrix is stored in planes, None where that saves nothing or its exponents are too many."""
    if matrix.dtype != np.float32 or matrix.size < _SAMPLE:
        return None
    step = isqrt(matrix.size // _SAMPLE)
    sample = np.ascontiguousarray(matrix[::step, ::step])
    half = exact_half(sample) and exact_half(matrix)
    if half is DType.F16:
        return None
    counts = np.bincount((sample.view(np.uint32) >> 24).reshape(-1), minlength=256)
    most = np.argsort(-counts, kind="stable")[:CODES]
    others = 1 - counts[most].sum() / counts.sum()
    return None if others > MOST_OTHERS else Form(np.sort(most).astype(np.uint8), half is None)


@dataclass(frozen=True, slots=True)
class Planes:
    """groups: bytes, a panel after the other: [rows / 4][vectors][group]. rows, columns, missing: elements of which
    something is missing; first: where a panel's begin [panels + 1]."""

    groups: np.ndarray
    first: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    missing: np.ndarray


def pack_planes(matrix: np.ndarray, form: Form, width: int, lanes: int) -> Planes:
    """[K, N] in panels of `width` columns, the last one of as many vectors of `lanes` as it needs, of zeros beyond."""
    rows, columns = matrix.shape
    depth, group = -(-rows // ROWS), form.group_bytes(lanes)
    groups = np.empty(depth * -(-columns // lanes) * group, np.uint8)
    nearest = _nearest(form.table)
    lists, counts, at = [], [0], 0
    for begin in range(0, columns, width):
        part = matrix[:, begin : begin + width]
        vectors = -(-part.shape[1] // lanes)
        bits = _in_groups(part, lanes)
        end = at + depth * vectors * group
        high = _write(groups[at:end].reshape(depth, vectors, group), bits, form, nearest)
        lists.append(_missing(bits, high, nearest, form.table, part.shape))
        counts.append(lists[-1][0].size)
        at = end
    found = [np.concatenate(parts) for parts in zip(*lists, strict=True)]
    return Planes(groups, np.cumsum(counts).astype(np.int32), *found)


def _nearest(table: np.ndarray) -> np.ndarray:
    """For each highest byte the code of the nearest one in the table, of its sign if there is one."""
    every = np.arange(256)
    distance = np.abs(every[:, None] - table) + 256 * ((every[:, None] ^ table) >> 7)
    codes: np.ndarray = distance.argmin(1).astype(np.uint8)
    return codes


def _in_groups(part: np.ndarray, lanes: int) -> np.ndarray:
    """Bits of the elements of a panel, uint32 [group, vector, L, j, q] for row j and lane 4 L + q."""
    rows, columns = part.shape
    padded = np.zeros((rows + -rows % ROWS, columns + -columns % lanes), np.float32)
    padded[:rows, :columns] = part
    bits = padded.view(np.uint32).reshape(len(padded) // ROWS, ROWS, -1, lanes // 4, 4)
    return np.ascontiguousarray(bits.transpose(0, 2, 3, 1, 4))


def _write(out: np.ndarray, bits: np.ndarray, form: Form, nearest: np.ndarray) -> np.ndarray:
    """Fill [group, vector, bytes]; the elements' highest bytes. Low halves of rows 0 and 1 come before those of rows 2
    and 3, since what instructions interleave is the lower and the upper half of each 128 bits."""
    groups, vectors, quads = bits.shape[:3]
    size, at = quads * 4 * ROWS, 0
    if form.halves:
        low = bits.view("<u2")[..., ::2].reshape(groups, vectors, quads, 2, 8)
        halves = np.ascontiguousarray(low.transpose(0, 1, 3, 2, 4))
        at = 2 * size
        out[:, :, :at] = halves.view(np.uint8).reshape(groups, vectors, at)
    parts = bits.view(np.uint8).reshape(groups, vectors, size, 4)
    out[:, :, at : at + size] = parts[..., 2]
    high = np.ascontiguousarray(parts[..., 3])
    codes = nearest[high]
    out[:, :, at + size :] = codes[:, :, : size // 2] | codes[:, :, size // 2 :] << 4
    return high


def _missing(
    bits: np.ndarray, high: np.ndarray, nearest: np.ndarray, table: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and differences of the elements of a panel of `shape` whose highest byte is not in the table."""
    stored = table[nearest]
    found = np.flatnonzero((stored != np.arange(256))[high.reshape(-1)])
    element = bits.reshape(-1)[found]
    near = (element & 0xFFFFFF | stored[element >> 24].astype(np.uint32) << 24).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        missing = (element.view(np.float32).astype(np.float64) - near).astype(np.float32)
    group, vector, quad, j, q = np.unravel_index(found, bits.shape)
    rows, columns = group * ROWS + j, (vector * bits.shape[2] + quad) * 4 + q
    inside = (rows < shape[0]) & (columns < shape[1])
    return rows[inside].astype(np.int32), columns[inside].astype(np.int32), missing[inside]
