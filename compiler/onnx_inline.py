"""Inlining at import: model functions, ONNX's own function bodies, subgraphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnx import FunctionProto, GraphProto, NodeProto

from ..ir.errors import C2CError, OnnxImportError, UnsupportedOpError
from ..ir.graph import Node, Value
from ..ir.reference import OPSET, node_proto, schema_of, type_proto
from .onnx_attributes import Arguments, resolve_attributes
from .onnx_scope import Scope, opsets_of
from .onnx_wire import text

if TYPE_CHECKING:
    from .onnx_import import Importer

_DEEPEST = 50


def inline_call(imp: Importer, function: FunctionProto, proto: NodeProto, scope: Scope) -> list[Value | None]:
    """Results of a call of a model's own function."""
    inputs: list[Value | None] = []
    for name in proto.input:
        absent = not name or name in scope.absent
        if not absent and not scope.knows(name):
            raise OnnxImportError(f"'{name}' is read but no input, constant or node makes it")
        inputs.append(None if absent else scope.find(name))
        if not absent and inputs[-1] is None:
            return [None] * len(proto.output)
    given = resolve_attributes(proto, scope.arguments)
    arguments = {a.name: a for a in function.attribute_proto} | given
    name = proto.name or next(iter(proto.output), proto.op_type)
    return _inline(imp, function, inputs, arguments, scope, name, proto.output)


def expand_function(imp: Importer, node: Node) -> tuple[Value, ...] | None:
    """Results of an operator computed by its ONNX function body; None where the body needs what c2c does not have."""
    names = ["" if k in imp.unread() else f"o{k}" for k in range(len(node.outputs))]
    function = _schema_function(node, names)
    if function is None:
        return None
    schema = schema_of(node.op)
    assert schema is not None
    arguments = {k: a.default_value for k, a in sorted(schema.attributes.items()) if a.default_value.name}
    arguments |= {a.name: a for a in node_proto(node).attribute}
    count, report, imp.report = len(imp.nodes), imp.report, None
    try:
        scope = Scope({"": OPSET}, depth=imp.depth)
        results = _inline(imp, function, list(node.inputs), arguments, scope, imp.hint, names)
    except C2CError:
        del imp.nodes[count:]
        return None
    finally:
        imp.report = report
    return tuple(unread if v is None else v for v, unread in zip(results, node.outputs, strict=True))


def _schema_function(node: Node, outputs: Sequence[str]) -> FunctionProto | None:
    """The body of the newest version of an operator; it may depend on the types of the inputs."""
    schema: Any = schema_of(node.op)
    if schema.has_function and schema.function_opset_versions:
        version = max(schema.function_opset_versions)
        return _parsed(schema.get_function_with_opset_version(version))
    versions = schema.context_dependent_function_opset_versions
    if not versions:
        return None
    types = [b"" if v is None else type_proto(v.type).SerializeToString() for v in node.inputs]
    body = schema.get_context_dependent_function_with_opset_version(
        max(versions), node_proto(node, outputs=outputs).SerializeToString(), types
    )
    return _parsed(body) if body else None


def _parsed(body: bytes) -> FunctionProto:
    function = FunctionProto()
    function.ParseFromString(body)
    return function


def _inline(
    imp: Importer,
    function: FunctionProto,
    inputs: Sequence[Value | None],
    arguments: Arguments,
    scope: Scope,
    name: str,
    results: Sequence[str],
) -> list[Value | None]:
    """Import a function's nodes and give its results, None for those that have no name in `results`."""
    text(*function.input, *function.output)
    if len(inputs) > len(function.input):
        raise OnnxImportError(f"function {function.name} takes {len(function.input)} inputs, not {len(inputs)}")
    opsets = scope.opsets | opsets_of(function.opset_import)
    inner = Scope(opsets, prefix=f"{scope.prefix}{name}/", arguments=arguments, depth=_deeper(scope))
    padded = [*inputs, *[None] * (len(function.input) - len(inputs))]
    named = list(zip(function.input, padded, strict=True))
    inner.values.update({k: v for k, v in named if v is not None})
    inner.absent = frozenset(k for k, v in named if v is None)
    imp.graph_nodes(function.node, inner)
    return [_result(inner, o) if name else None for o, name in zip(function.output, results, strict=False)]


def _deeper(scope: Scope) -> int:
    if scope.depth >= _DEEPEST:
        raise OnnxImportError("functions or branches are nested too deeply", remedy="does a function call itself?")
    return scope.depth + 1


def _result(scope: Scope, name: str) -> Value | None:
    if scope.find_sequence(name) is not None:
        raise UnsupportedOpError(f"the result '{name}' is a sequence; only tensors may leave a function or branch")
    if not scope.knows(name):
        raise OnnxImportError(f"nothing makes the result '{name}'")
    return scope.find(name)


def inline_graph(
    imp: Importer, body: GraphProto, inputs: Sequence[Value | None], scope: Scope, name: str
) -> list[Value | None]:
    """Import a subgraph, which sees the names around it, and give its results."""
    text(*(v.name for v in (*body.input, *body.output)))
    if len(inputs) != len(body.input):
        raise OnnxImportError(f"the subgraph '{body.name}' takes {len(body.input)} inputs, not {len(inputs)}")
    inner = Scope(
        scope.opsets, outer=scope, prefix=f"{scope.prefix}{name}/", arguments=scope.arguments, depth=_deeper(scope)
    )
    imp.constants(body, inner)
    inner.values.update({info.name: v for info, v in zip(body.input, inputs, strict=True)})
    imp.graph_nodes(body.node, inner)
    return [_result(inner, o.name) for o in body.output]
