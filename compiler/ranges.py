"""Does a model fit into half precision? The largest magnitude that each node reaches on given samples, in float32.

With `--precision f16` a convolution also sums its products in f16: its partial sums, in whatever order, are bounded by
the largest input times the largest sum of magnitudes of a filter. Below the limit nothing can overflow; above it,
results that fit may still pass through partial sums that do not. Graphics processors keep sums of a block of products
in f16, or none: what is bounded here bounds those. Winograd's forms transform their inputs, which has a bound of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..ir.errors import OnnxImportError, OptionsError
from ..ir.graph import Graph, Node, Value
from ..ir.reference import tensor_type
from ..passes.select_winograd import SIZES, expected_error, is_fit
from ..passes.winograd_math import winograd_bound
from .api import from_compiled
from .driver import Progress, compile_file
from .options import CompileOptions, Debug
from .taps import PREFIX

LIMIT = float(np.finfo(np.float16).max)
"""The largest finite number of f16."""
LEAST_CHANNELS = 4
"""Of a layer that some target computes by Winograd: a vector of 128 bits."""
_UNFUSED = "fold-batch-norm"
"""The last pass that runs: batch norms are where they will be, and every result can still be seen."""


@dataclass(frozen=True, slots=True)
class Range:
    """largest: magnitude of a node's results over all samples, inf where one was not finite. sums: bound of the partial
    sums of a convolution with constant weights, None of other nodes. winograd: bound of what its form of Winograd comes
    by, where `--winograd-error` lets it be chosen."""

    node: str
    op: str
    largest: float
    sums: float | None = None
    winograd: float | None = None


@dataclass(frozen=True, slots=True)
class RangeReport:
    """Of every node (and input) of floats, the largest first."""

    samples: int
    ranges: tuple[Range, ...]

    @property
    def overflows(self) -> tuple[Range, ...]:
        """Nodes whose results do not fit."""
        return tuple(r for r in self.ranges if r.largest > LIMIT)

    @property
    def doubtful(self) -> tuple[Range, ...]:
        """Convolutions whose results fit, and whose partial sums are not known to."""
        return tuple(r for r in self.ranges if r.largest <= LIMIT and r.sums is not None and r.sums > LIMIT)

    @property
    def transformed(self) -> tuple[Range, ...]:
        """Convolutions whose results fit, and of whose forms of Winograd it is not known."""
        return tuple(r for r in self.ranges if r.largest <= LIMIT and r.winograd is not None and r.winograd > LIMIT)

    @property
    def ok(self) -> bool:
        return not self.overflows

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "limit": LIMIT, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{len(self.ranges)} tensors over {self.samples} samples; f16 holds up to {LIMIT:g}"]
        lines += [f"OVERFLOW: node '{r.node}' ({r.op}) reaches {r.largest:g}" for r in self.overflows]
        lines += [
            f"partial sums may overflow: node '{r.node}' ({r.op}) reaches {r.largest:g}, its sums at most {r.sums:g}"
            for r in self.doubtful
        ]
        lines += [
            f"Winograd's form may overflow: node '{r.node}' ({r.op}) comes by {r.winograd:g} at most; "
            "--winograd-error 0 leaves it out"
            for r in self.transformed
        ]
        if self.ranges:
            top = self.ranges[0]
            room = LIMIT / top.largest if top.largest else np.inf
            lines.append(f"largest: node '{top.node}' ({top.op}) reaches {top.largest:g}, {room:.3g} times below f16's")
        return "\n".join([*lines, "nothing overflows on these samples" if self.ok else "does not fit into f16"])


def check_ranges(
    path: Path | str | bytes,
    samples: Mapping[str, np.ndarray],
    options: CompileOptions,
    progress: Progress = lambda stage: None,
) -> RangeReport:
    """Run every sample in float32 on this machine. samples: by input name, along the first axis of arrays of the
    input's rank (each is fed with a first dimension of 1), or whole feeds in arrays of a rank more. Raises C2CError."""
    feeds, count = _feeds(path, samples)
    shapes = {name: a.shape[1:] for name, a in feeds.items()}
    compiled = compile_file(
        path,
        replace(
            options, shapes={**options.shapes, **shapes}, taps=True, keep_constants=True, precision="f32",
            debug=Debug(stop_after=_UNFUSED),
        ),
        progress,
    )  # fmt: skip
    model = from_compiled(compiled)
    largest: dict[str, float] = {}
    for i in range(count):
        progress(f"sample {i + 1} of {count}")
        one = {name: a[i] for name, a in feeds.items()}
        for name, value in {**one, **model.run(one)}.items():
            if value.dtype.kind == "f" and value.size:
                top = float(np.abs(value).max())
                largest[name] = max(largest.get(name, 0.0), top if np.isfinite(top) else np.inf)
    return RangeReport(count, tuple(sorted(_ranges(compiled.graph, largest, options), key=lambda r: -r.largest)))


def _ranges(graph: Graph, largest: Mapping[str, float], options: CompileOptions) -> list[Range]:
    """By node of the tapped graph, the model's own inputs and outputs too."""
    reached: dict[Value, float] = {v: largest[v.name] for v in graph.inputs if v.name in largest}
    outputs = dict(zip(graph.outputs, graph.output_names, strict=True))
    found = [Range(v.name, "input", top) for v, top in reached.items()]
    for node in graph.nodes:
        if node.op in ("c2c.Copy", "c2c.Reorder") and outputs.get(node.output, "").startswith(PREFIX):
            continue
        name = node.origin[-1] if node.origin else node.output.name
        top = largest.get(PREFIX + name, largest.get(outputs.get(node.output, "")))
        if top is None:
            continue
        reached[node.output] = top
        found.append(Range(name, node.op, top, _sums(node, reached), _winograd(node, reached, options.winograd_error)))
    return found


def _sums(node: Node, reached: Mapping[Value, float]) -> float | None:
    """Bound of a convolution's partial sums."""
    weights, x, bias = node.constant(1), node.input(0), node.constant(2)
    if node.op != "Conv" or weights is None or x is None or x not in reached:
        return None
    filters = np.abs(weights.astype(np.float64)).reshape(len(weights), -1).sum(1) * reached[x]
    return float((filters + (0 if bias is None else np.abs(bias))).max())


def _winograd(node: Node, reached: Mapping[Value, float], error: float) -> float | None:
    """Bound of what the forms come by that are exact enough, on whichever target takes the fewest channels."""
    x, weights, bias = node.input(0), node.constant(1), node.constant(2)
    if node.op != "Conv" or weights is None or x is None or x not in reached or not is_fit(node, LEAST_CHANNELS):
        return None
    bounds = [winograd_bound(m, weights) for m in SIZES if expected_error(node, m) <= error]
    return reached[x] * max(bounds) + (0.0 if bias is None else float(np.abs(bias).max())) if bounds else None


def _feeds(path: Path | str | bytes, samples: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Arrays [samples, *shape of the input] of the inputs that samples are given for, and how many samples."""
    proto = _model(path)
    constants = {t.name for t in proto.graph.initializer}
    declared = {v.name: tensor_type(v.type, v.name) for v in proto.graph.input if v.name not in constants}
    names = ", ".join(declared)
    feeds = {}
    for name, want in declared.items():
        if name not in samples:
            raise OptionsError(f"the samples have no array '{name}'", remedy=f"give one for each input: {names}")
        array = np.asarray(samples[name], want.dtype.numpy)
        if array.ndim not in (want.rank, want.rank + 1) or not array.ndim:
            raise OptionsError(f"the array '{name}' has {array.ndim} dimensions, the input {want} takes {want.rank}")
        feeds[name] = np.ascontiguousarray(array if array.ndim > want.rank else array[:, None])
    counts = {name: len(a) for name, a in feeds.items()}
    if len(set(counts.values())) != 1 or not min(counts.values(), default=0):
        raise OptionsError(f"the arrays hold different numbers of samples, or none: {counts}")
    return feeds, next(iter(counts.values()))


def _model(path: Path | str | bytes) -> onnx.ModelProto:
    try:
        if isinstance(path, bytes):
            return onnx.load_from_string(path)
        return onnx.load(str(path), load_external_data=False)
    except Exception as e:  # DecodeError of whichever protobuf is installed, and errors of files
        raise OnnxImportError(f"cannot read the model: {e}", remedy="is it an ONNX file, complete?") from e
