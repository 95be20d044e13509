"""Single operators for what exporters spell out: activations, normalisation, softmax."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np

from ..ir.graph import Node, Value
from .base import GraphRewriter, Rule
from .pattern import Product, affine, either_order, made_by, near, pair, product, reduced_axes, required, scalar
from .rules_arithmetic import bounds_of


def _origins(*nodes: Node | None) -> tuple[str, ...]:
    """ONNX names of a group, in order, each once."""
    return tuple(dict.fromkeys(name for n in nodes if n is not None for name in n.origin))


def _emit(
    rw: GraphRewriter, node: Node, op: str, operands: list[Value | None], attrs: dict[str, object], *inner: Node | None
) -> Value:
    """`op` in place of `node` and the nodes before it that it stands for."""
    origin = _origins(*inner, node)
    return rw.emit(op, operands, [node.output.type], attrs, origin=origin, hint=node.output.name).output


def _gate(value: Value) -> tuple[Value, float, float, float] | None:
    """x, alpha, beta, scale of a value that is scale * clip(alpha x + beta, 0, 1)."""
    node = made_by(value, "HardSigmoid", "Clip")
    if node is None:
        return None
    if node.op == "HardSigmoid":
        return required(node), node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5), 1.0
    bounds = bounds_of(node)
    if bounds is None or bounds[0] != 0.0 or bounds[1] is None or bounds[1] <= 0:
        return None
    inner, high = affine(required(node)), bounds[1]
    return inner.x, inner.scale / high, inner.shift / high, high


def _hard_sigmoid(rw: GraphRewriter, node: Node) -> Value | None:
    found = Product((node.output,), 1.0) if node.op == "Clip" else product(rw, node)
    gate = _gate(found.factors[0]) if len(found.factors) == 1 else None
    inner = made_by(found.factors[0], "Clip") if gate is not None else None
    if gate is None or inner is None or not near(found.scale * gate[3], 1.0):
        return None
    x, alpha, beta, _ = gate
    if x.type != node.output.type or not near(beta, 0.5) or alpha <= 0:
        return None
    return _emit(rw, node, "HardSigmoid", [x], {"alpha": float(alpha), "beta": float(beta)}, inner)


def _hard_swish(rw: GraphRewriter, node: Node) -> Value | None:
    found = product(rw, node)
    for x, other in pair(found.factors):
        gate = _gate(other)
        if gate is None or gate[0] is not x or x.type != node.output.type:
            continue
        if near(gate[1], 1 / 6) and near(gate[2], 0.5) and near(gate[3] * found.scale, 1.0):
            return _emit(rw, node, "HardSwish", [x], {}, other.producer)
    return None


def _swish(rw: GraphRewriter, node: Node) -> Value | None:
    found = product(rw, node)
    for x, other in pair(found.factors):
        gate = made_by(other, "Sigmoid")
        if gate is None or found.scale != 1.0 or x.type != node.output.type:
            continue
        inner = affine(required(gate))
        if required(gate) is x:
            return _emit(rw, node, "Swish", [x], {"alpha": 1.0}, gate)
        if inner.x is x and inner.shift == 0.0:
            return _emit(rw, node, "Swish", [x], {"alpha": float(inner.scale)}, gate)
    return None


def _mish(rw: GraphRewriter, node: Node) -> Value | None:
    found = product(rw, node)
    for x, other in pair(found.factors):
        tanh = made_by(other, "Tanh")
        softplus = made_by(required(tanh), "Softplus") if tanh is not None else None
        if softplus is not None and required(softplus) is x and found.scale == 1.0 and x.type == node.output.type:
            return _emit(rw, node, "Mish", [x], {}, softplus, tanh)
    return None


def _gelu(rw: GraphRewriter, node: Node) -> Value | None:
    found = product(rw, node)
    for x, other in pair(found.factors):
        half = affine(other)
        gate = made_by(half.x, "Erf", "Tanh")
        if gate is None or x.type != node.output.type or not near(half.scale, half.shift):
            continue
        if not near(half.scale * found.scale, 0.5):
            continue
        if gate.op == "Erf":
            inner = affine(required(gate))
            if inner.x is x and inner.shift == 0.0 and near(inner.scale, 1 / sqrt(2)):
                return _emit(rw, node, "Gelu", [x], {"approximate": "none"}, gate)
        elif _is_gelu_polynomial(rw, required(gate), x):
            return _emit(rw, node, "Gelu", [x], {"approximate": "tanh"}, gate)
    return None


def _is_gelu_polynomial(rw: GraphRewriter, value: Value, x: Value) -> bool:
    """sqrt(2/pi) (x + 0.044715 x^3), the cube first as a sum, then as x times a polynomial of x^2."""
    outer = affine(value)
    total = made_by(outer.x, "Add")
    if total is not None and outer.shift == 0.0 and near(outer.scale, sqrt(2 / pi)):
        return any(a is x and near(_power(rw, b, x, 3), 0.044715) for a, b in either_order(total))
    node = made_by(value, "Mul")
    if node is None:
        return False
    found = product(rw, node)
    for a, b in pair(found.factors):
        inner = affine(b)
        square = _power(rw, inner.x, x, 2)
        if a is x and square is not None and near(inner.shift * found.scale, sqrt(2 / pi)):
            return near(inner.scale * square * found.scale, sqrt(2 / pi) * 0.044715)
    return False


def _power(rw: GraphRewriter, value: Value, x: Value, exponent: int) -> float | None:
    """The number c of a value that is c * x^exponent."""
    node = made_by(value, "Mul", "Div", "Pow")
    if node is None:
        return None
    if node.op == "Pow":
        return 1.0 if required(node) is x and scalar(required(node, 1)) == exponent else None
    scale, degree, todo = 1.0, 0, [value]
    while todo:
        v = todo.pop()
        number, inner = scalar(v), made_by(v, "Mul", "Pow")
        if v is x:
            degree += 1
        elif number is not None:
            scale *= number
        elif inner is not None and inner.op == "Mul":
            todo += [required(inner, 0), required(inner, 1)]
        elif inner is not None and required(inner) is x and (power := scalar(required(inner, 1))) is not None:
            degree += int(power)
        else:
            return None
    return scale if degree == exponent else None


def _layer_normalization(rw: GraphRewriter, node: Node) -> Value | None:
    """(x - mean x) / sqrt(mean (x - mean x)^2 + eps) over trailing axes."""
    centred, root = made_by(required(node), "Sub"), made_by(required(node, 1), "Sqrt")
    if centred is None or root is None:
        return None
    x, mean = required(centred), made_by(required(centred, 1), "ReduceMean")
    shifted = affine(required(root))
    variance = made_by(shifted.x, "ReduceMean")
    if mean is None or variance is None or shifted.scale != 1.0 or required(mean) is not x:
        return None
    axes, rank = reduced_axes(mean), x.type.rank
    if axes is None or axes != reduced_axes(variance) or axes != tuple(range(rank - len(axes), rank)) or not axes:
        return None
    if _power(rw, required(variance), centred.output, 2) != 1.0 or x.type != node.output.type:
        return None
    if not (mean.attrs.get("keepdims", 1) and variance.attrs.get("keepdims", 1)) or shifted.shift <= 0:
        return None
    scale = rw.constant("scale", np.ones(x.type.dims[axes[0] :], x.type.dtype.numpy))
    attrs: dict[str, object] = {"axis": axes[0], "epsilon": float(shifted.shift)}
    return _emit(rw, node, "LayerNormalization", [x, scale], attrs, mean, centred, variance, root)


def _normalization_scale(rw: GraphRewriter, node: Node) -> Value | None:
    """LayerNormalization with unit scale and no bias, times a constant."""
    inner, c = made_by(required(node), "LayerNormalization"), required(node, 1)
    if inner is None or inner.input(2) is not None or not _fits_normalized(rw, inner, c, node):
        return None
    old = inner.constant(1)
    if old is None or not (old == 1).all():
        return None
    assert c.data is not None
    scale = rw.constant(c.name, np.array(np.broadcast_to(_trim(c.data, old.ndim), old.shape)))
    return _emit(rw, node, "LayerNormalization", [required(inner), scale], inner.attrs, inner)


def _normalization_bias(rw: GraphRewriter, node: Node) -> Value | None:
    inner, c = made_by(required(node), "LayerNormalization"), required(node, 1)
    if inner is None or inner.input(2) is not None or not _fits_normalized(rw, inner, c, node):
        return None
    assert c.data is not None
    shape = required(inner, 1).type.dims
    bias = rw.constant(c.name, np.array(np.broadcast_to(_trim(c.data, len(shape)), shape)))
    return _emit(rw, node, "LayerNormalization", [required(inner), required(inner, 1), bias], inner.attrs, inner)


def _fits_normalized(rw: GraphRewriter, inner: Node, c: Value, node: Node) -> bool:
    """Whether a constant varies along the normalised axes only, and the normalisation has no other reader."""
    if c.data is None or len(inner.outputs) > 1 or not rw.has_one_reader(inner.output):
        return False
    rank = len(required(inner, 1).type.dims)
    outer = c.type.dims[: max(0, c.type.rank - rank)]
    if any(d != 1 for d in outer) or c.type.rank > inner.output.type.rank or node.output.type != inner.output.type:
        return False
    dims = c.type.dims[max(0, c.type.rank - rank) :]
    return all(d in (1, s) for d, s in zip(reversed(dims), reversed(required(inner, 1).type.dims), strict=False))


def _trim(data: np.ndarray, rank: int) -> np.ndarray:
    return data.reshape(data.shape[max(0, data.ndim - rank) :])


def _softmax(rw: GraphRewriter, node: Node) -> Value | None:
    """exp(x - max x) / sum exp(x - max x)."""
    power, total = made_by(required(node), "Exp"), made_by(required(node, 1), "ReduceSum")
    if power is None or total is None or required(total) is not power.output or not total.attrs.get("keepdims", 1):
        return None
    shifted = made_by(required(power), "Sub")
    peak = made_by(required(shifted, 1), "ReduceMax") if shifted is not None else None
    if shifted is None or peak is None or required(peak) is not required(shifted):
        return None
    axes = reduced_axes(total)
    if axes is None or len(axes) != 1 or axes != reduced_axes(peak) or not peak.attrs.get("keepdims", 1):
        return None
    return _emit(rw, node, "Softmax", [required(shifted)], {"axis": axes[0]}, peak, shifted, power, total)


def _dense(rw: GraphRewriter, node: Node) -> Value | None:
    """Gemm with constant B: the transposition and alpha go into B, beta into C, the bias becomes an Add."""
    b, c = node.constant(1), node.input(2)
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if b is None or not node.output.type.dtype.is_float or (c is not None and c.data is None and beta != 1.0):
        return None
    a, origin = required(node), node.origin
    if node.attrs.get("transA", 0):
        turned = a.type.with_shape(tuple(reversed(a.type.shape)))
        a = rw.emit("Transpose", [a], [turned], {"perm": (1, 0)}, origin=origin, hint=a.name).output
    matrix = b.T if node.attrs.get("transB", 0) else b
    if alpha != 1.0:
        matrix = (matrix * np.float64(alpha)).astype(b.dtype)
    weights = Value(rw.name(required(node, 1).name), required(node, 1).type.with_shape(matrix.shape), matrix)
    result = rw.emit_like(node, "MatMul", [a, weights])
    if c is None or beta == 0.0:
        return result
    if c.data is not None and beta != 1.0:
        c = rw.constant(c.name, (c.data * np.float64(beta)).astype(c.data.dtype))
    return rw.emit_like(node, "Add", [result, c])


IDIOM_RULES = (
    Rule("hard-swish", "x clip(x + 3, 0, 6) / 6 = hard_swish(x)", ("Mul", "Div"), _hard_swish),
    Rule("swish", "x sigmoid(x) = swish(x)", ("Mul", "Div"), _swish),
    Rule("mish", "x tanh(softplus(x)) = mish(x)", ("Mul", "Div"), _mish),
    Rule("gelu", "x (1 + erf(x / sqrt 2)) / 2 = gelu(x), and its tanh form", ("Mul", "Div"), _gelu),
    Rule("hard-sigmoid", "clip(x + 3, 0, 6) / 6 = hard_sigmoid(x)", ("Mul", "Div", "Clip"), _hard_sigmoid),
    Rule("layer-normalization", "(x - m) / sqrt(v + eps) = layer_norm(x)", ("Div",), _layer_normalization),
    Rule("normalization-scale", "layer_norm(x) c = layer_norm(x, c)", ("Mul",), _normalization_scale),
    Rule("normalization-bias", "layer_norm(x, s) + c = layer_norm(x, s, c)", ("Add",), _normalization_bias),
    Rule("softmax", "exp(x - max) / sum = softmax(x)", ("Div",), _softmax),
    Rule("dense", "gemm(a, b, c) = a b' + c", ("Gemm",), _dense),
)
