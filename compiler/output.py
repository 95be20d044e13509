"""Files that c2c writes: all of a bundle or nothing, and one clear error where the disk refuses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..ir.errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the system's refusals within the block into an OutputError that names `path`."""
    try:
        yield
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}", remedy="give a folder that can be written") from e


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` only when the block ends without an error; otherwise folders
    that were made for it are taken away again. Raises OutputError."""
    made: list[Path] = []
    try:
        with writing(folder):
            for part in (*reversed(folder.parents), folder):
                if not part.is_dir():
                    part.mkdir()
                    made.append(part)
            with tempfile.TemporaryDirectory(prefix=".c2c-", dir=folder) as temporary:
                yield Path(temporary)
                for path in sorted(Path(temporary).iterdir()):
                    path.replace(folder / path.name)
    except BaseException:
        for part in reversed(made):
            if part.is_dir() and not any(part.iterdir()):
                part.rmdir()
        raise
