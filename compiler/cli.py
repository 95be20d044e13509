"""The command line: argparse and one short function a verb."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..codegen.target import TARGETS
from ..ir.errors import C2CError
from ..passes.select_winograd import WEIGHTS
from . import commands
from .bundle import EMITS
from .bundle import WEIGHTS as FORMS
from .options import ACTIVATIONS, AIMS, PRECISIONS, WEIGHT_TYPES

DESCRIPTION = "Compile trained networks (ONNX) into object files that an app links: no interpreter, no runtime library."
TUNE_SECONDS = 120.0
EXAMPLES = """\
examples:
  c2c check model.onnx                                  what, if anything, cannot be compiled
  c2c compile model.onnx --target arm64-neon -o out/    model.o, model.h, example.c, manifest.json
  c2c compile model.onnx --dim batch=1 --shape image=1,3,224,224
  c2c run model.onnx --input image=photo.npy            compile for this machine and run once
  c2c verify model.onnx --target arm64-neon             compare with the ONNX reference, node by node
  c2c tune model.onnx -o model.tune.json                measure schedules, for c2c compile --tuning
  c2c compress model.onnx --data samples.npz --max-loss 0.5% -o small/
  c2c quantize model.onnx --data samples.npz --max-loss 1% -o small/
  c2c bench model.onnx --threads 2                      time for each node, beside what the machine could do
  c2c dump model.onnx --print-after fuse                the IR after a pass
documentation: docs/ (command-line.md lists every option)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 success, 1 a problem in the model or a difference, 2 wrong usage."""
    if argv is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files go away
    arguments = parser().parse_args(argv)
    if not hasattr(arguments, "command"):
        parser().print_help()
        return 2
    try:
        return int(arguments.command(arguments) or 0)
    except C2CError as e:
        _report(e, getattr(arguments, "json", False))
        return 1
    except MemoryError as e:
        _report(C2CError(f"out of memory: {e}"), getattr(arguments, "json", False))
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _report(error: C2CError, as_json: bool) -> None:
    if as_json:
        kind = type(error).__name__
        print(json.dumps({"error": kind, "what": error.what, "where": error.where, "remedy": error.remedy}))
    else:
        print(f"c2c: error: {error}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        "c2c", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from .. import __version__

    top.add_argument("--version", action="version", version=f"c2c {__version__}")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND")
    _compile(verbs.add_parser("compile", help="ONNX model to object file, header, example and manifest"))
    _run(verbs.add_parser("run", help="compile for this machine (or an emulated one) and run once"))
    _check(verbs.add_parser("check", help="list every reason why a model cannot be compiled"))
    _verify(verbs.add_parser("verify", help="compare the compiled model with the ONNX reference, node by node"))
    _targets(verbs.add_parser("targets", help="list targets and what they stand for"))
    _dump(verbs.add_parser("dump", help="print the IR of a model (graph, loops, LLVM, C or assembly)"))
    _opt(verbs.add_parser("opt", help="run passes on graph IR text"))
    _tune(verbs.add_parser("tune", help="measure schedules in the network on this machine, write a tuning file"))
    _compress(verbs.add_parser("compress", help="make a model's weights smaller, within a budget of bytes or loss"))
    _quantize(verbs.add_parser("quantize", help="8-bit integers for weights and activations, within a loss"))
    _bench(verbs.add_parser("bench", help="time a model, node by node beside the roofline, or this machine"))
    return top


def _model(p: argparse.ArgumentParser, target: str = "native", *, optional: bool = False) -> None:
    p.add_argument("model", type=Path, nargs="?" if optional else None, help="model.onnx")
    p.add_argument(
        "--target",
        default=target,
        metavar="T",
        help=f"one of {', '.join(TARGETS)}; `c2c targets` says more (default {target})",
    )
    p.add_argument("--threads", type=int, default=1, metavar="N", help="the most threads a run may use (default 1)")
    _pins(p)
    p.add_argument("-O", dest="level", type=int, choices=(0, 1, 2), default=2, help="optimisation level (default 2)")
    p.add_argument("--name", help="name of the model in symbols and files (default: the file's)")
    p.add_argument("--tuning", type=Path, metavar="FILE", help="schedules that c2c tune measured")
    p.add_argument("--precision", choices=PRECISIONS, default="f32", help="of convolutions and what lies between them")
    p.add_argument("--weight-type", choices=WEIGHT_TYPES, default="f32", help="weights rounded, widened in registers")
    p.add_argument(
        "--activations", choices=ACTIVATIONS, default="f32",
        help="int8: those of products by few-level or integer weights may be rounded; what that costs is reported",
    )  # fmt: skip
    p.add_argument("--optimize-for", choices=AIMS, default=AIMS[0], help="memory: a smaller arena before speed")
    p.add_argument(
        "--no-host-steps", dest="host_steps", action="store_false",
        help="graphics processors: no step on the host, even where that would be faster",
    )  # fmt: skip
    p.add_argument("--winograd-error", type=float, default=1e-4, metavar="E", help="cap for Winograd layers; 0: none")
    p.add_argument(
        "--winograd-weights", choices=WEIGHTS, default="auto", help="when they are transformed (default: by size)"
    )
    g = p.add_argument_group("debugging")
    g.add_argument(
        "--print-after", action="append", default=[], metavar="PASS|all", help="print the graph after a pass"
    )
    g.add_argument("--print-changed", action="store_true", help="print the graph after each pass that changed it")
    g.add_argument("--dump-dir", type=Path, metavar="DIR", help="write the graph after each pass (03-fuse.c2c)")
    g.add_argument("--stop-after", metavar="PASS", help="leave out the passes that follow")
    g.add_argument("--verify-each", action="store_true", help="verify the graph after each pass")
    g.add_argument("--check-each", action="store_true", help="evaluate the graph before and after each pass")
    g.add_argument("--time-passes", action="store_true", help="time of each pass")
    g.add_argument("--rewrite-limit", type=int, metavar="N", help="apply only the first N rewrites (to bisect)")


def _pins(p: argparse.ArgumentParser) -> None:
    p.add_argument("--dim", action="append", default=[], metavar="NAME=N", help="pin a named dimension")
    p.add_argument("--shape", action="append", default=[], metavar="INPUT=N,…", help="set an input's shape")
    p.add_argument(
        "--value", action="append", default=[], metavar="INPUT=V,…|FILE.npy", help="make an input a constant"
    )


def _weights(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--weights", choices=FORMS, default="embed",
        help="in the object, a file to map, or packed (NAME.c2w, or in the object), decoded at load",
    )  # fmt: skip


def _feeds(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--input", action="append", default=[], metavar="NAME=FILE.npy|.npz", help="an input (default: random)"
    )
    p.add_argument("--seed", type=int, default=0, help="of random inputs")


def _compile(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="DIR", help="folder (default out/)")
    _weights(p)
    p.add_argument(
        "--emit", default="obj", metavar="KINDS", help=f"comma-separated, of {', '.join(EMITS)} (default obj)"
    )
    p.add_argument(
        "--tune", type=float, nargs="?", const=TUNE_SECONDS, metavar="S",
        help=f"measure schedules for S seconds first (default {TUNE_SECONDS:.0f}); also writes NAME.tune.json",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="print the manifest")
    p.set_defaults(command=commands.compile_command)


def _tune(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("-o", "--output", type=Path, metavar="FILE", help="tuning file (default: NAME.tune.json)")
    p.add_argument("--seconds", type=float, default=TUNE_SECONDS, metavar="S", help="time budget (default 120)")
    p.add_argument("--json", action="store_true", help="print what was measured as JSON")
    p.set_defaults(command=commands.tune_command)


def _compress(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", type=Path, help="model.onnx")
    p.add_argument(
        "--data", type=Path, metavar="FILE.npz", help="unlabelled samples, an array an input (default: made up)"
    )
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--max-size", metavar="SIZE", help="of the packed weights, such as 900KB or 1.5MB")
    budget.add_argument("--max-loss", metavar="SHARE", help="of answers that may differ (default 0.5%%)")
    budget.add_argument("--pareto", action="store_true", help="a row of sizes and what each loses")
    p.add_argument(
        "--sparsity", type=float, default=0.0, metavar="S", help="zeros demanded of every matrix, such as 0.8"
    )
    p.add_argument("--pattern", default="unstructured", metavar="P", help="of the zeros: unstructured, 4x1 or 2:4")
    p.add_argument("--levels", type=int, default=256, metavar="N", help="the most values in a code book (default 256)")
    _judging(p, calibration=512)
    p.set_defaults(command=commands.compress_command)


def _judging(p: argparse.ArgumentParser, calibration: int) -> None:
    """What compress and quantize have in common: samples, what counts as a loss, and where the result goes."""
    p.add_argument(
        "--measure", default="auto", metavar="M",
        help="what counts as the same answer: top1, threshold (above one half), cosine (default: by the output)",
    )  # fmt: skip
    p.add_argument("--judge", type=Path, metavar="FILE.npz", help="samples that only judge (default: some of --data)")
    p.add_argument("--judged", metavar="OUTPUT", help="the output that is judged (default: the first of floats)")
    p.add_argument(
        "--calibration", type=int, default=calibration, metavar="N",
        help=f"the most samples fitted to (default {calibration})",
    )  # fmt: skip
    p.add_argument("--held-out", type=int, default=512, metavar="N", help="the most samples judged by (default 512)")
    p.add_argument(
        "--aim", choices=("size", "speed"), default="size",
        help="speed: masks are tried too, where the first target has kernels for their zeros",
    )  # fmt: skip
    p.add_argument(
        "--target", action="append", metavar="T",
        help="report the expected speed there; the first one's packed weights are written (default native)",
    )  # fmt: skip
    p.add_argument("--labels", metavar="NAME", help="array of right classes in --data and --judge: they are counted")
    p.add_argument(
        "--fine-tune", action="store_true", help="train with PyTorch, by the dense model's answers and labels"
    )
    p.add_argument("--epochs", type=int, default=10, metavar="N", help="of fine-tuning, for each size (default 10)")
    p.add_argument(
        "--mix", type=float, default=0.0, metavar="P",
        help="share of each batch that is mixed with other samples, 0.5 at most: where samples are few (default 0)",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the order of samples (default 0)")
    p.add_argument("--resume", action="store_true", help="go on with what a stopped run left in the output folder")
    p.add_argument("-o", "--output", type=Path, default=Path("small"), metavar="DIR", help="folder (default small/)")
    p.add_argument("--json", action="store_true", help="print the report as JSON")


def _quantize(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", type=Path, help="model.onnx")
    p.add_argument("--data", type=Path, metavar="FILE.npz", help="unlabelled samples, an array an input")
    p.add_argument(
        "--form", default="auto", metavar="F",
        help="static: ranges observed on samples; dynamic: taken at run time; weights: of weights only "
        "(default: static with samples or convolutions, else dynamic)",
    )  # fmt: skip
    p.add_argument(
        "--method", default="mse", metavar="M", help="from values to ranges: minmax, percentile, mse, entropy"
    )
    p.add_argument("--rounding", default="reconstruct", metavar="R", help="of weights: reconstruct or nearest")
    p.add_argument(
        "--no-equalize", dest="equalize", action="store_false", help="leave the ranges of channels as they are"
    )
    p.add_argument("--max-loss", default="1%", metavar="SHARE", help="of answers that may differ (default 1%%)")
    p.add_argument("--bits", type=int, default=8, metavar="N", help="of the form weights: 8 or 4")
    p.add_argument("--block", type=int, metavar="N", help="inputs that share a scale, in the form weights (4 bits: 32)")
    _judging(p, calibration=128)
    p.add_argument("--time", action="store_true", help="time both models on this machine")
    p.set_defaults(command=commands.quantize_command)


def _run(p: argparse.ArgumentParser) -> None:
    _model(p)
    _feeds(p)
    _weights(p)
    p.add_argument("--output", type=Path, metavar="FILE.npz", help="write the outputs")
    p.set_defaults(command=commands.run_command)


def _check(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", type=Path)
    _pins(p)
    p.add_argument(
        "--ranges", type=Path, metavar="FILE.npz", help="samples: does everything they make fit into half precision?"
    )
    p.add_argument("--json", action="store_true", help="the problems as JSON")
    p.set_defaults(command=commands.check_command)


def _verify(p: argparse.ArgumentParser) -> None:
    _model(p)
    _feeds(p)
    _weights(p)
    p.add_argument("--tolerance", type=float, default=1e-4, metavar="E", help="relative to a node's largest value")
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=commands.verify_command)


def _targets(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=commands.targets_command)


def _dump(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("--as", dest="form", choices=("graph", "loops", "llvm", "asm", "c"), default="graph")
    p.set_defaults(command=commands.dump_command)


def _opt(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", type=Path, help="graph IR text (.c2c), as --dump-dir writes it")
    p.add_argument("--passes", required=True, metavar="A,B,…", help="passes to run, in order")
    p.add_argument("--target", default="native")
    p.set_defaults(command=commands.opt_command)


def _bench(p: argparse.ArgumentParser) -> None:
    _model(p, optional=True)
    p.add_argument("--machine", action="store_true", help="time this machine instead: peak, bandwidth, threads")
    p.add_argument("--seconds", type=float, default=3.0, metavar="S", help="time to measure (default 3)")
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=commands.bench_command)
