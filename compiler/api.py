"""The Python interface: compile, run, save, load."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnx

from ..codegen.llvm_program import emit_object
from ..codegen.target import Target
from ..ir.errors import OnnxImportError, OptionsError, RunError
from ..ir.program import Port
from ..ir.types import Counted, DType
from ..passes.lower.schedule import Tuning
from ..runtime_stub.loader import Bound, Loaded
from .bundle import sha256, write_bundle
from .driver import Compiled, compile_file
from .grid_run import GridModel, grid_model, load_grid
from .inputs import checked_inputs, checked_outputs, meant
from .names import model_identifier
from .options import CompileOptions
from .packed import KINDS as PACKED
from .packed import unpack_bundle
from .tuning import read_tuning, untuned


class CompiledModel:
    """A model loaded in this process. It owns one arena: runs from several threads wait for each other, those of its
    `clone` do not. loaded: None where the model is for another machine and can only be saved."""

    def __init__(
        self,
        name: str,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        loaded: Loaded | GridModel | None,
        compiled: Compiled | None,
    ) -> None:
        self.name = name
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._loaded = loaded
        self._compiled = compiled
        self._model_sha256 = ""
        self._running = Lock()

    def clone(self) -> CompiledModel:
        """The same model with an arena of its own, for another thread."""
        twin = CompiledModel(self.name, self.inputs, self.outputs, self._loadable().clone(), self._compiled)
        twin._model_sha256 = self._model_sha256
        return twin

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Run once. feeds: array by input name, of the declared dtype and shape; contiguous ones are read in place.
        outputs: contiguous arrays to write into, by output name; others are allocated. Where data decide how many
        results there are, what comes back is a view that ends with the last of them. Raises RunError."""
        loaded = self._loadable()
        arrays = checked_inputs(self.inputs, feeds)
        results = checked_outputs(self.outputs, outputs or {}, arrays)
        with self._running:
            code = loaded.run(arrays, results)
        if code:
            raise RunError(f"{self.name}_run returned error {code}")
        return meant(self.outputs, {p.name: r for p, r in zip(self.outputs, results, strict=True)})

    def trace(self, feeds: Mapping[str, np.ndarray], steps: int, beside: Bound | None = None) -> np.ndarray:
        """Nanoseconds of each of the program's `steps` in one run on this thread (see `Loaded.trace`)."""
        loaded = self._loadable()
        arrays = checked_inputs(self.inputs, feeds)
        with self._running:
            return loaded.trace(arrays, checked_outputs(self.outputs, {}, arrays), steps, beside)

    def close(self) -> None:
        """Give back what a model for a graphics processor holds on its device; the next run opens it anew."""
        if isinstance(self._loaded, GridModel):
            self._loaded.close()

    def _loadable(self) -> Loaded | GridModel:
        if self._loaded is None:
            raise RunError(
                f"{self.name} is for {self.compiled.options.target}, which this machine cannot run",
                remedy="save it, or run it emulated with c2c run or c2c verify",
            )
        return self._loaded

    def save(self, folder: Path | str, *, weights: str = "embed", emit: Sequence[str] = ("obj",)) -> dict[str, Any]:
        """Write object, header, example and manifest into `folder`; returns the manifest."""
        if self._compiled is None:
            raise RunError("a model that was loaded from files cannot be saved again", remedy="copy its folder")
        return write_bundle(
            self._compiled.program, self._compiled.options, Path(folder), weights=weights,
            emit=(emit,) if isinstance(emit, str) else tuple(emit), model_sha256=self._model_sha256,
        )  # fmt: skip

    @property
    def compiled(self) -> Compiled:
        """Graphs and program behind the model; raises RunError for one loaded from files."""
        if self._compiled is None:
            raise RunError("a model that was loaded from files has no IR")
        return self._compiled

    def __repr__(self) -> str:
        ports = ", ".join(f"{p.name}: {p.dtype}{list(p.shape)}" for p in self.inputs)
        results = ", ".join(f"{p.name}: {p.dtype}{list(p.shape)}" for p in self.outputs)
        return f"<c2c model {self.name} ({ports}) -> ({results})>"


def compile(
    model: Path | str | bytes | onnx.ModelProto,
    target: str = "native",
    *,
    threads: int = 1,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    name: str | None = None,
    level: int = 2,
    winograd_error: float = 1e-4,
    winograd_weights: str = "auto",
    precision: str = "f32",
    weight_type: str = "f32",
    activations: str = "f32",
    optimize_for: str = "speed",
    host_steps: bool = True,
    tuning: Path | str | None = None,
) -> CompiledModel:
    """Compile an ONNX model and load it in this process (no C compiler needed).

    model: a path, the file's bytes, or a ModelProto. dims pins named dimensions, shapes whole inputs, values makes
    inputs constants. threads: the most threads a run uses. winograd_weights: "compile", "load" or "auto", when they are
    transformed. precision: "f32", or "f16" for arithmetic in half precision between the model's own inputs and outputs,
    "bf16" for products of bf16 there, on targets that have it. weight_type: "f32", or "f16", "bf16": weights rounded to
    it and widened in registers. activations: "f32", or "int8": those of products by few-level or integer weights may be
    rounded, where that is faster; the manifest says which, and how wrong that makes results. optimize_for: "speed", or
    "memory" where a smaller arena is worth some time. host_steps: whether a graphics processor's model may run steps on
    the host where that is expected to be faster. tuning: a file of `c2c tune`. A target that this machine cannot
    run can be saved, not run.
    Raises C2CError: one clear error with node, operator, shapes and remedy.
    """
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    parsed = Target.parse(target)
    options = CompileOptions(
        parsed,
        name=model_identifier(name) if name else model_name(source),
        threads=threads,
        level=level,
        dims={k: _integer(k, v) for k, v in (dims or {}).items()},
        shapes={k: tuple(_integer(k, d) for d in _sequence(k, v)) for k, v in (shapes or {}).items()},
        values={k: np.asarray(v) for k, v in (values or {}).items()},
        winograd_error=winograd_error,
        winograd_weights=winograd_weights,
        precision=precision,
        weight_type=weight_type,
        activations=activations,
        optimize_for=optimize_for,
        host_steps=host_steps,
        tuning=Tuning() if tuning is None else read_tuning(Path(tuning), parsed),
    )
    compiled = compile_file(source, options)
    untuned(options.tuning, compiled.schedules)
    made = from_compiled(compiled)
    made._model_sha256 = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else file_sha256(source)
    return made


def _integer(name: str, size: object) -> int:
    """A dimension as a plain int, whatever integer type it came in."""
    try:
        return operator.index(size)  # type: ignore[arg-type]
    except TypeError as e:
        raise OptionsError(f"'{name}' cannot have size {size!r}", remedy="give a whole number") from e


def _sequence(name: str, shape: object) -> Sequence[object]:
    if not isinstance(shape, Sequence | np.ndarray):
        raise OptionsError(f"'{name}' cannot have shape {shape!r}", remedy="give a tuple of whole numbers")
    return tuple(shape)


def from_compiled(compiled: Compiled) -> CompiledModel:
    """Load what the driver made."""
    program, target = compiled.program, compiled.options.target
    loaded: Loaded | GridModel | None = None
    if target.device is not None:
        loaded = grid_model(compiled)
    elif target.runs_here:
        obj = emit_object(program, target, embed_weights=False)
        loaded = Loaded(
            obj, program.name, arena_bytes=program.arena_bytes, weights=program.weights, threads=program.threads,
            prepared_bytes=program.prepared_bytes,
        )  # fmt: skip
    return CompiledModel(program.name, program.inputs, program.outputs, loaded, compiled)


def load(folder: Path | str) -> CompiledModel:
    """Load a bundle that `c2c compile` or `save` wrote for this machine; raises RunError where it is not one."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        name = manifest["name"]
        target = Target.parse(manifest["options"]["target"])
        files = tuple(n for n in manifest["sha256"] if n.endswith((".c", ".h"))) if target.device else (f"{name}.o",)
        read: dict[str, bytes | memoryview] = {n: (folder / n).read_bytes() for n in files}
        form = manifest["options"]["weights"]
        weights = _mapped(folder / f"{name}.weights") if form == "file" else None
        inputs = [_port(r) for r in manifest["inputs"]]
        outputs = [_port(r) for r in manifest["outputs"]]
        if weights is not None:
            read[f"{name}.weights"] = weights.data
        if form in PACKED:
            weights, unpacked = unpack_bundle(folder, name, bytes(read[f"{name}.o"]), form)
            read |= unpacked
        changed = [f for f, data in read.items() if hashlib.sha256(data).hexdigest() != manifest["sha256"][f]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RunError(f"{folder} is not a bundle of c2c: {e}", remedy="write one with c2c compile") from e
    if changed:
        raise RunError(f"{changed[0]} is not the file that manifest.json describes", remedy="compile it again")
    if target.device is not None:
        assert weights is not None
        steps = manifest["steps"] + manifest["prepare_steps"]
        return CompiledModel(name, inputs, outputs, load_grid(folder, name, str(target), weights.data, steps), None)
    if not target.runs_here:
        raise RunError(f"{folder} is for {target}, which this machine cannot run")
    sizes = manifest["bytes"]
    loaded = Loaded(
        bytes(read[f"{name}.o"]), name, arena_bytes=sizes["arena"], weights=weights, threads=manifest["threads"],
        prepared_bytes=sizes.get("prepared", 0),
    )  # fmt: skip
    return CompiledModel(name, inputs, outputs, loaded, None)


def _port(record: Mapping[str, Any]) -> Port:
    counted, labels = record.get("counted"), tuple(record.get("labels", ()))
    form = None if counted is None else Counted(counted["axis"], counted["count"])
    return Port(record["name"], DType(record["dtype"]), tuple(record["shape"]), labels, form)


def _mapped(path: Path) -> np.ndarray:
    """A file's bytes, mapped; there is no mapping of an empty file."""
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


def model_name(source: Path | str | bytes) -> str:
    """The model's name in symbols and files: that of its file."""
    return "model" if isinstance(source, bytes) else model_identifier(Path(source).stem)


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a model's file, in hexadecimal; raises OnnxImportError where it cannot be read."""
    try:
        return sha256(Path(path))
    except OSError as e:
        raise OnnxImportError(f"cannot read {path}: {e.strerror}") from e
