"""Elementwise operators: their expression at a site, and a kernel of their own where nothing else computes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ...ir.graph import Node, Value
from ...ir.loops import Const, Expr, broadcast, cast
from ...ir.ops import OPS, Kind
from ...ir.types import DType, TensorType
from . import elementwise_activation, elementwise_convert
from .context import KernelBuilder, Lowering, Site, evaluates, lowers
from .elementwise_table import EXACT, RULES, Application
from .strided import StridedKernel, strided_loops, widest

__all__ = ["elementwise_activation", "elementwise_convert", "evaluate", "operand_type"]


ALONG_AXIS = ("QuantizeLinear", "DequantizeLinear", "BatchNormalization")
"""Operators whose further operands are numbers along one axis of the first."""


ROUNDED_ONCE = frozenset("Add Sub Mul Relu Clip Max Min Neg Abs".split())
"""Operators of which one operation in f16 gives the same as f32 rounded to f16 (Figueroa, When is Double Rounding
Innocuous?, SIGNUM 30(3), 1995: 24 >= 2 · 11 + 2 bits)."""


@evaluates
def evaluate(k: KernelBuilder, node: Node, site: Site, known: dict[Value, Expr]) -> Expr:
    """The result of an elementwise node at a site: operands from `known`, immediate numbers, or read from memory.

    16-bit floats are computed in f32 and rounded once, or in f16 where that is the same. Raises UnsupportedOpError for
    an operator or a form of it that has no row.
    """
    rule = RULES.get(node.op)
    if rule is None:
        raise k.ctx.unsupported(f"operator {node.op} is not supported", "see docs/operators.md for what is")
    native = node.op in ROUNDED_ONCE and k.ctx.target.has_fp16 and node.output.type.dtype is DType.F16
    widen = node.op not in EXACT and not native
    args: list[Expr | None] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            args.append(None)
            continue
        x = _operand(k, node, index, value, site, known)
        args.append(k.let(cast(x, DType.F32) if widen and _is_half(x.dtype) else x, "x"))
    result = rule(Application(k, node, tuple(args)))
    out = node.output.type.dtype
    if result.dtype is DType.F32 and _is_half(out):
        return cast(result, out)
    assert result.dtype is out, f"{node.op} gives {result.dtype}, declared {out}"
    return broadcast(result, site.lanes)


def operand_type(node: Node, index: int) -> TensorType:
    """The type by which operand `index` broadcasts to the result (numpy rules): its own, or for scales and zero points
    along an axis the one with that axis in place."""
    value = node.inputs[index]
    assert value is not None
    if node.op not in ALONG_AXIS or index == 0:
        return value.type
    x = node.inputs[0]
    assert x is not None
    if value.type.size == 1:
        return value.type.with_shape(())
    if value.type.rank != 1:
        return value.type
    axis = node.attrs.get("axis", 1) % x.type.rank
    return value.type.with_shape(tuple(value.type.dims[0] if i == axis else 1 for i in range(x.type.rank)))


def _operand(k: KernelBuilder, node: Node, index: int, value: Value, site: Site, known: dict[Value, Expr]) -> Expr:
    if value in known:
        return broadcast(known[value], site.lanes)
    if value.data is not None and value.data.size == 1:
        return constant_vector(value, site.lanes)
    if _is_blocked_scale(node, index):
        expanded = _expanded(k.ctx, node, index)
        return k.read(expanded, site)
    return k.read(value, site, operand_type(node, index))


def constant_vector(value: Value, lanes: int) -> Const:
    """A constant of one element as an immediate."""
    assert value.data is not None
    number = value.data.reshape(-1)[0]
    dtype = value.type.dtype
    return Const(dtype, lanes, float(number) if dtype.is_float else number.item())


def _is_blocked_scale(node: Node, index: int) -> bool:
    """Whether the operand is a scale or zero point of blocks along an axis."""
    value = node.inputs[index]
    assert value is not None
    quantises = node.op in ("QuantizeLinear", "DequantizeLinear")
    return quantises and index > 0 and bool(node.attrs.get("block_size", 0)) and value.type.rank > 1


def _expanded(ctx: Lowering, node: Node, index: int) -> Value:
    """Scales or zero points of blocks along an axis, one an element: a constant, or a copy made before the kernel."""
    x, value = node.inputs[0], node.inputs[index]
    assert x is not None and value is not None
    key = (node, index)
    if key not in ctx.memo:
        axis, size = node.attrs.get("axis", 1) % x.type.rank, node.attrs["block_size"]
        if value.data is not None:
            data = np.repeat(value.data, size, axis).take(range(x.type.dims[axis]), axis)
            ctx.memo[key] = ctx.pack("scales", data)
        else:
            ctx.memo[key] = _repeated(ctx, value, x.type.with_dtype(value.type.dtype), axis, size)
    return ctx.memo[key]


def _repeated(ctx: Lowering, value: Value, type_: TensorType, axis: int, size: int) -> Value:
    """Each element `size` times along an axis, up to the extent of `type_`."""
    copy = Value(f"{ctx.node.output.name}.{value.name}", type_)
    below, whole = prod(type_.dims[axis + 1 :]), type_.dims[axis]
    blocks = value.type.dims[axis]
    k = ctx.kernel()
    for i in k.loop("i", prod(type_.dims[:axis])):
        for j in k.loop("j", whole):
            for r in k.loop("r", below):
                source = k.load(k.tensor(value), (i * blocks + j / size) * below + r)
                k.store(k.tensor(copy), (i * whole + j) * below + r, source)
    k.done("repeat")
    return copy


def _broadcast_type(ctx: Lowering, node: Node, index: int) -> TensorType:
    return _expanded(ctx, node, index).type if _is_blocked_scale(node, index) else operand_type(node, index)


def _is_half(dtype: DType) -> bool:
    return dtype in (DType.F16, DType.BF16)


@lowers(*(name for name, row in OPS.items() if row.kind is Kind.ELEMENTWISE))
def lower_elementwise(ctx: Lowering) -> None:
    """One pass over the result: merged dimensions, vectors along the innermost one."""
    if not ctx.output.type.size:
        return
    nodes = (ctx.node, *ctx.tail)
    types = operand_types(ctx, nodes)
    k = StridedKernel(ctx, types, min(64, ctx.lanes(widest((ctx.output.type.dtype, *(t.dtype for t in types))))))
    cost = sum(COSTS.get(node.op, 1) for node in nodes)
    for site in strided_loops(k, cost):
        k.write(ctx.output, site, ctx.epilogue(k, site, evaluate(k, ctx.node, site, {})))
    k.done(ctx.node.op.lower(), over=_may_be_overwritten(k, nodes))


def _may_be_overwritten(k: StridedKernel, nodes: Sequence[Node]) -> tuple[Value, ...]:
    """Operands that lie as the result does, unless the last vectors of rows are computed twice."""
    y = k.ctx.output.type
    if k.sizes[-1] % k.lanes:
        return ()
    found = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None and not v.is_constant)
    return tuple(v for v in found if v in k.bound and v.type.with_dtype(y.dtype) == y and v.type.nbytes == y.nbytes)


def operand_types(ctx: Lowering, nodes: Sequence[Node]) -> list[TensorType]:
    """Types by which the operands that `evaluate` reads from memory broadcast to the result, for a chain of nodes.

    The first node's own result counts as computed where the chain is a fused tail.
    """
    inner = {v for node in (ctx.node, *nodes) for v in node.outputs}
    return [
        _broadcast_type(ctx, node, index)
        for node in nodes
        for index, value in enumerate(node.inputs)
        if value is not None and value not in inner
    ]


_COSTLY = (
    "Exp Log Erf Sigmoid Tanh Softplus Gelu Swish SwiGLU Mish Elu Selu Celu Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh "
    "Acosh Atanh Pow Mod Div"
)
COSTS = {name: 8 for name in _COSTLY.split()}
"""Cost of an element in additions, where it is not about 1."""
