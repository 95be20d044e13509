"""What each verb of the command line does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..codegen.c_source import emit_c
from ..codegen.dialects import emit_kernels
from ..codegen.llvm_program import emit_asm, emit_llvm
from ..codegen.target import OSES, TARGETS, Target
from ..ir.errors import C2CError, OptionsError
from ..ir.graph_text import print_graph
from ..ir.loops_text import print_program
from ..passes.base import PassContext, run_pipeline
from ..passes.lower.schedule import Tuning
from . import api, bench, tables, verify
from .bundle import check_grid_kinds, check_kinds, write_bundle
from .check import Problem, check_model
from .diagnostics import PassObserver, read_graph
from .driver import Compiled, Progress, compile_file, load_graph
from .fit import fit_of
from .grid_bench import bench_on_grid
from .inputs import read_array, read_arrays
from .machine import measure_machine
from .names import model_identifier
from .options import CompileOptions, Debug
from .output import writing
from .packed import KINDS as PACKED
from .ranges import check_ranges
from .tune import Tuner, TuneReport
from .tuning import read_tuning, untuned, write_tuning


def options_of(a: argparse.Namespace) -> CompileOptions:
    """Compile options of parsed arguments; raises C2CError on a malformed one."""
    debug = Debug(
        tuple(a.print_after), a.print_changed, a.dump_dir, a.verify_each, a.check_each, a.time_passes, a.stop_after,
        a.rewrite_limit,
    )  # fmt: skip
    target = Target.parse(a.target)
    tuning = Tuning() if a.tuning is None else read_tuning(a.tuning, target)
    winograd = a.winograd_weights
    if winograd == "auto" and getattr(a, "weights", "") in PACKED:
        winograd = "load"  # plain weights pack well, transformed ones are noise
    return CompileOptions(
        target, model_identifier(a.name) if a.name else api.model_name(a.model), a.threads, a.level,
        winograd_error=a.winograd_error, winograd_weights=winograd, precision=a.precision,
        weight_type=a.weight_type, activations=a.activations,
        optimize_for=a.optimize_for, host_steps=a.host_steps, tuning=tuning, debug=debug, **pinned(a),
    )  # fmt: skip


def pinned(a: argparse.Namespace) -> dict[str, Any]:
    """--dim, --shape and --value as the import's arguments."""
    dims = {k: _integer(v, f"--dim {k}") for k, v in _pairs(a.dim, "--dim NAME=N")}
    shapes = {
        k: tuple(_integer(d, f"--shape {k}") for d in v.split(",") if d) for k, v in _pairs(a.shape, "--shape NAME=N,…")
    }
    values = {k: _value(k, v) for k, v in _pairs(a.value, "--value NAME=V,… or NAME=FILE.npy")}
    return {"dims": dims, "shapes": shapes, "values": values}


def _pairs(items: list[str], form: str) -> Iterator[tuple[str, str]]:
    for item in items:
        key, equals, value = item.rpartition("=")
        if not equals or not key:
            raise C2CError(f"'{item}' is not of the form {form}")
        yield key, value


def _integer(text: str, option: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise C2CError(f"{option}: '{text}' is not a positive number")
    return number


def _value(name: str, text: str) -> np.ndarray:
    if text.endswith((".npy", ".npz")):
        return read_array(Path(text), name)
    try:
        numbers = [float(t) if "." in t or "e" in t.lower() else int(t) for t in text.strip("[]").split(",")]
    except ValueError as e:
        raise C2CError(f"--value {name}: '{text}' is neither numbers nor a .npy file") from e
    return np.asarray(numbers)


@contextmanager
def progress() -> Iterator[Progress]:
    """A status line on the terminal for long work; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("starting") as status:
        yield lambda stage: status.update(stage)


def _compiled(a: argparse.Namespace, **changes: Any) -> Compiled:
    options = replace(options_of(a), **changes)
    with progress() as show:
        compiled = compile_file(a.model, options, show)
    if options.debug.time_passes:
        print(compiled.observer.report(), file=sys.stderr)
    left = untuned(options.tuning, compiled.schedules)
    if left:
        print(f"c2c: note: the tuning leaves {len(left)} problems to the cost model:", file=sys.stderr)
    for choice in left:
        print(f"  {choice.family} {choice.problem}: {choice.name}", file=sys.stderr)
    return compiled


def compile_command(a: argparse.Namespace) -> int:
    kinds = tuple(k for k in a.emit.split(",") if k)
    check_kinds(kinds)
    report = None if a.tune is None else _tune(a, options_of(a), a.tune)
    compiled = _compiled(a) if report is None else _compiled(a, tuning=report.tuning)
    with progress() as show:
        show("write the object")
        manifest = write_bundle(
            compiled.program, compiled.options, a.output, weights=a.weights, emit=kinds,
            model_sha256=api.file_sha256(a.model),
        )  # fmt: skip
    if report is not None:
        write_tuning(a.output / f"{compiled.program.name}.tune.json", compiled.options.target, report.measured)
    if a.json:
        print(json.dumps(manifest))
        return 0
    sizes = ", ".join(f"{k} {_bytes(v)}" for k, v in manifest["bytes"].items() if v)
    print(f"{a.output}/: {', '.join(manifest['sha256'])}")
    print(f"{compiled.program.name} for {compiled.options.target}: {sizes}")
    if manifest["prepared"]:
        print(f"weights of {len(manifest['prepared'])} Winograd layers are transformed at load:")
        for layer, size in manifest["prepared"].items():
            print(f"  {layer}: {_bytes(size)}")
    if manifest["host_steps"]:
        print(f"{len(manifest['host_steps'])} of {manifest['steps']} steps run on the host:")
        for call in compiled.calls:
            if call.host:
                print(f"  {', '.join(call.node.origin)}: {call.choices[-1].reason.strip(' ()')}")
    tables.print_labels(compiled.program.outputs)
    tables.print_rounded(compiled.program.rounded)
    if compiled.options.target.device is not None:
        tables.print_fit(fit_of(compiled.program, compiled.options.target.device))
    return 0


def _bytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} KB" if n >= 1000 else f"{n} B"


def run_command(a: argparse.Namespace) -> int:
    compiled = _compiled(a)
    feeds = verify.feeds_of(compiled, a.input, a.seed)
    outputs = verify.run_compiled(compiled, feeds, a.weights)
    if a.output:
        with writing(a.output), a.output.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **outputs)
    for name, value in outputs.items():
        print(f"{name}: {value.dtype}{list(value.shape)} {np.array2string(value.ravel()[:8], precision=6)}")
    return 0


def check_command(a: argparse.Namespace) -> int:
    if a.ranges is not None:
        return _check_ranges(a)
    problems = check_model(a.model, **pinned(a))
    if a.json:
        print(json.dumps([p.to_json() for p in problems]))
    else:
        _print_problems(a.model, problems)
    return 1 if any(p.severity == "error" for p in problems) else 0


def _check_ranges(a: argparse.Namespace) -> int:
    options = CompileOptions(Target.parse("native"), **pinned(a))
    with progress() as show:
        report = check_ranges(a.model, read_arrays(a.ranges), options, show)
    print(json.dumps(report.to_json()) if a.json else report)
    return 0 if report.ok else 1


def _print_problems(model: Path, problems: list[Problem]) -> None:
    if not problems:
        print(f"{model}: can be compiled")
    for p in problems:
        node = f"node '{p.node}' ({p.op}): " if p.op else f"node '{p.node}': " if p.node else ""
        print(f"{p.severity}: {node}{p.what}" + (f"\n  do: {p.remedy}" if p.remedy else ""))


def verify_command(a: argparse.Namespace) -> int:
    with progress() as show:
        report = verify.verify_model(a.model, options_of(a), a.input, a.seed, a.tolerance, show, a.weights)
    if a.json:
        print(json.dumps(report.to_json()))
    else:
        print(report)
    return 0 if report.ok else 1


def targets_command(a: argparse.Namespace) -> int:
    rows = [_target_row(t) for t in (Target.parse(name) for name in TARGETS)]
    if a.json:
        print(json.dumps(rows))
        return 0
    table = Table(title="targets; any may be followed by +feature, -feature and an OS: " + ", ".join(OSES))
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    return 0


def _target_row(t: Target) -> dict[str, Any]:
    return {
        "name": t.name, "cpu": t.cpu, "vector bits": t.vector_bits, "registers": t.registers,
        "features": " ".join(t.has), "about": t.about,
    }  # fmt: skip


def dump_command(a: argparse.Namespace) -> int:
    compiled = _compiled(a, keep_constants=True)
    program, target = compiled.program, compiled.options.target
    if a.form == "graph":
        if not (a.print_after or a.print_changed):
            print(print_graph(compiled.graph))
    elif a.form == "loops":
        print(print_program(program))
    elif target.device is not None:
        check_grid_kinds((a.form,))
        print(emit_kernels(program, target.device))
    elif a.form == "c":
        print(emit_c(program, embed_weights=False))
    else:
        print((emit_llvm if a.form == "llvm" else emit_asm)(program, target, embed_weights=False))
    return 0


def opt_command(a: argparse.Namespace) -> int:
    graph = read_graph(a.file)
    run_pipeline(graph, a.passes.split(","), PassContext(Target.parse(a.target)), PassObserver(Debug()))
    print(print_graph(graph))
    return 0


def tune_command(a: argparse.Namespace) -> int:
    options = options_of(a)
    output = a.output or Path(f"{options.name}.tune.json")
    report = _tune(a, options, a.seconds)
    write_tuning(output, options.target, report.measured)
    if a.json:
        print(json.dumps(report.to_json()))
    else:
        tables.print_tuning(report, output)
    return 0


def _tune(a: argparse.Namespace, options: CompileOptions, seconds: float) -> TuneReport:
    if options.tuning.names:
        raise OptionsError("a tuning is given and another asked for", remedy="leave out --tuning")
    with progress() as show:
        show("import")
        return Tuner(load_graph(a.model, options), options, seconds, show).run()


def compress_command(a: argparse.Namespace) -> int:
    from ..compression.onnx_compress import compress
    from ..compression.report import print_report

    with progress() as show:
        _, report = compress(
            a.model, a.data, a.output, max_size=None if a.max_size is None else _size(a.max_size),
            max_loss=None if a.max_loss is None else _share(a.max_loss), pareto=a.pareto, sparsity=a.sparsity,
            pattern=a.pattern, levels=a.levels, measure=a.measure, judge=a.judge, judged=a.judged,
            calibration=a.calibration, held_out=a.held_out, labels=a.labels, fine_tune=a.fine_tune, epochs=a.epochs,
            mix=a.mix, seed=a.seed, resume=a.resume, targets=a.target or ["native"], aim=a.aim, progress=show,
        )  # fmt: skip
    return _reported(a, report, print_report)


def quantize_command(a: argparse.Namespace) -> int:
    from ..quantization.onnx_quantize import quantize
    from ..quantization.report import print_report

    with progress() as show:
        _, report = quantize(
            a.model, a.data, a.output, form=a.form, method=a.method, rounding=a.rounding, equalize=a.equalize,
            max_loss=_share(a.max_loss), bits=a.bits, block=a.block, measure=a.measure, judge=a.judge, judged=a.judged,
            calibration=a.calibration, held_out=a.held_out, seed=a.seed, resume=a.resume, time=a.time, progress=show,
        )  # fmt: skip
    return _reported(a, report, print_report)


def _reported(a: argparse.Namespace, report: Any, show: Callable[[Any], None]) -> int:
    """Print a report as it is asked for; the exit code of success."""
    if a.json:
        print(json.dumps(report.to_json()))
    else:
        show(report)
    return 0


def _size(text: str) -> int:
    """Bytes of '900KB', '1.5MB' or '4096'."""
    units = {"": 1, "B": 1, "K": 1000, "KB": 1000, "M": 1000**2, "MB": 1000**2, "KIB": 1024, "MIB": 1024**2}
    number = text.strip().rstrip("KMGiBkmgIb").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError) as e:
        raise OptionsError(f"--max-size: '{text}' is no size", remedy="give one such as 900KB or 1.5MB") from e


def _share(text: str) -> float:
    """A share of '0.5%' or '0.005'."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as e:
        raise OptionsError(f"--max-loss: '{text}' is no share", remedy="give one such as 0.5%") from e


def bench_command(a: argparse.Namespace) -> int:
    if a.machine:
        machine = measure_machine(a.seconds)
        if a.json:
            print(json.dumps(machine.to_json()))
        else:
            tables.print_machine(machine)
        return 0
    if a.model is None:
        raise C2CError("there is nothing to time", remedy="give a model, or --machine")
    compiled = _compiled(a)
    if compiled.options.target.device is not None:
        return _reported(a, bench_on_grid(compiled, a.seconds), tables.print_grid_bench)
    return _reported(a, bench.bench_model(compiled, a.seconds), tables.print_bench)
