"""A compiled network as kernels, the steps that call them and the memory they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .loops import Kernel
from .types import Counted, DType

Bytes: TypeAlias = bytearray | memoryview
"""A model's weights; a memoryview at a 64-byte boundary is what `plan_memory` makes."""

Base: TypeAlias = Literal["arena", "weights", "input", "output", "prepared"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a buffer lies: byte `offset` from a base (`index` counts inputs or outputs; else it is 0)."""

    base: Base
    offset: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a kernel. `symbol` names the node in the machine code, `origin` its ONNX nodes; host: in a graphics
    processor's program, a processor runs the kernel."""

    kernel: str
    args: tuple[Slot, ...]
    symbol: str
    origin: tuple[str, ...] = ()
    host: bool = False


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the model: public name, element type and logical shape (always plain layout).

    labels: the strings that an output's integers stand for, or that columns of floats are named. counted: an output of
    which only the first elements along an axis are meant, and the output that says how many.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    counted: Counted | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A constant's place in the weights: bytes [offset, offset + nbytes) of one element type."""

    name: str
    dtype: DType
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Rounded:
    """A product of float32 whose factors were rounded: by ONNX nodes `origin`, activations to a type.

    weights: root mean square of what the weights [length, columns] lost, relative to theirs. expected: that of the
    results' error relative to theirs, for normally distributed activations. largest: what no result is wrong by more
    than, relative to the largest magnitude in its row of activations.
    """

    origin: tuple[str, ...]
    activations: str
    length: int
    columns: int
    weights: float
    expected: float
    largest: float


@dataclass(eq=False, slots=True)
class Program:
    """A whole model: kernels, the steps that call them in order, memory sizes and packed weights.

    prepare: steps that run once, before all others, and fill `prepared_bytes` of the app's from the weights.
    spans: the constants in the weights, in order, as far as they are known; the text form leaves them out.
    rounded: products that do not compute what the model says; the text form leaves them out.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    kernels: dict[str, Kernel]
    steps: tuple[Step, ...]
    arena_bytes: int
    weights: Bytes
    threads: int = 1
    notes: dict[str, str] = field(default_factory=dict)
    prepare: tuple[Step, ...] = ()
    prepared_bytes: int = 0
    spans: tuple[Span, ...] = ()
    rounded: tuple[Rounded, ...] = ()

    def kernels_of(self, *, host: bool) -> dict[str, Kernel]:
        """The kernels of the steps that the host runs, or of those that it does not."""
        used = {s.kernel for s in (*self.prepare, *self.steps) if s.host is host}
        return {name: k for name, k in self.kernels.items() if name in used}
