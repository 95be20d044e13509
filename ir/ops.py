"""The operator table: one row an operator; what passes need to know about it stands here and nowhere else."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.IntEnum):
    """The fusion lattice, in order: a group's kind is the maximum of its members'.

    ELEMENTWISE: out[i] depends on in[i] (operands of the same shape, or broadcast to it).
    INJECTIVE: out[i] is one element of one input (data movement).
    REDUCTION: an output element depends on many of one input; may start a group, elementwise may follow.
    ANCHOR: convolution- or GEMM-like; elementwise may follow in its epilogue.
    OPAQUE: fuses with nothing.
    """

    ELEMENTWISE = 0
    INJECTIVE = 1
    REDUCTION = 2
    ANCHOR = 3
    OPAQUE = 4


@dataclass(frozen=True, slots=True)
class OpDef:
    """kind: fusion lattice. movement: only shape, bytes unchanged in order (a view). pure: no random, no state."""

    name: str
    kind: Kind
    pure: bool = True
    view: bool = False
    commutative: bool = False


def _rows(kind: Kind, names: str, **flags: bool) -> dict[str, OpDef]:
    return {n: OpDef(n, kind, **flags) for n in names.split()}


OPS: dict[str, OpDef] = {
    **_rows(
        Kind.ELEMENTWISE, "Add Mul And Or Xor Max Min Sum Mean BitwiseAnd BitwiseOr BitwiseXor Equal", commutative=True
    ),
    **_rows(
        Kind.ELEMENTWISE,
        "Sub Div Pow Mod Less LessOrEqual Greater GreaterOrEqual Where Clip PRelu BitShift "
        "Abs Neg Sqrt Exp Log Erf Sigmoid Tanh Relu LeakyRelu Elu Selu Celu HardSigmoid HardSwish Softplus Softsign "
        "Gelu Mish Swish Floor Ceil Round Sign Reciprocal Not BitwiseNot Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh "
        "Acosh Atanh IsNaN IsInf Cast CastLike BitCast ThresholdedRelu Shrink SwiGLU QuantizeLinear DequantizeLinear "
        "BatchNormalization",
    ),
    **_rows(Kind.INJECTIVE, "Reshape Flatten Squeeze Unsqueeze Identity", view=True),
    **_rows(
        Kind.INJECTIVE,
        "Transpose Slice Concat Split Expand Tile Pad Gather GatherElements GatherND DepthToSpace SpaceToDepth "
        "c2c.Reorder Trilu ReverseSequence Resize Upsample Dropout",
    ),
    **_rows(
        Kind.REDUCTION,
        "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
        "ReduceSumSquare ArgMax ArgMin MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool "
        "Softmax LogSoftmax Hardmax LayerNormalization RMSNormalization InstanceNormalization LpNormalization LRN "
        "MeanVarianceNormalization",
    ),
    **_rows(
        Kind.ANCHOR,
        "Conv ConvTranspose Gemm MatMul c2c.WinogradConv c2c.IntegerConv c2c.Attention c2c.MatMul MatMulInteger",
    ),
    **_rows(
        Kind.OPAQUE,
        "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial ImageDecoder",
        pure=False,
    ),
    **_rows(Kind.OPAQUE, "c2c.Fused c2c.ConvChain"),
}
"""Operators that stand here not are OPAQUE and pure: importable, and lowered if `passes/lower` knows them."""

GROUPS = frozenset({"c2c.Fused", "c2c.ConvChain"})
"""Operators that stand for a group of nodes, their attribute `body`."""

BODIES = GROUPS | {"c2c.Attention", "c2c.MatMul", "c2c.Bounded"}
"""Operators whose attribute `body` is a graph over the node's inputs that says what they compute."""

COUNTED = frozenset({"NonMaxSuppression", "NonZero", "Compress"})
"""Operators whose number of results depends on data, below a bound that shapes give: what `c2c.Bounded` begins with."""

STAGES = ("Conv", "MaxPool", "AveragePool", "LpPool")
"""Operators that a stage of c2c.ConvChain begins with."""

READ_THROUGH = ("Pad", "Resize", "Concat", "c2c.Reorder")
"""Operators before the first stage of c2c.ConvChain, which it reads through."""


def op(name: str) -> OpDef:
    """The row of an operator."""
    return OPS.get(name) or OpDef(name, Kind.OPAQUE)
