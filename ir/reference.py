"""Reference semantics: types, values and schemas through ONNX's own inference, evaluator and operator table.

With `reference_fixes` the only file of `ir` that imports onnx, and the oracle of every test: no operator is defined
a second time here. Operators of our own are expanded into ONNX ones (`_ALIASES`, bodies of groups) before.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.defs import OpSchema
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from .errors import C2CError, OnnxImportError, ShapeError, UnknownShapeError, UnsupportedOpError
from .graph import Graph, Node, Value
from .ops import BODIES
from .reference_fixes import FIXES
from .reference_trees import SCHEMA, TreeEnsemble
from .tree_ensemble import TREES, infer_trees
from .types import DType, TensorType

OPSET = onnx.defs.onnx_opset_version()
"""The newest opset of the installed onnx: the semantics of the graph IR."""

MAX_ELEMENTS = 1 << 40
"""More elements in one tensor are taken for a damaged model."""

_INFERENCE_DATA = 4096
"""Constants up to this many elements are shown to shape inference (shapes, axes, pads, scales)."""

_LIKE_FIRST_INPUT = frozenset({"GroupNormalization"})
"""Operators for which onnx has no inference and its function body tells no shape."""

_ALIASES = {
    "c2c.Reorder": "Identity", "c2c.Copy": "Identity", "c2c.WinogradConv": "Conv", "c2c.IntegerConv": "Conv",
    "c2c.DynamicLSTM": "LSTM",
}  # fmt: skip

_OF_INTEGERS = frozenset({"c2c.IntegerConv", "c2c.DynamicLSTM"})
"""Operators on integers whose types are those of their alias on float32. MaxPool takes i16 beside ONNX's types."""

_WITH_ZERO = frozenset({"c2c.IntegerConv"})
"""Operators with one input more than their alias, the zero point of the first."""

_OWN = {TREES: SCHEMA}
"""Schemas of operators that ONNX has nothing like, all of one opset of the domain c2c."""
_EVALUATED: list[type[OpRun]] = [*FIXES, TreeEnsemble]

_TO_ONNX = {
    DType.F32: TensorProto.FLOAT, DType.F64: TensorProto.DOUBLE, DType.F16: TensorProto.FLOAT16,
    DType.BF16: TensorProto.BFLOAT16, DType.I8: TensorProto.INT8, DType.I16: TensorProto.INT16,
    DType.I32: TensorProto.INT32, DType.I64: TensorProto.INT64, DType.U8: TensorProto.UINT8,
    DType.U16: TensorProto.UINT16, DType.U32: TensorProto.UINT32, DType.U64: TensorProto.UINT64,
    DType.BOOL: TensorProto.BOOL, DType.STRING: TensorProto.STRING,
}  # fmt: skip
_FROM_ONNX = {int(v): k for k, v in _TO_ONNX.items()}


def element_type(dtype: DType) -> int:
    """ONNX's number of an element type, as attributes hold it."""
    return int(_TO_ONNX[dtype])


# ---- schemas ----


def split_op(op: str) -> tuple[str, str]:
    """Domain and name: 'Conv' is ('', 'Conv'), 'ai.onnx.ml.Scaler' is ('ai.onnx.ml', 'Scaler')."""
    domain, _, name = op.rpartition(".")
    return domain, name


@functools.cache
def opset_version(domain: str) -> int:
    """The newest opset of a domain that the installed onnx knows; 0 for an unknown domain."""
    versions: dict[str, tuple[int, int]] = onnx.defs.C.schema_version_map()
    return int(versions[domain][1]) if domain in versions else 0


@functools.cache
def schema_of(op: str, version: int | None = None) -> OpSchema | None:
    """ONNX's schema of an operator at an opset (the newest without one); None where it has none."""
    if op in _OWN:
        return _OWN[op]
    domain, name = split_op(_ALIASES.get(op, op))
    newest = opset_version(domain)
    try:
        return onnx.defs.get_schema(name, version or newest, domain) if newest else None
    except onnx.defs.SchemaError:
        return None


def has_function(op: str) -> bool:
    """Whether ONNX defines the operator by a function of others."""
    schema: Any = schema_of(op)
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


@functools.cache
def _opset_imports() -> tuple[onnx.OperatorSetIdProto, ...]:
    domains = sorted(onnx.defs.C.schema_version_map())
    own = sorted({schema.domain for schema in _OWN.values()})
    return (*(helper.make_opsetid(d, opset_version(d)) for d in domains), *(helper.make_opsetid(d, 1) for d in own))


# ---- types ----


def dtype_of(element_type: int) -> DType:
    """The DType of an ONNX element type; raises UnsupportedOpError for one that c2c has none for."""
    found = _FROM_ONNX.get(element_type)
    if found is None:
        raise UnsupportedOpError(f"element type {element_type_name(element_type)} is not supported")
    return found


def element_type_name(element_type: int) -> str:
    """ONNX's name of an element type."""
    known = element_type in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(element_type)).lower() if known else f"number {element_type}"


def element_type_of(dtype: DType) -> int:
    """ONNX's number of an element type."""
    return int(_TO_ONNX[dtype])


@functools.lru_cache(maxsize=4096)
def type_proto(type_: TensorType) -> TypeProto:
    """ONNX's form of a type; the layout is not part of it."""
    return helper.make_tensor_type_proto(element_type_of(type_.dtype), list(type_.shape))


def tensor_type(proto: TypeProto, name: str) -> TensorType:
    """The type in `proto` of the value `name`; an unnamed unknown dimension becomes the symbol `name.axis`.

    Raises UnsupportedOpError for anything but a tensor, ShapeError where the rank is unknown or the size absurd.
    """
    kind = proto.WhichOneof("value")
    if kind != "tensor_type":
        what = (kind or "untyped").removesuffix("_type").replace("_", " ")
        raise UnsupportedOpError(f"'{name}' is of type {what}; only dense tensors are supported")
    tensor = proto.tensor_type
    dtype = dtype_of(tensor.elem_type)
    if not tensor.HasField("shape"):
        raise UnknownShapeError(f"the number of dimensions of '{name}' is not known", remedy="--shape INPUT=N,…")
    dims: list[int | str] = []
    for axis, d in enumerate(tensor.shape.dim):
        known = d.HasField("dim_value") and d.dim_value >= 0
        named = isinstance(d.dim_param, str) and d.dim_param.strip("?")  # bytes where it is no UTF-8
        dims.append(d.dim_value if known else d.dim_param if named else f"{name}.{axis}")
    return checked_type(TensorType(dtype, tuple(dims)), name)


def checked_type(type_: TensorType, name: str) -> TensorType:
    """`type_`, or ShapeError where it holds more than MAX_ELEMENTS."""
    total = 1
    for d in type_.shape:
        total *= d if isinstance(d, int) else 1
    if total > MAX_ELEMENTS or any(isinstance(d, int) and d > MAX_ELEMENTS for d in type_.shape):
        raise ShapeError(f"'{name}' would hold {total:.3g} elements ({type_})", remedy="is the model damaged?")
    return type_


def most_inputs(op: str, schema: OpSchema) -> int:
    """Inputs that an operator takes."""
    return int(schema.max_input) + (1 if op in _WITH_ZERO else 0)


def infer_node(node: Node, unread: Collection[int] = ()) -> list[TensorType]:
    """Types of a node's outputs by ONNX's inference, small constant inputs known by value; layouts are plain.

    Outputs in `unread`, which nobody reads, may stay untyped: they come out as an empty f32[0].
    Raises ShapeError where the inputs do not fit the operator, UnsupportedOpError for values that are no tensors.
    """
    if node.op in BODIES:
        return [v.type for v in node.attrs["body"].outputs]
    if node.op == TREES:
        return infer_trees(node)
    schema = schema_of(node.op)
    if schema is None:
        raise UnsupportedOpError(f"operator {node.op} is unknown", where=node.where)
    proto = node_proto(node)
    values = {f"i{k}": v for k, v in enumerate(node.inputs) if v is not None}
    types = {k: type_proto(v.type) for k, v in values.items()}
    narrow = node.op == "MaxPool" and values["i0"].type.dtype is DType.I16
    if node.op in _OF_INTEGERS or narrow:
        del proto.input[3:]
        types = {k: type_proto(v.type.with_dtype(DType.F32)) for k, v in values.items() if k in proto.input}
        values = {}
    data = {
        k: tensor_proto(v.data, k)
        for k, v in values.items()
        if v.data is not None and v.data.size <= _INFERENCE_DATA and v.type.dtype is not DType.STRING
    }
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, None, [*_opset_imports()])
        if not all(name in found and _is_complete(found[name]) for name in proto.output) and has_function(node.op):
            found = _infer_through_function(proto, types, data)
    except Exception as e:  # the C++ inference raises several unrelated classes
        raise ShapeError(f"inputs do not fit operator {node.op}: {_first_line(e)}", where=node.where) from e
    try:
        results = [found.get(name, TypeProto()) for name in proto.output]
        if node.op in _LIKE_FIRST_INPUT:
            results = [types["i0"]]
        if narrow:
            return [tensor_type(results[0], node.output.name).with_dtype(DType.I16)]
        return [
            TensorType(DType.F32, (0,)) if k in unread and not _is_complete(t) else tensor_type(t, v.name)
            for k, (t, v) in enumerate(zip(results, node.outputs, strict=True))
        ]
    except C2CError as e:
        raise type(e)(e.what, where=e.where or node.where, remedy=e.remedy) from e


def _is_complete(proto: TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or proto.tensor_type.HasField("shape"))


def _infer_through_function(
    proto: NodeProto, types: Mapping[str, TypeProto], data: Mapping[str, TensorProto]
) -> dict[str, TypeProto]:
    """Inference of a whole model of one node: works through the function body where the schema has no inference."""
    inputs = [helper.make_value_info(k, t) for k, t in types.items()]
    present = {a.name for a in proto.attribute}
    schema = schema_of(f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type)
    assert schema is not None
    proto.attribute.extend(
        a.default_value for k, a in sorted(schema.attributes.items()) if k not in present and a.default_value.name
    )
    graph = helper.make_graph([proto], "node", inputs, [onnx.ValueInfoProto(name=o) for o in proto.output])
    graph.initializer.extend(data.values())
    model = helper.make_model(graph, opset_imports=[*_opset_imports()])
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return {v.name: v.type for v in (*inferred.graph.output, *inferred.graph.value_info)}


def _first_line(e: BaseException) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0] if lines else type(e).__name__


# ---- export ----


def tensor_proto(array: np.ndarray, name: str = "") -> TensorProto:
    """A constant as a TensorProto."""
    DType.of(array.dtype)
    return numpy_helper.from_array(np.asarray(array), name)


def node_proto(node: Node, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None) -> NodeProto:
    """A node's ONNX form (not of a group); without names its inputs are i0, i1, … and its outputs o0, o1, …"""
    domain, name = split_op(_ALIASES.get(node.op, node.op))
    if inputs is None:
        inputs = ["" if v is None else f"i{k}" for k, v in enumerate(node.inputs)]
    if outputs is None:
        outputs = [f"o{k}" for k in range(len(node.outputs))]
    proto = NodeProto(op_type=name, domain=domain, input=inputs, output=outputs)
    schema = schema_of(node.op)
    for key, value in sorted(node.attrs.items()):
        if schema is None or key in schema.attributes:
            proto.attribute.append(_attribute_proto(key, value, schema))
        elif node.op not in _ALIASES:
            raise OnnxImportError(f"operator {node.op} has no attribute '{key}'", where=node.where)
    return proto


def _attribute_proto(key: str, value: Any, schema: OpSchema | None) -> AttributeProto:
    if isinstance(value, np.ndarray):
        return AttributeProto(name=key, type=AttributeProto.TENSOR, t=tensor_proto(value))
    if isinstance(value, Graph):
        return AttributeProto(name=key, type=AttributeProto.GRAPH, g=to_onnx(value).graph)
    kind = None if schema is None else int(schema.attributes[key].type.value)  # type: ignore[attr-defined]
    return helper.make_attribute(key, value, attr_type=kind)


class _Exporter:
    """Graph IR to GraphProto: unique names, groups expanded by their bodies."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names: dict[Value, str] = {}
        self.taken = set(graph.output_names) | {v.name for v in graph.inputs}
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        for value in graph.inputs:
            self.names[value] = value.name
        for value, name in zip(graph.outputs, graph.output_names, strict=True):
            if not value.is_constant:
                self.names.setdefault(value, name)

    def name(self, value: Value) -> str:
        """The unique ONNX name of a value; a constant is noted on first sight."""
        if value not in self.names:
            name, k = value.name, 1
            while name in self.taken or not name:
                name, k = f"{value.name}_{k}", k + 1
            self.taken.add(name)
            self.names[value] = name
        if value.data is not None:
            self.constants[self.names[value]] = value.data
        return self.names[value]

    def export(self) -> None:
        self._nodes(self.graph.nodes)
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            if self.name(value) != name:
                self.nodes.append(NodeProto(op_type="Identity", input=[self.name(value)], output=[name]))

    def _nodes(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.op in BODIES:
                self._body(node)
                continue
            inputs = ["" if v is None else self.name(v) for v in node.inputs]
            proto = node_proto(node, inputs, [self.name(v) for v in node.outputs])
            proto.name = node.origin[-1] if node.origin else ""
            self.nodes.append(proto)

    def _body(self, node: Node) -> None:
        body: Graph = node.attrs["body"].clone()
        for inner, outer in zip(body.inputs, node.inputs, strict=True):
            assert outer is not None
            self.names[inner] = self.name(outer)
        for inner, result in zip(body.outputs, node.outputs, strict=True):
            self.names[inner] = self.name(result)
        self._nodes(body.nodes)

    def model(self, *, feed_constants: bool) -> ModelProto:
        """The model; with `feed_constants` its constants are inputs, so that no weight is copied into the proto."""
        infos = [helper.make_value_info(v.name, type_proto(v.type)) for v in self.graph.inputs]
        if feed_constants:
            infos += [onnx.ValueInfoProto(name=name) for name in self.constants]
        outputs = [
            helper.make_value_info(name, type_proto(v.type))
            for v, name in zip(self.graph.outputs, self.graph.output_names, strict=True)
        ]
        proto = onnx.GraphProto(name=self.graph.name or "graph", node=self.nodes, input=infos, output=outputs)
        if not feed_constants:
            proto.initializer.extend(tensor_proto(a, n) for n, a in self.constants.items())
        return helper.make_model(proto, opset_imports=[*_opset_imports()], producer_name="c2c")


def to_onnx(graph: Graph) -> ModelProto:
    """The graph as an ONNX model of the newest opset: groups expanded, layouts dropped, constants as initializers."""
    exporter = _Exporter(graph)
    exporter.export()
    return exporter.model(feed_constants=False)


# ---- evaluation ----


def evaluate(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name for inputs by name, through ONNX's reference evaluator (slow, exact order of its own).

    Raises C2CError where it fails.
    """
    exporter = _Exporter(graph)
    exporter.export()
    model = exporter.model(feed_constants=True)
    try:
        results = ReferenceEvaluator(model, new_ops=_EVALUATED).run(None, {**exporter.constants, **feeds})
    except Exception as e:  # the evaluator raises whatever numpy raises
        raise C2CError(f"the ONNX reference evaluator failed: {_first_line(e)}", where=f"graph '{graph.name}'") from e
    return {
        name: np.asarray(r, dtype=v.type.dtype.numpy)
        for name, v, r in zip(graph.output_names, graph.outputs, results, strict=True)
    }


def evaluate_node(node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Results of one node for `inputs` (None: left out).

    Raises UnsupportedOpError where the reference evaluator lacks the operator, ShapeError where it fails.
    """
    if node.op in BODIES:
        body: Graph = node.attrs["body"]
        feeds = {v.name: a for v, a in zip(body.inputs, inputs, strict=True) if a is not None}
        return list(evaluate(body, feeds).values())
    try:
        evaluator = _evaluator(node_proto(node).SerializeToString(deterministic=True))
        results = evaluator.run(None, {f"i{k}": a for k, a in enumerate(inputs) if a is not None})
    except NotImplementedError as e:
        raise UnsupportedOpError(f"onnx has no reference evaluation of {node.op}", where=node.where) from e
    except Exception as e:  # the evaluator raises whatever numpy raises
        raise ShapeError(f"operator {node.op} cannot be evaluated: {_first_line(e)}", where=node.where) from e
    return [np.asarray(r, dtype=v.type.dtype.numpy) for r, v in zip(results, node.outputs, strict=True)]


@functools.lru_cache(maxsize=512)
def _evaluator(node: bytes) -> ReferenceEvaluator:
    opsets = {o.domain: o.version for o in _opset_imports()}
    return ReferenceEvaluator(NodeProto.FromString(node), opsets=opsets, new_ops=_EVALUATED)
