"""Sizes that are known at run time only, each below a bound: what Shape gives of counted results, and arithmetic on it.

A vector of sizes is a numpy array of objects: whole numbers, and `Size` where a number depends on data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Node, Value
from ..ir.types import DType
from .onnx_upgrade import Emit


@dataclass(frozen=True, eq=False, slots=True)
class Size:
    """A number in [0, upper] that a scalar of i64 holds at run time."""

    value: Value
    upper: int


Element = int | Size


def upper(sizes: np.ndarray) -> np.ndarray:
    """The bounds of a vector of sizes, as i64."""
    flat = [e.upper if isinstance(e, Size) else int(e) for e in sizes.reshape(-1)]
    return np.asarray(flat, np.int64).reshape(sizes.shape)


def scalar(element: Element, emit: Emit) -> Value:
    """A size as a scalar of i64."""
    return element.value if isinstance(element, Size) else emit.constant(np.asarray(element, np.int64))


def vector(sizes: np.ndarray, emit: Emit) -> Value:
    """Sizes as a tensor of i64."""
    axis = emit.constant(np.asarray([0], np.int64))
    parts = [emit.emit("Unsqueeze", [scalar(e, emit), axis], {})[0] for e in sizes]
    return parts[0] if len(parts) == 1 else emit.emit("Concat", parts, {"axis": 0})[0]


def derived(node: Node, known: Mapping[Value, np.ndarray], emit: Emit) -> np.ndarray | None:
    """The result of a node on sizes as sizes; None where it is no arithmetic on sizes."""
    rule = _RULES.get(node.op)
    if rule is None or node.output.type.dtype not in (DType.I64, DType.I32) or not node.output.type.is_static:
        return None
    operands: list[np.ndarray] = []
    for value in node.inputs:
        found = None if value is None else known.get(value)
        if found is None and value is not None and value.data is not None and value.type.dtype.is_int:
            found = np.asarray(value.data, np.int64).astype(object)
        if found is None:
            return None
        operands.append(found)
    return rule(node, operands, emit)


Rule = Callable[[Node, list[np.ndarray], Emit], np.ndarray | None]


def _same(node: Node, operands: list[np.ndarray], emit: Emit) -> np.ndarray:
    return operands[0].reshape(node.output.type.dims)


def _concat(node: Node, operands: list[np.ndarray], emit: Emit) -> np.ndarray:
    return np.concatenate(operands)


def _gather(node: Node, operands: list[np.ndarray], emit: Emit) -> np.ndarray:
    found = np.empty(node.output.type.dims, object)
    found[...] = operands[0][operands[1].astype(np.int64)]
    return found


def _slice(node: Node, operands: list[np.ndarray], emit: Emit) -> np.ndarray | None:
    data, *rest = operands
    if any(isinstance(e, Size) for r in rest for e in r.reshape(-1)):
        return None
    begin, end, _, step = (*(int(r.reshape(-1)[0]) for r in rest), *(0, 1)[len(rest) - 2 :])
    return data[begin:end:step]


def _fits(op: str, a: Element, b: Element) -> bool:
    """Whether the result lies below that of the bounds, and is no negative number."""
    whole = [e for e in (a, b) if not isinstance(e, Size)]
    if any(e < 0 for e in whole):
        return False
    return op not in ("Sub", "Div") or (not isinstance(b, Size) and (op == "Sub" or b > 0))


_APPLY: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Div": lambda a, b: a // b,
    "Min": min, "Max": max,
}  # fmt: skip
_REDUCED = {"ReduceMin": "Min", "ReduceMax": "Max", "ReduceProd": "Mul"}


def _arithmetic(node: Node, operands: list[np.ndarray], emit: Emit) -> np.ndarray | None:
    found = operands[0]
    for other in operands[1:]:
        a, b = np.broadcast_arrays(found, other)
        elements = [_applied(node.op, x, y, emit) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)]
        if any(e is None for e in elements):
            return None
        found = np.empty(len(elements), object)
        found[:] = elements
        found = found.reshape(a.shape)
    return found


def _reduced(node: Node, operands: list[np.ndarray], emit: Emit) -> np.ndarray | None:
    """All elements as one."""
    elements = list(operands[0].reshape(-1))
    if node.output.type.size != 1 or not elements:
        return None
    found: Element | None = elements[0]
    for element in elements[1:]:
        found = None if found is None else _applied(_REDUCED[node.op], found, element, emit)
    made = np.empty(node.output.type.dims, object)
    made[...] = found
    return None if found is None else made


def _applied(op: str, a: Element, b: Element, emit: Emit) -> Element | None:
    """The result; None where it has no bound."""
    if not _fits(op, a, b):
        return None
    if not isinstance(a, Size) and not isinstance(b, Size):
        return _APPLY[op](a, b)
    if isinstance(a, Size) and not isinstance(b, Size) and _is_neutral(op, a, b):
        return a
    if isinstance(b, Size) and not isinstance(a, Size) and op != "Sub" and _is_neutral(op, b, a):
        return b
    bound = _APPLY[op](*(e.upper if isinstance(e, Size) else e for e in (a, b)))
    return Size(emit.emit(op, [scalar(a, emit), scalar(b, emit)], {})[0], max(bound, 0))


def _is_neutral(op: str, size: Size, number: int) -> bool:
    """Whether the operation leaves a size as it is."""
    return (op, number) in (("Add", 0), ("Sub", 0), ("Mul", 1), ("Div", 1), ("Max", 0)) or (
        op == "Min" and number >= size.upper
    )


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"), _same),
    **dict.fromkeys(_APPLY, _arithmetic),
    **dict.fromkeys(_REDUCED, _reduced),
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
}
