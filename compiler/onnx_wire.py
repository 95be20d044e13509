"""An ONNX file without its weights: large tensors stay where they lie in the file, so that none is ever copied.

protobuf copies every `raw_data` once on parsing and once more on each access. `strip` walks the wire format instead
(https://protobuf.dev/programming-guides/encoding/), cuts large tensor bytes out, and leaves in their place an
external-data entry that says where they were.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ..ir.errors import OnnxImportError

MARK = "\x00cut"
"""`location` of a tensor whose bytes were cut out; no file name can hold a NUL."""

Chunk: TypeAlias = bytes | memoryview

_KEEP = 1024
"""Messages up to this many bytes are left as they are."""
_DEEPEST = 64

_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {4: "bytes", 9: "bytes"},
}
"""Field numbers of onnx.proto on the way to TensorProto.float_data (4, packed) and raw_data (9)."""

_SHORT = b"|".join(re.escape(bytes([n])) + b"[\\s\\S]{%d}" % n for n in range(64))
_LISTS = re.compile(b"(?:\x3d[\\s\\S]{4}|\x40[\x80-\xff]{0,9}[\x00-\x7f]|\x4a(?:" + _SHORT + b"))*+")
"""Items of an attribute's floats (7), ints (8) and short strings (9), each a field: trees have millions of them."""


@dataclass(eq=False, slots=True)
class Stripped:
    """proto: the model's bytes without large tensors. spans: those tensors' bytes, by the number in their mark."""

    proto: bytes
    spans: list[memoryview] = field(default_factory=list)


def text(*names: str | bytes) -> None:
    """Raises OnnxImportError for a name that is no UTF-8, which protobuf gives as bytes."""
    for name in names:
        if not isinstance(name, str):
            raise OnnxImportError(f"a name is not UTF-8 text: {name[:40]!r}", remedy="is the file damaged?")


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped read-only; raises OnnxImportError."""
    try:
        with path.open("rb") as f:
            return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as e:
        raise OnnxImportError(f"{path} is empty") from e
    except OSError as e:
        raise OnnxImportError(f"cannot read {path}: {e.strerror or e}") from e


def strip(data: memoryview) -> Stripped:
    """Cut the large tensors out of a serialised ModelProto; raises OnnxImportError where the wire format is broken."""
    stripped = Stripped(b"")
    chunks = _message(data, 0, len(data), "model", stripped.spans, 0)
    stripped.proto = b"".join(chunks)
    return stripped


def _message(data: memoryview, start: int, end: int, kind: str, spans: list[memoryview], depth: int) -> list[Chunk]:
    """The chunks of one message, rewritten."""
    children = _CHILDREN[kind]
    chunks: list[Chunk] = []
    kept = start
    for number, at, body, stop in _fields(data, start, end, _LISTS if kind == "attribute" else None):
        child = children.get(number)
        if child is None or body < 0 or stop - body <= _KEEP or depth > _DEEPEST:
            continue
        chunks.append(data[kept:at])
        kept = stop
        if child == "bytes":
            spans.append(data[body:stop])
            chunks.append(_mark(number, len(spans) - 1))
        else:
            inner = _message(data, body, stop, child, spans, depth + 1)
            chunks += [_varint(number << 3 | 2), _varint(sum(len(c) for c in inner)), *inner]
    chunks.append(data[kept:end])
    return chunks


def _fields(
    data: memoryview, at: int, end: int, skipped: re.Pattern[bytes] | None
) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start of the tag, start of the body or -1 where it is no length-delimited field, end); of what
    `skipped` matches nothing."""
    while at < end:
        if skipped is not None and (found := skipped.match(data, at, end)) is not None and found.end() > at:
            at = found.end()
            continue
        start = at
        tag, at = _read_varint(data, at, end)
        wire, body = tag & 7, -1
        if wire == 0:
            _, at = _read_varint(data, at, end)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            length, body = _read_varint(data, at, end)
            at = body + length
        else:
            raise OnnxImportError(f"not an ONNX file: wire type {wire} at byte {start}", remedy="is it damaged?")
        if at > end:
            raise OnnxImportError(
                f"the file ends inside a field that starts at byte {start}", remedy="is the download complete?"
            )
        yield tag >> 3, start, body, at


def _read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for k in range(10):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, at
    raise OnnxImportError(f"not an ONNX file: broken number at byte {at}", remedy="is the download complete?")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _mark(number: int, index: int) -> bytes:
    """External-data entries of TensorProto (13: key, value; 14: data_location EXTERNAL)."""
    entries = {"location": MARK, "field": str(number), "index": str(index)}
    out = b""
    for key, value in entries.items():
        pair = b"".join(_varint(n << 3 | 2) + _varint(len(s)) + s.encode() for n, s in ((1, key), (2, value)))
        out += _varint(13 << 3 | 2) + _varint(len(pair)) + pair
    return out + _varint(14 << 3) + _varint(1)
