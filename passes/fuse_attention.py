"""Scaled dot-product attention as one operator, whose scores never become a tensor.

Before: MatMul(Softmax(f(MatMul(q, k^T))), v), f elementwise (factors, masks, caps), perhaps something elementwise on
the weights, heads that several queries share repeated, and the transposes that part heads and join them again.
After: c2c.Attention(q, k, v, what f reads), its `body` the same computation; of [batch, heads, rows, size] or, operand
by operand, of [batch, rows, heads size] without a transpose; shared heads once.
Preserves: scores that others read. Needs: transposes sunk, scales of operands moved behind their product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ..ir.graph import Graph, Node, Value
from ..ir.types import DType
from .attention import HEADS, Chain, Form, emit_attention, read_form
from .base import GraphRewriter, Pass, PassContext, Rule, apply_rules, register_pass
from .lower.grid.attention import has_tiles
from .pattern import made_by, required, scalar
from .regions import Region, finest, groups, region_to, regrouped
from .rules_einsum import EINSUM_RULES
from .rules_movement import MOVEMENT_RULES, permutation, reshape, transpose

LEAST_ROWS = 4
"""Queries that share the keys; fewer are matrix-vector products."""


@register_pass
class FuseAttention(Pass):
    name = "fuse-attention"

    def run(self, graph: Graph, context: PassContext) -> bool:
        device = context.target.device
        if device is None:
            return apply_rules(graph, RULES, context)

        def on_grid(form: Form, operands: Sequence[Value]) -> bool:
            return not form.weights.nodes and has_tiles(context.target, *operands)

        attention = partial(_attention, fits=on_grid, dtypes=(DType.F32, DType.F16))
        rules = [replace(r, apply=attention) if r.apply is _attention else r for r in RULES]
        return apply_rules(graph, rules, context)


def _attention(
    rw: GraphRewriter,
    node: Node,
    fits: Callable[[Form, Sequence[Value]], bool] = lambda form, operands: True,
    dtypes: Sequence[DType] = (DType.F32,),
) -> Value | None:
    """fits: whether there is a kernel of a form and its operands; dtypes: types of all that it may have."""
    weights = region_to(rw, required(node), "Softmax")
    softmax = None if weights is None else weights.root
    if weights is None or softmax is None:
        return None
    rank = softmax.output.type.rank
    scores = region_to(rw, required(softmax), "MatMul")
    if scores is None or rank < 3 or softmax.attrs.get("axis", -1) % rank != rank - 1:
        return None
    q, keys, v = required(scores.root), required(scores.root, 1), required(node, 1)
    batch = _batch(scores, weights, node)
    if batch is None or q.type.dtype not in dtypes or not _fits(q, keys, v, scores, weights):
        return None
    k = transpose(rw, scores.root, keys, (*range(keys.type.rank - 2), keys.type.rank - 1, keys.type.rank - 2))
    kv = [_leading(x, batch) for x in (k, v)]
    dims = _leading(q, batch)
    if dims != batch or None in kv or kv[0] != kv[1]:
        return None
    operands = [_led(rw, scores.root, x, d) for x, d in zip((q, k, v), (batch, *kv), strict=True) if d is not None]
    scale, scores = _scale(scores)
    form = Form(batch, operands[1].type.dims[-3], scale, _chain(rw, scores, batch), _chain(rw, weights, batch))
    if not fits(form, operands):
        return None
    result = node.output.type.with_shape((*batch, *node.output.type.dims[-2:]))
    nodes = (scores.root, *scores.steps, softmax, *weights.steps, node)
    origin = tuple(dict.fromkeys(name for n in nodes for name in n.origin))
    new = emit_attention(rw, form, operands, result, origin=origin, hint=node.output.name)
    return reshape(rw, node, new, node.output.type)


def _batch(scores: Region, weights: Region, node: Node) -> tuple[int, ...] | None:
    """The leading dimensions of the scores, the last of them heads, in the finest grouping that occurs."""
    values = [*scores.values(), *weights.values(), node.output]
    if any(not v.type.is_static or v.type.rank < 3 for v in values):
        return None
    found = finest([v.type.dims[:-2] for v in values])
    return (1, *found) if found is not None and len(found) == 1 else found


def _fits(q: Value, keys: Value, v: Value, scores: Region, weights: Region) -> bool:
    ends = (scores.root.output, scores.end, weights.root.output, weights.end)
    values = (q, keys, v, *ends)
    dtype = q.type.dtype
    if any(not x.type.is_static or x.type.dtype is not dtype or not x.type.size or x.type.rank < 3 for x in values):
        return False
    return q.type.dims[-2] >= LEAST_ROWS and keys.data is None and v.data is None


def _leading(x: Value, batch: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions before the rows of an operand: `batch`, or one head for all."""
    dims = x.type.dims[:-2]
    if groups(dims, batch) is not None:
        return batch
    return (*batch[:-1], 1) if groups(dims, (*batch[:-1], 1)) is not None else None


def _led(rw: GraphRewriter, node: Node, x: Value, leading: tuple[int, ...]) -> Value:
    return reshape(rw, node, x, x.type.with_shape((*leading, *x.type.dims[-2:])))


def _scale(scores: Region) -> tuple[float, Region]:
    """Factors at the beginning, which are numbers, as one; the region after them."""
    scale, steps, source = 1.0, scores.steps, scores.source
    while steps and steps[0].op in ("Mul", "Div") and sum(source in n.inputs for n in steps) == 1:
        a, b = required(steps[0]), required(steps[0], 1)
        divides = steps[0].op == "Div"
        number = scalar(b) if a is source else None if divides else scalar(a)
        if number is None or divides and number == 0.0:
            break
        scale = scale / number if divides else scale * number
        source, steps = steps[0].output, steps[1:]
    return scale, replace(scores, source=source, steps=steps)


def _chain(rw: GraphRewriter, region: Region, batch: tuple[int, ...]) -> Chain:
    """The steps of a region on values of [*batch, rows, count]: reshapes are gone, operands regrouped."""
    whole = (*batch, *region.end.type.dims[-2:])
    source = Value(region.source.name, region.source.type.with_shape(whole))
    moved = {region.source: source}
    nodes: list[Node] = []
    for n in region.steps:
        if n.op == "Reshape":
            moved[n.output] = moved[required(n)]
            continue
        site = n.output.type.dims[:-2]
        inputs = tuple(
            None if v is None else moved.get(v) or _operand(rw, region.root, v, site, batch) for v in n.inputs
        )
        result = Value(n.output.name, n.output.type.with_shape(whole))
        nodes.append(Node(n.op, inputs, (result,), dict(n.attrs), n.origin))
        moved[n.output] = result
    return Chain(source, tuple(nodes))


def _operand(rw: GraphRewriter, node: Node, x: Value, site: tuple[int, ...], batch: tuple[int, ...]) -> Value:
    """`x`, which broadcasts to leading dimensions `site`, as one that broadcasts to `batch`."""
    if x.type.rank <= 2:
        return x
    return _led(rw, node, x, regrouped(x.type.dims[:-2], site, batch))


def _shared_heads(rw: GraphRewriter, node: Node) -> Value | None:
    """Keys and values that are repeated for several heads of q each."""
    form = read_form(node)
    q, k, v = (required(node, i) for i in range(3))
    once = [_repeated(x, form) for x in (k, v)]
    if once[0] is None or once[1] is None or once[0].type.dims[-4] != once[1].type.dims[-4]:
        return None
    heads = once[0].type.dims[-4]
    operands = [q, *(_led(rw, node, x, (*form.batch[:-1], heads)) for x in once if x is not None)]
    return _again(rw, node, replace(form, kv_heads=heads), operands)


def _repeated(x: Value, form: Form) -> Value | None:
    """[*outer, heads, 1, rows, size], where x is that with every head repeated."""
    joined = made_by(x, "Reshape")
    repeat = None if joined is None else made_by(required(joined), "Expand", "Tile")
    if repeat is None or x.type.rank == 3 or form.kv_heads != form.heads:
        return None
    source, dims = required(repeat), repeat.output.type.dims
    *outer, heads = form.batch
    if len(dims) != len(form.batch) + 3 or dims[:-4] != tuple(outer) or dims[-4] * dims[-3] != heads:
        return None
    return source if source.type.shape == (*dims[:-3], 1, *x.type.dims[-2:]) else None


def _again(rw: GraphRewriter, node: Node, form: Form, qkv: Sequence[Value]) -> Value:
    """The attention `node` in another form or of other operands."""
    return emit_attention(rw, form, qkv, node.output.type, origin=node.origin, hint=node.output.name)


def _side_by_side(rw: GraphRewriter, node: Node) -> Value | None:
    """Operands whose heads were parted are read where they lie."""
    form = read_form(node)
    operands = [required(node, i) for i in range(3)]
    flat = [_joined(rw, node, x, form.outer) for x in operands]
    if not any(flat):
        return None
    return _again(rw, node, form, [y or x for x, y in zip(operands, flat, strict=True)])


def _joined(rw: GraphRewriter, node: Node, x: Value, outer: int) -> Value | None:
    """[outer, rows, heads size] of an operand [*batch, rows, size]."""
    apart = made_by(x, "Reshape")
    parted = made_by(x if apart is None else required(apart), "Transpose")
    if x.type.rank == 3 or parted is None or not _parts_heads(parted):
        return None
    dims = required(parted).type.dims
    batch, rows, heads, size = (1, *dims)[-4:]
    if batch != outer or (heads, rows, size) != x.type.dims[-3:]:
        return None
    return reshape(rw, parted, required(parted), x.type.with_shape((batch, rows, heads * size)))


def _parts_heads(node: Node) -> bool:
    """Whether a Transpose exchanges rows and heads, of one batch where there is no such dimension."""
    return permutation(node) in (HEADS, (1, 0, 2))


def _joined_result(rw: GraphRewriter, node: Node) -> Value | None:
    """The result with its heads side by side."""
    x = required(node)
    apart = made_by(x, "Reshape")
    inner = made_by(x if apart is None else required(apart), "c2c.Attention")
    if inner is None or not _parts_heads(node) or inner.output.type.rank == 3:
        return None
    if not rw.has_one_reader(inner.output) or not rw.has_one_reader(x):
        return None
    form, (batch, rows, heads, size) = read_form(inner), (1, *node.output.type.dims)[-4:]
    if (batch, heads, rows) != (form.outer, form.heads, inner.output.type.dims[-2]):
        return None
    flat = inner.output.type.with_shape((batch, rows, heads * size))
    origin = tuple(dict.fromkeys((*inner.origin, *node.origin)))
    qkv = [required(inner, i) for i in range(3)]
    new = emit_attention(rw, form, qkv, flat, origin=origin, hint=node.output.name)
    return reshape(rw, node, new, node.output.type)


def _transposed_matrices(rw: GraphRewriter, node: Node) -> Value | None:
    """Matrices in batches that are regrouped for the transposition alone."""
    turned = made_by(required(node), "Transpose")
    inner = made_by(required(turned), "Reshape") if turned is not None else None
    if turned is None or inner is None or not node.output.type.is_static:
        return None
    x, result, rank = required(inner), node.output.type.dims, turned.output.type.rank
    swaps = rank > 2 and permutation(turned) == (*range(rank - 2), rank - 1, rank - 2)
    if not swaps or x.type.rank < 3 or len(result) < 3 or x.type.dims[-2:] != inner.output.type.dims[-2:]:
        return None
    rows, columns = x.type.dims[-2:]
    if result[-2:] != (columns, rows):
        return None
    straight = reshape(rw, inner, x, x.type.with_shape((*result[:-2], rows, columns)))
    return transpose(rw, node, straight, (*range(len(result) - 2), len(result) - 1, len(result) - 2))


RULES = (
    *EINSUM_RULES,
    Rule("transposed-matrices", "reshape(reshape(x)^T) = x^T, matrix by matrix", ("Reshape",), _transposed_matrices),
    *(r for r in MOVEMENT_RULES if r.ops[0] in ("Transpose", "Reshape")),
    Rule("attention", "g(softmax(f(q k^T))) v = attention(q, k, v, …)", ("MatMul",), _attention),
    Rule(
        "shared-heads", "attention(q, repeated k, repeated v) = attention(q, k, v)", ("c2c.Attention",), _shared_heads
    ),
    Rule("heads-side-by-side", "attention(q^h, …) = attention of heads in rows", ("c2c.Attention",), _side_by_side),
    Rule("joined-result", "attention(q, k, v)^h = attention with heads in rows", ("Transpose",), _joined_result),
)
