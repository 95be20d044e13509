"""Convolutions that read through a pad and, by Winograd's algorithm, an enlargement: what joins their groups, and what
they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest

from c2c.codegen.target import Target, native
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program, run_compiled
from c2c.ir import reference
from c2c.ir.graph import Graph, Node, Value
from c2c.passes.base import PassContext, run_pipeline
from c2c.passes.chain_convolutions import ChainConvolutions
from c2c.passes.lower.conv_chain_cost import Layer
from c2c.tests.passes.build import Net, feeds_for, i64, op_names
from c2c.tests.passes.lower.harness import run_graph

CONTEXT = PassContext(native())
LANES = native().lanes()
NEAREST: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def enlarged(net: Net, x: Value, factor: float = 2.0, **attrs: Any) -> Value:
    scales = np.array([1, 1, factor, factor], np.float32)
    return net.op("Resize", x, None, scales, **{**NEAREST, **attrs})


def padded(net: Net, x: Value, *amounts: int, mode: str = "reflect") -> Value:
    fill = [1.25] if mode == "constant" else []
    return net.op("Pad", x, i64(0, 0, *amounts[:2], 0, 0, *amounts[2:]), *fill, mode=mode)


def fused(net: Net, *outputs: Value, m: int = 4) -> Graph:
    """The graph with its convolutions by F(m x m, 3 x 3), layouts chosen and groups made."""
    graph = net.done(*outputs)
    for node in graph.nodes:
        if node.op == "Conv":
            node.op, node.attrs = "c2c.WinogradConv", node.attrs | {"m": m}
    run_pipeline(graph, ("choose-layout", "fuse"), CONTEXT)
    return graph


CASES: list[tuple[tuple[int, ...], float, tuple[int, ...], str]] = [
    ((1, 16, 12, 16), 1, (1, 1, 1, 1), "reflect"),
    ((2, 24, 9, 7), 1, (2, 1, 0, 3), "reflect"),
    ((1, 16, 9, 11), 1, (1, 2, 3, 1), "edge"),
    ((1, 24, 8, 6), 2, (1, 1, 1, 1), "reflect"),
    ((2, 16, 5, 9), 2, (3, 0, 2, 1), "edge"),
    ((1, 16, 7, 6), 2, (), ""),
    ((2, 16, 9, 11), 1, (9, 2, 3, 4), "wrap"),
    ((1, 24, 6, 5), 2, (1, 3, 2, 1), "wrap"),
    ((2, 16, 9, 11), 1, (1, 2, 5, 7), "constant"),
    ((1, 24, 6, 5), 2, (2, 0, 1, 2), "constant"),
]


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("shape", "factor", "amounts", "mode"), CASES)
def test_results(
    shape: tuple[int, ...], factor: float, amounts: tuple[int, ...], mode: str, threads: int, m: int
) -> None:
    net = Net()
    x = net.op("Relu", net.input(*shape))
    y = enlarged(net, x, factor) if factor > 1 else x
    y = padded(net, y, *amounts, mode=mode) if amounts else y
    y = net.op("Relu", net.conv(y, 40, pads=[0] * 4 if amounts else [1, 1, 0, 2]))
    graph = fused(net, y, m=m)
    names = [*(["Resize"] if factor > 1 else []), *(["Pad"] if amounts else []), "c2c.WinogradConv", "Relu"]
    assert "+".join(names) in op_names(graph)
    feeds = feeds_for(graph, 3)
    (expected,) = reference.evaluate(graph, feeds).values()
    (got,) = run_graph(graph, list(feeds.values()), threads=threads)
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * float(np.abs(expected).max()))


def test_what_is_read_elsewhere_is_made() -> None:
    net = Net()
    y = padded(net, net.op("Relu", net.input(1, 16, 20, 20)), 1, 1, 1, 1)
    graph = fused(net, net.conv(y, 24, pads=[0] * 4), net.op("ReduceMax", y, i64(2, 3)))
    assert not any("Pad+" in name for name in op_names(graph))


@pytest.mark.parametrize(
    "attrs", [{"mode": "linear"}, {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "ceil"}]
)
def test_other_enlargements_are_made(attrs: dict[str, Any]) -> None:
    net = Net()
    y = enlarged(net, net.op("Relu", net.input(1, 16, 20, 20)), **attrs)
    assert not any("Resize+" in name for name in op_names(fused(net, net.conv(y, 24))))


def test_a_tile_begins_at_a_source_pixel() -> None:
    net = Net()
    y = enlarged(net, net.op("Relu", net.input(1, 16, 20, 20)), 3)
    assert not any("Resize+" in name for name in op_names(fused(net, net.conv(y, 24))))


def test_two_paddings_are_not_mixed() -> None:
    net = Net()
    y = padded(net, net.op("Relu", net.input(1, 16, 20, 20)), 1, 1, 1, 1)
    assert not any("Pad+" in name for name in op_names(fused(net, net.conv(y, 24))))


def direct(channels: int, kernel: int, **attrs: Any) -> Callable[[Net, Value], Value]:
    return lambda net, x: net.op("Relu", net.conv(x, channels, kernel, **{"pads": [0] * 4, **attrs}))


DIRECT: dict[str, tuple[int, Callable[[Net, Value], Value]]] = {
    "first": (3, direct(LANES + 3, 3)),
    "first strided": (3, direct(2 * LANES, 9, strides=[2, 2])),
    "dense": (LANES, direct(2 * LANES, 3, strides=[2, 1])),
    "pointwise": (LANES, direct(2 * LANES, 1)),
    "groups": (2 * LANES, direct(4 * LANES, 3, group=2)),
    "depthwise": (2 * LANES, direct(2 * LANES, 5, group=2 * LANES, strides=[2, 2])),
}
"""Channels of the input, and a convolution of a padded image."""

AMOUNTS = {"reflect": (3, 1, 2, 4), "edge": (0, 2, 3, 1), "wrap": (2, 3, 5, 0)}


def behind_pads(mode: str, seed: int = 0) -> Graph:
    net = Net(seed)
    inputs = [net.op("Mul", net.input(2, channels, 17, 21), 1.5) for channels, _ in DIRECT.values()]
    images = [padded(net, x, *AMOUNTS[mode], mode=mode) for x in inputs]
    return net.done(*(build(net, y) for (_, build), y in zip(DIRECT.values(), images, strict=True)))


def with_nan(graph: Graph) -> dict[str, np.ndarray]:
    feeds: dict[str, np.ndarray] = feeds_for(graph, 2)
    for array in feeds.values():
        array[1, 0, 6, 3], array[0, -1, 0, 1], array[1, -1, -1, -1] = np.nan, np.inf, -np.inf
    return feeds


@pytest.mark.parametrize("mode", AMOUNTS)
def test_direct_convolutions(mode: str) -> None:
    graph = behind_pads(mode)
    feeds = with_nan(graph)
    expected = reference.evaluate(graph, feeds).values()
    run_pipeline(graph, ["choose-layout", "fuse"], PassContext(native(), 2))
    assert op_names(graph).count("Pad+Conv+Relu") == len(DIRECT)
    for name, got, wanted in zip(DIRECT, run_graph(graph, list(feeds.values()), threads=2), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4, err_msg=name)


def check_target(name: str, mode: str) -> None:
    graph = behind_pads(mode, 5)
    feeds = with_nan(graph)
    expected = reference.evaluate(graph, feeds)
    target = Target.parse(name)
    compiled = compile_graph(graph, CompileOptions(target, name="model", winograd_error=0.0))
    assert not any("pad" in k for k in compiled.program.kernels)
    found = run_compiled(compiled, feeds) if target.runs_here else run_as_program(compiled, feeds)
    for output, array in found.items():
        np.testing.assert_allclose(array, expected[output], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["native", pytest.param("arm64-neon", marks=pytest.mark.needs("qemu-aarch64"))])
def test_tiles_that_lie_beyond_the_image(name: str) -> None:
    """None of their taps is inside: what goes on around is all that they read, or nothing is."""
    target, net = Target.parse(name), Net()
    x = net.op("Relu", net.conv(net.input(1, LANES, 9, 21), LANES))
    around = net.conv(padded(net, x, 1, 0, 1, 16), LANES, 1, pads=[0] * 4)
    graph = net.done(around, net.conv(x, LANES, 1, pads=[0, 0, 1, 16]), net.conv(x, 2 * LANES, 2, pads=[2, 0, 0, 19]))
    feeds = feeds_for(graph, 1)
    expected = reference.evaluate(graph, feeds)
    compiled = compile_graph(graph, CompileOptions(target, name="model"))
    found = run_compiled(compiled, feeds) if target.runs_here else run_as_program(compiled, feeds)
    for got, wanted in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)


def test_direct_convolutions_of_other_vectors() -> None:
    check_target("x86-64-v3", "reflect")


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
def test_direct_convolutions_on_arm() -> None:
    check_target("arm64-neon", "reflect")


LINES: dict[str, dict[str, Any]] = {
    "first": {"inputs": 1, "channels": LANES + 3, "kernel": 7},
    "dense": {"inputs": LANES, "channels": 2 * LANES, "kernel": 3, "strides": [2]},
    "dilated": {"inputs": 2 * LANES, "channels": LANES, "kernel": 3, "dilations": [4]},
    "depthwise": {"inputs": 2 * LANES, "channels": 2 * LANES, "kernel": 5, "group": 2 * LANES},
    "pointwise": {"inputs": LANES, "channels": LANES, "kernel": 1},
}
"""Convolutions along lines."""


@pytest.mark.parametrize("name", ["native", pytest.param("arm64-neon", marks=pytest.mark.needs("qemu-aarch64"))])
@pytest.mark.parametrize(("mode", "amounts"), [("reflect", (4, 6)), ("edge", (0, 5)), ("wrap", (8, 1))])
def test_lines(mode: str, amounts: tuple[int, int], name: str) -> None:
    net, target, results = Net(), Target.parse(name), []
    for line in LINES.values():
        channels, kernel, group = line["channels"], line["kernel"], line.get("group", 1)
        x = net.op("Relu", net.op("Conv", net.input(2, 3, 90), net.random(line["inputs"], 3, 1)))
        y = net.op("Pad", x, i64(0, 0, amounts[0], 0, 0, amounts[1]), mode=mode)
        attrs = {k: v for k, v in line.items() if k in ("strides", "dilations", "group")}
        weights = net.random(channels, line["inputs"] // group, kernel, scale=0.3)
        results.append(net.op("Relu", net.op("Conv", y, weights, net.random(channels), **attrs)))
    graph = net.done(*results)
    feeds = feeds_for(graph, 2)
    expected = reference.evaluate(graph, feeds)
    compiled = compile_graph(graph, CompileOptions(target, name="model"))
    assert not any("pad" in k for k in compiled.program.kernels)
    found = run_compiled(compiled, feeds) if target.runs_here else run_as_program(compiled, feeds)
    for what, got, wanted in zip(LINES, found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4, err_msg=what)


def test_dilated_taps_beyond_the_border() -> None:
    net = Net()
    y = padded(net, net.op("Mul", net.input(1, LANES, 15, 31), 1.5), 3, 2, 1, 3)
    graph = net.done(direct(2 * LANES, 3, dilations=[2, 2], strides=[1, 2])(net, y))
    feeds = feeds_for(graph, 1)
    expected = reference.evaluate(graph, feeds)["out0"]
    run_pipeline(graph, ["choose-layout", "fuse"], CONTEXT)
    assert "Pad+Conv+Relu" in op_names(graph)
    np.testing.assert_allclose(run_graph(graph, list(feeds.values()))[0], expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("kernel", "amounts", "mode"), [(17, (4,) * 4, "reflect"), (3, (-1, 1, 1, 1), "edge")])
def test_long_filters_and_crops_read_made_rows(kernel: int, amounts: tuple[int, ...], mode: str) -> None:
    net = Net()
    y = padded(net, net.op("Mul", net.input(1, 3, 30, 30), 1.5), *amounts, mode=mode)
    assert not any("Pad+" in name for name in op_names(fused_direct(net, direct(LANES, kernel)(net, y))))


def fused_direct(net: Net, *outputs: Value) -> Graph:
    graph = net.done(*outputs)
    run_pipeline(graph, ("choose-layout", "fuse"), CONTEXT)
    return graph


class Together(ChainConvolutions):
    """Every row of layers as one chain in strips of three rows."""

    def divide(self, layers: Sequence[Layer], context: PassContext) -> list[range]:
        return [range(len(layers))]

    def strip(self, layers: Sequence[Layer], context: PassContext, nodes: Sequence[Node]) -> int | None:
        return 3


def test_a_chain_may_begin_with_what_reads_a_padded_image() -> None:
    """The whole image is there only for the first of a chain."""
    net = Net()
    x = net.op("Mul", net.input(1, 3, 23, 21), 1.5)
    y = direct(2 * LANES, 3, strides=[2, 2])(net, padded(net, x, 2, 1, 1, 2))
    y = direct(LANES, 1)(net, y)
    y = direct(2 * LANES, 3, strides=[2, 1])(net, padded(net, y, 1, 1, 2, 1, mode="wrap"))
    graph = fused_direct(net, direct(LANES, 1)(net, y))
    feeds = feeds_for(graph, 1)
    (apart,) = run_graph(graph, list(feeds.values()))
    expected = reference.evaluate(graph, feeds)["out0"]
    run_pipeline(graph, [Together()], PassContext(native(), 2))
    chains = [n for n in graph.nodes if n.op == "c2c.ConvChain"]
    assert [[n.op for n in c.attrs["body"].nodes] for c in chains] == [["Pad", "Conv", "Relu", "Conv", "Relu"]] * 2
    (found,) = run_graph(graph, list(feeds.values()), threads=2)
    np.testing.assert_array_equal(found, apart)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_kernels_of_grids_read_tensors() -> None:
    net = Net()
    graph = net.done(direct(LANES, 3)(net, padded(net, net.op("Relu", net.input(1, 3, 20, 20)), 1, 1, 1, 1)))
    run_pipeline(graph, ["fuse"], PassContext(Target.parse("opencl")))
    assert op_names(graph) == ["Relu", "Pad", "Conv+Relu"]


Part: TypeAlias = tuple[int, float]
"""Channels, and how often pixels of the part are repeated along both axes."""

PARTS: dict[str, list[Part]] = {
    "whole blocks": [(2 * LANES, 2), (LANES, 1)],
    "ragged": [(LANES + LANES // 2, 1), (LANES, 2), (3, 1)],
    "odd": [(5, 2), (LANES - 1, 4), (2 * LANES, 1), (LANES + 3, 2)],
    "far": [(LANES + 2, 8), (LANES, 2)],
    "inside a block": [(LANES // 2 + 1, 2), (LANES // 4, 1), (LANES, 1)],
}


def concatenated(parts: Sequence[Part], images: int, around: str = "", seed: int = 5) -> tuple[Net, Value]:
    """An image of 48 rows and 24 columns, made of images that are enlarged."""
    net = Net(seed)
    made = []
    for channels, factor in parts:
        x = net.input(images, channels, int(48 / factor), int(24 / factor))
        x = net.op("Relu", net.conv(x, channels, 1, pads=[0] * 4))
        made.append(enlarged(net, x, factor) if factor > 1 else x)
    y = net.op("Concat", *made, axis=1)
    return net, padded(net, y, 1, 1, 1, 1, mode=around) if around else y


@pytest.mark.parametrize(("images", "around", "threads", "m"), [(1, "", 1, 4), (2, "reflect", 2, 4), (1, "edge", 3, 2)])
@pytest.mark.parametrize("name", PARTS)
def test_concatenations(name: str, images: int, around: str, threads: int, m: int) -> None:
    net, y = concatenated(PARTS[name], images, around)
    graph = fused(net, net.op("Relu", net.conv(y, LANES + 5, pads=[0 if around else 1] * 4)), m=m)
    assert not {"Resize", "Concat", "Pad"} & set(op_names(graph))
    feeds = feeds_for(graph, 3)
    (expected,) = reference.evaluate(graph, feeds).values()
    (got,) = run_graph(graph, list(feeds.values()), threads=threads)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6 * float(np.abs(expected).max()))


def test_a_part_that_is_not_read_through_is_made() -> None:
    """Enlarged by a factor that tiles do not share, or read elsewhere; the others are read through."""
    net, y = concatenated([(LANES, 3), (LANES, 2)], 1)
    graph = fused(net, net.conv(y, LANES))
    assert op_names(graph).count("Resize") == 1 and "Resize+Concat+c2c.WinogradConv" in op_names(graph)
    net, y = concatenated([(LANES, 2), (LANES, 2)], 1)
    concat = net.graph.nodes[-1]
    graph = fused(net, net.conv(y, LANES), net.op("ReduceMax", concat.inputs[0], i64(2, 3)))
    assert op_names(graph).count("Resize") == 1 and "Resize+Concat+c2c.WinogradConv" in op_names(graph)


def test_a_concatenation_in_place_is_no_reason() -> None:
    net, y = concatenated([(LANES, 1), (LANES, 1)], 1)
    assert "Concat" in op_names(fused(net, net.conv(y, LANES)))


@pytest.mark.parametrize("name", ["x86-64-v3", pytest.param("arm64-neon", marks=pytest.mark.needs("qemu-aarch64"))])
def test_concatenations_of_other_vectors(name: str) -> None:
    target = Target.parse(name)
    net, y = concatenated(PARTS["odd"], 1, "reflect")
    graph = net.done(net.op("Relu", net.conv(y, 40, pads=[0] * 4)))
    feeds = feeds_for(graph, 1)
    expected = reference.evaluate(graph, feeds)
    compiled = compile_graph(graph, CompileOptions(target, name="model", winograd_error=1.0))
    assert not any("pad" in k or "resize" in k or "concat" in k for k in compiled.program.kernels)
    assert any("winograd" in k for k in compiled.program.kernels)
    found = run_compiled(compiled, feeds) if target.runs_here else run_as_program(compiled, feeds)
    for got, wanted in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)
