"""What each operator demands of the layout of its float32 tensors (or of the precision asked for), and what it costs.

Costs are in bytes of memory traffic, as whole numbers: a cut has to be exact.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod

from ..ir.graph import Node, Value
from ..ir.ops import STAGES, Kind
from ..ir.ops import op as row
from ..ir.types import DType, TensorType
from .lower.sparse import likely_pays
from .pattern import int_list, required
from .rules_windows import kernel_shape, spatial_pads

BYTES_PER_FLOP = 0.4
"""Memory traffic that takes the time of one operation of a kernel at its peak (118 GF/s against 50 GB/s)."""

CALL = 2000
"""Bytes that one more kernel call is worth."""

GATHERED = 12
"""What a depthwise convolution whose lanes along the width are pixels apart loses, in times of its operations."""

SCATTER = 6
"""What a convolution with lanes along channels loses when it writes plain rows, in passes over the result: a store for
every lane, and planes of a power of two share few sets of the first-level cache. A conversion costs two."""

PLANAR = 2
"""What a transposed convolution of plain tensors loses by interleaving its phases, in passes over the result."""

NEIGHBOURS = 8
"""Taps of a plain row, read as vectors that begin anywhere, that lose a pass over the result; strided ones lose one
each."""

NEVER = 1 << 40
"""The cost of a layout that has no kernel."""

READ_THROUGH_SHARE = 4
"""How much cheaper a conversion is that a window reads through, row by row (`lower/remap.py`)."""

MAX_PHASES = 16
"""Phases of a transposed convolution of blocked tensors at most: each is code of its own."""


class Role(enum.Enum):
    """PLAIN: row-major tensors only. SAME: any layout, one for operands and results. EITHER: each side chooses."""

    PLAIN = 0
    SAME = 1
    EITHER = 2


@dataclass(frozen=True, slots=True)
class Demand:
    """tensors: operands whose layout the role speaks of. Costs of a blocked or plain operand side and result side."""

    role: Role
    tensors: tuple[Value, ...] = ()
    blocked: int = 0
    plain: int = 0
    plain_in: int = 0
    plain_out: int = 0
    blocked_in: int = 0


_PLAIN = Demand(Role.PLAIN)


def demand(node: Node, block: int, dtype: DType = DType.F32) -> Demand:
    """What `node` demands when channels may be split into blocks of `block`."""
    if not node.outputs or not all(_is_candidate(v.type, dtype) for v in node.outputs) or node.input(0) is None:
        return _PLAIN
    kind = row(node.op).kind
    if kind is Kind.ELEMENTWISE:
        return _elementwise(node, block, dtype)
    if not _is_candidate(required(node).type, dtype):
        return _PLAIN
    if node.op in ("Conv", "c2c.WinogradConv", "c2c.IntegerConv"):
        return _convolution(node, block)
    form = _FORMS.get(node.op)
    return form(node, block) if form is not None else _PLAIN


def is_read_through(
    node: Node | None, readers: Mapping[Value, Sequence[Node | None]], demands: Mapping[Node, Demand]
) -> bool:
    """Whether a window alone, one that reads no other layout than it writes, reads what `node`, a pad or an
    enlargement, and others like it move."""
    moved = False
    while node is not None and node.op in ("Pad", "Resize"):
        (node, *others), moved = readers.get(node.output, (None,)), True
        if others:
            return False
    if not moved or node is None or node.op not in STAGES or node.output.type.rank != 4:
        return False
    return demands[node].role is Role.SAME


def _is_candidate(type_: TensorType, dtype: DType) -> bool:
    return type_.is_static and type_.rank >= 3 and is_lined(type_.dtype, dtype) and type_.size > 0


def is_lined(found: DType, dtype: DType) -> bool:
    """Whether tensors of a type are blocked where those of `dtype` are: levels of quantised ones as well."""
    return found is dtype or dtype is DType.F32 and found in (DType.I32, DType.I16, DType.U8, DType.I8)


def _waste(type_: TensorType, block: int) -> int:
    """Bytes of the lanes beyond the last channel."""
    channels = type_.dims[1]
    return type_.nbytes * (-channels % block) // channels


def _elementwise(node: Node, block: int, dtype: DType) -> Demand:
    result = node.outputs[0].type
    tensors: list[Value] = []
    for value in node.inputs:
        if value is None or value.type.size == 1:
            continue
        channel = 1 - (result.rank - value.type.rank)
        if not is_lined(value.type.dtype, dtype):
            return _PLAIN
        if channel < 0 or value.type.dims[channel] == 1:
            continue
        if not value.is_constant and value.type.rank != result.rank:
            return _PLAIN
        tensors.append(value)
    if not any(not v.is_constant for v in tensors) or len(node.outputs) > 1:
        return _PLAIN
    return Demand(Role.SAME, tuple(tensors), blocked=_waste(result, block))


def _convolution(node: Node, block: int) -> Demand:
    x, y, weights = required(node), node.output.type, required(node, 1)
    if weights.data is None or (node.input(2) is not None and node.constant(2) is None):
        return _PLAIN
    flops = int(2 * y.size * prod(weights.type.dims[1:]) * BYTES_PER_FLOP)
    channels, group = x.type.dims[1], node.attrs.get("group", 1)
    stride = int_list(node.attrs.get("strides", (1,)))[-1]
    if group > 1 and weights.type.dims[1] == 1:
        plain = flops * (1 if stride == 1 else GATHERED) + 2 * y.nbytes
        return Demand(Role.SAME, (x,), blocked=_waste(y, block), plain=plain)
    if group == 1 and is_sparse_pointwise(node):
        return Demand(Role.EITHER, (x,), blocked=_waste(y, block) + y.nbytes, blocked_in=x.type.nbytes)
    outputs = y.dims[1] // group
    pixels = y.dims[-1] if any(k != 1 for k in weights.type.dims[2:]) else prod(y.dims[2:])
    if node.op == "c2c.IntegerConv":
        return Demand(Role.EITHER, (x,), blocked=_waste(y, block), plain_in=flops, plain_out=SCATTER * y.nbytes)
    if outputs <= block // 2 and pixels >= 2 * block and stride == 1:
        # Lanes along the width: all of them work, where lanes along channels leave most idle.
        return Demand(Role.SAME, (x,), blocked=flops * block // outputs - flops + _waste(y, block))
    plain_in = flops // 20 if channels >= block else 0
    plain_out = min(SCATTER, outputs) * y.nbytes
    return Demand(Role.EITHER, (x,), blocked=_waste(y, block), plain_in=plain_in, plain_out=plain_out)


def is_sparse_pointwise(node: Node) -> bool:
    """Whether a convolution will be computed by lists of its weights that are not zero (`lower/conv_sparse.py`), with
    lanes along pixels: it transposes what is blocked on the way."""
    weights = required(node, 1)
    if node.op != "Conv" or weights.data is None or any(k != 1 for k in weights.type.dims[2:]):
        return False
    strides, pads = (int_list(node.attrs.get(name, ())) for name in ("strides", "pads"))
    return not any(pads) and all(s == 1 for s in strides) and likely_pays(weights.data)


def _transposed(node: Node, block: int) -> Demand:
    """Blocked: a direct convolution for each phase of the outputs (`lower/conv_transpose_blocked.py`)."""
    x, y, weights = required(node), node.output.type, required(node, 1)
    if x.type.rank != 4 or weights.data is None or (node.input(2) is not None and node.constant(2) is None):
        return _PLAIN
    group, outputs, kernel = node.attrs.get("group", 1), weights.type.dims[1], weights.type.dims[2:]
    strides, dilations = (int_list(node.attrs.get(name) or (1, 1)) for name in ("strides", "dilations"))
    if any(s > k or gcd(s, d) > 1 for s, d, k in zip(strides, dilations, kernel, strict=True)):
        return _PLAIN  # some outputs have no taps
    if prod(strides) > MAX_PHASES or group > 1 and (outputs % block or x.type.dims[1] // group % block):
        return _PLAIN
    if _makes_patches(node, block):
        return Demand(Role.EITHER, (x,), blocked=NEVER, plain_in=PLANAR * x.type.nbytes)
    if outputs <= block // 2:
        return _PLAIN  # lanes along the width: all of them work
    return Demand(Role.SAME, (x,), blocked=_waste(y, block), plain=PLANAR * y.nbytes)


def _makes_patches(node: Node, block: int) -> bool:
    """Whether a transposed convolution makes a small patch of each pixel (`lower/conv_transpose_patches.py`)."""
    x, y, weights = required(node).type, node.output.type, required(node, 1).type
    strides, dilations = (int_list(node.attrs.get(name) or (1, 1)) for name in ("strides", "dilations"))
    apart = weights.dims[2:] == strides and all(d == 1 for d in dilations) and node.attrs.get("group", 1) == 1
    whole = y.dims[2:] == tuple(n * s for n, s in zip(x.dims[2:], strides, strict=True))
    fits = prod(weights.dims[1:]) <= block and block % strides[1] == 0 and x.dims[3] >= max(8, block)
    return apart and whole and fits and not any(int_list(node.attrs.get("pads") or ()))


def _pool(node: Node, block: int) -> Demand:
    if len(node.outputs) > 1 or node.attrs.get("storage_order", 0):
        return _PLAIN
    taps = prod(kernel_shape(node)) if not node.op.startswith("Global") else 1
    size = max(node.output.type.nbytes, required(node).type.nbytes if taps == 1 else 0)
    steps = node.attrs.get("strides") or (1,)
    lost = size * taps // (NEIGHBOURS if taps > 1 and steps[-1] == 1 else 1)
    return Demand(Role.SAME, (required(node),), blocked=_waste(required(node).type, block), plain=lost)


def _concat(node: Node, block: int) -> Demand:
    axis = node.attrs["axis"] % node.output.type.rank
    parts = tuple(v for v in node.inputs if v is not None)
    if any(v.is_constant for v in parts):
        return _PLAIN
    ragged = axis == 1 and any(v.type.dims[1] % block for v in parts[:-1])
    return Demand(Role.SAME, parts, blocked=2 * node.output.type.nbytes if ragged else 0)


def _split(node: Node, block: int) -> Demand:
    axis = node.attrs.get("axis", 0) % required(node).type.rank
    if axis == 1 and any(v.type.dims[1] % block for v in node.outputs[:-1]):
        return _PLAIN
    return Demand(Role.SAME, (required(node),), blocked=_waste(required(node).type, block))


def _spatial_only(node: Node, block: int) -> Demand:
    """Operators that leave batch and channels alone."""
    x, y = required(node).type, node.output.type
    if x.dims[:2] != y.dims[:2] or (node.op == "Pad" and spatial_pads(node) is None):
        return _PLAIN
    traffic = 2 * y.nbytes if node.op == "Resize" else 0
    return Demand(Role.SAME, (required(node),), blocked=_waste(y, block), plain=traffic)


def _normalization(node: Node, block: int) -> Demand:
    return Demand(Role.SAME, (required(node),), blocked=_waste(node.output.type, block))


_FORMS = {
    "ConvTranspose": _transposed,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "Concat": _concat,
    "Split": _split,
    "Resize": _spatial_only,
    "Pad": _spatial_only,
    "InstanceNormalization": _normalization,
}
