"""ONNX model → graph IR, in one forward sweep.

For each node: read attributes, bring it to the newest opset (`onnx_upgrade`), infer its types, and compute it where
all inputs are constant. So chains of shape arithmetic disappear as they come and every later shape is a number.
Functions (`onnx_inline`), control flow (`onnx_control_flow`) and sequences (`onnx_sequences`) are resolved on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from ..ir.errors import (
    C2CError,
    OnnxImportError,
    ShapeError,
    UnknownShapeError,
    UnsupportedOpError,
)
from ..ir.graph import Graph, Node, Value, constant
from ..ir.operands import check_operands
from ..ir.reference import (
    OPSET,
    dtype_of,
    element_type_name,
    element_type_of,
    has_function,
    infer_node,
    opset_version,
    schema_of,
    tensor_type,
)
from ..ir.types import DType, TensorType
from .onnx_attributes import read_attributes
from .onnx_contrib import DOMAIN, contrib_attributes, expand_contrib
from .onnx_control_flow import CONTROL_FLOW, inline_control_flow
from .onnx_count_rules import follow, prepared
from .onnx_counts import Counts
from .onnx_folding import constant_data, fold, folds, from_type
from .onnx_inline import expand_function, inline_call
from .onnx_inputs import Pins, pinned_type, unknown_dims
from .onnx_labels import passed_names
from .onnx_ml import DOMAIN as ML
from .onnx_ml import expand_ml
from .onnx_refusals import check_arity, check_axis, data_dependent, is_since, needs_constant
from .onnx_scope import Scope, in_order, opsets_of
from .onnx_sequences import SEQUENCE_OPS, sequence_results
from .onnx_tensor import TensorReader
from .onnx_upgrade import OldNode, upgrade
from .onnx_wire import Stripped, map_file, strip, text

OLDEST = 7
"""Opsets before it broadcast by attributes; onnx.version_converter brings such models up."""

_MAX_NODES = 1 << 20

Report = Callable[[C2CError, str, str], None]
"""Takes a problem, the node's name and its operator ('' where it concerns no node)."""


def import_model(
    source: Path | str | bytes | ModelProto,
    *,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    expand: Callable[[str], bool] = lambda op: False,
    report: Report | None = None,
) -> Graph:
    """The graph of an ONNX model: a path, its bytes, or the ModelProto.

    dims pins named dimensions, shapes whole inputs, values makes an input a constant. An operator for which `expand`
    holds is replaced by its ONNX function body where it has one. Raises C2CError on the first problem; with `report`
    every problem goes there and the graph holds what could be read.
    """
    try:
        model, reader = _open(source)
        return Importer(model, reader, Pins(dims or {}, shapes or {}, values or {}), expand, report).run()
    except RecursionError as e:
        raise OnnxImportError("the model is nested too deeply") from e


def _open(source: Path | str | bytes | ModelProto) -> tuple[ModelProto, TensorReader]:
    """Model and the reader of its tensors; large ones stay in the mapped file."""
    if isinstance(source, ModelProto):
        return source, TensorReader()
    if isinstance(source, bytes):
        folder, stripped = None, strip(memoryview(source))
    else:
        folder, stripped = Path(source).parent, strip(map_file(Path(source)))
    return _parse(stripped), TensorReader(folder, stripped.spans)


def _parse(stripped: Stripped) -> ModelProto:
    try:
        model = ModelProto()
        model.ParseFromString(stripped.proto)
        return model
    except Exception as e:  # DecodeError of whichever protobuf is installed
        raise OnnxImportError(f"not an ONNX file: {e}", remedy="is the download complete?") from e


class Importer:
    """State of one import. In a `Scope` a value of None stands for one whose node was refused (only with report)."""

    def __init__(
        self,
        model: ModelProto,
        reader: TensorReader,
        pins: Pins,
        expand: Callable[[str], bool],
        report: Report | None,
    ) -> None:
        self.model, self.reader, self.pins, self.expand, self.report = model, reader, pins, expand, report
        self.functions: dict[tuple[str, str, str], FunctionProto] = {
            (f.domain, f.name, f.overload): f for f in model.functions
        }
        self.nodes: list[Node] = []
        self.names: set[str] = set()
        self.declared: dict[str, ValueInfoProto] = {}
        self.origin: tuple[str, ...] = ()
        self.hint = ""
        self.results: tuple[str, ...] = ()
        self.labels: dict[Value, tuple[str, ...]] = {}
        self.depth = 0
        self._helping = False
        self._fresh: set[Value] = set()
        self._numbers: dict[str, int] = {}
        self.counts = Counts(self)

    # ---- the sweep ----

    def run(self) -> Graph:
        proto = self.model.graph
        if not self.model.HasField("graph") or not (proto.node or proto.output):
            raise OnnxImportError("the file holds no graph", remedy="is it an ONNX model?")
        text(proto.name, *(v.name for v in (*proto.input, *proto.output, *proto.value_info)))
        scope = Scope(self._opsets())
        self.names |= {v.name for v in proto.input} | {o for n in proto.node for o in n.output}
        self.constants(proto, scope)
        inputs = self._inputs(proto, scope)
        self.declared = {v.name: v for v in (*proto.value_info, *proto.output)}
        self.graph_nodes(proto.node, scope)
        outputs, names = self._outputs(proto, scope)
        labels = {n: self.labels[v] for n, v in zip(names, outputs, strict=True) if v in self.labels}
        graph = Graph(proto.name or "graph", inputs, outputs, self.nodes, names, labels)
        self.counts.add_outputs(graph)
        graph.sort()
        self._check_static(graph)
        return graph

    def _opsets(self) -> dict[str, int]:
        """Opset by domain; raises OnnxImportError for one that is too old or too new."""
        opsets = opsets_of(self.model.opset_import)
        version = opsets.get("", OPSET)
        if version > OPSET:
            self.problem(
                OnnxImportError(
                    f"the model is of opset {version}; the installed onnx knows {OLDEST} to {OPSET}",
                    remedy="pip install --upgrade onnx",
                )
            )
        return opsets

    def constants(self, proto: GraphProto, scope: Scope) -> None:
        """Bind the initializers of a graph; they are read-only views of the file."""
        for tensor in proto.initializer:
            self._initializer(tensor.name, lambda t=tensor: self.reader.read(t), scope)  # type: ignore[misc]
        for sparse in proto.sparse_initializer:
            self._initializer(sparse.values.name, lambda s=sparse: self.reader.read_sparse(s), scope)  # type: ignore[misc]

    def _initializer(self, name: str, read: Callable[[], np.ndarray], scope: Scope) -> None:
        value: Value | None = None
        try:
            if not name or name in scope.values:
                raise OnnxImportError(f"two constants are named '{name}'" if name else "a constant has no name")
            value = constant(name if scope.depth == 0 else self.name(scope.prefix + name), read())
        except C2CError as e:
            self.problem(e, f"constant '{name}'")
        self.names.add(name)
        scope.values[name] = value

    def _inputs(self, proto: GraphProto, scope: Scope) -> list[Value]:
        """Inputs that are no constants, with pinned shapes."""
        infos = [v for v in proto.input if v.name not in scope.values]
        types: dict[str, TensorType | None] = {}
        for info in infos:
            if not info.name or info.name in types:
                raise OnnxImportError(f"two inputs are named '{info.name}'" if info.name else "an input has no name")
            try:
                types[info.name] = self._input_type(info)
            except C2CError as e:
                self.problem(e, f"input '{info.name}'")
                types[info.name] = None
        try:
            self.pins.bind({k: None if t is None else t.shape for k, t in types.items()})
        except ShapeError as e:
            self.problem(e)
        inputs: list[Value] = []
        for name, declared in types.items():
            scope.values[name] = value = None if declared is None else self._input(name, declared)
            if value is not None and not value.is_constant:
                inputs.append(value)
        return inputs

    def _input_type(self, info: ValueInfoProto) -> TensorType:
        """The declared type; a shape that is not declared at all is taken from what is pinned."""
        shape = self.pins.rank_from(info.name)
        if shape is not None and info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
            return TensorType(dtype_of(info.type.tensor_type.elem_type), shape)
        return tensor_type(info.type, info.name)

    def _input(self, name: str, declared: TensorType) -> Value | None:
        try:
            data = self.pins.value(name, declared)
            return constant(name, data) if data is not None else Value(name, pinned_type(self.pins, name, declared))
        except C2CError as e:
            self.problem(e, f"input '{name}'")
            return None

    def _outputs(self, proto: GraphProto, scope: Scope) -> tuple[list[Value], list[str]]:
        outputs: list[Value] = []
        names: list[str] = []
        for info in proto.output:
            if info.name in names or not info.name:
                raise OnnxImportError(f"two outputs are named '{info.name}'" if info.name else "an output has no name")
            if scope.find_sequence(info.name) is not None:
                self.problem(UnsupportedOpError(f"output '{info.name}' is a sequence; only tensors are supported"))
                continue
            if not scope.knows(info.name):
                self.problem(OnnxImportError(f"no node makes the output '{info.name}'"))
                continue
            value = scope.find(info.name)
            if value is None:
                continue
            declared = info.type.tensor_type.elem_type
            names_strings = dtype_of(declared) is DType.STRING and value in self.labels if declared else False
            if declared and declared != element_type_of(value.type.dtype) and not names_strings:
                other = element_type_name(declared)
                self.problem(OnnxImportError(f"output '{info.name}' is {value.type.dtype}, declared is {other}"))
            outputs.append(value)
            names.append(info.name)
        if not names and self.report is None:
            raise OnnxImportError("the model has no outputs")
        return outputs, names

    def _check_static(self, graph: Graph) -> None:
        """Report inputs with open dimensions, or else the first nodes that make one."""
        open_inputs = [v for v in graph.inputs if not v.type.is_static]
        for value in open_inputs:
            self.problem(unknown_dims(value.name, value.type))
        if open_inputs:
            return
        for node in graph.nodes:
            known = all(v is None or v.type.is_static for v in node.inputs)
            if known and not all(v.type.is_static for v in node.outputs):
                self.problem(data_dependent(node), "", node.origin[-1] if node.origin else "", node.op)

    # ---- nodes ----

    def graph_nodes(self, protos: Iterable[NodeProto], scope: Scope) -> None:
        """Import nodes, put into order where they are not."""
        for proto in in_order(list(protos), scope):
            self.node(proto, scope)

    def node(self, proto: NodeProto, scope: Scope) -> None:
        """Import one node and bind its outputs; a problem is reported with the node's name."""
        text(proto.name, proto.op_type, proto.domain, *proto.input, *proto.output, *(a.name for a in proto.attribute))
        name = scope.prefix + (proto.name or next((o for o in proto.output if o), proto.op_type))
        where = f"node '{name}' ({proto.op_type})"
        saved = self.origin, self.hint, self.results, self.depth, self._helping
        self.origin = (*self.origin[: scope.depth], name)
        self.hint = scope.prefix + next((o for o in proto.output if o), proto.op_type)
        self.results, self.depth, self._helping = tuple(proto.output), scope.depth, False
        try:
            results = self._apply(proto, scope, where)
            self._bind(proto, scope, results)
        except C2CError as e:
            self.problem(e, where, name, proto.op_type)
            for k, output in enumerate(proto.output):
                scope.values.setdefault(output, self._assumed(k))
        finally:
            self.origin, self.hint, self.results, self.depth, self._helping = saved

    def problem(self, e: C2CError, where: str = "", node: str = "", op: str = "") -> None:
        """Raise, or report, an error with its place."""
        error = e if e.where or not where else type(e)(e.what, where=where, remedy=e.remedy)
        if self.report is None:
            raise error
        self.report(error, node, op)

    def _assumed(self, index: int) -> Value | None:
        """A stand-in for a result that could not be imported, so that the nodes after it are checked too."""
        try:
            declared = self._declared(index)
        except C2CError:
            return None
        return None if declared is None or not declared.is_static else Value(self.results[index], declared)

    def _apply(self, proto: NodeProto, scope: Scope, where: str) -> Sequence[Value | None]:
        """Results of one node."""
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        function = self.functions.get((proto.domain, proto.op_type, proto.overload))
        if function is not None:
            return inline_call(self, function, proto, scope)
        if domain == DOMAIN:
            return self._contrib(proto, scope, where)
        op = f"{domain}.{proto.op_type}" if domain else proto.op_type
        version = scope.opsets.get(domain)
        if version is None or not opset_version(domain):
            missing = (
                "does not import its opset" if opset_version(domain) else "uses an operator that ONNX does not have"
            )
            raise UnsupportedOpError(
                f"operator {op} is not known: the model {missing}", remedy="export the model with standard operators"
            )
        schema = schema_of(op, version)
        if schema is None:
            raise UnsupportedOpError(f"operator {op} does not exist in opset {version}")
        if domain == "" and version < OLDEST and not is_since(schema, schema_of(op, OLDEST)):
            raise UnsupportedOpError(
                f"operator {op} in the form of opset {version}; c2c reads opsets {OLDEST} to {OPSET}",
                remedy="convert the model with onnx.version_converter.convert_version(model, 17)",
            )
        attrs = read_attributes(proto, schema, scope.arguments, self.reader)
        if op in SEQUENCE_OPS:
            return sequence_results(self, proto, attrs, scope)
        inputs = self._read_inputs(proto, scope)
        if inputs is None:
            return [None] * len(proto.output)
        if op not in CONTROL_FLOW and any(isinstance(a, GraphProto) for a in attrs.values()):
            raise UnsupportedOpError(f"operator {op} with a subgraph is not supported")
        if op in CONTROL_FLOW:
            return inline_control_flow(self, proto, inputs, attrs, scope)
        if op == "Constant":
            return [self.constant(constant_data(attrs))]
        check_arity(inputs, len(proto.output), schema)
        old = OldNode(op, int(schema.since_version), inputs, attrs, len(proto.output), where)
        if domain == ML:
            return expand_ml(old, self)
        names = passed_names(old, self)
        self._helping = True
        results = upgrade(old, self)
        self._helping = False
        made = self.emit(old.op, old.inputs, old.attrs, old.outputs) if results is None else results
        if names is not None:
            self.label(made[0], names)
        return made

    def _contrib(self, proto: NodeProto, scope: Scope, where: str) -> Sequence[Value | None]:
        """Results of an operator of onnxruntime's domain."""
        inputs = self._read_inputs(proto, scope)
        if inputs is None:
            return [None] * len(proto.output)
        node = OldNode(proto.op_type, 1, inputs, contrib_attributes(proto), len(proto.output), where)
        return expand_contrib(node, self)

    def _read_inputs(self, proto: NodeProto, scope: Scope) -> list[Value | None] | None:
        """Values of the inputs, None for those left out; None altogether where one could not be imported."""
        inputs: list[Value | None] = []
        failed = False
        for name in proto.input:
            if not name or name in scope.absent:
                inputs.append(None)
                continue
            try:
                value = scope.find(name)
            except KeyError:
                if scope.find_sequence(name) is not None:
                    raise UnsupportedOpError(
                        f"'{name}' is a sequence value; only dense tensors are supported"
                    ) from None
                raise OnnxImportError(f"'{name}' is read but no input, constant or node makes it") from None
            failed |= value is None
            inputs.append(value)
        while inputs and inputs[-1] is None and not failed:
            inputs.pop()
        return None if failed else inputs

    def _bind(self, proto: NodeProto, scope: Scope, results: Sequence[Value | None]) -> None:
        for name, value in zip(proto.output, results, strict=False):
            if not name:
                continue
            if name in scope.values or name in scope.sequences:
                raise OnnxImportError(f"'{name}' is made twice")
            scope.values[name] = value
            if value is not None and value in self._fresh:
                self._fresh.discard(value)
                value.name = name if scope.depth == 0 else self.name(scope.prefix + name)

    # ---- adding nodes (Emit) ----

    def label(self, value: Value, names: tuple[str, ...]) -> None:
        self.labels[value] = names

    def names_of(self, value: Value) -> tuple[str, ...] | None:
        return None if value.type.dtype.is_float else self.labels.get(value)

    def name(self, hint: str) -> str:
        """A name no value of the graph has."""
        name = hint
        while name in self.names or not name:
            self._numbers[hint] = k = self._numbers.get(hint, 0) + 1
            name = f"{hint}.{k}"
        self.names.add(name)
        return name

    def constant(self, data: np.ndarray) -> Value:
        value = constant(self.name(self.hint), np.asarray(data))
        self._fresh.add(value)
        return value

    def emit(
        self, op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any], count: int = 1
    ) -> tuple[Value, ...]:
        """Results of an operator of the newest opset: constants where it can be computed, else of a new node."""
        if len(self.nodes) > _MAX_NODES:
            raise OnnxImportError("the model unfolds to more than a million nodes")
        expanding = self.expand(op) and has_function(op)
        watched = self.counts.concern(inputs)
        operands = prepared(op, inputs, attrs, self.counts) if watched and not expanding else inputs
        outputs = tuple(Value(self.name(self.hint), TensorType(DType.F32, ())) for _ in range(count))
        node = Node(op, tuple(operands), outputs, dict(attrs), self.origin)
        if op in ("Shape", "Size") and (data := from_type(node)) is not None:
            return (self.counts.shape(node, data) or self.constant(data),)
        self._infer(node)
        check_axis(node)
        check_operands(node)
        if folds(node) and (results := fold(node)) is not None:
            return self._folded(node, results, inputs)
        if expanding and (expanded := expand_function(self, node)) is not None:
            return expanded
        if (bounded := self.counts.bounded(node)) is not None:
            return bounded
        self._fresh.update(outputs)
        self.nodes.append(node)
        if watched:
            follow(node, self.counts, inputs)
        return outputs

    def _folded(self, node: Node, results: Sequence[np.ndarray], inputs: Sequence[Value | None]) -> tuple[Value, ...]:
        """Constants in place of a node, whose `inputs` may have been sizes that only data tell."""
        values = tuple(self.constant(r) for r in results)
        if self.counts.concern(inputs):
            follow(node, self.counts, inputs)
            self.counts.replace(node.outputs, values)
        return values

    def _infer(self, node: Node) -> None:
        """Set the types of a node's outputs; what inference cannot tell is taken from the model's declarations."""
        try:
            types: Sequence[TensorType | None] = infer_node(node, self.unread())
        except UnknownShapeError as e:
            types = [self._declared(k) for k in range(len(node.outputs))]
            if any(t is None for t in types):
                raise needs_constant(node, e) from e
        for k, (value, inferred) in enumerate(zip(node.outputs, types, strict=True)):
            declared = None if inferred is not None and inferred.is_static else self._declared(k)
            use = declared if declared is not None and declared.is_static else inferred
            assert use is not None
            value.type = use

    def unread(self) -> tuple[int, ...]:
        """Results of the node in hand that have no name."""
        return tuple(k for k, name in enumerate(self.results) if not name)

    def _declared(self, index: int) -> TensorType | None:
        """What the model says about result `index` of the node in hand; nothing where a pin contradicts the model."""
        if self.depth or self._helping or self.pins.contradict or index >= len(self.results):
            return None
        info = self.declared.get(self.results[index])
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        return self.pins.fill(tensor_type(info.type, info.name))
