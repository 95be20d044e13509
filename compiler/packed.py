"""Packed weights of a program: from its image, into an object or beside it, and back out of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..codegen.object_file import ObjectFile, read_object
from ..codegen.object_weights import Packed
from ..ir.errors import RunError
from ..ir.program import Program
from ..ir.types import DType
from ..packing import Constant, PackedWeights, pack, unpack

KINDS = ("packed", "embed-packed")
"""What `--weights` calls them: in a file NAME.c2w, in the object."""
WORD = 4
TABLE_WORDS = 1
"""The word of a table that tells how many it has."""
FILE_BYTES = 6
"""The words of a table that tell how many bytes the packed weights have, the low one first."""


def pack_program(program: Program) -> PackedWeights:
    """The program's weight image packed, constant by constant."""
    image = np.frombuffer(program.weights, np.uint8)
    constants = []
    for span in program.spans:
        dtype = span.dtype if span.nbytes % span.dtype.nbytes == 0 else DType.U8
        constants.append(Constant(span.name, dtype, image[span.offset : span.offset + span.nbytes], span.offset))
    return pack(constants, image.size)


def as_embedded(made: PackedWeights, weights: str) -> Packed:
    """What the object holds of them."""
    return Packed(made.table.tolist(), made.bytes if weights == "embed-packed" else b"")


def packed_bytes(packed: Packed) -> int:
    """Bytes of the packed weights, wherever they lie."""
    return packed.table[FILE_BYTES] | packed.table[FILE_BYTES + 1] << 32


def report(made: PackedWeights) -> list[dict[str, Any]]:
    """Every constant as JSON: bits a weight beside Shannon's bound, form, groups for reading it alone."""
    return [
        {
            "name": r.name, "dtype": r.dtype, "elements": r.elements, "bytes": round(r.packed), "form": r.form,
            "bits": round(r.bits, 4), "shannon": None if r.shannon is None else round(r.shannon, 4),
            "levels": r.levels, "kept": r.kept, "groups": list(r.groups),
        }
        for r in made.report
    ]  # fmt: skip


def unpack_bundle(folder: Path, name: str, obj: bytes, weights: str) -> tuple[np.ndarray[Any, Any], dict[str, bytes]]:
    """The weight image of a bundle, and the files read for it; raises RunError where they do not fit its object."""
    parsed, read = read_object(obj), {}
    table = _symbol(parsed, obj, f"{name}_packed")
    words = np.frombuffer(table[: len(table) // WORD * WORD], "<u4")
    words = words[: int(words[TABLE_WORDS])]
    if weights == "packed":
        data = (folder / f"{name}.c2w").read_bytes()
        read[f"{name}.c2w"] = data
    else:
        size = int(words[FILE_BYTES]) | int(words[FILE_BYTES + 1]) << 32
        data = _symbol(parsed, obj, f"{name}_packed_weights")[:size]
    try:
        return unpack(data, words), read
    except ValueError as e:
        raise RunError(f"{folder}: {e}", remedy="compile it again") from e


def _symbol(parsed: ObjectFile, obj: bytes, name: str) -> bytes:
    """The object from where a symbol begins to the end of its section."""
    for symbol in parsed.symbols:
        if symbol.name == name and symbol.section is not None:
            section = parsed.sections[symbol.section]
            return obj[section.offset + symbol.value - section.address : section.offset + section.size]
    raise RunError(f"the object has no symbol {name}", remedy="compile it again")
