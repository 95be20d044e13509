"""Runs a model for a graphics processor here: its bundle, built with its driver, on the device that is here."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..codegen.dialects import LANGUAGES, Language
from ..codegen.target import Target
from ..ir.errors import RunError
from ..runtime_stub.gpu import LoadedGpu
from ..runtime_stub.loader import Bound
from .bundle import write_bundle
from .driver import Compiled
from .toolchain import link_grid

Weights = bytes | bytearray | memoryview


@dataclass(eq=False, slots=True)
class GridModel:
    """A model on a device, which is opened by the first run; `write` puts its bundle into a folder, steps: of the plan.
    Errors: ToolError without a C compiler, RunError without a device, or where it or its compiler fails."""

    name: str
    target: str
    weights: Weights
    steps: int
    write: Callable[[Path], object]
    _loaded: LoadedGpu | None = field(default=None)

    def clone(self) -> GridModel:
        """The same model with memory of its own."""
        return GridModel(self.name, self.target, self.weights, self.steps, self.write)

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> int:
        """Run on C-contiguous arrays in the model's order."""
        try:
            return self.device.run(inputs, outputs)
        except RuntimeError as e:
            raise self._error(e) from e

    def trace(
        self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], steps: int, beside: Bound | None = None
    ) -> np.ndarray:
        """Run; nanoseconds [steps] of each of the program's `steps`, as the device took them."""
        try:
            return self.device.trace(inputs, outputs)[-steps:] if steps else np.zeros(0, np.int64)
        except RuntimeError as e:
            raise self._error(e) from e

    @property
    def device(self) -> LoadedGpu:
        """The device with the program's kernels and weights."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @property
    def language(self) -> Language:
        """Of the kernels."""
        device = Target.parse(self.target).device
        assert device is not None
        return LANGUAGES[device.dialect]

    def close(self) -> None:
        """Give the device's memory back; the next run opens it anew."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _load(self) -> LoadedGpu:
        with tempfile.TemporaryDirectory(prefix="c2c-") as made:
            self.write(Path(made))
            library = link_grid(Path(made), self.name, self.language)
            try:
                return LoadedGpu(library, self.name, self.language.driver, weights=self.weights, steps=self.steps)
            except RuntimeError as e:
                raise self._error(e) from e

    def _error(self, e: RuntimeError) -> RunError:
        language = self.language
        remedy = f"install {language.needs}" if f"no {language.name}" in str(e) else ""
        return RunError(str(e), where=f"target {self.target}", remedy=remedy)


def grid_model(compiled: Compiled) -> GridModel:
    """What the driver made."""
    program, options = compiled.program, compiled.options
    steps = len(program.prepare) + len(program.steps)
    return GridModel(program.name, str(options.target), program.weights, steps, partial(write_bundle, program, options))


def load_grid(folder: Path, name: str, target: str, weights: Weights, steps: int) -> GridModel:
    """A bundle that was written before; it is built elsewhere, its folder stays as it is."""
    return GridModel(name, target, weights, steps, lambda to: shutil.copytree(folder, to, dirs_exist_ok=True))
