"""Collects the text of one LLVM function: fresh names, current block, local variables in the entry block."""

from __future__ import annotations

from .llvm_types import mask, vector


class Writer:
    """Instructions in order; `op` returns the name of the result."""

    def __init__(self) -> None:
        self.entry: list[str] = []
        self.lines: list[str] = []
        self.block = "entry"
        self.intrinsics: dict[str, str] = {}
        self._count = 0

    def fresh(self, hint: str = "%t") -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def op(self, text: str) -> str:
        self._count += 1
        name = f"%t{self._count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def line(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Begin a block; the one before must have ended in a branch."""
        self.lines.append(f"{name}:")
        self.block = name

    def local(self, hint: str, type_: str, align: int) -> str:
        """A local variable in the entry block, so that LLVM turns it into registers where it can."""
        name = self.fresh(f"%{hint}.")
        self.entry.append(f"  {name} = alloca {type_}, align {align}")
        return name

    def call(self, name: str, result: str, *args: tuple[str, str], attributes: str = "") -> str:
        """Call of a declared function; the declaration is noted."""
        types = ", ".join(t for t, _ in args)
        self.intrinsics[name] = f"declare {result} @{name}({types}){attributes}"
        return self.op(f"call {result} @{name}({', '.join(f'{t} {v}' for t, v in args)})")

    def opaque(self, value: int) -> str:
        """An i64 that LLVM cannot tell: read once, on entry, from a constant that it must not look into."""
        name = f"c2c.step.{value}".replace("-", "minus.")
        if name not in self.intrinsics:
            self.intrinsics[name] = f"@{name} = internal constant i64 {value}"
            self.entry.append(f"  %{name} = load volatile i64, ptr @{name}, align 8")
        return f"%{name}"

    def hidden(self, pointer: str) -> str:
        """The same pointer, of which LLVM's loop passes do not know how it was computed."""
        return self.call("llvm.launder.invariant.group.p0", "ptr", ("ptr", pointer))

    def broadcast(self, scalar: str, value: str, lanes: int) -> str:
        """A scalar in every lane."""
        if lanes == 1:
            return value
        type_ = vector(scalar, lanes)
        first = self.op(f"insertelement {type_} poison, {scalar} {value}, i64 0")
        return self.op(f"shufflevector {type_} {first}, {type_} poison, {mask((0,) * lanes)}")

    def extract(self, scalar: str, lanes: int, value: str, lane: int) -> str:
        if lanes == 1:
            return value
        return self.op(f"extractelement {vector(scalar, lanes)} {value}, i64 {lane}")

    def build(self, scalar: str, values: list[str]) -> str:
        """A vector of scalars."""
        if len(values) == 1:
            return values[0]
        type_, made = vector(scalar, len(values)), "poison"
        for i, value in enumerate(values):
            made = self.op(f"insertelement {type_} {made}, {scalar} {value}, i64 {i}")
        return made

    def shuffle(self, type_: str, a: str, b: str, indices: tuple[int, ...]) -> str:
        return self.op(f"shufflevector {type_} {a}, {type_} {b}, {mask(indices)}")
