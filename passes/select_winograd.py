"""3x3 convolutions of stride 1 by Winograd's minimal filtering where it is faster and exact enough.

Before: Conv 3x3, stride 1, many channels. After: c2c.WinogradConv with `m`, tiles of m x m results.
F(m x m, 3 x 3) takes (m + 2)^2 products instead of 9 m^2 (Lavin, Gray, CVPR 2016, arXiv:1509.09308).
Preserves: layers whose tiles waste too much, and all with `winograd_error` 0. The weights stay those of the Conv.
"""

from __future__ import annotations

from math import sqrt

from ..codegen.target import Target
from ..ir.graph import Graph, Node
from ..ir.types import DType
from .base import Pass, PassContext, register_pass
from .lower.schedule import Schedule, choose
from .pattern import int_list, required

SIZES = (4, 2)
"""m, the fastest first; m = 6 gains 3-6 % over 4 and doubles its error."""

ERROR = {2: 6e-7, 4: 3e-6}
"""Measured rms error of float32, relative to the rms of the result, for 64 to 512 input channels."""

MIN_GAIN = 1.15
"""Expected speed over the direct form below which the direct one stays."""

WEIGHT_TRAFFIC = 10.0
"""Products that take as long as reading one weight from memory: layers of a network push each other out of caches."""

_TRANSFORM = {2: 0.15, 4: 0.6}
"""Time of both transforms of one tile and channel, relative to one product of a tile with one output channel, times
the vector width: what keeps layers with few channels direct."""


@register_pass
class SelectWinograd(Pass):
    name = "select-winograd"

    def run(self, graph: Graph, context: PassContext) -> bool:
        rewriter = context.rewriter(graph)
        for node in [n for n in graph.nodes if n.op == "Conv"]:
            if not _is_fit(node, context.target.lanes(DType.F32)):
                continue
            m = choose(context, "winograd", problem(node), schedules(node, context), node)
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
        return rewriter.finish()


def problem(node: Node) -> str:
    """Shapes of a 3x3 convolution."""
    k, c = required(node, 1).type.dims[:2]
    images, _, height, width = node.output.type.dims
    return f"3x3/1 {images}x{height}x{width} {c}->{k}"


def schedules(node: Node, context: PassContext) -> list[Schedule[int | None]]:
    """The direct form (None), and every m that is exact enough."""
    direct = _direct_cycles(node, context.target)
    exact = [m for m in SIZES if expected_error(node, m) <= context.winograd_error]
    fast: list[Schedule[int | None]] = [Schedule(f"F{m}", direct * MIN_GAIN / expected_gain(node, m), m) for m in exact]
    return [Schedule("direct", direct, None), *fast]


def _direct_cycles(node: Node, target: Target) -> float:
    """Cycles of the direct form at the peak rate."""
    channels = required(node, 1).type.dims[1]
    return 9 * channels * node.output.type.size / target.lanes(DType.F32) / target.fma_per_cycle


def _is_fit(node: Node, lanes: int) -> bool:
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
    """rms error relative to the rms of the result; sums of more channels gather more rounding."""
    return ERROR[m] * max(1.0, sqrt(required(node, 1).type.dims[1] / 256))


def expected_gain(node: Node, m: int) -> float:
    """Time of the direct form over that of F(m x m, 3 x 3): products of whole tiles, transforms, larger weights."""
    k, c = required(node, 1).type.dims[:2]
    images, _, height, width = node.output.type.dims
    tiles = images * -(-height // m) * -(-width // m)
    direct = 9 * images * height * width * k * c
    products = (m + 2) ** 2 * tiles * k * c
    transforms = (m + 2) ** 2 * tiles * (k + c) * _TRANSFORM[m] * 16
    weights = (m + 2) ** 2 * k * c * WEIGHT_TRAFFIC
    return direct / (products + transforms + weights - 9 * k * c * WEIGHT_TRAFFIC)
