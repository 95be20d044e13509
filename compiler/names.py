"""Identifiers: ONNX names are any text, C and object symbols are not."""

from __future__ import annotations

import re
from collections.abc import Iterable

RESERVED = frozenset(
    """
    auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    _Bool alignas alignof and and_eq asm bitand bitor bool catch class compl const_cast constexpr decltype delete
    dynamic_cast explicit export false friend mutable namespace new noexcept not not_eq nullptr operator or or_eq
    private protected public reinterpret_cast static_assert static_cast template this thread_local throw true try
    typeid typename using virtual wchar_t xor xor_eq arena weights parallel prepared model
    NULL EOF stdin stdout stderr errno linux unix near far small interface IN OUT
    """.split()
)
"""Words of C99 and C++11, the header's own fields, and macros of system headers."""

TAKEN_FILES = frozenset(
    {"example", "c2c_runtime", "c2c_weights", "c2c_plan", "c2c_gpu", "c2c_opencl", "c2c_metal", "c2c_cuda"}
)
"""Stems of the bundle's own C files."""


def identifier(text: str) -> str:
    """A C identifier that reads like `text`; the same text gives the same identifier."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "x"
    return f"_{name}" if name[0].isdigit() else name


def model_identifier(text: str) -> str:
    """An identifier for a model, whose files are called by it and clash with none of the bundle's."""
    name = identifier(text)
    return f"{name}_model" if name.lower() in TAKEN_FILES else name


def unique_identifiers(texts: Iterable[str]) -> list[str]:
    """An identifier for each text, in order, none reserved and none twice, in whatever case (macros are upper-case)."""
    used: set[str] = set()
    result = []
    for text in texts:
        base = identifier(text)
        name, k = (f"{base}_" if base in RESERVED else base), 1
        while name.lower() in used:
            name, k = f"{base}_{k}", k + 1
        used.add(name.lower())
        result.append(name)
    return result
