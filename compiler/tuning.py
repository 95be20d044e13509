"""Tuning files: schedules that were measured to be fast, as JSON that is sorted, versioned and says for what machine.

Policy: nothing in a file is ignored silently. A file of another format or for another kind of machine is refused; so is
a name that no schedule has (`schedule.choose`) and a file that names no problem of the model. Problems of other models
may stand in it, so that one file can serve several. Problems that it does not name are reported by `untuned`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..codegen.target import Target
from ..ir.errors import TuningError
from ..passes.lower.schedule import Choice, Tuning
from .output import writing

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """The schedule taken for a problem and the cost model's, with microseconds of all nodes of one run.

    default_us is None where the model that the cost model makes has no such problem.
    """

    name: str
    us: float
    default: str
    default_us: float | None


def write_tuning(path: Path, target: Target, measured: Mapping[tuple[str, str], Measured]) -> None:
    """Write a tuning file; raises OutputError."""
    families: dict[str, dict[str, Any]] = {}
    for (family, problem), m in sorted(measured.items()):
        families.setdefault(family, {})[problem] = {
            "name": m.name, "us": round(m.us, 2), "default": m.default,
            "default_us": None if m.default_us is None else round(m.default_us, 2),
        }  # fmt: skip
    record = {"format": FORMAT, "c2c": _version(), "target": str(target), "machine": machine_of(target),
              "schedules": families}  # fmt: skip
    with writing(path):
        path.write_text(json.dumps(record, indent=1) + "\n")


def read_tuning(path: Path, target: Target) -> Tuning:
    """What a file decides for `target`; raises TuningError."""
    try:
        record = json.loads(path.read_text())
        form, machine, version = record["format"], record["machine"], record["c2c"]
        names = {
            (str(family), str(problem)): str(row["name"])
            for family, problems in record["schedules"].items()
            for problem, row in problems.items()
        }
    except OSError as e:
        raise TuningError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise TuningError(f"{path} is not a tuning file: {e!r}", remedy="write one with c2c tune") from e
    if form != FORMAT:
        raise TuningError(
            f"{path} has format {form}, this version of c2c reads {FORMAT}",
            where=f"written by c2c {version}",
            remedy="tune again with this version",
        )
    if {**machine, "cpu": ""} != {**machine_of(target), "cpu": ""}:
        raise TuningError(
            f"{path} is for another kind of machine than {target}",
            where=f"{_kind(machine)}, not {_kind(machine_of(target))}",
            remedy="tune on the target's machine",
        )
    return Tuning(names)


def machine_of(target: Target) -> dict[str, Any]:
    """What decides which schedules there are; the processor's name is for people."""
    return {"arch": target.arch, "vector_bits": target.vector_bits, "registers": target.registers, "cpu": target.cpu}


def _kind(machine: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in machine.items())


def untuned(tuning: Tuning, choices: Iterable[Choice]) -> list[Choice]:
    """Choices between several schedules that a tuning does not make, each problem once; none without a tuning.

    Raises TuningError where it makes none of them.
    """
    if not tuning.names:
        return []
    open_ = {c.key: c for c in choices if len(c.candidates) > 1}
    left = [c for key, c in open_.items() if key not in tuning.names]
    if open_ and len(left) == len(open_):
        raise TuningError(
            "the tuning names no problem of this model",
            where="; ".join(f"{c.family} {c.problem}" for c in left[:3]),
            remedy="tune this model with this version of c2c and the same --threads",
        )
    return left


def _version() -> str:
    from .. import __version__

    return __version__
