"""Forms in which exporters and models write attention: whether each becomes one operator, and what it then computes.

The forms are those of torch's exporters (TorchScript and dynamo, opsets 14 to 23) for scaled_dot_product_attention,
nn.MultiheadAttention and attention as it is written out in models of the BERT, GPT-2, OPT, T5, Llama, Gemma, ViT and
Swin families, and ONNX's own Attention with its attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import c2c
from c2c.ir import reference
from c2c.ir.graph import Graph, Value
from c2c.tests.passes.build import Array, Net, Operand, feeds_for, i64

B, H, S, D = 2, 4, 9, 8
E = H * D
EPSILON = float(np.finfo(np.float32).eps)
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Form:
    """`make` gives the results of the net; `fused`: whether an attention is found; `moves`: transposes that stay."""

    name: str
    make: Callable[[Net], Value | tuple[Value, ...]]
    fused: bool = True
    moves: int = 0


def rows(net: Net, heads: int = H, count: int = S) -> Value:
    """The result of a projection: heads side by side."""
    return net.op("Relu", net.input(B, count, heads * D))


def parted(net: Net, x: Value, heads: int = H, perm: tuple[int, ...] = (0, 2, 1, 3)) -> Value:
    return net.op("Transpose", net.op("Reshape", x, i64(B, x.type.dims[1], heads, D)), perm=perm)


def qkv(net: Net, heads: int = H) -> tuple[Value, Value, Value]:
    """q, kᵀ and v of [batch, heads, …]."""
    return (
        parted(net, rows(net)),
        parted(net, rows(net, heads), heads, (0, 2, 3, 1)),
        parted(net, rows(net, heads), heads),
    )


def joined(net: Net, y: Value) -> Value:
    return net.op("Relu", net.op("Reshape", net.op("Transpose", y, perm=(0, 2, 1, 3)), i64(B, S, E)))


def whole(
    net: Net,
    scores: Callable[[Value], Value] = lambda x: x,
    weights: Callable[[Value], Value] = lambda x: x,
    scaled: str = "product",
) -> Value:
    """softmax(scores(q kᵀ)) v with a scale in one of its places."""
    q, k, v = qkv(net)
    if scaled == "q":
        q = net.op("Mul", q, D**-0.5)
    if scaled == "both":
        q, k = net.op("Mul", q, D**-0.25), net.op("Mul", k, D**-0.25)
    x = net.op("MatMul", q, k)
    if scaled in ("product", "divided"):
        x = net.op("Mul", x, D**-0.5) if scaled == "product" else net.op("Div", x, D**0.5)
    return joined(net, net.op("MatMul", weights(net.op("Softmax", scores(x), axis=-1)), v))


def keep(net: Net, *dims: int) -> Value:
    """A mask of bool."""
    return net.op("Greater", net.input(*dims), -0.5)


def causal(value: float) -> Array:
    return np.triu(np.full((1, 1, S, S), value, np.float32), 1)


def zero_where_nan(net: Net) -> Callable[[Value], Value]:
    return lambda p: net.op("Where", net.op("IsNaN", p), 0.0, p)


def sdpa_with_mask(net: Net) -> Value:
    """A boolean mask as torch's exporters write it: rows without a key give zeros."""
    mask = np.random.default_rng(1).random((B, 1, S, S)) < 0.5
    mask[:, :, 2] = False
    added = net.op("Where", net.op("And", keep(net, B, 1, 1, S), mask), 0.0, float("-inf"))
    return whole(net, lambda x: net.op("Add", x, added), zero_where_nan(net), "both")


def padding_mask(net: Net) -> Value:
    """masked_fill by a condition that is expanded to the scores."""
    ids = net.input(B, S)
    hidden = net.op("Reshape", net.op("Equal", net.op("Floor", ids), 0.0), i64(B, 1, 1, S))
    wide = net.op("Expand", hidden, i64(B, H, S, S))
    return whole(net, lambda x: net.op("Where", wide, float("-inf"), x), scaled="q")


def bert(net: Net) -> Value:
    visible = net.op("Reshape", net.op("Cast", keep(net, B, S), to=1), i64(B, 1, 1, S))
    added = net.op("Mul", net.op("Sub", 1.0, visible), LOWEST)
    return whole(net, lambda x: net.op("Add", x, added), scaled="divided")


def gpt2(net: Net) -> Value:
    return whole(net, lambda x: net.op("Where", causal(1) == 0, x, LOWEST), scaled="divided")


def flattened_batch(net: Net) -> Value:
    """OPT: batched matrices of rank 3, the mask added and bounded in rank 4."""
    q, k, v = qkv(net)
    q, v = (net.op("Reshape", x, i64(B * H, S, D)) for x in (q, v))
    k = net.op("Reshape", k, i64(B * H, D, S))
    x = net.op("Reshape", net.op("MatMul", net.op("Mul", q, D**-0.5), k), i64(B, H, S, S))
    x = net.op("Max", net.op("Add", x, net.input(B, 1, S, S)), LOWEST)
    p = net.op("Softmax", net.op("Reshape", x, i64(B * H, S, S)), axis=-1)
    return joined(net, net.op("Reshape", net.op("MatMul", p, v), i64(B, H, S, D)))


def windows(net: Net) -> Value:
    """Swin: a bias a head, then a mask a window, for which the batch is split."""
    q, k, v = qkv(net)
    x = net.op("Add", net.op("MatMul", q, k), net.random(1, H, S, S))
    x = net.op("Add", net.op("Reshape", x, i64(1, B, H, S, S)), net.input(1, B, 1, S, S))
    p = net.op("Softmax", net.op("Reshape", x, i64(B, H, S, S)), axis=-1)
    return joined(net, net.op("MatMul", p, v))


def regrouped_keys(net: Net) -> Value:
    """dynamo: keys are transposed as matrices of rank 3."""
    q, v = parted(net, rows(net)), parted(net, rows(net))
    k = net.op("Reshape", parted(net, rows(net)), i64(B * H, S, D))
    k = net.op("Reshape", net.op("Transpose", k, perm=(0, 2, 1)), i64(B, H, D, S))
    return joined(net, net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), v))


def repeated(net: Net, x: Value, heads: int, op: str) -> Value:
    times = H // heads
    apart = net.op("Unsqueeze", x, i64(2))
    operand = i64(1, 1, times, 1, 1) if op == "Tile" else i64(B, heads, times, *x.type.dims[-2:])
    return net.op("Reshape", net.op(op, apart, operand), i64(B, H, *x.type.dims[-2:]))


def shared(heads: int, op: str = "Expand", cap: float = 0.0) -> Callable[[Net], Value]:
    """Llama and Gemma: rotary embeddings, keys and values repeated, scores bounded."""

    def make(net: Net) -> Value:
        q, k, v = (parted(net, rows(net, n), n) for n in (H, heads, heads))
        q, k = rotated(net, q), rotated(net, k)
        k, v = repeated(net, k, heads, op), repeated(net, v, heads, op)
        x = net.op("Mul", net.op("MatMul", q, net.op("Transpose", k, perm=(0, 1, 3, 2))), D**-0.5)
        x = net.op("Mul", net.op("Tanh", net.op("Div", x, cap)), cap) if cap else x
        x = net.op("Add", x, net.input(B, 1, S, S))
        return joined(net, net.op("MatMul", net.op("Softmax", x, axis=-1), v))

    return make


def rotated(net: Net, x: Value) -> Value:
    half = D // 2
    low, high = (net.op("Slice", x, i64(a), i64(b), i64(3)) for a, b in ((0, half), (half, D)))
    angle = np.outer(np.arange(S), 10000.0 ** (-np.arange(half) / half)).repeat(2, 0).reshape(S, 2 * half)
    turned = net.op("Concat", net.op("Neg", high), low, axis=3)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return net.op("Add", net.op("Mul", x, cos), net.op("Mul", turned, sin))


def one_head_broadcast(net: Net) -> Value:
    q, k, v = parted(net, rows(net)), net.input(B, 1, D, S), net.input(B, 1, S, D)
    return joined(net, net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), v))


def cache(net: Net) -> tuple[Value, Value, Value]:
    q, k, v = (parted(net, rows(net)) for _ in range(3))
    k, v = (net.op("Concat", net.input(B, H, 5, D), x, axis=2) for x in (k, v))
    x = net.op("Mul", net.op("MatMul", q, net.op("Transpose", k, perm=(0, 1, 3, 2))), D**-0.5)
    return joined(net, net.op("MatMul", net.op("Softmax", x, axis=-1), v)), k, v


def einsums(net: Net) -> Value:
    q, k, v = (net.op("Reshape", rows(net), i64(B, S, H, D)) for _ in range(3))
    x = net.op("Mul", net.op("Einsum", q, k, equation="bqhd,bkhd->bhqk"), D**-0.5)
    y = net.op("Einsum", net.op("Softmax", x, axis=-1), v, equation="bhqk,bkhd->bqhd")
    return net.op("Relu", net.op("Reshape", y, i64(B, S, E)))


def rows_first(net: Net) -> Value:
    """nn.MultiheadAttention of one image: [rows, heads, size]."""
    q, k, v = (
        net.op("Transpose", net.op("Reshape", net.op("Relu", net.input(S, 1, E)), i64(S, H, D)), perm=(1, 0, 2))
        for _ in range(3)
    )
    x = net.op("Mul", net.op("MatMul", q, net.op("Transpose", k, perm=(0, 2, 1))), D**-0.5)
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", x, axis=-1), v), perm=(1, 0, 2))
    return net.op("Relu", net.op("Reshape", y, i64(S, E)))


def standard(
    mask: Callable[[Net], Operand] = lambda net: None,
    past: bool = False,
    kv: int = H,
    outputs: int = 1,
    **attrs: object,
) -> Callable[[Net], Value | tuple[Value, ...]]:
    """ONNX's Attention of heads side by side."""

    def make(net: Net) -> Value | tuple[Value, ...]:
        operands: list[Operand] = [rows(net), rows(net, kv), rows(net, kv), mask(net)]
        if past:
            operands += [net.input(B, kv, 5, D), net.input(B, kv, 5, D)]
        found = net.ops("Attention", *operands, outputs=outputs, q_num_heads=H, kv_num_heads=kv, **attrs)
        return (net.op("Relu", found[0]), *found[1:])

    return make


def _padded_keys(net: Net) -> tuple[Value, ...]:
    """nonpad_kv_seqlen: how many keys of each image count."""
    count = net.op("Add", net.op("Cast", net.op("Floor", net.op("Sigmoid", net.input(B))), to=7), i64(S - 3))
    x = [parted(net, rows(net)) for _ in range(3)]
    return (net.op("Relu", net.op("Attention", *x, None, None, None, count)),)


def read_scores(net: Net) -> tuple[Value, Value]:
    q, k, v = qkv(net)
    p = net.op("Softmax", net.op("MatMul", q, k), axis=-1)
    return joined(net, net.op("MatMul", p, v)), p


def few_queries(net: Net) -> Value:
    q, k, v = net.input(B, H, 1, D), net.input(B, H, D, S), net.input(B, H, S, D)
    return net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), v)


def halves(net: Net) -> Value:
    q, k, v = (net.op("Cast", x, to=10) for x in (net.input(B, H, S, D), net.input(B, H, D, S), net.input(B, H, S, D)))
    y = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), v)
    return net.op("Cast", y, to=1)


FORMS = (
    Form("scaled product", whole),
    Form("scaled q", lambda net: whole(net, scaled="q")),
    Form("scaled q and k", lambda net: whole(net, scaled="both")),
    Form("divided product", lambda net: whole(net, scaled="divided")),
    Form("negative factor", lambda net: whole(net, lambda x: net.op("Mul", x, -0.5))),
    Form("mask of floats", lambda net: whole(net, lambda x: net.op("Add", x, net.input(B, 1, S, S)))),
    Form("bias a head", lambda net: whole(net, lambda x: net.op("Add", net.input(1, H, S, S), x))),
    Form("constant causal mask", lambda net: whole(net, lambda x: net.op("Add", x, causal(float("-inf"))))),
    Form("boolean mask, NaN to zero", sdpa_with_mask),
    Form("masked_fill, expanded condition", padding_mask),
    Form("extended mask of BERT", bert),
    Form("Where with the lowest float", gpt2),
    Form("flattened batch", flattened_batch),
    Form("windows", windows),
    Form("keys regrouped", regrouped_keys),
    Form("shared heads, Expand", shared(2), moves=2),
    Form("shared heads, Tile", shared(2, "Tile"), moves=2),
    Form("one head for all", shared(1), moves=1),
    Form("one head, broadcast", one_head_broadcast, moves=1),
    Form("bounded scores", shared(2, cap=5.0), moves=2),
    Form("cache", cache, moves=2),
    Form("Einsum", einsums),
    Form("rows first", rows_first),
    Form("Attention", standard()),
    Form("Attention, scale", standard(scale=0.3)),
    Form("Attention, causal", standard(is_causal=1)),
    Form("Attention, softcap and mask", standard(lambda net: net.input(S, S), softcap=2.0)),
    Form("Attention, boolean mask", standard(lambda net: keep(net, B, 1, S, S))),
    Form("Attention, boolean mask, causal", standard(lambda net: keep(net, B, 1, S, S), is_causal=1)),
    Form("Attention, shared heads", standard(kv=2)),
    Form("Attention, past and present", standard(past=True, outputs=3, is_causal=1), moves=2),
    Form("Attention, padded keys", _padded_keys),
    Form("Attention, scores as well", standard(outputs=4, past=True, qk_matmul_output_mode=1), fused=False, moves=5),
    Form("scores read", read_scores, fused=False, moves=4),
    Form("few queries", few_queries, fused=False),
    Form("f16", halves, fused=False),
)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_form(form: Form) -> None:
    """The result is that of the operators as written, within what rounding of the two sums can make."""
    net = Net()
    found = form.make(net)
    graph = net.done(*(found if isinstance(found, tuple) else (found,)))
    model = c2c.compile(reference.to_onnx(graph))
    ops = list(_operators(model.compiled.graph))
    assert ("c2c.Attention" in ops) == form.fused, ops
    assert ops.count("Transpose") <= form.moves, ops
    feeds = feeds_for(graph, 3)
    got = model.run(feeds)
    for name, expected in reference.evaluate(graph, feeds).items():
        assert not np.isnan(expected).any()
        unit = 2.0**-10 if form.name == "f16" else EPSILON
        tolerance = unit * (8 + 4 * np.sqrt(max(S, D))) * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=tolerance)


def _operators(graph: Graph) -> list[str]:
    return [n.op for node in graph.nodes for n in (node.attrs["body"].nodes if node.op == "c2c.Fused" else [node])]


def test_what_the_operators_give_for_nan_is_kept() -> None:
    """Rows that see no key, and keys and values that are not finite, in every form of mask."""
    forms: list[Callable[[Net], Any]] = [lambda net: lambda p: p, zero_where_nan]
    for weights in forms:
        net = Net()
        mask = np.where(np.random.default_rng(2).random((S, S)) < 0.6, 0, -np.inf).astype(np.float32)
        mask[1] = -np.inf
        y = whole(net, lambda x: net.op("Add", x, mask), weights(net))
        graph = net.done(net.op("Neg", y))
        model = c2c.compile(reference.to_onnx(graph))
        assert "c2c.Attention" in _operators(model.compiled.graph)
        feeds = feeds_for(graph, 3)
        q, k, v = feeds.values()
        q[0, 3, 2], k[1, 4, 5], v[0, 5, 9] = np.nan, np.inf, np.inf
        with np.errstate(invalid="ignore"):
            (expected,) = reference.evaluate(graph, feeds).values()
        (got,) = model.run(feeds).values()
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
