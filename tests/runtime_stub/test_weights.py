"""The reader of packed weights in C: every form, and 200 damaged files of which none is accepted or read beyond."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from c2c.ir.types import DType
from c2c.packing import Constant, PackedWeights, pack, writer
from c2c.packing.streams import Part, What, Where, encodings, range_coded
from c2c.packing.table import FILE_HEAD, read_table
from c2c.tests.packing.weights import every_sort, image_of

HERE = Path(__file__).parent
STUB = HERE.parent.parent / "runtime_stub"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror", "-I", str(STUB)]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
OPEN, FORMAT, VERSION, MODEL, SHORT, LONG, CHECKSUM, CORRUPT = range(1, 9)

pytestmark = pytest.mark.needs("gcc")


def has_zstd(cc: str) -> bool:
    line = [cc, "-x", "c", "-", "-lzstd", "-o", "/dev/null"]
    text = "#include <zstd.h>\nint main(void) { return (int)ZSTD_versionNumber(); }\n"
    return subprocess.run(line, input=text, capture_output=True, text=True, check=False).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def zstd() -> None:
    if not has_zstd("gcc"):
        pytest.skip("libzstd's headers are missing: apt-get install libzstd-dev")


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    return done.stdout


def build(folder: Path, *flags: str, cc: str = "gcc") -> Path:
    program = folder / "program"
    sources = [STUB / "c2c_weights.c", HERE / "weights_test.c"]
    run(cc, "-std=c99", "-O1", "-I", STUB, *flags, *sources, "-lzstd", "-o", program)
    return program


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("checked"), *SANITIZE)


class Subject:
    """Packed weights with table and image as files."""

    def __init__(self, folder: Path, constants: list[Constant]) -> None:
        self.folder, self.made, self.count = folder, pack(constants), 0
        self.table, self.image = folder / "table", folder / "image"
        self.table.write_bytes(self.made.table.tobytes())
        self.image.write_bytes(image_of(constants))

    def read(self, program: Path, files: list[bytes], *before: str) -> list[tuple[int, int, int, int]]:
        """Codes of load, decode and open, and 1 + 2 where the images are right."""
        paths = []
        for data in files:
            self.count += 1
            paths.append(self.folder / f"{self.count}.c2w")
            paths[-1].write_bytes(data)
        lines = run(*before, program, self.table, self.image, *paths).splitlines()
        return [tuple(map(int, line.split()[:4])) for line in lines]  # type: ignore[misc]


@pytest.mark.needs("g++")
@pytest.mark.parametrize("compiler", ["gcc -std=c99", "g++ -std=c++11 -x c++"])
def test_compiles_without_a_warning(tmp_path: Path, compiler: str) -> None:
    run(*compiler.split(), *STRICT, "-c", STUB / "c2c_weights.c", "-o", tmp_path / "a.o")


def test_is_smaller_than_8_kb(tmp_path: Path) -> None:
    run("gcc", "-std=c99", "-Os", "-c", STUB / "c2c_weights.c", "-o", tmp_path / "a.o")
    text, data, bss = (int(n) for n in run("size", tmp_path / "a.o").splitlines()[1].split()[:3])
    assert 500 < text < 8 << 10
    assert (data, bss) == (0, 0), "the stub keeps writable globals"


def test_every_bit_comes_back(tmp_path: Path, checked: Path) -> None:
    subject = Subject(tmp_path, every_sort())
    assert subject.read(checked, [subject.made.bytes]) == [(0, 0, 0, 3)]


def prefer(where: Where, what: What, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose this form wherever it exists."""

    def chosen(words: np.ndarray, is_float: bool) -> Part:
        coded = range_coded(words, is_float) if what is What.RANGE else None
        parts = [*encodings(words, is_float), *([coded] if coded else [])]
        return next((p for p in parts if (p.where, p.what) == (where, what)), parts[0])

    monkeypatch.setattr(writer, "_smallest", chosen)
    monkeypatch.setattr(writer, "SHARED", (0,))


@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("what", What)
def test_every_form_comes_back(
    tmp_path: Path, checked: Path, where: Where, what: What, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(where, what, monkeypatch)
    subject = Subject(tmp_path, every_sort(3))
    assert subject.read(checked, [subject.made.bytes]) == [(0, 0, 0, 3)]


def test_levels_of_f16_come_back(tmp_path: Path, checked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of f16 as a level, subnormal ones, infinities and NaN included."""
    prefer(Where.DENSE, What.INDEX8, monkeypatch)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    constants = [Constant(str(i), DType.F32, np.tile(halves[i : i + 128], 40)) for i in range(0, 1 << 16, 128)]
    subject = Subject(tmp_path, constants)
    assert subject.read(checked, [subject.made.bytes]) == [(0, 0, 0, 3)]
    assert sum(p.half for g in read_table(subject.made.table).groups for p in g.parts) > 450


def damaged(made: PackedWeights, other: bytes, count: int, rng: np.random.Generator) -> list[bytes]:
    """Flipped bits, cuts, appended bytes, swapped blocks, bytes of another model, zeroed runs; never the right file."""
    right = made.bytes
    out: list[bytes] = []
    while len(out) < count:
        data = bytearray(right)
        at = int(rng.integers(len(right)))
        size = int(rng.integers(1, 300))
        match len(out) % 8:
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[len(out) % FILE_HEAD] ^= 1 << int(rng.integers(8))
            case 2:
                data = data[:at]
            case 3:
                data += rng.bytes(size)
            case 4:
                to = int(rng.integers(len(right)))
                data[at : at + size], data[to : to + size] = data[to : to + size], data[at : at + size]
            case 5:
                data[at : at + size] = bytes(len(data[at : at + size]))
            case 6:
                data = bytearray(other[: int(rng.integers(len(other)))] + bytes(data[at:]))
            case _:
                data[at : at + size] = rng.bytes(len(data[at : at + size]))
        if bytes(data) != right:
            out.append(bytes(data))
    return out


def test_200_damaged_files_are_200_errors(tmp_path: Path, checked: Path) -> None:
    subject = Subject(tmp_path, every_sort())
    other = pack(every_sort(9)).bytes
    files = damaged(subject.made, other, 200, np.random.default_rng(2))
    codes = subject.read(checked, files)
    assert len(codes) == 200
    assert all(load and load == decode == opened for load, decode, opened, _ in codes), "accepted, or not all agree"
    assert {SHORT, LONG, CHECKSUM} < {c[0] for c in codes}


def test_each_error_has_its_code(tmp_path: Path, checked: Path) -> None:
    subject = Subject(tmp_path, every_sort())
    right = subject.made.bytes
    cases = {
        SHORT: [right[:-1], right[:FILE_HEAD], right[:5], b""],
        LONG: [right + b"\0"],
        FORMAT: [b"\0" * 100, right[1:]],
        VERSION: [right[:8] + b"\1" + right[9:]],
        MODEL: [pack(every_sort(9)).bytes],
        CHECKSUM: [right[:44] + bytes(4) + right[48:], right[:-1] + bytes([right[-1] ^ 1])],
    }
    for code, files in cases.items():
        assert [c[:3] for c in subject.read(checked, files)] == [(code,) * 3] * len(files), code
    assert run(checked, subject.table, subject.image, tmp_path / "missing").split()[0] == str(OPEN)


def test_the_decoder_stands_frames_that_pass_every_check(tmp_path: Path) -> None:
    """Without checksums: whatever the frames hold, the decoder reads and writes where it may (AddressSanitizer)."""
    program = build(tmp_path, *SANITIZE, "-DC2C_WEIGHTS_FUZZ")
    subject = Subject(tmp_path, [c for c in every_sort() if c.name != "long"])
    rng = np.random.default_rng(4)
    files = []
    for i in range(200):
        data = bytearray(subject.made.bytes)
        for at in rng.integers(FILE_HEAD, len(data), 1 + i % 30):
            data[at] = int(rng.integers(256))
        files.append(bytes(data))
    codes = subject.read(program, [subject.made.bytes, *files])
    assert codes[0] == (0, 0, 0, 3)
    assert {c[0] for c in codes} == {0, CORRUPT}
    assert sum(c[0] == CORRUPT for c in codes) > 20


@pytest.mark.needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
def test_arm64_decodes_under_emulation(tmp_path: Path) -> None:
    cc = "aarch64-linux-gnu-gcc"
    if not has_zstd(cc):
        pytest.skip("libzstd for arm64 is missing: dpkg --add-architecture arm64; apt-get install libzstd-dev:arm64")
    subject = Subject(tmp_path, every_sort())
    program = build(tmp_path, "-static", cc=cc)
    assert subject.read(program, [subject.made.bytes], "qemu-aarch64", "-cpu", "max") == [(0, 0, 0, 3)]
