"""Packed weights: every bit comes back, sizes are near Shannon's bound, damage is told."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.ir.types import DType
from c2c.packing import Constant, pack, range_code, unpack
from c2c.packing.frames import entropy
from c2c.packing.reader import unpack_group
from c2c.packing.streams import Part, What, Where, encodings, range_coded
from c2c.packing.table import FILE_HEAD, read_table
from c2c.tests.packing.weights import coded, every_sort, image_of


def test_every_bit_comes_back() -> None:
    constants = every_sort()
    made = pack(constants)
    assert unpack(made.bytes, made.table).tobytes() == image_of(constants)
    assert unpack(made.bytes, made.table).ctypes.data % 64 == 0
    forms = {f for r in made.report for f in r.form.split("+") if f}
    assert {f.split("/")[0] for f in forms} >= {"dense", "short_gaps", "bitmap", "nibbles"}, forms
    assert {f.split("/")[1] for f in forms} >= {"rotated", "index8", "index4", "index2", "range"}, forms


@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("what", What)
def test_every_form_comes_back(where: Where, what: What, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms that are seldom the smallest, chosen nevertheless wherever they exist."""
    from c2c.packing import writer

    def chosen(words: np.ndarray, is_float: bool) -> Part:
        coded = range_coded(words, is_float) if what is What.RANGE else None
        parts = [*encodings(words, is_float), *([coded] if coded else [])]
        return next((p for p in parts if (p.where, p.what) == (where, what)), parts[0])

    monkeypatch.setattr(writer, "_smallest", chosen)
    monkeypatch.setattr(writer, "SHARED", (0,))
    constants = every_sort(3)
    made = pack(constants)
    found = any(f"{where.name}/{what.name}".lower() in r.form for r in made.report)
    exists = where == Where.DENSE if what is What.RANGE else where != Where.NIBBLES or what is What.INDEX4
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


@pytest.mark.parametrize("laplace", [False, True], ids=["gauss", "laplace"])
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("bits", [4, 5])
def test_a_layer_of_37000_weights_is_near_shannon_bound(laplace: bool, sparsity: float, bits: int) -> None:
    """Alone, its levels counted; they are as `compression` makes them, so that they lie in f16."""
    w = coded(np.random.default_rng(5), 37_000, sparsity, bits, laplace)
    (row,) = pack([Constant("w", DType.F32, w.astype(np.float16).astype(np.float32))]).report
    assert row.shannon and 8 * row.packed / w.size / row.shannon < 1.03
    levels = 2 * row.levels
    assert 8 * (row.packed - levels) / w.size / row.shannon < 1.012


def test_range_coding_follows_density() -> None:
    """Rows of different density: what is learnt on the way is below the bound of independent symbols."""
    rng = np.random.default_rng(0)
    density = np.repeat([0.02, 0.5, 0.1, 0.7], 10_000)
    indices = np.where(rng.random(density.size) < density, rng.integers(1, 9, density.size), 0)
    data = range_code.encode(indices, 9)
    back, taken = range_code.decode(data + b"more", indices.size, 9)
    assert np.array_equal(back, indices) and taken == len(data)
    assert len(data) < 0.9 * entropy(np.bincount(indices)) * indices.size / 8


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_range_coding_of_runs_and_noise(levels: int) -> None:
    """Chances at their ends, and carries through many bytes."""
    rng = np.random.default_rng(levels)
    runs = np.repeat(rng.integers(0, levels, 40), rng.integers(1, 900, 40))
    for indices in (runs, rng.integers(0, levels, 9000), np.zeros(1, np.int64), np.full(9000, levels - 1)):
        data = range_code.encode(indices, levels)
        back, taken = range_code.decode(data, indices.size, levels)
        assert np.array_equal(back, indices) and taken == len(data)
        with pytest.raises(IndexError):
            range_code.decode(data[:-1], indices.size, levels)


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
