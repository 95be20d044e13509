"""Packed weights: every bit comes back, sizes are near Shannon's bound, damage is told."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.ir.types import DType
from c2c.packing import Constant, pack, unpack
from c2c.packing.reader import unpack_group
from c2c.packing.streams import Part, What, Where, encodings
from c2c.packing.table import FILE_HEAD, read_table
from c2c.tests.packing.weights import coded, every_sort, image_of


def test_every_bit_comes_back() -> None:
    constants = every_sort()
    made = pack(constants)
    assert unpack(made.bytes, made.table).tobytes() == image_of(constants)
    assert unpack(made.bytes, made.table).ctypes.data % 64 == 0
    forms = {f for r in made.report for f in r.form.split("+") if f}
    assert {f.split("/")[0] for f in forms} >= {"dense", "short_gaps", "bitmap", "nibbles"}, forms
    assert {f.split("/")[1] for f in forms} >= {"rotated", "index8", "index4", "index2"}, forms


@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("what", What)
def test_every_form_comes_back(where: Where, what: What, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms that are seldom the smallest, chosen nevertheless wherever they exist."""
    from c2c.packing import writer

    def chosen(words: np.ndarray, is_float: bool) -> Part:
        parts = list(encodings(words, is_float))
        return next((p for p in parts if (p.where, p.what) == (where, what)), parts[0])

    monkeypatch.setattr(writer, "_smallest", chosen)
    monkeypatch.setattr(writer, "SHARED", (0,))
    constants = every_sort(3)
    made = pack(constants)
    found = any(f"{where.name}/{what.name}".lower() in r.form for r in made.report)
    exists = where != Where.NIBBLES or what is What.INDEX4
    assert found == exists
    assert unpack(made.bytes, made.table).tobytes() == image_of(constants)


@pytest.mark.parametrize("laplace", [False, True], ids=["gauss", "laplace"])
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("bits", [4, 5])
def test_near_shannon_bound(laplace: bool, sparsity: float, bits: int) -> None:
    w = coded(np.random.default_rng(bits), 600_000, sparsity, bits, laplace)
    made = pack([Constant("w", DType.F32, w)])
    (row,) = made.report
    p = np.count_nonzero(w) / w.size
    counts = np.unique(w[w != 0], return_counts=True)[1] / np.count_nonzero(w)
    h2 = 0 if not sparsity else -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert row.shannon == pytest.approx(h2 - p * (counts * np.log2(counts)).sum(), rel=1e-3)
    assert row.shannon and 8 * len(made.bytes) / w.size / row.shannon < 1.02, "the whole file, against 3 %"


@pytest.mark.parametrize("sparsity", [0, 0.8, 0.9])
def test_layers_of_37000_weights_are_within_3_percent(sparsity: float) -> None:
    """Layers of a network that are coded alike share their code tables."""
    rng = np.random.default_rng(5)
    layers = [Constant(f"w{i}", DType.F32, coded(rng, 37_000, sparsity, 4)) for i in range(4)]
    made = pack(layers)
    bound = sum((r.shannon or 0) * r.elements / 8 for r in made.report)
    assert sum(r.packed for r in made.report) < 1.03 * bound


def test_a_large_layer_is_read_alone() -> None:
    constants = every_sort()
    made = pack(constants)
    table = read_table(made.table)
    at = {r.name: r.groups for r in made.report}
    image = np.full(table.image_bytes, 7, np.uint8)
    first, last = at["long"]
    assert last > first
    for number in range(first, last + 1):
        unpack_group(made.bytes, table, number, image)
    size = next(c.words.nbytes for c in constants if c.name == "long")
    assert image[-size:].tobytes() == image_of(constants)[-size:]
    assert (image[:-size] == 7).all(), "more than the layer was written"


def test_constants_keep_their_offsets() -> None:
    data = np.arange(100, dtype=np.float32)
    made = pack([Constant("b", DType.F32, data, 1024), Constant("a", DType.F32, data + 1, 64)], 4096)
    image = unpack(made.bytes, made.table)
    assert image.size == 4096
    assert image[1024:1424].tobytes() == data.tobytes() and image[64:464].tobytes() == (data + 1).tobytes()
    assert not image[:64].any() and not image[1424:].any()
    with pytest.raises(ValueError, match="64"):
        pack([Constant("c", DType.F32, data, 4)])


def test_nothing_is_packed_too() -> None:
    made = pack([])
    assert len(made.bytes) == FILE_HEAD and unpack(made.bytes, made.table).size == 0


def test_equal_constants_give_equal_bytes() -> None:
    first, second = pack(every_sort()), pack(every_sort())
    assert first.bytes == second.bytes and first.table.tobytes() == second.table.tobytes()


def test_damage_is_told() -> None:
    made = pack(every_sort())
    other = pack([Constant("x", DType.F32, np.arange(9, dtype=np.float32))])
    rng = np.random.default_rng(1)
    for at in [*range(FILE_HEAD), *rng.integers(FILE_HEAD, len(made.bytes), 30)]:
        broken = bytearray(made.bytes)
        broken[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError):
            unpack(bytes(broken), made.table)
    for wrong, message in (
        (made.bytes + b"\0", "bytes"),
        (made.bytes[:-1], "bytes"),
        (b"", "not a file"),
        (other.bytes, "another model"),
    ):
        with pytest.raises(ValueError, match=message):
            unpack(wrong, made.table)
    with pytest.raises(ValueError, match="table"):
        read_table(made.table[:-1])
