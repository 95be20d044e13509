"""What the user pins: named dimensions, shapes of inputs, values of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..ir.errors import OnnxImportError, ShapeError
from ..ir.reference import MAX_ELEMENTS, checked_type
from ..ir.types import Dim, TensorType


@dataclass(eq=False, slots=True)
class Pins:
    """dims: size of each named dimension. shapes: shape of an input. values: inputs that become constants.

    contradict: a pinned shape has another number than the model declares, so its other declarations mean nothing.
    """

    dims: Mapping[str, int]
    shapes: Mapping[str, Sequence[int]]
    values: Mapping[str, np.ndarray]
    contradict: bool = False
    _bound: dict[str, int] = field(default_factory=dict)

    def bind(self, declared: Mapping[str, Sequence[Dim] | None]) -> None:
        """Learn the size of every dimension from all inputs' declared shapes (None: not declared).

        Raises ShapeError where a name is unknown or two pins contradict each other.
        """
        known = {d for shape in declared.values() for d in shape or () if isinstance(d, str)}
        for name, size in self.dims.items():
            _check_size(name, size)
            if name not in known:
                listed = ", ".join(sorted(known)) or "none"
                raise ShapeError(f"no input has a dimension named '{name}'", remedy=f"open dimensions: {listed}")
            self._bound[name] = int(size)
        for what, pinned in (("shape", self.shapes), ("value", self.values)):
            for name in pinned:
                if name not in declared:
                    raise ShapeError(
                        f"a {what} is given for '{name}', which is no input",
                        remedy=f"inputs: {', '.join(declared) or 'none'}",
                    )
        for name, shape in self._pinned_shapes().items():
            self._bind_shape(name, shape, declared[name])

    def _pinned_shapes(self) -> dict[str, Sequence[int]]:
        return {**self.shapes, **{k: np.shape(v) for k, v in self.values.items()}}

    def _bind_shape(self, name: str, shape: Sequence[int], declared: Sequence[Dim] | None) -> None:
        for size in shape:
            _check_size(name, size)
        if declared is None:
            return
        if len(shape) != len(declared):
            raise ShapeError(
                f"input '{name}' has {len(declared)} dimensions ({_text(declared)}), {len(shape)} are given"
            )
        for dim, size in zip(declared, shape, strict=True):
            self.contradict |= isinstance(dim, int) and dim != size
            if isinstance(dim, str) and self._bound.setdefault(dim, int(size)) != size:
                raise ShapeError(
                    f"dimension '{dim}' is pinned to both {self._bound[dim]} and {size}", where=f"input '{name}'"
                )

    def rank_from(self, name: str) -> tuple[int, ...] | None:
        """The pinned shape of an input, for one that declares none."""
        return tuple(int(d) for d in pinned) if (pinned := self._pinned_shapes().get(name)) is not None else None

    def shape(self, name: str, declared: Sequence[Dim]) -> tuple[Dim, ...]:
        """The shape of input `name`: the pinned one, else the declared one with known dimensions filled in."""
        if name in self.shapes:
            return tuple(int(d) for d in self.shapes[name])
        return tuple(self._bound.get(d, d) if isinstance(d, str) else d for d in declared)

    def fill(self, type_: TensorType) -> TensorType:
        """A type with the known dimensions filled in."""
        return type_.with_shape(tuple(self._bound.get(d, d) if isinstance(d, str) else d for d in type_.shape))

    def value(self, name: str, type_: TensorType) -> np.ndarray | None:
        """The pinned value of an input, in the input's element type."""
        if name not in self.values:
            return None
        given = np.asarray(self.values[name])
        array = given.astype(type_.dtype.numpy)
        if given.dtype.kind in "iufb" and not np.array_equal(array.astype(given.dtype), given, equal_nan=True):
            raise OnnxImportError(f"the value given for input '{name}' does not fit its type {type_.dtype}")
        return np.ascontiguousarray(array).reshape(given.shape)


def unknown_dims(name: str, type_: TensorType) -> ShapeError:
    """The error for an input with open dimensions."""
    open_dims = [d for d in type_.shape if isinstance(d, str)]
    listed = ", ".join(f"'{d}'" for d in dict.fromkeys(open_dims))
    example = ",".join(str(d if isinstance(d, int) else 1) for d in type_.shape)
    named = " ".join(f"--dim {d}=1" for d in dict.fromkeys(open_dims) if not d.startswith(f"{name}.") and d != "?")
    return ShapeError(
        f"the size of dimension {listed} of input '{name}' [{_text(type_.shape)}] is not known",
        where=f"input '{name}'",
        remedy=f"pin it: {f'{named}, or ' if named else ''}--shape {name}={example}",
    )


def _check_size(name: str, size: int) -> None:
    if not isinstance(size, int | np.integer) or not 0 <= size <= MAX_ELEMENTS:
        raise ShapeError(f"'{name}' cannot have size {size}", remedy="give a whole number")


def _text(shape: Sequence[Dim]) -> str:
    return ", ".join(str(d) for d in shape)


def pinned_type(pins: Pins, name: str, declared: TensorType) -> TensorType:
    """The type of input `name` with everything pinned filled in."""
    return checked_type(declared.with_shape(pins.shape(name, declared.shape)), name)
