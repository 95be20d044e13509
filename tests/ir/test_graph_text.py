"""Graph text: the exact round trip, and errors that say where."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from c2c.ir.errors import ParseError, VerifyError
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.graph_text import large_constants, parse_graph, print_graph
from c2c.ir.types import DType, TensorType

from .graphs import conv_relu, fused, value


def assert_round_trip(graph: Graph) -> Graph:
    text = print_graph(graph)
    back = parse_graph(text, large_constants(graph))
    assert print_graph(back) == text
    assert_same(graph, back)
    return back


def assert_same(a: Graph, b: Graph) -> None:
    """Equal names, types, data (bit by bit), attributes, origins and structure."""
    assert (a.name, a.output_names) == (b.name, b.output_names)
    pairs = dict(zip(a.values(), b.values(), strict=True))
    for v, w in pairs.items():
        assert (v.name, v.type, v.is_constant) == (w.name, w.type, w.is_constant)
        if v.data is not None and w.data is not None:
            assert_same_array(v.data, w.data)
    assert [pairs[v] for v in a.inputs] == b.inputs and [pairs[v] for v in a.outputs] == b.outputs
    for n, m in zip(a.nodes, b.nodes, strict=True):
        assert (n.op, n.origin, [*n.attrs]) == (m.op, m.origin, [*m.attrs])
        assert [v and pairs[v] for v in n.inputs] == [*m.inputs] and [pairs[v] for v in n.outputs] == [*m.outputs]
        for key, attr in n.attrs.items():
            assert_same_attribute(attr, m.attrs[key])


def assert_same_array(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape
    assert (a == b).all() if a.dtype == object else a.tobytes() == b.tobytes()


def assert_same_attribute(a: Any, b: Any) -> None:
    if isinstance(a, Graph):
        assert_same(a, b)
    elif isinstance(a, np.ndarray):
        assert_same_array(a, b)
    else:
        assert type(a) is type(b) and repr(a) == repr(b)


@pytest.mark.parametrize("make", [conv_relu, fused])
def test_round_trip(make: Any) -> None:
    assert_round_trip(make())


def test_how_it_looks() -> None:
    graph = conv_relu()
    graph.nodes[0].inputs = (*graph.nodes[0].inputs[:2], constant("b", np.array([1, -0.5, 0.1, 0], np.float32)))
    assert print_graph(graph).splitlines() == [
        'graph "conv_relu" (%x: f32[1,3,6,6]) {',
        f"  const %w: f32[4,3,3,3] = @{next(iter(large_constants(graph)))}",
        "  const %b: f32[4] = [1.0, -0.5, 0.1, 0.0]",
        '  %c: f32[1,4,4,4] = Conv(%x, %w, %b) {kernel_shape = [3, 3]} from "conv1"',
        '  %y: f32[1,4,4,4] = Relu(%c) from "relu1"',
        '  return "out" = %y',
        "}",
    ]


ARRAYS = [
    np.array([0.1, -0.0, 1e-45, 3.4e38, np.inf, -np.inf], np.float32),
    np.array([np.nan, 1], np.float32),
    np.frombuffer(np.array([0x7FC12345, 0xFFC00001], np.uint32).tobytes(), np.float32),
    np.array([0.1, 5e-324, 1e308], np.float64),
    np.array([0.1, 65504, 6e-8], np.float16),
    np.array([0.1, 3e38, np.nan], ml_dtypes.bfloat16),
    np.array([-128, 127], np.int8),
    np.array([2**64 - 1, 0], np.uint64),
    np.array([-(2**63)], np.int64),
    np.array([True, False]),
    np.array(["a", 'quote " and \n newline', "ü"], object),
    np.array([], np.float32).reshape(0, 3),
    np.asarray(2.5, np.float32),
    np.asarray(7, np.int32),
    np.arange(100, dtype=np.uint16).reshape(10, 10),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_constants_come_back_bit_by_bit(array: np.ndarray) -> None:
    c = constant("c", array)
    out = Value("y", TensorType(c.type.dtype, c.type.shape))
    assert_round_trip(Graph("g", [], [out, c], [Node("Identity", (c,), (out,), {"also": array})], ["y", "c"]))


def test_names_and_attributes_of_every_kind() -> None:
    x = Value('spaces and "quotes": %1', TensorType(DType.F32, ("N", 3, "odd name", "x.0")))
    a, b = Value("a", x.type), Value("b/1.w-2", x.type)
    attrs = {
        "i": -3, "f": 0.1, "big": 1e300, "nan": float("inf"), "s": 'te"xt\n', "ints": (1, -2), "floats": (0.5, 2.0),
        "none": (), "strings": ("a", "b"), "nested": ((1,), (2, 3)), "flag": True,
    }  # fmt: skip
    assert_round_trip(
        Graph("", [x], [b, b], [Node("Custom", (x, None, x), (a, b), attrs, ("n 1", "n2"))], ["o", 'o"2'])
    )


def test_random_graphs_round_trip() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = [value(f"v{k}", *rng.integers(1, 5, 4).tolist()) for k in range(3)]
        inputs, nodes = [*values], []
        for k in range(int(rng.integers(1, 12))):
            reads = tuple(values[int(i)] for i in rng.integers(0, len(values), 2))
            made = value(f"n{k}", *rng.integers(1, 5, 4).tolist(), block=int(rng.choice([0, 8])))
            data = rng.standard_normal(int(rng.integers(1, 40))).astype(np.float32)
            nodes.append(Node("Op", (*reads, constant(f"k{k}", data)), (made,), {"a": float(rng.standard_normal())}))
            values.append(made)
        assert_round_trip(Graph(f"seed {seed}", inputs, [values[-1]], nodes, ["y"]))


def test_comments_and_blank_space_are_skipped() -> None:
    text = print_graph(conv_relu())
    noisy = "; after fuse\n\n" + text.replace("\n", "   ; note\n\t")
    assert print_graph(parse_graph(noisy, large_constants(conv_relu()))) == text


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("", "expected 'graph'", "1:1"),
        ('graph "g" (%x: f32[2]) { return "y" = %z }', "'z' is not known here", "1:39"),
        ('graph "g" (%x: f33[2]) { return }', "'f33' is no element type", "1:16"),
        ('graph "g" (%x: f32[2], %x: f32[2]) { return }', "'x' is made twice", "1:"),
        ('graph "g" () {\n  const %c: i64[2] = [1]\n  return }', "not the data of a constant i64[2]", "2:22"),
        ('graph "g" () {\n  const %c: i8[1] = [300]\n  return }', "not the data of a constant", "2:21"),
        ('graph "g" () {\n  const %c: i64[1] = [1.5]\n  return }', "not the data of a constant", "2:22"),
        (f'graph "g" () {{ const %c: f32[1] = @{"0" * 32} return }}', "is not given", "1:"),
        ('graph "g" () { %y: f32[] = Relu(%q) return }', "'q' is not known here", "1:33"),
        ('graph "g" () { = Relu() return }', "at least one value", "1:"),
        ('graph "g" () { return } }', "expected the end|expected 'the end'", "1:25"),
        ('graph "g" () { return ~ }', "unexpected character '~'", "1:23"),
        ('graph "g" (', "expected a value", "1:12"),
    ],
)
def test_errors_name_line_and_column(text: str, what: str, where: str) -> None:
    with pytest.raises(ParseError, match=what.replace("[", r"\[").replace("]", r"\]")) as caught:
        parse_graph(text)
    assert caught.value.where.startswith(where)


def test_text_that_is_cut_off_anywhere_gives_a_parse_error() -> None:
    graph = fused()
    text, data = print_graph(graph), large_constants(graph)
    for end in range(0, len(text.rstrip()), 7):
        with pytest.raises(ParseError):
            parse_graph(text[:end], data)


def test_an_attribute_that_has_no_text_is_refused() -> None:
    y = value("y", 1)
    with pytest.raises(VerifyError, match="attribute 'a' holds a object"):
        print_graph(Graph("g", [], [y], [Node("Op", (), (y,), {"a": object()})], ["y"]))
