"""What an operator's lowering sees: the node, the target, tensors as buffers, and kernels in the making.

A lowering writes kernels with `Builder` and binds *values* to their parameters; where a value lies in memory is
decided later (`passes/plan_memory.py`), so no lowering knows an address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ...codegen.target import Target
from ...ir.errors import UnsupportedOpError
from ...ir.graph import Node, Value, constant
from ...ir.loops import Buffer, Const, Expr, Kernel, Operand, as_expr, broadcast, ramp
from ...ir.loops_builder import Builder
from ...ir.program import Rounded
from ...ir.types import DType, TensorType
from .channels import whole_blocks
from .schedule import Choice, Tuning

INDEX = Const(DType.I64, 1, 0)


@dataclass(eq=False, slots=True)
class Call:
    """One kernel call: parameters are bound to values; `node` gives symbol and origin, `choices` its schedules,
    `rounded` what it rounds.

    once: it runs once for many runs of the model; it reads constants only, and what it writes lasts. over: operands
    whose memory the node's result may take: element i of them is read before element i of it is written, and no more.
    host: of a graphics processor's model: the host runs the kernel.
    """

    kernel: Kernel
    args: tuple[Value, ...]
    node: Node
    choices: tuple[Choice, ...] = ()
    rounded: tuple[Rounded, ...] = ()
    once: bool = False
    over: tuple[Value, ...] = ()
    host: bool = False


def strides(type_: TensorType) -> tuple[int, ...]:
    """Row-major element strides of the *physical* shape."""
    out, step = [], 1
    for d in reversed(type_.physical):
        out.append(step)
        step *= d
    return tuple(reversed(out))


@dataclass(frozen=True, slots=True)
class Site:
    """Where a vector of results stands: logical coordinates of lane 0; lanes run along `axis`.

    In a blocked layout lanes along axis 1 begin at a channel that is a multiple of `lanes`.
    """

    coords: tuple[Expr, ...]
    axis: int = -1
    lanes: int = 1


def offset(type_: TensorType, coords: Sequence[Operand]) -> Expr:
    """Element offset of logical coordinates in a tensor of `type_` (whatever its layout)."""
    at: list[Expr] = [as_expr(c, INDEX) for c in coords]
    steps = strides(type_)
    block = type_.layout.block
    total: Expr = INDEX
    if block:
        channel = at[1]
        total = channel / block * steps[1] + channel % block
        pairs = [(at[0], steps[0]), *zip(at[2:], steps[2:-1], strict=True)]
    else:
        pairs = list(zip(at, steps, strict=True))
    for c, s in pairs:
        total = total + c * s
    return total


class KernelBuilder(Builder):
    """A kernel in the making for one node; `tensor` makes a parameter of a value."""

    def __init__(self, ctx: Lowering) -> None:
        super().__init__()
        self.ctx = ctx
        self.bound: dict[Value, Buffer] = {}
        self.near: dict[Value, Buffer] = {}
        """Buffers of the kernel's own in place of values."""

    def tensor(self, value: Value, hint: str = "") -> Buffer:
        """The parameter buffer of a value (the same one for the same value)."""
        if value in self.near:
            return self.near[value]
        if value not in self.bound:
            size = value.type.nbytes // value.type.dtype.nbytes
            self.bound[value] = self.param(hint or "p", value.type.dtype, size)
        return self.bound[value]

    def read(self, value: Value, site: Site, type_: TensorType | None = None) -> Expr:
        """`value` at a site of a result to which it broadcasts (numpy rules), as a vector of `site.lanes`.

        `type_` reads it as if it had that type (the same bytes under another shape).
        """
        type_ = type_ or value.type
        skip = len(site.coords) - type_.rank
        axis = (site.axis if site.axis >= 0 else len(site.coords) - 1) - skip
        if site.lanes > 1 and axis + skip == 1 and self.ctx.output.type.layout.block:
            value, type_ = whole_blocks(self.ctx, value, type_)
        buffer, dims = self.tensor(value), type_.dims
        coords = [INDEX if dims[i] == 1 else c for i, c in enumerate(site.coords[skip:])]
        at = self.blocked_offset(type_, coords) if type_.layout.block and axis == 1 else offset(type_, coords)
        if site.lanes == 1:
            return self.load(buffer, at)
        if axis < 0 or dims[axis] == 1:
            return broadcast(self.load(buffer, at), site.lanes)
        stride = 1 if type_.layout.block and axis == 1 else strides(type_)[axis]
        return self.load(buffer, at if stride == 1 else ramp(at, stride, site.lanes), site.lanes)

    def write(self, value: Value, site: Site, result: Expr) -> None:
        """Store a vector of results at its site in `value` (same logical shape as the site's space)."""
        buffer, type_ = self.tensor(value, "y"), value.type
        axis = site.axis if site.axis >= 0 else len(site.coords) - 1
        blocked = type_.layout.block and axis == 1
        at = self.blocked_offset(type_, site.coords) if blocked else offset(type_, site.coords)
        stride = 1 if blocked or site.lanes == 1 else strides(type_)[axis]
        self.store(buffer, at if stride == 1 else ramp(at, stride, site.lanes), result)

    def blocked_offset(self, type_: TensorType, coords: Sequence[Expr]) -> Expr:
        """`offset`; a hook for lowerings that know the channel as block index times block plus constant."""
        return offset(type_, coords)

    def done(
        self,
        family: str,
        *,
        shaped: bool = True,
        inplace: bool = False,
        once: bool = False,
        over: tuple[Value, ...] = (),
    ) -> None:
        """Finish the kernel and append its call to the node's calls. `family` becomes part of the symbol."""
        kernel = self.kernel(family, shaped=shaped, inplace=inplace)
        self.ctx.calls.append(Call(kernel, tuple(self.bound), self.ctx.group or self.ctx.node, once=once, over=over))


@dataclass(eq=False, slots=True)
class Lowering:
    """Context of one node.

    For a `c2c.Fused` node `node` is the anchor inside, `head` what it reads through and `tail` the elementwise rest.
    """

    node: Node
    target: Target
    threads: int
    calls: list[Call] = field(default_factory=list)
    tail: tuple[Node, ...] = ()
    result: Value | None = None
    group: Node | None = None
    serial: int = 0
    memo: dict[tuple[object, ...], Value] = field(default_factory=dict)
    """Constants and copies made once for several readers."""
    tuning: Tuning = field(default_factory=Tuning)
    choices: list[Choice] = field(default_factory=list)
    """Schedules chosen for this node, by `schedule.choose`."""
    head: tuple[Node, ...] = ()
    footprint: int = 0
    """Bytes of the constants of the whole graph, which a run reads one after another."""
    for_memory: bool = False
    """Whether less memory is worth some time."""
    activations: str = "f32"
    """What activations of products by integer weights may be rounded to: f32 or int8."""
    precision: DType = DType.F32
    """Of arithmetic on what the caller lets narrow (`narrow-floats`): with f16 sums of products may be f16."""
    rounded: list[Rounded] = field(default_factory=list)
    """Products of this node whose activations are rounded."""

    @property
    def output(self) -> Value:
        """Where results go: the fused group's result, or the node's own."""
        return self.result or self.node.output

    def lanes(self, dtype: DType = DType.F32) -> int:
        return self.target.lanes(dtype)

    def copies(self, count: int) -> int:
        """How often a loop's body stands side by side: `count` times, or once where other threads hide latency."""
        return count if self.target.device is None else 1

    def kernel(self) -> KernelBuilder:
        return KernelBuilder(self)

    def pack(self, hint: str, data: np.ndarray) -> Value:
        """A constant made at compile time (packed weights, tables); its bytes go into the weights."""
        self.serial += 1
        return constant(f"{self.node.output.name}.{hint}{self.serial}", data)

    def scratch(self, hint: str, dtype: DType, *shape: int) -> Value:
        """Arena memory of `shape` elements that lives during this node's calls (times `threads` for one a worker)."""
        self.serial += 1
        return Value(f"{self.node.output.name}.{hint}{self.serial}", TensorType(dtype, shape))

    def epilogue(self, k: KernelBuilder, site: Site, result: Expr) -> Expr:
        """The fused elementwise tail applied to a vector of the anchor's results; identity without a tail."""
        (evaluate,) = _EVALUATE
        known: dict[Value, Expr] = {self.node.output: k.let(result) if self.tail else result}
        for node in self.tail:
            known[node.output] = k.let(evaluate(k, node, site, known))
        return known[self.tail[-1].output] if self.tail else result

    def unsupported(self, what: str, remedy: str = "") -> UnsupportedOpError:
        return UnsupportedOpError(what, where=self.node.where, remedy=remedy)


Evaluate: TypeAlias = Callable[[KernelBuilder, Node, Site, dict[Value, Expr]], Expr]
"""The expression of an elementwise node at a site; operands are known or read."""
_EVALUATE: list[Evaluate] = []


def evaluates(function: Evaluate) -> Evaluate:
    """Register the one evaluator of elementwise nodes; it rests on this module, epilogues rest on it."""
    assert not _EVALUATE, "there is one table of elementwise operators"
    _EVALUATE.append(function)
    return function


LOWERINGS: dict[str, Callable[[Lowering], None]] = {}
GRID_LOWERINGS: dict[str, Callable[[Lowering], None]] = {}
"""Those of graphics processors, by operator, where they have one of their own."""


def lowers(*names: str) -> Callable[[Callable[[Lowering], None]], Callable[[Lowering], None]]:
    """Register a lowering for operators by name."""

    def register(function: Callable[[Lowering], None]) -> Callable[[Lowering], None]:
        for name in names:
            LOWERINGS[name] = function
        return function

    return register


def lowers_on_grid(*names: str) -> Callable[[Callable[[Lowering], None]], Callable[[Lowering], None]]:
    """Register a lowering for graphics processors."""

    def register(function: Callable[[Lowering], None]) -> Callable[[Lowering], None]:
        GRID_LOWERINGS.update(dict.fromkeys(names, function))
        return function

    return register


def unfold(node: Node) -> list[Node]:
    """The nodes in the body of a group, reading the outer values."""
    body = node.attrs["body"]
    outer = dict(zip(body.inputs, (v for v in node.inputs if v is not None), strict=True))
    inner: list[Node] = []
    for n in body.nodes:
        outputs = tuple(Value(v.name, v.type, v.data) for v in n.outputs)
        inputs = tuple(None if v is None else outer.get(v, v) for v in n.inputs)
        inner.append(Node(n.op, inputs, outputs, n.attrs, n.origin))
        outer.update(zip(n.outputs, outputs, strict=True))
    return inner
