"""Recurrent networks that an exporter wrote out step by step become LSTM, GRU and RNN again.

Before: three or more cells (see `recurrence_cells`), each of which reads the state of the one before through the same
weights. After: one LSTM, GRU or RNN over all steps, and its results picked apart where single steps are read.
Preserves: steps whose inner values are read elsewhere, whose weights differ, or whose inputs depend on the states of
the same chain (decoders that feed results back). Needs: constants folded, equal ones merged, additions canonical.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.types import TensorType
from .base import GraphRewriter, Pass, PassContext, register_pass
from .pattern import required
from .recurrence_cells import Cell, Linear, Part, find_cell
from .views import part_start

MIN_STEPS = 3

BIAS_TOLERANCE = 1e-6
"""Relative difference of sums of the same constants in another order."""


@register_pass
class RollRecurrences(Pass):
    name = "roll-recurrences"

    def run(self, graph: Graph, context: PassContext) -> bool:
        changed = False
        while True:
            rewriter = context.rewriter(graph)
            rolled = any(_roll(rewriter, c) for c in _chains(graph) if _is_closed(rewriter, c))
            changed = rewriter.finish() and rolled or changed
            if not rolled:
                return changed


@dataclass(frozen=True, slots=True)
class Role:
    """A gate without its values: what x and h are multiplied with, and what is added."""

    x: Part | None
    h: Part | None
    constants: tuple[Part, ...]

    def bias(self, size: int) -> np.ndarray:
        return Linear((), self.constants).bias(size)


@dataclass(frozen=True, slots=True)
class Step:
    """A cell whose values are told apart."""

    cell: Cell
    x: Value
    h_old: Value | None


@dataclass(eq=False, slots=True)
class Chain:
    """Steps of the same roles, each after the one before. h_old None in the first: zeros."""

    roles: tuple[Role, ...]
    steps: list[Step] = field(default_factory=list)

    @property
    def first(self) -> Cell:
        return self.steps[0].cell

    @property
    def last(self) -> Cell:
        return self.steps[-1].cell


def _chains(graph: Graph) -> list[Chain]:
    """Maximal chains of at least MIN_STEPS steps, in order of their first step."""
    cells: dict[Value, Cell] = {}
    chains: list[Chain] = []
    ends: dict[Value, Chain] = {}
    for node in graph.nodes:
        cell = find_cell(node.output) if node.outputs else None
        if cell is None:
            continue
        cells[cell.h] = cell
        found = max((_after(cell, h, cells, ends) for h in _states(cell)), key=_worth, default=None)
        if found is None:
            continue
        chain, step = found
        if chain.steps and ends.get(chain.last.h) is chain:
            del ends[chain.last.h]
        else:
            chains.append(chain)
        chain.steps.append(step)
        ends[cell.h] = chain
    return [c for c in chains if len(c.steps) >= MIN_STEPS]


def _after(cell: Cell, h_old: Value, cells: dict[Value, Cell], ends: dict[Value, Chain]) -> tuple[Chain, Step] | None:
    """The chain that a cell goes on with, if `h_old` is its old state, and its step."""
    before = cells.get(h_old)
    told = _told_apart(cell, h_old) if before is not None and _follows(cell, before) else None
    if before is None or told is None:
        return None
    chain = ends.get(h_old)
    return (chain if chain is not None and chain.roles == told[0] else _begun(before, told[0])), told[1]


def _worth(found: tuple[Chain, Step] | None) -> int:
    return -1 if found is None else len(found[0].steps)


def _states(cell: Cell) -> list[Value]:
    """Values that may be the old state: told by the form, or multiplied in some gate."""
    if cell.h_old is not None:
        return [cell.h_old]
    return list(dict.fromkeys(v for gate in cell.gates for v, _ in gate.products))


def _follows(cell: Cell, before: Cell) -> bool:
    same = (cell.op, cell.activation, cell.reset_after) == (before.op, before.activation, before.reset_after)
    return same and cell.c_old is before.c and cell.h.type == before.h.type


def _told_apart(cell: Cell, h_old: Value) -> tuple[tuple[Role, ...], Step] | None:
    """Roles of all gates where each multiplies one x and the state, once each (GRU's last ones: see Cell)."""
    others = list(dict.fromkeys(v for gate in cell.gates for v, _ in gate.products if v is not h_old))
    if len(others) != 1:
        return None
    (x,) = others
    roles = []
    for i, gate in enumerate(cell.gates):
        role = Role(gate.part_of(x), gate.part_of(h_old), tuple(sorted(gate.constants, key=_order)))
        behind = cell.reset_after and i == len(cell.gates) - 1
        ahead = cell.reset_after and i == len(cell.gates) - 2
        wanted = (role.x is None) == behind and (role.h is None) == ahead
        if not wanted or len(gate.products) != (role.x is not None) + (role.h is not None):
            return None
        roles.append(role)
    return tuple(roles), Step(cell, x, h_old)


def _order(part: Part) -> tuple[str, int]:
    return part.value.name, part.columns[0]


def _begun(before: Cell, roles: tuple[Role, ...]) -> Chain:
    """A chain whose next step follows `before`: with it where it has the same roles, or begins from zeros."""
    for h_old in _states(before):
        told = _told_apart(before, h_old)
        if told is not None and told[0] == roles:
            return Chain(roles, [told[1]])
    values = list(dict.fromkeys(v for gate in before.gates for v, _ in gate.products if v is not before.h_old))
    zero = before.h_old is None or (before.h_old.data is not None and not before.h_old.data.any())
    if len(values) == 1 and zero and _is_first_from_zeros(before, values[0], roles):
        return Chain(roles, [Step(before, values[0], None)])
    return Chain(roles)


def _is_first_from_zeros(cell: Cell, x: Value, roles: tuple[Role, ...]) -> bool:
    """Whether the gates are those of `roles` without the state, whose products were folded into the constants."""
    size = cell.h.type.dims[1]
    for gate, role in zip(cell.gates, roles, strict=True):
        bias = role.bias(size)
        close = np.allclose(gate.bias(size), bias, rtol=BIAS_TOLERANCE, atol=BIAS_TOLERANCE * np.abs(bias).max())
        found = [v for v, _ in gate.products if v is not cell.h_old]
        if gate.part_of(x) != role.x or len(found) != (role.x is not None) or not close:
            return False
    return True


# --- what may be replaced


def _is_closed(rewriter: GraphRewriter, chain: Chain) -> bool:
    """Nothing but states is read outside, and no input depends on a state of the chain."""
    inside = _nodes(chain)
    states = {s.cell.h for s in chain.steps} | ({chain.last.c} if chain.last.c is not None else set())
    for node in inside:
        for value in node.outputs:
            readers = rewriter.readers(value)
            if value not in states and (rewriter.is_output(value) or any(r not in inside for r in readers)):
                return False
    later = set(states)
    for node in rewriter.graph.nodes:
        if node not in inside and any(v in later for v in node.inputs):
            later.update(node.outputs)
    start = chain.steps[0]
    shapes = [v.type for v in (start.h_old, start.cell.c_old) if v is not None]
    same = all(s.x.type == start.x.type for s in chain.steps) and all(t == start.cell.h.type for t in shapes)
    return same and not any(s.x in later for s in chain.steps)


def _nodes(chain: Chain) -> set[Node]:
    """Nodes between the steps' inputs and their states."""
    found: set[Node] = set()
    for step in chain.steps:
        stops = {step.x, step.h_old, step.cell.c_old, step.cell.h_old}
        todo = [step.cell.h]
        while todo:
            value = todo.pop()
            node = value.producer
            if value in stops or node is None or node in found:
                continue
            found.add(node)
            todo += [v for v in node.inputs if v is not None]
    return found


# --- the operator


def _roll(rewriter: GraphRewriter, chain: Chain) -> bool:
    """Put the operator in place of the chain."""
    node = chain.last.h.producer
    assert node is not None
    if not rewriter.allow(RollRecurrences.name, node):
        return False
    start, steps = chain.steps[0], len(chain.steps)
    batch, hidden = start.cell.h.type.dims
    dtype, origin = start.cell.h.type.dtype, node.origin
    x, backwards = _inputs(rewriter, chain)
    weights, recurrent, bias = (rewriter.constant(f"{chain.first.op}_{n}", a) for n, a in _weights(chain, hidden))
    state = TensorType(dtype, (1, batch, hidden))
    h_old = _state(rewriter, start.h_old, state, origin)
    c_old = [_state(rewriter, start.cell.c_old, state, origin)] if start.cell.c is not None else []
    attrs: dict[str, object] = {"hidden_size": hidden}
    if backwards:
        attrs["direction"] = "reverse"
    if chain.first.op == "GRU":
        attrs["linear_before_reset"] = int(chain.first.reset_after)
    if chain.first.activation != "Tanh":
        attrs["activations"] = [chain.first.activation]
    inputs = [x, weights, recurrent, bias, None, h_old, *c_old]
    types = [TensorType(dtype, (steps, 1, batch, hidden)), state, *([state] if c_old else [])]
    new = rewriter.emit(chain.first.op, inputs, types, attrs, origin=origin, hint=chain.last.h.name)
    every = TensorType(dtype, (steps, batch, hidden))
    results = _reshape(rewriter, new.output, every, origin)
    order = chain.steps[::-1] if backwards else chain.steps
    _replace_stacks(rewriter, [s.cell.h for s in order], results)
    for i, s in enumerate(order):
        picked = rewriter.emit(
            "Gather", [results, rewriter.constant("step", np.asarray(i, np.int64))], [s.cell.h.type], {"axis": 0},
            origin=origin, hint=s.cell.h.name,
        )  # fmt: skip
        rewriter.replace(s.cell.h, picked.output)
    if chain.last.c is not None:
        rewriter.replace(chain.last.c, _reshape(rewriter, new.outputs[2], chain.last.c.type, origin))
    return True


def _weights(chain: Chain, hidden: int) -> list[tuple[str, np.ndarray]]:
    """W [1, gates·H, I], R [1, gates·H, H], B [1, 2·gates·H] in ONNX's order."""
    dtype = chain.first.h.type.dtype.numpy
    w = np.concatenate([r.x.matrix.T for r in chain.roles if r.x is not None])
    r_ = np.concatenate([r.h.matrix.T for r in chain.roles if r.h is not None])
    biases = [r.bias(hidden) for r in chain.roles]
    zeros = [np.zeros(hidden)] * (len(w) // hidden)
    if chain.first.reset_after:
        zeros[-1] = biases.pop()
    return [("w", w[None].astype(dtype)), ("r", r_[None].astype(dtype)),
            ("b", np.concatenate(biases + zeros)[None].astype(dtype))]  # fmt: skip


def _state(rewriter: GraphRewriter, value: Value | None, type_: TensorType, origin: tuple[str, ...]) -> Value:
    if value is None:
        return rewriter.constant("state", np.zeros(type_.dims, type_.dtype.numpy))
    if value.data is not None:
        return rewriter.constant("state", value.data.reshape(type_.dims))
    return _reshape(rewriter, value, type_, origin)


def _reshape(rewriter: GraphRewriter, value: Value, type_: TensorType, origin: tuple[str, ...]) -> Value:
    shape = rewriter.constant("shape", np.asarray(type_.dims, np.int64))
    return rewriter.emit("Reshape", [value, shape], [type_], origin=origin, hint=value.name).output


def _inputs(rewriter: GraphRewriter, chain: Chain) -> tuple[Value, bool]:
    """X [steps, B, I], and whether its first step is the chain's last."""
    xs = [s.x for s in chain.steps]
    node = xs[0].producer
    origin = node.origin if node is not None else ()
    found = [_moment(x) for x in xs]
    batch, width = xs[0].type.dims
    every = TensorType(xs[0].type.dtype, (len(xs), batch, width))
    if (first := found[0]) is not None:
        source, axis, index = first
        for sign in (1, -1):
            if all(f == (source, axis, index + sign * i) for i, f in enumerate(found)):
                begin = index if sign > 0 else index - len(xs) + 1
                return _span(rewriter, source, axis, begin, every, origin), sign < 0
    ones = [_reshape(rewriter, x, TensorType(x.type.dtype, (1, batch, width)), origin) for x in xs]
    return rewriter.emit("Concat", ones, [every], {"axis": 0}, origin=origin, hint=xs[0].name).output, False


def _moment(x: Value) -> tuple[Value, int, int] | None:
    """The sequence, its axis of time and the moment of which x [B, I] is all."""
    part, node = x, x.producer
    if node is not None and node.op == "Reshape":
        part = required(node)
        node = part.producer
    found = part_start(node, part) if node is not None else None
    if node is None or found is None or required(node).type.rank != 3 or found[0] > 1:
        return None
    dims = required(node).type.dims
    whole = tuple(d for i, d in enumerate(dims) if i != found[0]) == x.type.dims
    one = part.type.rank == 2 or part.type.dims[found[0]] == 1
    return (required(node), *found) if whole and one else None


def _span(
    rewriter: GraphRewriter, source: Value, axis: int, begin: int, every: TensorType, origin: tuple[str, ...]
) -> Value:
    """Moments of a sequence from `begin` on, time first."""
    steps, batch, width = every.dims
    if steps != source.type.dims[axis]:
        bounds = [rewriter.constant("bound", np.asarray([i], np.int64)) for i in (begin, begin + steps, axis)]
        dims = (steps, batch, width) if axis == 0 else (batch, steps, width)
        source = rewriter.emit(
            "Slice", [source, *bounds], [TensorType(every.dtype, dims)], origin=origin, hint=source.name
        ).output
    if axis == 0:
        return source
    return rewriter.emit("Transpose", [source], [every], {"perm": [1, 0, 2]}, origin=origin, hint=source.name).output


def _replace_stacks(rewriter: GraphRewriter, states: list[Value], results: Value) -> None:
    """Concatenations of all states along a new axis are the results themselves."""
    for node in [*rewriter.graph.nodes]:
        if node.op != "Concat" or node.output.type.rank != 3 or len(node.inputs) != len(states):
            continue
        axis = node.attrs["axis"] % 3
        sources = [v.producer for v in node.inputs if v is not None]
        pairs = zip(sources, states, strict=True)
        same = all(s is not None and s.op == "Reshape" and s.inputs[0] is h for s, h in pairs)
        if not same or any(v is None or v.type.dims[axis] != 1 for v in node.inputs) or axis > 1:
            continue
        steps, batch, hidden = results.type.dims
        stacked = results
        if axis == 1:
            turned = TensorType(results.type.dtype, (batch, steps, hidden))
            stacked = rewriter.emit("Transpose", [results], [turned], {"perm": [1, 0, 2]}, origin=node.origin).output
        if stacked.type == node.output.type:
            rewriter.replace(node.output, stacked)
