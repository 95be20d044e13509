"""Windows that read pads and enlargements row by row: what they compute in every form, without an image made before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest

from c2c.codegen.target import Target, native
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program, run_compiled
from c2c.ir import reference
from c2c.ir.errors import VerifyError
from c2c.ir.graph import Graph, Node, Value
from c2c.ir.ops import READ_THROUGH
from c2c.ir.verify import verify
from c2c.passes.base import PassContext, run_pipeline
from c2c.passes.chain_convolutions import ChainConvolutions
from c2c.passes.lower.conv_chain_cost import Layer, cut, schedules
from c2c.passes.lower.remap import OUTSIDE, Remap, read_remap
from c2c.passes.lower.remap_pieces import Piece, row_pieces
from c2c.tests.passes.build import Array, Net, feeds_for, i64, op_names
from c2c.tests.passes.lower.harness import run_graph

LANES = native().lanes()

Build: TypeAlias = Callable[[Net, Value], Value]


class InStrips(ChainConvolutions):
    """Every layer with what it reads through as a chain in strips of `rows` rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def strip(self, layers: Sequence[Layer], context: PassContext, nodes: Sequence[Node]) -> int | None:
        return self.rows


def pad(*amounts: int, mode: str = "constant", value: float | None = None) -> Build:
    """top, left, bottom, right."""

    def build(net: Net, x: Value) -> Value:
        operands = [] if value is None else [value]
        return net.op("Pad", x, i64(0, 0, *amounts[:2], 0, 0, *amounts[2:]), *operands, mode=mode)

    return build


def resize(*scales: float, **attrs: Any) -> Build:
    def build(net: Net, x: Value) -> Value:
        given = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", **attrs}
        return net.op("Resize", x, None, np.array([1, 1, *scales], np.float32), **given)

    return build


def both(first: Build, second: Build) -> Build:
    return lambda net, x: second(net, first(net, x))


MOVES: dict[str, Build] = {
    "reflect": pad(3, 1, 2, 4, mode="reflect"),
    "edge": pad(0, 5, 3, 1, mode="edge"),
    "wrap": pad(2, 12, 9, 3, mode="wrap"),
    "constant": pad(2, 1, 0, 3, value=-1.5),
    "far": pad(10, 36, 9, 20, mode="reflect"),
    "twice": resize(2, 2),
    "uneven": resize(3, 1),
    "fraction": resize(1.5, 2.4, coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil"),
    "smaller": resize(0.9, 0.8),
    "enlarged and mirrored": both(resize(2, 3), pad(1, 2, 2, 1, mode="reflect")),
    "padded and enlarged": both(pad(1, 1, 2, 0, value=0.5), resize(2, 2)),
    "padded twice": both(pad(1, 2, 1, 0, value=3.5), pad(2, 1, 0, 1, mode="edge")),
}
"""Applied to images of 11 rows and 37 columns."""


def layer(channels: int, kernel: int, **attrs: Any) -> Build:
    return lambda net, x: net.op("Relu", net.conv(x, channels, kernel, **{"pads": [0] * 4, **attrs}))


LAYERS: dict[str, tuple[int, Build]] = {
    "first": (3, layer(LANES + 3, 3)),
    "first strided": (3, layer(2 * LANES, 5, strides=[2, 2])),
    "dense": (LANES, layer(2 * LANES, 3, strides=[2, 1])),
    "dilated": (2 * LANES, layer(LANES, 3, strides=[1, 2], dilations=[2, 1])),
    "with zeros around": (LANES, layer(LANES, 3, pads=[2, 1, 0, 1])),
    "ragged": (LANES + 5, layer(2 * LANES - 1, 3)),
    "groups": (2 * LANES, layer(4 * LANES, 3, group=2)),
    "depthwise ragged": (LANES + 2, layer(LANES + 2, 3, group=LANES + 2)),
    "depthwise": (2 * LANES, layer(2 * LANES, 5, group=2 * LANES, strides=[2, 2])),
    "planar": (4, layer(2, 3)),
    "planar with zeros": (2, layer(1, 5, pads=[2, 2, 2, 2])),
    "pooled": (LANES, lambda net, x: net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])),
    "wide": (LANES, layer(LANES, 8, strides=[2, 2])),
}
"""Channels of the input, and what reads the remapped image."""

FORMS = ("wide", "planar")
DIRECT = ("first", "dense")


def network(move: Build, layers: Sequence[str], seed: int = 0) -> Graph:
    """Layers behind one remapping, each with an input of its own."""
    net = Net(seed)
    results = []
    for channels, build in (LAYERS[name] for name in layers):
        x = net.op("Mul", net.input(2, channels, 11, 37), 1.5)
        results.append(build(net, move(net, x)))
    return net.done(*results)


def remapped(graph: Graph) -> list[Node]:
    chains = [n for n in graph.nodes if n.op == "c2c.ConvChain"]
    return [n for n in chains if n.attrs["body"].nodes[0].op in READ_THROUGH]


def feeds_of(graph: Graph) -> dict[str, Array]:
    """Inputs whose second image has NaNs and infinities."""
    feeds: dict[str, Array] = feeds_for(graph, 1)
    for array in feeds.values():
        array[1, 0, 3:6, 5:9], array[1, -1, 0, 0], array[1, -1, -1, -1] = np.nan, np.inf, -np.inf
    return feeds


def in_strips(graph: Graph, rows: int, threads: int) -> list[Array]:
    run_pipeline(graph, ["choose-layout", "fuse", InStrips(rows)], PassContext(native(), threads))
    verify(graph)
    assert not {"Pad", "Resize"} & {n.op for n in graph.nodes} and remapped(graph)
    results: list[Array] = run_graph(graph, list(feeds_of(graph).values()), threads=threads)
    return results


def check(found: Iterable[Array], expected: Iterable[Array]) -> None:
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("move", MOVES)
def test_moves(move: str) -> None:
    """What is no number passes as it is; ONNX's reference multiplies pixels by coefficients when it enlarges."""
    graph = network(MOVES[move], FORMS)
    expected = reference.evaluate(graph, feeds_of(graph)).values()
    images = 1 if any(n.op == "Resize" for n in graph.nodes) else 2
    found = in_strips(graph, 3, 2)
    check((y[:images] for y in found), (y[:images] for y in expected))
    assert all(np.isfinite(y[0]).all() and not np.isfinite(y[1]).all() for y in found)


@pytest.mark.parametrize(("name", "rows", "threads"), [*((n, 1, 3) for n in LAYERS), ("dense", 100, 1)])
def test_layers(name: str, rows: int, threads: int) -> None:
    """Equal to the same layer behind the image itself to the last bit."""
    graph = network(MOVES["enlarged and mirrored"], [name])
    alone, feeds = graph.clone(), feeds_of(graph)
    (expected,) = reference.evaluate(graph, feeds).values()
    run_pipeline(alone, ["choose-layout", "fuse"], PassContext(native()))
    (apart,) = run_graph(alone, list(feeds.values()))
    (found,) = in_strips(graph, rows, threads)
    np.testing.assert_array_equal(found, apart)
    check([found[:1]], [expected[:1]])


def blocked(net: Net, channels: int, height: int, width: int, images: int = 2) -> Value:
    """Images made by a convolution, which likes blocks of channels."""
    return net.op("Relu", net.conv(net.input(images, LANES, height, width), channels))


def plain(net: Net, channels: int, height: int, width: int) -> Value:
    return net.input(2, channels, height, width)


Source: TypeAlias = Callable[[Net, int, int, int], Value]

JOINED: dict[str, tuple[list[tuple[Source, int, Build | None]], str]] = {
    "blocked before planar": ([(blocked, 2 * LANES, pad(1, 2, 1, 2, mode="reflect"))], "planar"),
    "ragged before planar": ([(blocked, LANES + 5, pad(1, 2, 1, 2, value=0.5))], "planar"),
    "enlarged before planar": ([(blocked, LANES + 3, resize(2, 2))], "planar"),
    "plain before pooling": ([(plain, 2 * LANES, pad(1, 2, 1, 2, mode="edge")), (blocked, LANES, None)], "pooled"),
    "aligned": ([(blocked, LANES, resize(2, 2)), (blocked, LANES, None)], "dense"),
    "ragged": ([(blocked, LANES // 2, resize(2, 2)), (blocked, LANES, None), (blocked, 3, None)], "dense"),
    "odd": ([(blocked, LANES + 3, None), (blocked, LANES + 5, resize(2, 2)), (blocked, 1, None)], "depthwise"),
    "odd and filled": (
        [(blocked, LANES - 1, pad(0, 1, 2, 3, value=2.5)), (plain, LANES + 2, pad(1, 2, 1, 2, mode="wrap"))],
        "strided",
    ),
    "twice": ([(blocked, LANES, resize(2, 1)), (plain, 3, resize(2, 1)), (plain, LANES + 1, resize(2, 1))], "strided"),
}
"""Sources, their channels and how each is moved, concatenated before a layer."""

JOINED_LAYERS: dict[str, Build] = {
    "planar": layer(2, 3),
    "pooled": lambda net, x: net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2]),
    "dense": layer(LANES, 3),
    "depthwise": lambda net, x: net.op("Relu", net.conv(x, x.type.dims[1], 3, pads=[0] * 4, group=x.type.dims[1])),
    "strided": layer(LANES + 1, 3, strides=[2, 2], pads=[1, 0, 1, 0]),
}


def joined(name: str, around: Build | None = None, seed: int = 3) -> Graph:
    """Images of 12 rows and 38 columns, those that are enlarged or padded made of smaller ones, before a layer."""
    parts, reader = JOINED[name]
    net = Net(seed)
    moved = []
    for source, channels, move in parts:
        scale = (2, 1) if name == "twice" else (2, 2) if move is not None and "Resize" in _ops_of(move) else (1, 1)
        padded = move is not None and "Pad" in _ops_of(move)
        height, width = (12 // scale[0], 38 // scale[1]) if not padded else (10, 34)
        x = source(net, channels, height, width)
        moved.append(x if move is None else move(net, x))
    y = net.op("Concat", *moved, axis=1) if len(moved) > 1 else moved[0]
    return net.done(JOINED_LAYERS[reader](net, y if around is None else around(net, y)))


def _ops_of(move: Build) -> set[str]:
    net = Net()
    move(net, net.input(1, 1, 8, 8))
    return {n.op for n in net.graph.nodes}


@pytest.mark.parametrize("around", [None, pad(2, 1, 0, 1, mode="reflect")])
@pytest.mark.parametrize("name", JOINED)
def test_layouts_and_concatenations(name: str, around: Build | None) -> None:
    """Sources in either layout, and channels that begin inside a block."""
    graph = joined(name, around)
    feeds = feeds_for(graph, 1)
    expected = reference.evaluate(graph, feeds).values()
    run_pipeline(graph, ["choose-layout", "fuse", InStrips(2)], PassContext(native(), 2))
    verify(graph)
    left = {n.op for n in graph.nodes if all(v in graph.outputs or v.type.rank == 4 for v in n.outputs)}
    assert remapped(graph) and not {"Pad", "Resize", "Concat"} & left
    check(run_graph(graph, list(feeds.values()), threads=2), expected)


def test_a_concatenation_in_place_is_read_as_it_is() -> None:
    """Nothing is gained by copying what its makers write to its place."""
    net = Net()
    y = net.op("Concat", *(blocked(net, LANES, 12, 38, 1) for _ in range(2)), axis=1)
    graph = net.done(JOINED_LAYERS["depthwise"](net, y))
    run_pipeline(graph, ["choose-layout", "fuse", InStrips(2)], PassContext(native()))
    assert "Concat" in op_names(graph)


def test_a_large_source_beside_a_small_enlarged_one_is_copied_only_where_it_is_anyway() -> None:
    def chosen(channels: int) -> str:
        net = Net()
        small, large = blocked(net, channels, 32, 32, 1), blocked(net, 128, 64, 64, 1)
        graph = net.done(layer(16, 3, strides=[2, 2])(net, net.op("Concat", resize(2, 2)(net, small), large, axis=1)))
        context = replace(PassContext(Target.parse("x86-64-v3")), choices=[])
        run_pipeline(graph, ["choose-layout", "fuse", "chain-convolutions"], context)
        names = [str(c.name) for c in context.choices if f"remap 1x64x64 {channels}+128" in str(c.key)]
        assert len(names) == 1
        return names[0]

    assert chosen(8) == "apart" and chosen(5) != "apart"


def test_other_vectors() -> None:
    _check_target("x86-64-v3", network(MOVES["enlarged and mirrored"], [*FORMS, *DIRECT], 7))


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("move", ["enlarged and mirrored", "fraction"])
def test_arm(move: str) -> None:
    _check_target("arm64-neon", network(MOVES[move], [*FORMS, *DIRECT], 7))


@pytest.mark.parametrize("name", ["x86-64-v3", pytest.param("arm64-neon", marks=pytest.mark.needs("qemu-aarch64"))])
def test_layouts_and_concatenations_of_other_vectors(name: str) -> None:
    for parts in ("blocked before planar", "ragged", "odd and filled"):
        _check_target(name, joined(parts, pad(1, 1, 1, 1, mode="reflect")))


def _check_target(name: str, graph: Graph) -> None:
    """Compiled whole, in strips that the compiler chooses."""
    target = Target.parse(name)
    feeds = feeds_for(graph, 1)
    expected = reference.evaluate(graph, feeds)
    compiled = compile_graph(graph, CompileOptions(target, name="model", winograd_error=0.0))
    assert not any("pad" in k or "resize" in k or "concat" in k for k in compiled.program.kernels)
    found = run_compiled(compiled, feeds) if target.runs_here else run_as_program(compiled, feeds)
    check(found.values(), expected.values())


def test_what_others_read_is_made() -> None:
    net = Net()
    y = MOVES["reflect"](net, net.op("Relu", net.input(1, LANES, 20, 20)))
    graph = net.done(net.conv(y, 2 * LANES, strides=[2, 2]), net.op("ReduceMax", y, i64(2, 3)))
    run_pipeline(graph, ["choose-layout", "fuse", InStrips(2)], PassContext(native()))
    assert "Pad" in op_names(graph) and not remapped(graph)


@pytest.mark.parametrize("attrs", [{"mode": "linear"}, {"coordinate_transformation_mode": "tf_crop_and_resize"}])
def test_other_enlargements_are_made(attrs: dict[str, Any]) -> None:
    net = Net()
    x = net.op("Relu", net.input(1, LANES, 20, 20))
    roi = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
    y = net.op("Resize", x, roi, np.array([1, 1, 2, 2], np.float32), **attrs)
    graph = net.done(net.conv(y, 2 * LANES, strides=[2, 2]))
    run_pipeline(graph, ["choose-layout", "fuse", InStrips(2)], PassContext(native()))
    assert "Resize" in op_names(graph) and not remapped(graph)


def test_amounts_below_zero_crop() -> None:
    net = Net()
    crop = read_remap(net.done(pad(-2, 1, 3, -1, mode="edge")(net, net.input(1, 3, 5, 4))).nodes[-1:], native())
    assert crop is not None and crop.parts[0].rows == (2, 3, 4, 4, 4, 4) and crop.parts[0].columns == (0, 0, 1, 2)


def test_two_constants_are_not_one() -> None:
    net = Net()
    y = both(pad(1, 1, 1, 1, value=1.0), pad(1, 1, 1, 1, value=2.0))(net, net.input(1, 3, 9, 9))
    nodes = [n for n in net.done(y).nodes if n.op == "Pad"]
    assert read_remap(nodes, native()) is None
    second = read_remap(nodes[1:], native())
    assert second is not None and second.parts[0].fill == 2.0 and second.parts[0].rows == (OUTSIDE, *range(11), OUTSIDE)


def test_rows_in_pieces() -> None:
    assert row_pieces([2, 1, 0, 1, 2, 3]) == [Piece(0, 2, 3, -1), Piece(3, 1, 3)]
    assert row_pieces([0, 0, 0, 1, 1, 2, 2, -1]) == [Piece(0, 0, 1, 1, 3), Piece(3, 1, 2, 1, 2), Piece(7, -1, 1)]
    assert row_pieces([-1, *range(0, 60, 3), -1]) == [Piece(0, -1, 1), Piece(1, 0, 20, table=True), Piece(21, -1, 1)]


def test_an_image_stays_with_its_reader() -> None:
    """Whatever the cost: also where no ring fits the second cache, and where weights are large."""
    target = Target.parse("x86-64-v3")
    for channels, size, wide in ((8, 16, 8), (512, 300, 16), (1024, 9, 512)):
        layers: list[Layer] = []

        class Seen(ChainConvolutions):
            def divide(self, found: Sequence[Layer], context: PassContext) -> list[range]:
                layers.extend(found)
                return []

        net = Net()
        y = MOVES["twice"](net, net.op("Relu", net.input(1, channels, size // 2, size // 2)))
        graph = net.done(net.op("Relu", layer(wide, 3, strides=[2, 2])(net, y)))
        run_pipeline(graph, ["choose-layout", "fuse", Seen()], PassContext(target))
        assert isinstance(layers[0], Remap) and cut(target, 1, layers) == [range(2)]
        best = min(schedules(target, 1, layers), key=lambda s: s.cycles)
        assert best.plan is not None


def test_a_chain_of_moves_alone_is_refused() -> None:
    graph = network(MOVES["reflect"], FORMS)
    run_pipeline(graph, ["choose-layout", "fuse", InStrips(2)], PassContext(native()))
    chain = remapped(graph)[0]
    body: Graph = chain.attrs["body"]
    body.nodes[1:] = []
    body.outputs[0] = body.nodes[0].output
    chain.outputs[0].type = body.outputs[0].type
    with pytest.raises(VerifyError, match="begins with c2c.Reorder, not with a window"):
        verify(graph)
