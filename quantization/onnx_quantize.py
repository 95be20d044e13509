"""`quantize`: read this function from top to bottom and you know the room."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ..compression import onnx_model
from ..compression.onnx_data_free import synthetic_samples
from ..compression.samples import Samples, read_samples, split
from ..compression.session import output_index
from ..compression.state import resumed
from ..ir.errors import C2CError, OptionsError
from .grid import Grid
from .judge import Judge, integer_nodes
from .mixed import Outcome, search
from .observers import METHODS
from .onnx_dynamic import write_dynamic
from .onnx_qdq import BLOCK_OPSET, OPSET, prepared, write_quantized
from .report import Report, layer_row
from .rounding import ROUNDINGS, WeightForm, round_nearest
from .session import Options, Session, find_quantizable, load, read_by, start

FORMS = ("auto", "static", "dynamic", "weights")
CALIBRATION = 128
HELD_OUT = 512
BLOCK = 32


@dataclass(frozen=True, slots=True)
class _Judging:
    measure: str
    judged: str | None
    most: float
    time: bool


def quantize(
    model: Path | str | bytes | ModelProto,
    data: Path | str | Mapping[str, np.ndarray] | None = None,
    output: Path | str | None = None,
    *,
    form: str = "auto",
    method: str = "mse",
    rounding: str = "reconstruct",
    equalize: bool = True,
    max_loss: float = 0.01,
    bits: int = 8,
    block: int | None = None,
    measure: str = "auto",
    judge: Path | str | Mapping[str, np.ndarray] | None = None,
    judged: str | None = None,
    calibration: int = CALIBRATION,
    held_out: int = HELD_OUT,
    seed: int = 0,
    resume: bool = False,
    time: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> tuple[ModelProto, Report]:
    """Quantise a model without labels; returns the quantised model, in standard operators, and a report, and writes
    both into `output`.

    data: samples by input name, or an .npz file of them. form: "static", 8-bit weights and activations whose ranges are
    observed on the samples; "dynamic", products by constant matrices with ranges taken at run time; "weights", weights
    only; "auto" is static where there are samples or convolutions (samples are then made up), else dynamic. method: of
    observers.METHODS, from what was observed to a range. rounding: "reconstruct" fits weights to results, "nearest"
    does not. max_loss: share of judged answers that may differ from the model of floats: tensors and weights get 16
    bits, and if need be layers stay in floats, until it fits. bits, block: of the weights of products in the form
    "weights": 8 or 4, and how many inputs share a scale (0: all; 32 for 4 bits). measure, judge, judged,
    calibration, held_out, seed, resume: as for `compress`. time: time both models here. Raises C2CError.
    """
    weight_form = _checked(form, method, rounding, bits, block, max_loss)
    source = onnx_model.read_model(model)
    original = len(source.SerializeToString())
    proto = prepared(source, BLOCK_OPSET if weight_form.block or bits == 4 else OPSET)
    if form == "auto":
        form = "static" if data is not None or any(n.op_type == "Conv" for n in proto.graph.node) else "dynamic"
    judging = _Judging(measure, judged, max_loss, time)
    samples = None
    if data is not None or form == "static":
        samples = _samples(proto, data, judge, seed, calibration, held_out)
    if form == "dynamic" or samples is None:
        small, report = _without_ranges(proto, form, weight_form, samples, judging)
    else:
        options = Options(method, rounding, weight_form, equalize and form == "static", seed)
        session = start(proto, samples, options, progress)
        if output is not None:
            session.state = resumed(Path(output), session.key(form), resume)
        small, report = _fitted(session, form, judging)
        session.state.clear()
    report = replace(report, original=original, size=len(small.SerializeToString()))
    if output is not None:
        _write(Path(output), small, report)
    return small, report


def _fitted(session: Session, form: str, judging: _Judging) -> tuple[ModelProto, Report]:
    """Ranges observed, channels equalised, layers fitted, and some left in floats where the loss asks for it."""
    index = output_index(session.graph, judging.judged)
    judge = Judge(session.model, session.samples, judging.measure, index)
    session.read_levels(_integer_layers(session) if form == "static" else frozenset())
    equalized = session.equalize() if session.options.equalize else 0
    session.observe()
    found = search(session, judge, judging.most)
    kept, costs = found.kept, found.costs
    compiled = judge.compiled(kept.model)
    times = judge.milliseconds(compiled) if judging.time else None
    s, fit = session.samples, kept.fit
    rows = [
        layer_row(
            v, fit.weights.get(v), fit.inputs.get(v), fit.sqnr.get(read_by(v)),
            None if costs is None else costs.of(v, read_by(v)),
        ) for v in session.layers
    ]  # fmt: skip
    report = Report(
        form, 0, 0, str(kept.agreement), round(kept.agreement.loss, 6), s.calibration, s.count - s.calibration,
        s.synthetic, equalized, rows, [_tried(o, kept) for o in found.tried], judge.cycles(compiled), times,
    )  # fmt: skip
    return kept.model, report


def _integer_layers(session: Session) -> frozenset[Any]:
    """The layers that the compiler computes in integers once everything around them holds levels."""
    layers = [v for v in session.layers if v in session.integer]
    grids = {v.name: Grid(np.float32(0.1), 128) for p in session.places(layers) for v in p.values}
    weights = {v: round_nearest(v, session.options.form_of(v)) for v in layers}
    inputs = {v: grids[read_by(v).name] for v in layers}
    names = integer_nodes(write_quantized(session.model, weights, inputs, grids), session.samples)
    return frozenset(v for v in layers if not names.isdisjoint(v.node.origin))


def _tried(o: Outcome, kept: Outcome) -> dict[str, Any]:
    return {
        "wide": len(o.precision.values) + len(o.precision.weights), "floats": len(o.precision.floats),
        "agreement": str(o.agreement), "loss": round(o.agreement.loss, 6), "kept": o is kept,
    }  # fmt: skip


def _without_ranges(
    proto: ModelProto, form: str, weight_form: WeightForm, samples: Samples | None, judging: _Judging
) -> tuple[ModelProto, Report]:
    """Nearest levels for weights; what is read stays in floats or gets its range at run time."""
    graph = load(proto, None if samples is None else samples.shapes())
    layers = find_quantizable(proto, graph)
    if form == "dynamic":
        layers = [v for v in layers if v.kind == "matmul"]
    if not layers:
        raise C2CError("the model has no product by a constant matrix to quantise", remedy="give samples with --data")
    forms = {v: weight_form if v.kind == "matmul" else WeightForm() for v in layers}
    weights = {v: round_nearest(v, forms[v]) for v in layers}
    small = write_dynamic(proto, weights) if form == "dynamic" else write_quantized(proto, weights, {}, {})
    rows = [layer_row(v, w, None, None, None) | ({"form": "dynamic int8"} if form == "dynamic" else {})
            for v, w in weights.items()]  # fmt: skip
    report = Report(form, 0, 0, None, None, 0, 0, False, 0, rows, [])
    if samples is None:
        return small, report
    judge = Judge(proto, samples, judging.measure, output_index(graph, judging.judged))
    compiled = judge.compiled(small)
    found = judge.agreement(compiled)
    if found.loss > judging.most:
        raise C2CError(f"the loss is {found.loss:.2%}: {found}", remedy="allow more with --max-loss, or another form")
    times = judge.milliseconds(compiled) if judging.time else None
    return small, replace(
        report, agreement=str(found), loss=round(found.loss, 6), held_out=samples.count - samples.calibration,
        cycles=judge.cycles(compiled), milliseconds=times,
    )  # fmt: skip


def _samples(
    proto: ModelProto,
    data: Path | str | Mapping[str, np.ndarray] | None,
    judge: Path | str | Mapping[str, np.ndarray] | None,
    seed: int,
    calibration: int,
    held_out: int,
) -> Samples:
    inputs = onnx_model.inputs_of(proto)
    arrays = synthetic_samples(proto, inputs, seed) if data is None else _read(data)
    judges = None if judge is None else _read(judge)
    found = split(arrays, inputs, seed, calibration=calibration, held_out=held_out, judges=judges)
    return replace(found, synthetic=data is None)


def _read(samples: Path | str | Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return samples if isinstance(samples, Mapping) else read_samples(samples)


def _checked(form: str, method: str, rounding: str, bits: int, block: int | None, max_loss: float) -> WeightForm:
    for what, given, known in (
        ("form", form, FORMS), ("method", method, tuple(METHODS)), ("rounding", rounding, ROUNDINGS),
    ):  # fmt: skip
        if given not in known:
            raise OptionsError(f"there is no {what} '{given}'", remedy=f"one of {', '.join(known)}")
    if bits not in (8, 4):
        raise OptionsError(f"weights of {bits} bits are not supported", remedy="8 or 4")
    if form != "weights" and (bits != 8 or block):
        raise OptionsError(
            "weights that are read with floats alone may have 4 bits or blocks", remedy="give --form weights"
        )
    if block is not None and block < 0:
        raise OptionsError(f"a block of {block} inputs makes no sense", remedy="0 for a scale a row, or 16 and more")
    if not 0 <= max_loss <= 1:
        raise OptionsError(f"a loss of {max_loss!r} makes no sense", remedy="a share, such as 0.5%")
    return WeightForm(bits, (BLOCK if bits == 4 else 0) if block is None else block)


def _write(folder: Path, small: ModelProto, report: Report) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(small.SerializeToString(deterministic=True))
    (folder / "report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
