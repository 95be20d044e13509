"""Calibration samples: one feed of the network each, some of them held back to judge the result by."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..ir.errors import OptionsError
from ..ir.types import TensorType

LEAST = 4


@dataclass(frozen=True, slots=True)
class Samples:
    """arrays: [samples, *shape of the input] by input name. The first `calibration` samples are fitted to, the others
    only judge. labels: the right class of each sample, [samples, …], where there are some."""

    arrays: Mapping[str, np.ndarray]
    calibration: int
    synthetic: bool = False
    labels: np.ndarray | None = None

    @property
    def count(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def held_out(self) -> slice:
        return slice(self.calibration, self.count)

    @property
    def judge_labels(self) -> np.ndarray | None:
        return None if self.labels is None else self.labels[self.held_out]

    def limited(self, calibration: int, held_out: int | None = None) -> Samples:
        """With fewer samples to fit to, and to judge by."""
        start = self.calibration
        stop = self.count if held_out is None else min(start + held_out, self.count)
        fitted = min(calibration, start)

        def few(a: np.ndarray) -> np.ndarray:
            return np.concatenate([a[:fitted], a[start:stop]])

        labels = None if self.labels is None else few(self.labels)
        return Samples({name: few(a) for name, a in self.arrays.items()}, fitted, self.synthetic, labels)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that each input is fed with."""
        return {name: a.shape[1:] for name, a in self.arrays.items()}


def read_samples(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; raises OptionsError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise OptionsError(f"{path} is not an .npz file", remedy="np.savez(path, input=array)")
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise OptionsError(f"cannot read samples from {path}: {e}", remedy="np.savez(path, input=array)") from e


def split(
    data: Mapping[str, np.ndarray],
    declared: Mapping[str, TensorType],
    seed: int,
    *,
    calibration: int,
    held_out: int,
    judges: Mapping[str, np.ndarray] | None = None,
    labels: str | None = None,
) -> Samples:
    """Samples in a random order of `seed`: at most `calibration` to fit and `held_out` to judge, from different ones.

    judges: samples that do nothing but judge; without them a third of `data` at most is held out. An array of the
    input's rank holds samples along its first axis, each fed with a first dimension of 1; one of a rank more holds
    whole feeds. labels: the array in both that holds the right classes. Raises OptionsError.
    """
    data, marks = _without_labels(data, labels)
    judges, own = (None, None) if judges is None else _without_labels(judges, labels)
    rng = np.random.default_rng(seed)
    arrays, total = _arrays(data, declared)
    if judges is None:
        others = min(held_out, max(total // 3, 1))
        fitted = min(calibration, total - others)
        order = rng.permutation(total)[: fitted + others]
        chosen = {name: np.ascontiguousarray(a[order]) for name, a in arrays.items()}
        return Samples(chosen, fitted, labels=None if marks is None else _matching(marks, total)[order])
    beside, count = _arrays(judges, declared)
    for name, a in arrays.items():
        if beside[name].shape[1:] != a.shape[1:]:
            raise OptionsError(
                f"the array '{name}' has samples of shape {list(a.shape[1:])} to fit, "
                f"{list(beside[name].shape[1:])} to judge by",
                remedy="give both one shape",
            )
    fit, judge = rng.permutation(total)[:calibration], rng.permutation(count)[:held_out]
    chosen = {name: np.concatenate([a[fit], beside[name][judge]]) for name, a in arrays.items()}
    if marks is None or own is None:
        return Samples(chosen, len(fit))
    return Samples(
        chosen, len(fit), labels=np.concatenate([_matching(marks, total)[fit], _matching(own, count)[judge]])
    )


def _without_labels(
    data: Mapping[str, np.ndarray], labels: str | None
) -> tuple[Mapping[str, np.ndarray], np.ndarray | None]:
    if labels is None:
        return data, None
    if labels not in data:
        raise OptionsError(f"the samples have no array '{labels}' of labels", remedy=f"they have {', '.join(data)}")
    marks = np.asarray(data[labels])
    if marks.dtype.kind not in "iu":
        raise OptionsError(f"the labels '{labels}' are {marks.dtype}", remedy="give the number of each sample's class")
    return {name: a for name, a in data.items() if name != labels}, marks.astype(np.int64)


def _matching(labels: np.ndarray, total: int) -> np.ndarray:
    if len(labels) != total:
        raise OptionsError(f"there are {len(labels)} labels for {total} samples")
    return labels


def _arrays(data: Mapping[str, np.ndarray], declared: Mapping[str, TensorType]) -> tuple[dict[str, np.ndarray], int]:
    """The arrays [samples, *shape of the input], checked, and how many samples they hold."""
    names = ", ".join(declared)
    for name in data:
        if name not in declared:
            raise OptionsError(f"the samples have an array '{name}', the model has no such input", remedy=f"of {names}")
    arrays = {}
    for name, want in declared.items():
        if name not in data:
            raise OptionsError(f"the samples have no array '{name}'", remedy=f"give one for each input: {names}")
        arrays[name] = _checked(name, np.asarray(data[name]), want)
    counts = {name: len(a) for name, a in arrays.items()}
    if len(set(counts.values())) != 1:
        raise OptionsError(f"the arrays hold different numbers of samples: {counts}")
    total = next(iter(counts.values()))
    if total < LEAST:
        raise OptionsError(f"{total} samples are too few", remedy=f"give {LEAST} or more, better 256")
    return arrays, total


def _checked(name: str, array: np.ndarray, want: TensorType) -> np.ndarray:
    if array.ndim == want.rank:
        array = array[:, None]
    if array.ndim != want.rank + 1:
        raise OptionsError(
            f"the array '{name}' has {array.ndim} dimensions, the input {want} takes {want.rank}",
            remedy="one sample along the first axis each",
        )
    for got, dim in zip(array.shape[1:], want.shape, strict=True):
        if isinstance(dim, int) and got != dim:
            raise OptionsError(f"the array '{name}' has samples of shape {list(array.shape[1:])}, the input is {want}")
    if array.dtype != want.dtype.numpy:
        if not np.can_cast(array.dtype, want.dtype.numpy, "same_kind"):
            raise OptionsError(f"the array '{name}' is {array.dtype}, the input is {want.dtype}")
        array = array.astype(want.dtype.numpy)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise OptionsError(f"the array '{name}' holds values that are not finite")
    return array
