"""Each rule of the graph IR: a graph that keeps it passes, one that breaks it is refused with its node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from c2c.ir.errors import VerifyError
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, Layout, TensorType
from c2c.ir.verify import verify

from .graphs import chain, conv_relu, f32, fused, value


@pytest.mark.parametrize("make", [conv_relu, fused, chain, lambda: fused(op="c2c.WinogradConv")])
def test_graphs_that_keep_every_rule(make: Callable[[], Graph]) -> None:
    verify(make())


def _swap(g: Graph) -> None:
    g.nodes.reverse()


def _foreign(g: Graph) -> None:
    g.nodes[1].inputs = (value("c", 1, 4, 4, 4),)


def _producer(g: Graph) -> None:
    g.nodes[0].output.producer = g.nodes[1]


def _twice(g: Graph) -> None:
    g.nodes.append(g.nodes[0])


def _same_name(g: Graph) -> None:
    g.nodes[0].output.name = "x"


def _no_name(g: Graph) -> None:
    g.nodes[0].output.name = ""


def _output_names(g: Graph) -> None:
    g.output_names.append("more")


def _equal_output_names(g: Graph) -> None:
    g.outputs.append(g.outputs[0])
    g.output_names.append("out")


def _constant_shape(g: Graph) -> None:
    weight = g.nodes[0].inputs[1]
    assert weight is not None
    weight.data = np.zeros((4, 3, 3, 2), np.float32)


def _constant_type(g: Graph) -> None:
    weight = g.nodes[0].inputs[1]
    assert weight is not None
    weight.data = np.zeros((4, 3, 3, 3), np.float64)


def _unknown(g: Graph) -> None:
    g.nodes[1].op = "Nothing"


def _arity(g: Graph) -> None:
    g.nodes[1].inputs = (g.nodes[0].output, g.nodes[0].output)


def _left_out(g: Graph) -> None:
    g.nodes[0].inputs = (g.inputs[0], None)


def _attribute(g: Graph) -> None:
    g.nodes[1].attrs["slope"] = 1.0


def _result_shape(g: Graph) -> None:
    g.nodes[0].output.type = f32(1, 4, 4, 5)


def _result_type(g: Graph) -> None:
    g.outputs[0].type = TensorType(DType.F64, (1, 4, 4, 4))


def _operand_type(g: Graph) -> None:
    g.nodes[0].inputs = (g.inputs[0], constant("w2", np.zeros((4, 3, 3, 3))))


def _broadcast(g: Graph) -> None:
    g.nodes[1] = Node("Add", (g.nodes[0].output, constant("k", np.zeros(3, np.float32))), g.nodes[1].outputs)


def _blocked_output(g: Graph) -> None:
    g.outputs[0].type = g.outputs[0].type.with_layout(Layout(4))


def _layout_change(g: Graph) -> None:
    g.nodes[0].output.type = g.nodes[0].output.type.with_layout(Layout(4))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_swap, "'c' is read before it is made"),
        (_foreign, "'c' is read, but no input and never made"),
        (_producer, "does not name this node as its producer"),
        (_twice, "'c' is made twice"),
        (_same_name, "two values are named 'x'"),
        (_no_name, "a value has no name"),
        (_output_names, "1 outputs have 2 names"),
        (_equal_output_names, "two outputs have the same name"),
        (_constant_shape, "constant 'w' holds float32"),
        (_constant_type, "constant 'w' holds float64"),
        (_unknown, "operator Nothing is unknown"),
        (_arity, "2 inputs, but 1 to 1 are taken"),
        (_left_out, "input 'W' is left out"),
        (_attribute, "has no attribute 'slope'"),
        (_result_shape, "result 'c' is f32.1,4,4,5., inference gives f32.1,4,4,4."),
        (_result_type, "result 'y' is f64"),
        (_operand_type, "inputs do not fit operator Conv"),
        (_broadcast, "inputs do not fit operator Add"),
        (_blocked_output, "crosses the graph's border in a blocked layout"),
        (_layout_change, "operand|differ in layout"),
    ],
)
def test_broken_rules(damage: Callable[[Graph], None], text: str) -> None:
    graph = conv_relu()
    damage(graph)
    with pytest.raises(VerifyError, match=text):
        verify(graph)


def test_an_error_names_the_node() -> None:
    graph = conv_relu()
    graph.nodes[1].attrs["slope"] = 1.0
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    assert caught.value.where == "node 'relu1' (Relu), inputs f32[1,4,4,4]"


# ---- fused groups ----


def _body(g: Graph) -> Graph:
    body = g.nodes[1].attrs["body"]
    assert isinstance(body, Graph)
    return body


def _no_body(g: Graph) -> None:
    g.nodes[1].attrs.clear()


def _empty_body(g: Graph) -> None:
    _body(g).nodes.clear()


def _fewer_inputs(g: Graph) -> None:
    g.nodes[1].inputs = g.nodes[1].inputs[:2]


def _inner_type(g: Graph) -> None:
    _body(g).inputs[0].type = f32(1, 3, 6, 6)


def _inner_layout(g: Graph) -> None:
    _body(g).nodes[0].output.type = f32(1, 4, 4, 4)


def _not_elementwise(g: Graph) -> None:
    _body(g).nodes[1].op = "Softmax"


def _other_output(g: Graph) -> None:
    body = _body(g)
    body.outputs = [body.nodes[0].output]


def _skips_one(g: Graph) -> None:
    body = _body(g)
    relu = body.nodes[1]
    body.nodes.append(Node("Neg", (body.nodes[0].output,), (Value("n", relu.output.type),)))
    body.outputs = [body.nodes[-1].output]


def _nested(g: Graph) -> None:
    body = _body(g)
    body.nodes[1] = Node("c2c.Fused", (body.nodes[0].output,), body.nodes[1].outputs, {"body": body})


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_no_body, "has no body"),
        (_empty_body, "has no body"),
        (_fewer_inputs, "differ in inputs or outputs"),
        (_inner_type, "inside the group"),
        (_inner_layout, "differ in layout"),
        (_not_elementwise, "Softmax follows in a fused group, but is not elementwise"),
        (_other_output, "is read outside of the group"),
        (_skips_one, "Neg does not read the node before it"),
        (_nested, "a fused group inside a fused group"),
    ],
)
def test_broken_groups(damage: Callable[[Graph], None], text: str) -> None:
    graph = fused()
    damage(graph)
    with pytest.raises(VerifyError, match=text):
        verify(graph)


def _chain_body(g: Graph) -> Graph:
    body = g.nodes[0].attrs["body"]
    assert isinstance(body, Graph)
    return body


def _no_strip(g: Graph) -> None:
    g.nodes[0].attrs["strip"] = 0


def _begins_with_relu(g: Graph) -> None:
    body = _chain_body(g)
    body.nodes.insert(0, Node("Relu", (body.inputs[0],), (value("r", 1, 3, 6, 6),)))


def _reads_the_first_input(g: Graph) -> None:
    body = _chain_body(g)
    body.nodes[2].inputs = (body.nodes[0].output, body.nodes[2].inputs[1])


def _reads_an_earlier_stage(g: Graph) -> None:
    body = _chain_body(g)
    body.nodes[3] = Node("Add", (body.nodes[2].output, body.nodes[1].output), body.nodes[3].outputs)


def _pool_inside(g: Graph) -> None:
    body = _chain_body(g)
    body.nodes[1] = Node("Softmax", body.nodes[1].inputs, body.nodes[1].outputs)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_no_strip, "a chain in strips of 0 rows"),
        (_begins_with_relu, "a chain begins with Relu, not with a window"),
        (_reads_the_first_input, "does not read the stage before it as its data"),
        (_reads_an_earlier_stage, "is read after the next one"),
        (_pool_inside, "Softmax follows in a fused group, but is not elementwise"),
    ],
)
def test_broken_chains(damage: Callable[[Graph], None], text: str) -> None:
    graph = chain()
    damage(graph)
    with pytest.raises(VerifyError, match=text):
        verify(graph)


def test_a_member_may_read_earlier_results_too() -> None:
    graph = fused()
    body = _body(graph)
    conv, relu = body.nodes
    body.nodes.append(Node("Mul", (relu.output, conv.output), (Value("n", relu.output.type),)))
    body.outputs = [body.nodes[-1].output]
    verify(graph)


def test_symbolic_dimensions_are_allowed() -> None:
    x, y = value("x", "N", 4), value("y", "N", 4)
    verify(Graph("g", [x], [y], [Node("Relu", (x,), (y,))], ["y"]))
