"""Writes what `c2c compile` leaves behind: object, header, weights, example, manifest — all of it or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import llvmlite.binding

from ..codegen.c_source import emit_c
from ..codegen.dialects import LANGUAGES
from ..codegen.llvm_program import emit_asm, emit_llvm, write_object
from ..codegen.object_file import read_object
from ..codegen.object_weights import Packed
from ..codegen.plan import host_header, make_plan, plan_header
from ..ir.errors import OptionsError
from ..ir.loops_text import print_program
from ..ir.loops_verify import stored_buffers
from ..ir.program import Port, Program
from . import packed as packed_weights
from .fit import report
from .grid_header import grid_files
from .header import example, header
from .options import CompileOptions
from .output import staged
from .toolchain import link_shared

EMITS = ("obj", "shared", "c", "llvm", "asm", "ir")
WEIGHTS = ("embed", "file", *packed_weights.KINDS)
RUNTIME = Path(__file__).parent.parent / "runtime_stub"


def check_kinds(emit: Sequence[str], weights: str = "embed") -> None:
    """Raises OptionsError where a bundle cannot be asked for in this form."""
    unknown = [e for e in emit if e not in EMITS]
    if unknown:
        raise OptionsError(f"unknown output kind '{unknown[0]}'", remedy=f"one of {', '.join(EMITS)}")
    if not emit:
        raise OptionsError("no output kind is given", remedy=f"one or more of {', '.join(EMITS)}")
    if weights not in WEIGHTS:
        raise OptionsError(f"weights cannot go into '{weights}'", remedy=f"one of {', '.join(WEIGHTS)}")


GRID_EMITS = ("obj", "c", "ir")


def check_grid_kinds(emit: Sequence[str], weights: str = "file") -> None:
    """Raises OptionsError where a graphics processor's bundle cannot be asked for in this form: it is source, and its
    weights are a file, whatever the defaults for processors are."""
    unknown = [e for e in emit if e not in GRID_EMITS]
    if unknown:
        raise OptionsError(
            f"a graphics processor has no output kind '{unknown[0]}'", remedy="leave --emit out: its kernels are source"
        )
    if weights not in ("embed", "file"):
        raise OptionsError(f"a graphics processor's weights cannot be '{weights}'", remedy="leave --weights out")


def write_bundle(
    program: Program,
    options: CompileOptions,
    folder: Path,
    *,
    weights: str = "embed",
    emit: tuple[str, ...] = ("obj",),
    model_sha256: str = "",
) -> dict[str, Any]:
    """Write the bundle into `folder`; returns the manifest. weights: of WEIGHTS. Raises OptionsError, OutputError."""
    check_kinds(emit, weights)
    if options.target.device is not None:
        check_grid_kinds(emit, weights)
        return _write_for_grid(program, options, folder, emit, model_sha256)
    made = packed_weights.pack_program(program) if weights in packed_weights.KINDS else None
    packed = None if made is None else packed_weights.as_embedded(made, weights)
    embed = weights == "embed"
    with staged(folder) as out:
        for kind in emit:
            _emit(kind, program, options, out, embed, packed)
        if weights == "file":
            (out / f"{program.name}.weights").write_bytes(program.weights)
        elif made is not None and weights == "packed":
            (out / f"{program.name}.c2w").write_bytes(made.bytes)
        (out / f"{program.name}.h").write_text(header(program, str(options.target), embed, _version(), packed))
        (out / "example.c").write_text(example(program, embed, packed))
        for source in ("c2c_runtime", *(["c2c_weights"] if packed else [])):
            shutil.copyfile(RUNTIME / f"{source}.h", out / f"{source}.h")
            shutil.copyfile(RUNTIME / f"{source}.c", out / f"{source}.c")
        manifest = _manifest(program, options, out, weights, emit, model_sha256)
        if made is not None:
            manifest["bytes"] |= {"packed": len(made.bytes), "packed_table": made.table.nbytes}
            manifest["packed"] = packed_weights.report(made)
        (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _write_for_grid(
    program: Program, options: CompileOptions, folder: Path, emit: tuple[str, ...], model_sha256: str
) -> dict[str, Any]:
    """The bundle of a graphics processor: kernels as source, the plan that a driver follows, the driver."""
    device, name = options.target.device, program.name
    assert device is not None
    with staged(folder) as out:
        language = LANGUAGES[device.dialect]
        source = language.emit(program, device)
        (out / f"{name}.{language.ending}").write_text(source)
        plan = make_plan(program, device)
        (out / f"{name}_plan.h").write_text(plan_header(plan, source))
        if (host := host_header(plan)) is not None:
            (out / f"{name}_host.h").write_text(host)
        for file, text in grid_files(program, str(options.target), language, _version()).items():
            (out / file).write_text(text)
        (out / f"{name}.weights").write_bytes(program.weights)
        if "ir" in emit:
            (out / f"{name}.loops").write_text(print_program(program))
        for file in language.files:
            shutil.copyfile(RUNTIME / file, out / file)
        manifest = _manifest(program, options, out, "file", emit, model_sha256) | {"fit": report(program, device)}
        (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _emit(kind: str, program: Program, options: CompileOptions, out: Path, embed: bool, packed: Packed | None) -> None:
    name, target = program.name, options.target
    if kind in ("obj", "shared"):
        write_object(program, target, out / f"{name}.o", embed_weights=embed, packed=packed)
    if kind == "shared":
        link_shared(out / f"{name}.o", out / f"lib{name}{'.dylib' if target.os in ('macos', 'ios') else '.so'}", target)
    elif kind == "c":
        (out / f"{name}.c").write_text(emit_c(program, embed_weights=embed, packed=packed))
    elif kind == "llvm":
        (out / f"{name}.ll").write_text(emit_llvm(program, target, embed_weights=embed, packed=packed))
    elif kind == "asm":
        (out / f"{name}.s").write_text(emit_asm(program, target, embed_weights=embed, packed=packed))
    elif kind == "ir":
        (out / f"{name}.loops").write_text(print_program(program))


def port_record(port: Port) -> dict[str, Any]:
    """A port as JSON."""
    more: dict[str, Any] = {"labels": list(port.labels)} if port.labels else {}
    if port.counted is not None:
        more["counted"] = asdict(port.counted)
    return {"name": port.name, "dtype": str(port.dtype), "shape": list(port.shape), "layout": "row-major", **more}


def _manifest(
    program: Program, options: CompileOptions, out: Path, weights: str, emit: tuple[str, ...], model_sha256: str
) -> dict[str, Any]:
    files = {p.name: sha256(p) for p in sorted(out.iterdir())}
    objects = [p for p in out.iterdir() if p.suffix == ".o"]
    return {
        "format": 1,
        "name": program.name,
        "model_sha256": model_sha256,
        "options": {**options.describe(), "weights": weights, "emit": list(emit)},
        "versions": {
            "c2c": _version(),
            "llvm": ".".join(map(str, llvmlite.binding.llvm_version_info)),
            "llvmlite": installed("llvmlite"),
            "onnx": installed("onnx"),
        },
        "inputs": [port_record(p) for p in program.inputs],
        "outputs": [port_record(p) for p in program.outputs],
        "bytes": {
            "arena": program.arena_bytes,
            "weights": len(program.weights),
            "prepared": program.prepared_bytes,
            **(asdict(read_object(objects[0]).sizes) if objects else {}),
        },
        "prepared": prepared_bytes(program),
        "threads": program.threads,
        "kernels": len(program.kernels),
        "steps": len(program.steps),
        "prepare_steps": len(program.prepare),
        "host_steps": [", ".join(s.origin) for s in program.steps if s.host],
        "schedules": program.notes,
        "rounded": [asdict(r) for r in program.rounded],
        "sha256": files,
    }


def prepared_bytes(program: Program) -> dict[str, int]:
    """Bytes that NAME_prepare fills for each layer, by ONNX node."""
    found: dict[str, int] = {}
    for step in program.prepare:
        written = stored_buffers(program.kernels[step.kernel])
        sizes = (p.size * p.dtype.nbytes for p in program.kernels[step.kernel].params if p.name in written)
        found[step.origin[0]] = found.get(step.origin[0], 0) + sum(sizes)
    return found


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _version() -> str:
    from .. import __version__

    return __version__
