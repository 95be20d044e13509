"""Movement kernels against ONNX's reference: exact, for every element type and layout that they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.ir.errors import UnsupportedOpError
from c2c.ir.graph import Graph, Node, Value
from c2c.ir.loops import Alloc, Prefetch
from c2c.ir.loops_visit import statements
from c2c.ir.types import DType, Layout, TensorType
from c2c.passes.lower import lower_node
from c2c.passes.lower.copy_axes import Dim, merged
from c2c.tests.passes.lower.harness import Array, Case, in_blocks, run_graph, run_op, run_ops

RNG = np.random.default_rng(11)
TYPES = (np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_)


def noise(*shape: int, dtype: Any = np.float32) -> Array:
    return (RNG.standard_normal(shape) * 50).astype(dtype)


def case(op: str, *inputs: Array | None, constants: tuple[int, ...] = (), outputs: int = 1, **attrs: Any) -> Case:
    return Case(op, inputs, attrs, frozenset(constants), outputs)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def check(cases: list[Case], **options: Any) -> None:
    for c, results in zip(cases, run_ops(cases, **options), strict=True):
        for got, want in zip(results, c.expected(), strict=True):
            np.testing.assert_array_equal(got, want, err_msg=f"{c.op} {c.attrs}")


TRANSPOSES = [
    ((3, 17, 20), (0, 2, 1)), ((2, 3, 5, 9), (0, 2, 3, 1)), ((2, 5, 9, 3), (0, 3, 1, 2)), ((2, 3, 4, 5), (3, 2, 1, 0)),
    ((33, 64), (1, 0)), ((1, 40, 1, 31), (2, 3, 0, 1)), ((4, 5, 6), (0, 1, 2)), ((7, 1, 130), (2, 0, 1)),
]  # fmt: skip


def test_transpose() -> None:
    check([case("Transpose", noise(*shape), perm=perm) for shape, perm in TRANSPOSES])


@pytest.mark.parametrize("dtype", TYPES)
def test_transpose_of_every_width(dtype: Any) -> None:
    check([case("Transpose", noise(*s, dtype=dtype), perm=(1, 0)) for s in ((35, 50), (150, 165), (256, 128))])


@pytest.mark.parametrize("target", ["native", "x86-64-v3", "x86-64"])
def test_transposes_of_short_rows(target: str) -> None:
    """Rows shorter than a line, or that end within a block, under columns of every kind of length."""
    shapes = [(1, 9, 5), (2, 300, 20), (1, 97, 130), (1, 640, 31), (1, 20, 196), (1, 196, 16)]
    shapes += [(2, 16, n) for n in (16, 49, 128, 196)] + [(1, 16, 64), (3, 8, 70), (2, 4, 45)]
    arrays = [noise(*s, dtype=t) for s in shapes for t in (np.float32, np.int16, np.uint8)]
    check([case("Transpose", a, perm=(0, 2, 1)) for a in arrays], target=target)


@pytest.mark.parametrize("target", ["native", "x86-64-v3", "x86-64"])
@pytest.mark.parametrize("planes", [2, 3])
def test_interleaved_planes_are_parted(target: str, planes: int) -> None:
    arrays = [noise(2, n, planes, dtype=t) for n in (5, 64, 203) for t in (np.int8, np.int16, np.float32, np.float64)]
    check([case("Transpose", a, perm=(0, 2, 1)) for a in arrays], target=target)
    check([case("Transpose", noise(1, 600, 301, planes, dtype=np.uint8), perm=(0, 3, 1, 2))], target=target, threads=2)


@pytest.mark.parametrize(
    ("target", "shape", "copied"),
    [
        ("x86-64-v4", (1536, 2048), True),
        ("x86-64-v4", (1536, 2112), False),
        ("x86-64-v4", (1536, 2080), False),
        ("x86-64-v3", (2048, 2048), True),
        ("x86-64-v3", (1536, 2048), False),  # vectors of half a line: only where the other side is crowded too
    ],
)
def test_rows_that_share_sets_are_copied(target: str, shape: tuple[int, int], copied: bool) -> None:
    """Whole lines of rows a power of two apart go through a buffer."""
    one = case("Transpose", noise(*shape, dtype=np.uint8), perm=(1, 0))
    (call,) = lower_node(one.node(), Target.parse(target))
    assert any(isinstance(s, Alloc) for s in statements(call.kernel.body)) is copied


@pytest.mark.parametrize(
    ("shape", "asked"), [((4000, 100), True), ((4096, 100), False), ((450, 450), True), ((448, 448), False)]
)
def test_lines_are_asked_for_where_they_stay(shape: tuple[int, int], asked: bool) -> None:
    """Not where they drive each other from the first cache, or whole ones of many rows are in the second."""
    one = case("Transpose", noise(*shape, dtype=np.uint8), perm=(1, 0))
    (call,) = lower_node(one.node(), Target.parse("x86-64-v4"))
    assert any(isinstance(s, Prefetch) for s in statements(call.kernel.body)) is asked


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_transposes_of_rows_a_power_of_two_apart(target: str, dtype: Any) -> None:
    """Both sides, one of them, and strips that end within the rows."""
    shapes = [
        ((2048, 1024), (1, 0)),
        ((4096, 100), (1, 0)),
        ((1, 70, 64, 64), (0, 2, 3, 1)),
        ((64, 3, 1024), (2, 1, 0)),
    ]
    shapes += [((1, 70, 64, 64), (0, 2, 3, 1)), ((1, 64, 64, 40), (0, 3, 1, 2)), ((4, 2048, 48), (0, 2, 1))]
    check([case("Transpose", noise(*s, dtype=dtype), perm=perm) for s, perm in shapes], target=target)


@pytest.mark.parametrize("shape", [(256, 300), (3, 300, 400), (70000,), (5, 20000)])
def test_threads_share_large_copies(shape: tuple[int, ...]) -> None:
    check([case("Transpose", noise(*shape), perm=tuple(reversed(range(len(shape)))))], threads=2)


def test_copies_and_repeats() -> None:
    check(
        [
            case("Identity", noise(3, 67)),
            case("Reshape", noise(3, 6), ints(2, 9), constants=(1,)),
            case("Expand", noise(3, 1, 5), ints(2, 3, 4, 5), constants=(1,)),
            case("Expand", noise(3, 1), ints(3, 70), constants=(1,)),
            case("Tile", noise(3, 5), ints(2, 3), constants=(1,)),
            case("DepthToSpace", noise(2, 12, 3, 4), blocksize=2),
            case("DepthToSpace", noise(2, 12, 3, 4), blocksize=2, mode="CRD"),
            case("SpaceToDepth", noise(2, 3, 6, 4), blocksize=2),
        ]
    )


def test_concat_and_split() -> None:
    check(
        [
            case("Concat", noise(2, 20, 3, 3), noise(2, 5, 3, 3), noise(2, 17, 3, 3), axis=1),
            case("Concat", noise(4, 1), noise(4, 1), noise(4, 3), axis=-1),
            case("Split", noise(2, 20, 3), ints(5, 15), axis=1, constants=(1,), outputs=2),
            case("Split", noise(6, 4), axis=0, num_outputs=3, outputs=3),
        ]
    )


def test_slices_forwards_and_backwards() -> None:
    bounds = [
        (ints(-1, 25), ints(-100, 3), ints(0, 1), ints(-1, -3)),
        (ints(2, 1), ints(9, 29), ints(0, 1), ints(2, 1)),
        (ints(0), ints(1000), ints(1), ints(7)),
        (ints(-3), ints(-1), ints(-2), ints(1)),
    ]
    check([case("Slice", noise(20, 30), *b, constants=(1, 2, 3, 4)) for b in bounds])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(mode: str) -> None:
    check(
        [
            case("Pad", noise(2, 3, 6, 7), ints(0, 0, 2, 3, 0, 0, 1, 4), mode=mode, constants=(1,)),
            case("Pad", noise(3, 6), ints(1, 2), None, ints(-1), mode=mode, constants=(1, 3)),
            case("Pad", noise(3, 6, dtype=np.int8), ints(1, 0, 0, 5), mode=mode, constants=(1,)),
        ]
    )


def test_pad_with_a_value_that_arrives_at_run_time() -> None:
    check([case("Pad", noise(3, 6), ints(1, 2, 0, 3), np.array(-3.5, np.float32), constants=(1,))])


def test_negative_pads_crop() -> None:
    x = noise(3, 6)
    (got,) = run_op("Pad", [x, ints(-1, 2, 1, -1)], constants=[1])
    np.testing.assert_array_equal(got, np.pad(x[1:, :5], ((0, 1), (2, 0))))


BLOCKED = [
    case("Concat", noise(2, 20, 3, 3), noise(2, 20, 3, 3), axis=1),
    case("Slice", noise(2, 20, 9, 9), ints(1, 8), ints(9, 0), ints(2, 3), ints(2, -1), constants=(1, 2, 3, 4)),
    case("Pad", noise(2, 20, 6, 7), ints(0, 0, 2, 3, 0, 0, 1, 4), mode="reflect", constants=(1,)),
    case("Pad", noise(2, 20, 6, 7), ints(0, 0, 2, 3, 0, 0, 1, 4), constants=(1,)),
    case("Transpose", noise(2, 20, 6, 7), perm=(0, 1, 3, 2)),
    case("Identity", noise(1, 3, 5, 5)),
]


@pytest.mark.parametrize("block", [4, 8, 16])
@pytest.mark.parametrize("index", range(len(BLOCKED)))
def test_blocked_layouts(index: int, block: int) -> None:
    c = BLOCKED[index]
    (got,) = run_graph(
        in_blocks(c, block), [a for i, a in enumerate(c.inputs) if a is not None and i not in c.constants]
    )
    np.testing.assert_array_equal(got, c.expected()[0])


@pytest.mark.parametrize("channels", [3, 16, 20, 40])
@pytest.mark.parametrize("blocks", [(0, 8, 16, 0), (0, 16, 4, 8, 0)])
def test_reorders(channels: int, blocks: tuple[int, ...]) -> None:
    x = noise(2, channels, 5, 7)
    shape = TensorType(DType.F32, x.shape)
    values = [Value(f"v{i}", shape.with_layout(Layout(b))) for i, b in enumerate(blocks)]
    nodes = [Node("c2c.Reorder", (a,), (b,)) for a, b in zip(values, values[1:], strict=False)]
    (got,) = run_graph(Graph("g", values[:1], values[-1:], nodes, ["y"]), [x])
    np.testing.assert_array_equal(got, x)


def test_neighbouring_axes_are_merged() -> None:
    assert merged([Dim(2, 60, 60), Dim(3, 20, 20), Dim(1, 5, 7), Dim(20, 1, 1)]) == [Dim(120, 1, 1)]
    assert merged([Dim(4, 1, 3), Dim(3, 4, 1)]) == [Dim(3, 4, 1), Dim(4, 1, 3)]


def test_an_input_that_decides_the_shape_must_be_constant() -> None:
    node = case("Tile", noise(3), ints(2), constants=(1,)).node()
    repeats = node.inputs[1]
    assert repeats is not None
    repeats.data = None
    with pytest.raises(UnsupportedOpError, match=r"'x1' of Tile must be a constant(.|\n)*--value x1=…"):
        lower_node(node, Target.parse("x86-64"))


def test_dropout_in_training_mode_is_refused() -> None:
    (kept,) = run_op("Dropout", [x := noise(3), np.array(0.5, np.float32)])
    np.testing.assert_array_equal(kept, x)
    with pytest.raises(UnsupportedOpError, match="training mode is random"):
        run_op("Dropout", [noise(3), np.array(0.5, np.float32), np.array(True)], constants=[1, 2])
