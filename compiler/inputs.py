"""Inputs for a model: random ones by seed, or arrays from files, checked against what the model declares."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..ir.errors import RunError
from ..ir.graph import Graph
from ..ir.program import Port
from ..ir.types import DType, TensorType

INTEGER_RANGE = 100
"""Random integers lie below it: small enough to be indices of most embeddings."""


def random_inputs(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal floats, integers in [0, 100), coin-toss bools."""
    rng = np.random.default_rng(seed)
    return {v.name: random_array(v.type, rng) for v in graph.inputs}


def random_array(type_: TensorType, rng: np.random.Generator) -> np.ndarray:
    """One random tensor of a type."""
    if type_.dtype.is_float:
        return np.asarray(rng.standard_normal(type_.dims)).astype(type_.dtype.numpy)
    if type_.dtype is DType.BOOL:
        return np.asarray(rng.random(type_.dims) > 0.5)
    return np.asarray(rng.integers(0, INTEGER_RANGE, type_.dims)).astype(type_.dtype.numpy)


def checked_inputs(ports: tuple[Port, ...], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays of `feeds` in the model's order, contiguous; raises RunError on a wrong name, shape or type."""
    names = [p.name for p in ports]
    if not isinstance(feeds, Mapping):
        raise RunError(f"inputs are a {type(feeds).__name__}", remedy=f"give a dict by name: {', '.join(names)}")
    unknown = [n for n in feeds if n not in names]
    if unknown:
        raise RunError(f"the model has no input '{unknown[0]}'", remedy=f"its inputs: {', '.join(names)}")
    arrays = []
    for port in ports:
        if port.name not in feeds:
            raise RunError(f"input '{port.name}' is missing", remedy=f"give {port.dtype} {list(port.shape)}")
        array = np.asarray(feeds[port.name])
        if array.shape != port.shape:
            raise RunError(
                f"input '{port.name}' has shape {list(array.shape)}, the compiled model takes {list(port.shape)}",
                remedy="compile again with shapes={…} or --shape for other sizes",
            )
        if array.dtype != port.dtype.numpy:
            raise RunError(
                f"input '{port.name}' has type {array.dtype}, the model takes {port.dtype}",
                remedy=f"convert it: x.astype('{port.dtype.numpy}')",
            )
        arrays.append(np.ascontiguousarray(array))
    return arrays


def checked_outputs(
    ports: tuple[Port, ...], given: Mapping[str, np.ndarray], inputs: list[np.ndarray]
) -> list[np.ndarray]:
    """The arrays to write into, in the model's order; those not given are new. Raises RunError on a wrong name, or an
    array that is not of the port's form, or that shares bytes with an input or with another output."""
    names = [p.name for p in ports]
    unknown = [n for n in given if n not in names]
    if unknown:
        raise RunError(f"the model has no output '{unknown[0]}'", remedy=f"its outputs: {', '.join(names)}")
    arrays: list[np.ndarray] = []
    for port in ports:
        array = given.get(port.name)
        if array is None:
            array = np.empty(port.shape, port.dtype.numpy)
        elif not _fits(port, array):
            raise RunError(f"output '{port.name}' needs a writable, contiguous {port.dtype}{list(port.shape)} array")
        elif any(np.may_share_memory(array, other) for other in (*inputs, *arrays)):
            raise RunError(f"output '{port.name}' lies on an input or on another output", remedy="give separate arrays")
        arrays.append(array)
    return arrays


def meant(ports: Sequence[Port], results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs without what lies behind counted results (`ir.types.Counted`): views, by output name."""
    found = dict(results)
    for port in ports:
        if port.counted is not None:
            number = int(results[port.counted.count])
            found[port.name] = results[port.name][(slice(None),) * port.counted.axis + (slice(number),)]
    return found


def _fits(port: Port, array: object) -> bool:
    if not isinstance(array, np.ndarray) or array.shape != port.shape or array.dtype != port.dtype.numpy:
        return False
    return bool(array.flags.c_contiguous and array.flags.writeable and array.flags.aligned)


def read_array(path: Path, name: str) -> np.ndarray:
    """An array from .npy, or from .npz by its name (or its only array)."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        key = name if name in found.files else found.files[0] if len(found.files) == 1 else None
        if key is None:
            raise RunError(f"{path} holds no array '{name}'", remedy=f"it holds {', '.join(found.files)}")
        return np.asarray(found[key])
    except (OSError, ValueError, EOFError) as e:
        raise RunError(f"cannot read {path}: {e}", remedy="give a .npy or .npz file") from e


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; raises RunError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.lib.npyio.NpzFile):
                return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise RunError(f"cannot read {path}: {e}", remedy="np.savez(path, input=array)") from e
    raise RunError(f"{path} is not an .npz file", remedy="np.savez(path, input=array)")
