"""If, Loop and Scan at import: one branch, or a select between both; loops of known length unrolled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import GraphProto, NodeProto

from ..ir.errors import ConstantNeededError, OnnxImportError, UnsupportedOpError
from ..ir.graph import Value
from .onnx_inline import inline_graph
from .onnx_scope import Scope

if TYPE_CHECKING:
    from .onnx_import import Importer

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})

_UNROLL = 1024
"""Longer loops would make code out of proportion."""

Results = list[Value | None]


def inline_control_flow(
    imp: Importer, proto: NodeProto, inputs: Sequence[Value | None], attrs: Mapping[str, Any], scope: Scope
) -> Results:
    """Results of a node, unfolded; raises UnsupportedOpError where its length is only known at run time."""
    name = proto.name or next((o for o in proto.output if o), proto.op_type)
    match proto.op_type:
        case "If":
            return _if(imp, inputs, attrs, scope, name)
        case "Loop":
            return _loop(imp, inputs, attrs["body"], scope, name)
    return _scan(imp, inputs, attrs, scope, name)


def _if(imp: Importer, inputs: Sequence[Value | None], attrs: Mapping[str, Any], scope: Scope, name: str) -> Results:
    """The branch that is taken. Where that is only known at run time both, and a Where for each result."""
    condition = inputs[0] if inputs else None
    if condition is None or (condition.data is not None and condition.data.size != 1):
        raise OnnxImportError("the condition of an If is one truth value")
    if condition.data is not None:
        return inline_graph(imp, attrs["then_branch" if condition.data.item() else "else_branch"], [], scope, name)
    yes = inline_graph(imp, attrs["then_branch"], [], scope, f"{name}/then")
    no = inline_graph(imp, attrs["else_branch"], [], scope, f"{name}/else")
    results: Results = []
    for a, b in zip(yes, no, strict=False):
        if a is None or b is None:
            results.append(None)
        elif a.type != b.type:
            raise ConstantNeededError(
                f"the condition of an If whose branches give {a.type} and {b.type} must be known at compile time",
                remedy="pin what decides it: --value INPUT=…, or export one branch",
            )
        else:
            results += imp.emit("Where", [condition, a, b], {})
    return results


def _loop(imp: Importer, inputs: Sequence[Value | None], body: GraphProto, scope: Scope, name: str) -> Results:
    """Unrolled turns: results are the values carried, then each scan output stacked along a new first axis."""
    trips, condition, *carried = [*inputs, None, None][: max(2, len(inputs))]
    if any(v is None for v in carried) or len(body.output) < 1 + len(carried):
        raise OnnxImportError("the values that a Loop carries do not fit its body")
    if trips is not None and (trips.data is None or trips.data.size != 1):
        raise ConstantNeededError("the number of turns of a Loop must be known at compile time")
    turns = _UNROLL + 1 if trips is None or trips.data is None else int(trips.data.item())
    go = condition is None or _truth(condition)
    scans: list[Results] = [[] for _ in body.output[1 + len(carried) :]]
    turn = 0
    while go and turn < turns:
        _check_length(turn + 1)
        state = [imp.constant(np.asarray(turn, np.int64)), imp.constant(np.asarray(True)), *carried]
        first, *results = inline_graph(imp, body, state, scope, f"{name}/{turn}")
        if first is None or any(v is None for v in results):
            return [None] * len(results)
        go = _truth(first)
        for scan, value in zip(scans, results[len(carried) :], strict=True):
            scan.append(value)
        carried = results[: len(carried)]
        turn += 1
    return [*carried, *(_stack(imp, scan, 0) for scan in scans)]


def _scan(imp: Importer, inputs: Sequence[Value | None], attrs: Mapping[str, Any], scope: Scope, name: str) -> Results:
    """Unrolled turns over slices of the scanned inputs: final states, then each scan output stacked."""
    body: GraphProto = attrs["body"]
    count = attrs["num_scan_inputs"]
    if "directions" in attrs or not 0 < count <= len(inputs) or any(v is None for v in inputs):
        raise UnsupportedOpError("Scan in the form of opset 8 is not supported")
    carried, scanned = [*inputs[: len(inputs) - count]], [v for v in inputs[len(inputs) - count :] if v is not None]
    made = max(0, len(body.output) - len(carried))
    axes = _per_value(attrs, "scan_input_axes", count)
    out_axes = _per_value(attrs, "scan_output_axes", made)
    backward = _per_value(attrs, "scan_input_directions", count)
    out_backward = _per_value(attrs, "scan_output_directions", made)
    lengths = {_length(v, axis) for v, axis in zip(scanned, axes, strict=True)}
    if len(lengths) != 1:
        raise OnnxImportError(f"the inputs that a Scan goes along have lengths {sorted(lengths)}")
    length = lengths.pop()
    _check_length(length)
    scans: list[Results] = [[] for _ in range(made)]
    for turn in range(length):
        slices = [
            _slice(imp, v, axis, length - 1 - turn if back else turn)
            for v, axis, back in zip(scanned, axes, backward, strict=True)
        ]
        results = inline_graph(imp, body, [*carried, *slices], scope, f"{name}/{turn}")
        if any(v is None for v in results):
            return [None] * len(results)
        carried = results[: len(carried)]
        for scan, value in zip(scans, results[len(carried) :], strict=True):
            scan.append(value)
    ordered = [scan[::-1] if back else scan for scan, back in zip(scans, out_backward, strict=True)]
    return [*carried, *(_stack(imp, scan, axis) for scan, axis in zip(ordered, out_axes, strict=True))]


def _per_value(attrs: Mapping[str, Any], key: str, count: int) -> list[int]:
    values = list(attrs.get(key, ())) or [0] * count
    if len(values) != count:
        raise OnnxImportError(f"attribute '{key}' has {len(values)} entries, not {count}")
    return values


def _length(value: Value, axis: int) -> int:
    if not -value.type.rank <= axis < value.type.rank:
        raise OnnxImportError(f"a Scan goes along axis {axis} of {value.type}")
    length = value.type.shape[axis]
    if not isinstance(length, int):
        raise ConstantNeededError(f"the length of a Scan along {value.type} must be known at compile time")
    return length


def _check_length(turns: int) -> None:
    if turns > _UNROLL:
        raise UnsupportedOpError(f"a loop of more than {_UNROLL} turns is not supported")


def _slice(imp: Importer, value: Value, axis: int, index: int) -> Value:
    return imp.emit("Gather", [value, imp.constant(np.asarray(index, np.int64))], {"axis": axis})[0]


def _stack(imp: Importer, values: Results, axis: int) -> Value:
    """The values along a new axis."""
    if not values:
        raise UnsupportedOpError("a loop without turns that stacks its results is not supported")
    axes = imp.constant(np.asarray([axis], np.int64))
    return imp.emit("Concat", [imp.emit("Unsqueeze", [v, axes], {})[0] for v in values], {"axis": axis})[0]


def _truth(value: Value) -> bool:
    if value.data is None or value.data.size != 1:
        raise ConstantNeededError(
            "the condition of a Loop is only known at run time", remedy="export the model with the loop unrolled"
        )
    return bool(value.data.item())
