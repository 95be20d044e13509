"""Packed weights: constants as short streams in zstd frames, with a table by which they are decoded without parsing.

`pack` writes, `unpack` reads; docs/weights-file.md has the format, runtime_stub/c2c_weights.c the reader of apps.
"""

from .reader import unpack
from .writer import Constant, PackedConstant, PackedWeights, pack

__all__ = ["Constant", "PackedConstant", "PackedWeights", "pack", "unpack"]
