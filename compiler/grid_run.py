"""Runs a program for a graphics processor here: its bundle, built with the C driver, on the installed OpenCL."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..ir.errors import RunError
from ..runtime_stub.loader import Bound
from ..runtime_stub.opencl import LoadedOpenCl
from .bundle import write_bundle
from .driver import Compiled
from .toolchain import link_grid


class GridModel:
    """A program on a device, which is opened by the first run. Errors: ToolError without a C compiler, RunError without
    a device, or where it or its compiler fails."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._loaded: LoadedOpenCl | None = None

    def clone(self) -> GridModel:
        """The same program with memory of its own."""
        return GridModel(self.compiled)

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
    def device(self) -> LoadedOpenCl:
        """The device with the program's kernels and weights."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> LoadedOpenCl:
        program = self.compiled.program
        with tempfile.TemporaryDirectory(prefix="c2c-") as made:
            write_bundle(program, self.compiled.options, Path(made))
            library = link_grid(Path(made), program.name)
            steps = len(program.prepare) + len(program.steps)
            try:
                return LoadedOpenCl(library, program.name, weights=program.weights, steps=steps)
            except RuntimeError as e:
                raise self._error(e) from e

    def _error(self, e: RuntimeError) -> RunError:
        missing = "no OpenCL" in str(e)
        remedy = "install an OpenCL driver, for instance pocl-opencl-icd" if missing else ""
        return RunError(str(e), where=f"target {self.compiled.options.target}", remedy=remedy)
