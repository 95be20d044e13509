"""The rules of the graph IR, checked.

1. Single assignment: every value read is a graph input, a constant, or made by an earlier node; names are unique.
2. Constants hold data of their type, in logical order of axes whatever their layout.
3. Operators exist, take as many inputs and outputs as their schema says, and know their attributes.
4. Result types are those that ONNX's inference gives for the inputs (so broadcasting and element types agree), and
   operands fit each other where it does not look (`operands.py`).
5. Layouts: inputs and outputs of the graph are plain; only `c2c.Reorder` changes a layout between equal shapes;
   views are plain; operands of an elementwise node that have its result's shape have its layout.
6. `c2c.Fused` and `c2c.ConvChain`: see `_check_group`; `c2c.Attention` and `c2c.MatMul`: see `_check_product`.
"""

from __future__ import annotations

import re
from typing import Any

from .errors import C2CError, UnknownShapeError, VerifyError
from .graph import Graph, Node, Value
from .operands import check_operands
from .ops import BODIES, COUNTED, GROUPS, READ_THROUGH, STAGES, Kind, op
from .reference import infer_node, most_inputs, schema_of
from .types import PLAIN

CHAIN = "c2c.ConvChain"


def verify(graph: Graph) -> None:
    """Check every rule; raises VerifyError at the first node that breaks one."""
    _check_interface(graph)
    _check_assignment(graph)
    for node in graph.nodes:
        _check_node(node)


def _check_interface(graph: Graph) -> None:
    where = f"graph '{graph.name}'"
    if len(graph.outputs) != len(graph.output_names):
        raise VerifyError(f"{len(graph.outputs)} outputs have {len(graph.output_names)} names", where=where)
    if len(set(graph.output_names)) != len(graph.output_names):
        raise VerifyError("two outputs have the same name", where=where)
    if len(set(graph.inputs)) != len(graph.inputs):
        raise VerifyError("an input is listed twice", where=where)
    for value in graph.inputs:
        if value.is_constant or value.producer is not None:
            raise VerifyError(f"input '{value.name}' is a constant or made by a node", where=where)
    for value in (*graph.inputs, *graph.outputs):
        if value.type.layout != PLAIN:
            raise VerifyError(
                f"'{value.name}' {value.type} crosses the graph's border in a blocked layout", where=where
            )


def _check_assignment(graph: Graph) -> None:
    """Rules 1 and 2."""
    made: set[Value] = set(graph.inputs)
    names: dict[str, Value] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None:
                _check_read(value, made, node.where)
        for value in node.outputs:
            if value in made:
                raise VerifyError(f"'{value.name}' is made twice", where=node.where)
            if value.producer is not node or value.is_constant:
                raise VerifyError(f"'{value.name}' does not name this node as its producer", where=node.where)
            made.add(value)
    for value in graph.outputs:
        _check_read(value, made, f"graph '{graph.name}'")
    for value in graph.values():
        if not value.name or names.setdefault(value.name, value) is not value:
            raise VerifyError(f"two values are named '{value.name}'" if value.name else "a value has no name")


def _check_read(value: Value, made: set[Value], where: str) -> None:
    data = value.data
    if data is None:
        if value not in made:
            what = "read before it is made" if value.producer is not None else "read, but no input and never made"
            raise VerifyError(f"'{value.name}' is {what}", where=where)
    elif data.shape != value.type.shape or data.dtype != value.type.dtype.numpy:
        raise VerifyError(
            f"constant '{value.name}' holds {data.dtype}{list(data.shape)}, not {value.type}", where=where
        )


def _check_node(node: Node) -> None:
    if node.op in GROUPS:
        _check_group(node)
    elif node.op == "c2c.Bounded":
        _check_bounded(node)
    elif node.op in BODIES:
        _check_product(node)
    else:
        _check_schema(node)
        _check_types(node)
    _check_layout(node)


def _check_schema(node: Node) -> None:
    """Rule 3."""
    schema = schema_of(node.op)
    if schema is None:
        raise VerifyError(f"operator {node.op} is unknown", where=node.where)
    most = most_inputs(node.op, schema)
    if not schema.min_input <= len(node.inputs) <= most:
        raise VerifyError(f"{len(node.inputs)} inputs, but {schema.min_input} to {most} are taken", where=node.where)
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        raise VerifyError(
            f"{len(node.outputs)} outputs, but {schema.min_output} to {schema.max_output} are made", where=node.where
        )
    single: Any = type(schema).FormalParameterOption.Single
    for k, value in enumerate(node.inputs[: len(schema.inputs)]):
        if value is None and schema.inputs[k].option == single:
            raise VerifyError(f"input '{schema.inputs[k].name}' is left out", where=node.where)


def _check_types(node: Node) -> None:
    """Rule 4."""
    try:
        check_operands(node)
        inferred = infer_node(node)
    except UnknownShapeError:
        return
    except C2CError as e:
        raise VerifyError(e.what, where=node.where, remedy=e.remedy) from e
    for value, expected in zip(node.outputs, inferred, strict=True):
        found = value.type
        same = found.dtype is expected.dtype and found.rank == expected.rank
        if not same or any(
            a != b
            for a, b in zip(found.shape, expected.shape, strict=True)
            if isinstance(a, int) and isinstance(b, int)
        ):
            raise VerifyError(f"result '{value.name}' is {found}, inference gives {expected}", where=node.where)


def _check_layout(node: Node) -> None:
    """Rule 5."""
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    for value in values:
        block = value.type.layout.block
        if block and (value.type.rank < 3 or block & (block - 1)):
            raise VerifyError(f"'{value.name}' {value.type} cannot have a blocked layout", where=node.where)
    row, result = op(node.op), node.output.type
    if row.view and any(v.type.layout != node.output.type.layout for v in values if v.type.shape == result.shape):
        raise VerifyError("a view changes the layout", where=node.where)
    if row.view and any(v.type.layout != PLAIN for v in values if v.type.shape != result.shape):
        raise VerifyError("a view of a blocked layout changes the shape", where=node.where)
    if row.kind is Kind.ELEMENTWISE:
        for value in values:
            if value.type.shape == result.shape and value.type.layout != result.layout:
                raise VerifyError(f"operand '{value.name}' and result differ in layout", where=node.where)


def _check_group(node: Node) -> None:
    """Rule 6: the body's first node is any operator, each later one is elementwise on the result of the one before.

    Before an anchor there may be operators that only move data, each read once, by the next ones or the anchor. An
    elementwise node may read earlier results as well, and operands from outside by a DequantizeLinear before it. The
    last result is the only output; types agree with those outside. In a
    `c2c.ConvChain` the first node is a Conv or a pooling, perhaps behind operators that it reads through, and a later
    one may begin another stage: it reads the result before it as its data, and nodes after it read no result before
    that one.
    """
    body = _checked_body(node)
    if node.op == CHAIN and (type(strip := node.attrs.get("strip")) is not int or strip < 1):
        raise VerifyError(f"a chain in strips of {strip!r} rows", where=node.where)
    before: Node | None = None
    for inner_node in _behind_moves(node, body):
        if inner_node.op in GROUPS:
            raise VerifyError("a fused group inside a fused group", where=node.where)
        _check_node(inner_node)
        if before is not None and _is_operand(inner_node, body):
            continue
        if before is not None and node.op == CHAIN and inner_node.op in STAGES:
            _check_stage(before, inner_node, body, node)
        elif before is not None:
            _check_tail(before, inner_node, body, node)
        before = inner_node
    if body.outputs != [body.nodes[-1].output]:
        raise VerifyError("a fused group's output is not its last node's", where=node.where)


def _behind_moves(node: Node, body: Graph) -> list[Node]:
    """The nodes from the anchor or the first stage on; what it reads through is read once, by what follows up to it."""
    begin = next((i for i, n in enumerate(body.nodes) if n.op not in READ_THROUGH), 0)
    first = body.nodes[begin]
    if node.op == CHAIN and first.op not in STAGES:
        raise VerifyError(f"a chain begins with {first.op}, not with a window", where=node.where)
    if op(first.op).kind is not Kind.ANCHOR and node.op != CHAIN:
        return body.nodes
    for i, moved in enumerate(body.nodes[:begin]):
        _check_node(moved)
        readers = [n for n in body.nodes for v in n.inputs if v is moved.output]
        if len(readers) != 1 or readers[0] not in body.nodes[i + 1 : begin + 1]:
            raise VerifyError(f"{moved.op} is not read by {first.op} alone", where=node.where)
    return body.nodes[begin:]


def _checked_body(node: Node) -> Graph:
    """The body, whose inputs and output agree with the node's and whose values are assigned once."""
    body = node.attrs.get("body")
    if not isinstance(body, Graph) or not body.nodes:
        raise VerifyError("a fused group has no body", where=node.where)
    sizes = (len(node.inputs), len(node.outputs))
    if any(v is None for v in node.inputs) or sizes != (len(body.inputs), len(body.outputs)):
        raise VerifyError("a fused group and its body differ in inputs or outputs", where=node.where)
    outside = [*(v for v in node.inputs if v is not None), *node.outputs]
    for outer, inner in zip(outside, [*body.inputs, *body.outputs], strict=True):
        if outer.type != inner.type:
            raise VerifyError(f"'{outer.name}' is {outer.type}, inside the group {inner.type}", where=node.where)
    _check_assignment(body)
    return body


_SHAPES = {"c2c.Attention": "-*Me*Se*M-*", "c2c.MatMul": "-*M-*"}
"""What bodies are: M a MatMul, S a Softmax, e an elementwise operator, - one that moves data."""


def _check_product(node: Node) -> None:
    """Rule 6: products of matrices and what is computed and moved around them, as `_SHAPES` says."""
    body = _checked_body(node)
    for inner in body.nodes:
        _check_node(inner)
    letters = {Kind.ELEMENTWISE: "e", Kind.INJECTIVE: "-"}
    if len(node.outputs) != 1:
        raise VerifyError(f"{node.op} has {len(node.outputs)} results", where=node.where)
    found = "".join({"MatMul": "M", "Softmax": "S"}.get(n.op, letters.get(op(n.op).kind, "?")) for n in body.nodes)
    if re.fullmatch(_SHAPES[node.op], found) is None:
        raise VerifyError(f"{node.op} computes {' '.join(n.op for n in body.nodes)}", where=node.where)


_PADDING = ["Shape", "Squeeze", "Sub", "Concat", "Pad"]


def _check_bounded(node: Node) -> None:
    """Rule 6: an operator of `COUNTED`, its result padded to the bound, and how much of that it filled."""
    body = _checked_body(node)
    first, *rest = body.nodes
    if first.op not in COUNTED or [n.op for n in rest] != _PADDING:
        raise VerifyError(f"{node.op} computes {' '.join(n.op for n in body.nodes)}", where=node.where)
    for inner in body.nodes:
        _check_node(inner)
    if body.outputs != [rest[-1].output, rest[1].output]:
        raise VerifyError(f"{node.op} gives no padded results and their number", where=node.where)


def _is_operand(node: Node, body: Graph) -> bool:
    """Whether a node dequantises an operand from outside for a later one."""
    return node.op == "DequantizeLinear" and node.inputs[0] in body.inputs


def _check_tail(before: Node, after: Node, body: Graph, node: Node) -> None:
    if before is body.nodes[0] and before.op == "DequantizeLinear" and after.op in ("MatMul", "Gemm"):
        if sum(before.output in n.inputs for n in body.nodes) != 1 or after.input(1) is not before.output:
            raise VerifyError(f"{before.op} is not read by {after.op} alone", where=node.where)
        return
    if op(after.op).kind is not Kind.ELEMENTWISE:
        raise VerifyError(f"{after.op} follows in a fused group, but is not elementwise", where=node.where)
    if before.output not in after.inputs:
        raise VerifyError(f"{after.op} does not read the node before it", where=node.where)
    if after.output.type.shape != before.output.type.shape:
        raise VerifyError(f"{after.op} changes the shape inside a fused group", where=node.where)
    if before.output in body.outputs:
        raise VerifyError(f"'{before.output.name}' is read outside of the group", where=node.where)


def _check_stage(before: Node, after: Node, body: Graph, node: Node) -> None:
    if after.inputs[0] is not before.output or before.output in after.inputs[1:]:
        raise VerifyError("a stage of a chain does not read the stage before it as its data", where=node.where)
    position = body.nodes.index(after)
    made = {v for n in body.nodes[:position] for v in n.outputs}
    if before.output in body.outputs or any(v in made for n in body.nodes[position + 1 :] for v in n.inputs):
        raise VerifyError("a stage of a chain is read after the next one", where=node.where)
