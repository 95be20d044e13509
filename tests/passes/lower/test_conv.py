"""Conv in all its forms as compiled code against ONNX's reference evaluator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from c2c.codegen.cores import CORES
from c2c.codegen.target import Target, native
from c2c.ir.graph import Graph, Node, Value
from c2c.ir.loops import Prefetch
from c2c.ir.loops_visit import statements
from c2c.ir.types import DType, Layout
from c2c.passes.lower import lower_graph, lower_node
from c2c.passes.lower.micro import splats_lanes
from c2c.passes.lower.tile import Lined, choose_tile, segments, split, tap_groups
from c2c.passes.lower.window import Axis
from c2c.passes.overwrite import overwrite
from c2c.tests.passes.lower.harness import Case, in_blocks, lines_asked_for, run_graph, run_ops

SEED = 7
LANES = native().lanes(DType.F32)


def conv(
    x: tuple[int, ...],
    w: tuple[int, ...],
    dtype: Any = np.float32,
    *,
    bias: bool = True,
    known: bool = True,
    **attrs: Any,
) -> Case:
    """A Conv of random operands; `known`: weights are constants."""
    rng = np.random.default_rng(SEED)
    inputs = [rng.standard_normal(x).astype(dtype), rng.standard_normal(w).astype(dtype)]
    if bias:
        inputs.append(rng.standard_normal(w[0]).astype(dtype))
    return Case("Conv", inputs, {"kernel_shape": list(w[2:]), **attrs}, frozenset((1, 2) if known else ()))


def check(case: Case, got: np.ndarray, rtol: float = 1e-5) -> None:
    expected = case.expected()[0]
    label = f"{[None if a is None else a.shape for a in case.inputs]} {dict(case.attrs)}, seed {SEED}"
    assert got.shape == expected.shape, label
    scale = rtol * float(np.abs(expected).max(initial=1e-30))
    np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), rtol=0, atol=scale, err_msg=label)


PLAIN = [
    conv((1, 3, 17, 19), (10, 3, 3, 3), pads=[1, 1, 1, 1]),
    conv((2, 3, 23, 23), (16, 3, 7, 7), pads=[3, 3, 3, 3], strides=[2, 2], bias=False),
    conv((1, 5, 13), (9, 5, 4), pads=[2, 0], dilations=[2]),
    conv((1, 4, 6, 7, 8), (12, 4, 2, 3, 3), pads=[1, 0, 1, 0, 1, 1], strides=[1, 2, 1]),
    conv((1, 8, 9, 9), (12, 2, 3, 3), group=4, auto_pad="SAME_UPPER"),
    conv((1, 8, 9, 10), (12, 2, 3, 3), group=4, auto_pad="SAME_LOWER", strides=[2, 3]),
    conv((1, 6, 40), (6, 1, 9), group=6, pads=[4, 4]),
    conv((1, 9, 20, 40), (3, 9, 5, 5), pads=[2, 2, 2, 2]),
    conv((1, 3, 8, 8), (8, 3, 1, 1)),
    conv((1, 4, 8, 21), (6, 4, 3, 3), known=False, pads=[1, 1, 1, 1]),
    conv((1, 2, 60), (9, 2, 40), pads=[39, 39], dilations=[1]),
    conv((1, 11, 45, 1), (16, 11, 5, 1)),
]
BLOCKED = [
    conv((1, 16, 14, 14), (24, 16, 3, 3), pads=[1, 1, 1, 1]),
    conv((1, 20, 7, 7), (37, 20, 3, 3), pads=[1, 1, 1, 1]),
    conv((2, 13, 11, 9), (19, 13, 1, 1), bias=False),
    conv((1, 16, 15, 15), (16, 16, 1, 1), strides=[2, 2]),
    conv((1, 16, 9, 33), (16, 16, 3, 3), pads=[0, 18, 0, 18], dilations=[1, 18]),
    conv((1, 32, 8, 8), (64, 16, 3, 3), group=2, pads=[1, 1, 1, 1]),
    conv((1, 32, 8, 8), (32, 4, 3, 3), group=8, pads=[1, 1, 1, 1]),
    conv((1, 21, 12, 17), (21, 1, 3, 3), group=21, pads=[1, 1, 1, 1]),
    conv((1, 16, 16, 15), (16, 1, 5, 5), group=16, pads=[2, 2, 2, 2], strides=[2, 2]),
    conv((1, 16, 12, 12), (16, 1, 9, 9), group=16, pads=[4, 4, 4, 4]),
    conv((1, 12, 9, 9), (24, 1, 3, 3), group=12, pads=[1, 1, 0, 2]),
    conv((1, 16, 4, 6, 7), (8, 16, 3, 3, 3), pads=[1, 1, 1, 1, 1, 1]),
    conv((1, 16, 37), (24, 16, 5), pads=[2, 2], strides=[2]),
    conv((1, 16, 61, 1), (24, 16, 5, 1), pads=[2, 0, 1, 0], strides=[2, 1]),
    conv((2, 16, 5, 30, 1), (12, 16, 3, 3, 1), pads=[1, 1, 0, 1, 1, 0], dilations=[1, 2, 1]),
]


@pytest.mark.parametrize("threads", [1, 2])
def test_plain(threads: int) -> None:
    for case, (got,) in zip(PLAIN, run_ops(PLAIN, threads=threads), strict=True):
        check(case, got)


@pytest.mark.parametrize("case", BLOCKED, ids=lambda c: "x".join(map(str, c.inputs[1].shape)))
def test_blocked(case: Case) -> None:
    inputs = [a for i, a in enumerate(case.inputs) if a is not None and i not in case.constants]
    (got,) = run_graph(in_blocks(case, LANES), inputs, threads=2)
    check(case, got)


@pytest.mark.parametrize("sides", [(0, LANES), (LANES, 0)])
def test_mixed_layouts(sides: tuple[int, int]) -> None:
    case = conv((1, 11, 10, 9), (21, 11, 3, 3), pads=[1, 1, 1, 1])
    node = case.node()
    x, y = node.inputs[0], node.output
    assert x is not None and case.inputs[0] is not None
    inner = Value("inner", x.type.with_layout(Layout(sides[0])))
    result = Value("result", y.type.with_layout(Layout(sides[1])))
    nodes = [
        Node("c2c.Reorder", (x,), (inner,)),
        Node("Conv", (inner, *node.inputs[1:]), (result,), node.attrs),
        Node("c2c.Reorder", (result,), (y,)),
    ]
    (got,) = run_graph(Graph("mixed", [x], [y], nodes, ["y"]), [case.inputs[0]])
    check(case, got)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float16, 2e-3)])
def test_other_types(dtype: Any, rtol: float) -> None:
    case = conv((1, 6, 9, 21), (8, 3, 3, 3), dtype, group=2, pads=[1, 1, 1, 1], strides=[1, 2])
    check(case, run_ops([case])[0][0], rtol)


@pytest.mark.parametrize("channels", [16, 21])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("blocked", [True, False])
def test_fused_tail(channels: int, kernel: int, blocked: bool) -> None:
    """Per-channel factor (constant), residual of the same layout, Relu, in the store of the convolution."""
    rng = np.random.default_rng(SEED)
    case = conv((1, 10, 9, 9), (channels, 10, kernel, kernel), pads=[kernel // 2] * 4)
    node = case.node()
    x, conv_out = node.inputs[0], node.output
    assert x is not None and case.inputs[0] is not None
    factor = rng.standard_normal((channels, 1, 1)).astype(np.float32)
    residual = rng.standard_normal(conv_out.type.dims).astype(np.float32)
    layout = Layout(LANES if blocked else 0)
    plain_r, y = Value("r", conv_out.type), Value("y", conv_out.type)
    type_ = conv_out.type.with_layout(layout)
    xb, rb, yb = Value("xb", x.type.with_layout(layout)), Value("rb", type_), Value("yb", type_)
    f = Value("f", x.type.with_shape(factor.shape), factor)
    bx, br, a, b, c, d = (Value(n, t) for n, t in zip("xrabcd", (xb.type, *[type_] * 5), strict=True))
    body = Graph(
        "body",
        [bx, br],
        [d],
        [
            Node("Conv", (bx, *node.inputs[1:]), (a,), node.attrs),
            Node("Mul", (a, f), (b,)),
            Node("Add", (b, br), (c,)),
            Node("Relu", (c,), (d,)),
        ],
        ["d"],
    )
    nodes = [
        Node("c2c.Reorder", (x,), (xb,)),
        Node("c2c.Reorder", (plain_r,), (rb,)),
        Node("c2c.Fused", (xb, rb), (yb,), {"body": body}),
        Node("c2c.Reorder", (yb,), (y,)),
    ]
    (got,) = run_graph(Graph("fused", [x, plain_r], [y], nodes, ["y"]), [case.inputs[0], residual])
    expected = np.maximum(case.expected()[0] * factor + residual, 0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def added(channels: tuple[int, int], *, itself: bool = False, lanes: int = LANES) -> tuple[Case, Graph]:
    """A pointwise convolution and its sum with a residual (or with its own input), all of them in blocks of `lanes`."""
    case = conv((1, channels[0], 12, 12), (channels[1], channels[0], 1, 1))
    node = case.node()
    x, sum_type = node.inputs[0], node.output.type
    assert x is not None
    blocked = sum_type.with_layout(Layout(lanes))
    r = x if itself else Value("r", sum_type)
    xb, rb, yb, y = (
        Value("xb", x.type.with_layout(Layout(lanes))),
        Value("rb", blocked),
        Value("yb", blocked),
        Value("y", sum_type),
    )
    inner = [Value("bx", xb.type)] if itself else [Value("bx", xb.type), Value("br", blocked)]
    a, b = Value("a", blocked), Value("b", blocked)
    nodes = [Node("Conv", (inner[0], *node.inputs[1:]), (a,), node.attrs), Node("Add", (a, inner[-1]), (b,))]
    group = Node("c2c.Fused", (xb,) if itself else (xb, rb), (yb,), {"body": Graph("body", inner, [b], nodes, ["b"])})
    reorders = [Node("c2c.Reorder", (x,), (xb,)), *([] if itself else [Node("c2c.Reorder", (r,), (rb,))])]
    graph = Graph("added", [x] if itself else [x, r], [y], [*reorders, group, Node("c2c.Reorder", (yb,), (y,))], ["y"])
    return case, graph


@pytest.mark.parametrize(
    ("target", "channels", "itself", "over"),
    [
        ("native", (32, 64), False, True),
        ("native", (64, 64), True, False),
        ("native", (2048, 256), False, False),
        ("arm64-neon", (32, 64), False, False),
    ],
)
def test_result_takes_the_place_of_what_is_added(
    target: str, channels: tuple[int, int], itself: bool, over: bool
) -> None:
    """Where each element of the residual is read right before its sum is written; never that of the input."""
    case, graph = added(channels, itself=itself)
    calls = lower_graph(graph, Target.parse(target), 1)
    overwrite(calls, graph, {})
    assert [c.kernel.inplace for c in calls if c.node.op == "c2c.Fused"] == [over]
    if target == "native":
        rng = np.random.default_rng(SEED)
        given = [rng.standard_normal(v.type.dims).astype(np.float32) for v in graph.inputs]
        (got,) = run_graph(graph, given)
        weights, bias = (np.asarray(a, np.float64) for a in case.arrays[1:])
        want = np.einsum("kc,nchw->nkhw", weights[:, :, 0, 0], given[0].astype(np.float64)) + bias[:, None, None]
        np.testing.assert_allclose(got, want + given[-1], rtol=0, atol=1e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize("target", ["arm64-neon", "x86-64-v4", "x86-64"])
def test_tile_fits_registers(target: str) -> None:
    t = Target.parse(target)
    lined = Lined(4, 4, 4) if splats_lanes(t) else None
    for pixels in (1, 7, 14, 49, 56, 3136):
        for channels in (8, 24, 64, 100, 512):
            tile = choose_tile(t, DType.F32, pixels, channels, lined=lined)
            spare = tile.pixels + 4 if lined else tile.vectors + 1
            assert tile.pixels * tile.vectors + spare <= t.registers


def test_row_is_divided_exactly() -> None:
    """Every output pixel once, and every tap of it that is inside the input once."""
    rng = np.random.default_rng(SEED)
    for _ in range(200):
        kernel, stride, dilation, pad = (int(v) for v in rng.integers((1, 1, 1, 0), (8, 4, 4, 9)))
        size, out = (int(v) for v in rng.integers(1, 60, 2))
        axis = Axis(size, out, kernel, stride, dilation, pad)
        pixels = int(rng.integers(1, 9))
        covered: list[int] = []
        for s in segments(axis, pixels):
            covered += range(s.start, s.end)
            if s.taps is None and not s.dynamic:
                assert all(len(axis.taps(o)) == kernel for o in range(s.start, s.end)), (axis, s)
            elif s.taps is not None:
                found = {
                    (s.start + p, t) for g in s.taps for p in range(g.first, g.last) for t in range(g.begin, g.end)
                }
                assert found == {(o, t) for o in range(s.start, s.end) for t in axis.taps(o)}, (axis, s)
        assert covered == list(range(out)), axis
    assert split(49, 6) == [(4, 6), (5, 5)]
    assert [(g.begin, g.end, g.first, g.last) for g in tap_groups(Axis(7, 7, 3, 1, 1, 1), 0, 4)] == [
        (0, 1, 1, 4),
        (1, 3, 0, 4),
    ]


def test_small_convolution_stays_on_one_thread() -> None:
    small, large = conv((1, 3, 4, 4), (4, 3, 3, 3)), conv((1, 16, 32, 32), (32, 16, 3, 3))
    assert [c.kernel.parallel is not None for c in lower_node(small.node(), native(), 2)] == [False]
    assert [c.kernel.parallel is not None for c in lower_node(large.node(), native(), 2)] == [True]


@pytest.mark.parametrize(("target", "asked"), [("x86-64-v3", {"w", "x"}), ("arm64-neon", set())])
def test_lines_are_fetched_ahead_where_it_pays(target: str, asked: set[str]) -> None:
    """Weights of the next pass and pixels of the next tile."""
    machine = Target.parse(target)
    graph = in_blocks(conv((1, 64, 14, 14), (64, 64, 1, 1)), machine.lanes())
    (node,) = [n for n in graph.nodes if n.op == "Conv"]
    (call,) = lower_node(node, machine, 1)
    assert {s.buffer.name for s in statements(call.kernel.body) if isinstance(s, Prefetch)} == asked


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_tiles_share_what_the_next_pass_reads(target: str, kernel: int) -> None:
    """Many lines for each of few tiles are asked for piece by piece, and none is forgotten."""
    machine, size = Target.parse(target), 6 + kernel
    channels = 96 if kernel == 1 else 16
    case = conv((1, channels, size, size), (64, channels, kernel, kernel), bias=False)
    (node,) = [n for n in in_blocks(case, machine.lanes()).nodes if n.op == "Conv"]
    (call,) = lower_node(node, machine, 1)
    named = zip(call.kernel.params, call.args, strict=True)
    weights = next(p for p, a in named if a is not None and a.data is not None)
    (choice,) = call.choices
    vectors = int(choice.name.split()[0].split("x")[1])
    panel = channels * kernel * kernel * vectors * machine.lanes() // 16
    chunks = int(choice.name.partition("chunks=")[2].split()[0]) if "chunks=" in choice.name else 1
    assert lines_asked_for(call.kernel, weights) >= set(range(-(-panel // chunks), weights.size // 16))


@pytest.mark.parametrize(("taps", "calls"), [(1, 1), (39, 2)])
def test_rows_with_many_pixels_at_the_border_get_zeros_beside_them(taps: int, calls: int) -> None:
    case = conv((1, 8, 5, 70), (4, 8, 3, taps), pads=[1, taps // 2, 1, taps // 2])
    assert len(lower_node(case.node(), Target.parse("x86-64-v4"), 1)) == calls


@pytest.mark.parametrize(("outputs", "asked"), [(64, {"w", "x"}), (1024, {"w", "x", "y"})])
def test_results_are_fetched_ahead_where_a_residual_comes_from_afar(outputs: int, asked: set[str]) -> None:
    machine = Target.parse("x86-64-v4")
    _, graph = added((64, outputs), lanes=machine.lanes())
    (call,) = [c for c in lower_graph(graph, machine, 1) if c.node.op == "c2c.Fused"]
    assert {s.buffer.name for s in statements(call.kernel.body) if isinstance(s, Prefetch)} == asked


@pytest.mark.parametrize(
    ("size", "channels", "tile", "chunks"),
    [
        (14, (256, 512), "6x4", 1),  # all weights stay in the second cache: no sums wait
        (14, (1024, 512), "9x3", 8),  # they come from the third: near the first while all pixels pass
        (7, (512, 2048), "9x3", 4),  # few pixels: as few passes over them as there are registers
    ],
)
def test_wide_vectors_move_little(size: int, channels: tuple[int, int], tile: str, chunks: int) -> None:
    row, core = Target.parse("x86-64-v4"), CORES["emeraldrapids"]
    machine = replace(row, core=core, l1_bytes=48 << 10, l2_bytes=2 << 20)
    case = in_blocks(conv((1, channels[0], size, size), (channels[1], channels[0], 1, 1)), machine.lanes())
    (choice,) = [c for call in lower_graph(case, machine, 1) for c in call.choices if c.family == "conv"]
    words = choice.name.split()
    assert words[0] == f"tile={tile}", choice.candidates
    assert [w for w in words if w.startswith("chunks")] == ([f"chunks={chunks}"] if chunks > 1 else []), choice.name
