"""The one tree of errors that a user may see; here because every room may import `ir`."""

from __future__ import annotations


class C2CError(Exception):
    """What went wrong, where, and what to do about it.

    The first line says what; `where` names node, operator and shapes; `remedy` says what the user can do.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        lines = [what, *(f"  at: {where}" for _ in (1,) if where), *(f"  do: {remedy}" for _ in (1,) if remedy)]
        super().__init__("\n".join(lines))


class OnnxImportError(C2CError):
    """The file is not a model that can be read."""


class UnsupportedOpError(C2CError):
    """The model is valid, but an operator, or a form of it, is not supported."""


class ShapeError(C2CError):
    """A shape is unknown, contradictory or too large."""


class UnknownShapeError(ShapeError):
    """Inference cannot tell the shape: an open dimension, or one that depends on data."""


class ConstantNeededError(UnsupportedOpError):
    """An input that must be known at compile time (a shape, axes, …) is computed at run time."""


class VerifyError(C2CError):
    """An IR breaks one of its own rules."""


class PassError(C2CError):
    """A pass failed or broke its contract."""


class CodegenError(C2CError):
    """The target cannot express what was asked for."""


class TargetError(C2CError):
    """An unknown target, feature or operating system."""


class ToolError(C2CError):
    """A tool that a command needs (compiler, emulator) is missing or failed."""


class ParseError(C2CError):
    """IR text that does not parse; `where` is line:column and the line itself."""


class OptionsError(C2CError):
    """An option has a value that makes no sense."""


class TuningError(C2CError):
    """A tuning file that cannot be read, or that asks for what this version or target does not have."""


class OutputError(C2CError):
    """A file cannot be written where it was asked for."""


class RunError(C2CError):
    """Wrong inputs to a compiled model, or an error code that it returned."""
