"""3x3 convolutions of stride 1 by Winograd's minimal filtering where it is faster and exact enough.

Before: Conv 3x3, stride 1, many channels. After: c2c.WinogradConv with `m`, tiles of m x m results.
F(m x m, 3 x 3) takes (m + 2)^2 products instead of 9 m^2 (Lavin, Gray, CVPR 2016, arXiv:1509.09308).
Preserves: layers whose tiles waste too much, and all with `winograd_error` 0. The weights stay those of the Conv.
"""

from __future__ import annotations

from math import inf

from ..codegen.target import Target
from ..ir.graph import Graph, Node
from ..ir.types import DType
from .base import Pass, PassContext, register_pass
from .lower.conv_sparse_window import window_plans
from .lower.micro import prefetches
from .lower.schedule import Schedule, choose
from .lower.window import window
from .pattern import int_list, required
from .winograd_math import winograd_error

SIZES = (4, 2)
"""m, the fastest first; m = 6 gains 3-6 % over 4 and doubles its error."""

MIN_GAIN = 1.1
"""Expected speed over the direct form below which the direct one stays."""

WEIGHTS = ("auto", "compile", "load")
"""When weights are transformed."""

LOAD_BYTES = 128 << 20
"""Transformed weights that take so many bytes more than the plain ones are made at load (`auto`)."""

TRANSFORMED = 2
"""Weights of a model as Winograd's forms leave them, over what they are: four times in some layers."""

TRANSFORM = 3.3
"""Cycles of both transforms for one vector of V or M: a load, a store and four or five operations, some spilled."""

OVERLAP = 0.75
"""Part of the shorter one of arithmetic and stream of weights that goes on behind the longer one."""

DIRECT_OVERLAP = 0.9, 0.5
"""The same in the direct form where it fetches weights ahead, and where it does not."""


LEAST_ON_GRID = 16
"""Channels of layers whose products fill the tiles of a grid's threads."""

MOVED = 30
"""Multiply-adds in the time that a thread takes to transform, write and read an element of V or M, or to read one of
the weights."""


@register_pass
class SelectWinograd(Pass):
    name = "select-winograd"

    def run(self, graph: Graph, context: PassContext) -> bool:
        if context.precision is DType.BF16:
            return False  # its products double the rate of direct forms; the transforms would lose most of its digits
        rewriter = context.rewriter(graph)
        footprint = TRANSFORMED * sum(v.type.nbytes for v in graph.constants())
        for node in [n for n in graph.nodes if n.op == "Conv"]:
            if not is_fit(node, LEAST_ON_GRID if context.target.device else context.target.lanes(DType.F32)):
                continue
            m = choose(context, "winograd", problem(node), schedules(node, context, footprint), node)
            if m is not None and rewriter.allow(self.name, node):
                new = rewriter.emit(
                    "c2c.WinogradConv",
                    node.inputs,
                    [node.output.type],
                    node.attrs | {"m": m},
                    origin=node.origin,
                    hint=node.output.name,
                )
                rewriter.place_after(node, new)
                rewriter.replace(node.output, new.output)
        _place_transforms(graph, context)
        return rewriter.finish()


def _place_transforms(graph: Graph, context: PassContext) -> None:
    """Mark the layers whose weights are transformed once at load: all of them or none; on grids none."""
    if context.target.device is not None:
        return
    layers = [n for n in graph.nodes if n.op == "c2c.WinogradConv"]
    more = sum(required(n, 1).type.nbytes * ((n.attrs["m"] + 2) ** 2 - 9) // 9 for n in layers)
    if context.winograd_weights == "load" or (context.winograd_weights == "auto" and more > LOAD_BYTES):
        for node in layers:
            node.attrs["prepared"] = 1


def problem(node: Node) -> str:
    """Shapes of a 3x3 convolution."""
    k, c = required(node, 1).type.dims[:2]
    images, _, height, width = node.output.type.dims
    return f"3x3/1 {images}x{height}x{width} {c}->{k}"


def schedules(node: Node, context: PassContext, footprint: int) -> list[Schedule[int | None]]:
    """The direct form (None), dense or by lists of weights, and every m that is exact enough; `footprint`: bytes of all
    weights of the model."""
    target, (k, c) = context.target, required(node, 1).type.dims[:2]
    if target.device is not None:
        return _on_grid(node, context)
    macs, weights = 9 * c * node.output.type.size, 9 * 4 * k * c
    direct = _cycles(target, macs, weights, DIRECT_OVERLAP[not prefetches(target)], footprint)
    direct = min(direct, _list_cycles(node, target))
    found: list[Schedule[int | None]] = [Schedule("direct", direct, None)]
    for m in (m for m in SIZES if expected_error(node, m) <= context.winograd_error):
        found.append(Schedule(f"F{m}", MIN_GAIN * winograd_cycles(node, m, target, footprint), m))
    return found


def _on_grid(node: Node, context: PassContext) -> list[Schedule[int | None]]:
    """The same for a grid of threads, in multiply-adds beside the stream of weights."""
    k, c = required(node, 1).type.dims[:2]
    images, _, height, width = node.output.type.dims
    direct = 9 * c * max(node.output.type.size, MOVED * k)
    found: list[Schedule[int | None]] = [Schedule("direct", direct, None)]
    for m in (m for m in SIZES if expected_error(node, m) <= context.winograd_error):
        positions, tiles = (m + 2) ** 2, images * -(-height // m) * -(-width // m)
        cost = positions * (k * c * max(tiles, MOVED) + MOVED * tiles * (k + c))
        found.append(Schedule(f"F{m}", MIN_GAIN * cost, m))
    return found


def _list_cycles(node: Node, target: Target) -> float:
    """Expected cycles of the direct form by lists of the weights that are not zero, without end where there are few."""
    x, weights = required(node), required(node, 1)
    assert weights.data is not None
    view = window(node, x.type, node.output.type, weights.type.dims[2:])
    found = window_plans(target, weights.data, view, (True, True))
    return x.type.dims[0] * min((cycles for _, cycles in found), default=inf)


def winograd_cycles(node: Node, m: int, target: Target, footprint: int) -> float:
    """Expected cycles of F(m x m, 3 x 3): products of whole tiles beside the stream of their weights, transforms."""
    (k, c), lanes = required(node, 1).type.dims[:2], target.lanes(DType.F32)
    images, _, height, width = node.output.type.dims
    positions, tiles = (m + 2) ** 2, images * -(-height // m) * -(-width // m)
    vectors = positions * tiles * (-(-k // lanes) + -(-c // lanes))
    products = _cycles(target, positions * tiles * k * c, positions * 4 * k * c, OVERLAP, footprint)
    return products + TRANSFORM * vectors


def _cycles(target: Target, macs: int, weights: int, overlap: float, footprint: int) -> float:
    """Cycles of `macs` multiply-adds at the peak rate beside a stream of `weights` bytes from where all weights stay.

    Layers of a network push each other's weights out of the nearer caches.
    """
    arithmetic = macs / (target.lanes(DType.F32) * target.fma_per_cycle)
    stream = weights / target.stream_bytes_per_cycle(footprint)
    return max(arithmetic, stream) + (1 - overlap) * min(arithmetic, stream)


def is_fit(node: Node, lanes: int) -> bool:
    """Whether a convolution has a form of Winograd, with at least so many channels."""
    x, weights = required(node), required(node, 1)
    if weights.data is None or x.type.dtype is not DType.F32 or not x.type.is_static or weights.type.dims[2:] != (3, 3):
        return False
    if node.attrs.get("group", 1) != 1 or "pads" not in node.attrs:
        return False
    if {*int_list(node.attrs.get("strides", (1,))), *int_list(node.attrs.get("dilations", (1,)))} != {1}:
        return False
    bias = node.input(2)
    return weights.type.dims[0] >= lanes and weights.type.dims[1] >= lanes and (bias is None or bias.is_constant)


def expected_error(node: Node, m: int) -> float:
    """rms error relative to the rms of the result."""
    weights = required(node, 1).data
    assert weights is not None
    return winograd_error(m, weights)
