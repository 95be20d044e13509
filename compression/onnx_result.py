"""What a compression leaves behind: model, packed weights, report; how fast the compiler expects the model to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..codegen.target import Target
from ..compiler.driver import Compiled, compile_file
from ..compiler.estimate import expected_cycles
from ..compiler.options import CompileOptions
from ..compiler.packed import pack_program
from ..packing import PackedWeights
from .onnx_model import write_coded
from .session import Pass, Session


@dataclass(frozen=True, slots=True)
class Outcome:
    """A pass as a model. packed: its weights for the first target. speeds: how many times as fast as the dense model it
    is expected to run on one core, by target."""

    model: ModelProto
    packed: PackedWeights
    speeds: dict[str, float]

    @property
    def bytes(self) -> int:
        """Of the packed weights, and of the table by which an app reads them."""
        return len(self.packed.bytes) + int(self.packed.table.nbytes)


@dataclass(eq=False, slots=True)
class Outcomes:
    """Makes them, each of a pass once; the dense model is compiled once a target."""

    session: Session
    targets: Sequence[Target]
    dense: dict[Target, float] = field(default_factory=dict)
    made: dict[float, Outcome] = field(default_factory=dict)

    def of(self, found: Pass) -> Outcome:
        if found.price not in self.made:
            self.made[found.price] = self._made(found)
        return self.made[found.price]

    def _made(self, found: Pass) -> Outcome:
        model = write_coded(self.session.model, found.coded)
        speeds, programs = {}, []
        for target in self.targets:
            self.session.progress(f"compile for {target}")
            if target not in self.dense:
                self.dense[target] = expected_cycles(self._compiled(self.session.model, target))
            compiled = self._compiled(model, target)
            speeds[str(target)] = self.dense[target] / max(expected_cycles(compiled), 1.0)
            programs.append(compiled.program)
        return Outcome(model, pack_program(programs[0]), speeds)

    def _compiled(self, model: ModelProto, target: Target) -> Compiled:
        """As `c2c compile model.onnx --weights packed` does, with the samples' shapes."""
        options = CompileOptions(
            target, shapes=self.session.samples.shapes(), winograd_weights="load", keep_constants=True
        )
        return compile_file(model.SerializeToString(), options)


def write_outcome(folder: Path, outcome: Outcome, report: dict[str, Any]) -> None:
    """model.onnx, model.c2w and report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(outcome.model.SerializeToString(deterministic=True))
    (folder / "model.c2w").write_bytes(outcome.packed.bytes)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
