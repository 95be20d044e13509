"""What a run has found so far, in its output folder, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .coded import Coded, Kind


@dataclass(frozen=True, slots=True)
class State:
    """folder: None keeps nothing."""

    folder: Path | None

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """What was saved under this name; a file that cannot be read counts as none."""
        if self.folder is None or not (self.folder / f"{name}.npz").is_file():
            return None
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                return {k: file[k] for k in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Whole or not at all: a run may be killed at any time."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.partial"
        with partial.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        os.replace(partial, self.folder / f"{name}.npz")

    def load_coded(self, name: str) -> Coded | None:
        found = self.load(name)
        if found is None:
            return None
        parts = (found["levels"], found["index"], found.get("scale"), found.get("bias"), float(found["error"]))
        return Coded(*parts, Kind(str(found["kind"])), found.get("values"), str(found["pattern"]))

    def save_coded(self, name: str, c: Coded) -> None:
        arrays = {
            "levels": c.levels, "index": c.index, "error": np.array(c.error), "kind": np.array(c.kind.value),
            "pattern": np.array(c.pattern),
        }  # fmt: skip
        optional = {"scale": c.scale, "bias": c.bias, "values": c.values}
        arrays |= {k: v for k, v in optional.items() if v is not None}
        self.save(name, arrays)

    def clear(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def fingerprint(model: bytes, arrays: Mapping[str, np.ndarray], options: object, code: Iterable[Path]) -> str:
    """Of a model's bytes, samples, options (by their repr) and the modules in the folders `code`."""
    digest = hashlib.sha256(model)
    for name, a in sorted(arrays.items()):
        digest.update(name.encode() + repr((a.dtype, a.shape)).encode() + np.ascontiguousarray(a).tobytes())
    digest.update(repr(options).encode())
    for source in sorted(p for folder in code for p in folder.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def resumed(folder: Path, key: str, resume: bool) -> State:
    """The state of `folder`, empty unless `resume` and it is of the same model, samples and options."""
    state = State(folder / ".state")
    kept = state.load("key")
    if not resume or kept is None or str(kept["key"]) != key:
        state.clear()
        state.save("key", {"key": np.array(key)})
    return state
