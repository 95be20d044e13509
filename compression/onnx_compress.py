"""`compress`: read this function from top to bottom and you know the room."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from ..codegen.target import Target
from ..ir.errors import C2CError, OptionsError
from . import onnx_model
from .fine_tune import FineTuning, require_torch
from .mask import PATTERNS
from .onnx_data_free import synthetic_samples
from .onnx_result import Outcomes, write_outcome
from .reconstruct import Form
from .report import Report, make_report
from .samples import read_samples, split
from .search import Budget, search
from .session import Pass, start
from .speed import LayerSpeeds
from .state import resumed

CALIBRATION = 512
HELD_OUT = 512
EPOCHS = 10
AIMS = ("size", "speed")
_SHRINKS = 3
_MARGIN = 0.98

Search = Callable[[Budget, list[Pass]], tuple[Pass, list[Pass]]]


def compress(
    model: Path | str | bytes | onnx.ModelProto,
    data: Path | str | Mapping[str, np.ndarray] | None = None,
    output: Path | str | None = None,
    *,
    max_size: int | None = None,
    max_loss: float | None = None,
    pareto: bool = False,
    sparsity: float = 0.0,
    pattern: str = "unstructured",
    levels: int = 256,
    measure: str = "auto",
    judge: Path | str | Mapping[str, np.ndarray] | None = None,
    judged: str | None = None,
    targets: Sequence[str] = ("native",),
    aim: str = "size",
    calibration: int = CALIBRATION,
    held_out: int = HELD_OUT,
    labels: str | None = None,
    fine_tune: bool = False,
    epochs: int = EPOCHS,
    mix: float = 0.0,
    seed: int = 0,
    resume: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> tuple[onnx.ModelProto, Report]:
    """Compress a model; returns the compressed model and a report, and writes both into `output`.

    data: samples by input name, or an .npz file of them; None makes some up. max_size: bytes of the packed weights;
    max_loss: share of judged answers that may differ from the dense model's; pareto: a row of sizes; without any of
    them a loss of 0.5 %. sparsity, pattern: zeros demanded of every matrix, and their shape. levels: the most values
    in a code book. measure, judged: what counts as the same answer, and of which output. judge: samples to judge by,
    as `data`; None holds some of `data` out. calibration, held_out: the most samples fitted to, and judged by. labels:
    the array in `data` and `judge` with the right class of each sample; right answers count then. fine_tune: train with
    PyTorch, by the dense network's answers and the labels, on all of `data` that does not judge, `epochs` times for
    each size. mix: the share of each batch that is mixed with other samples, so that few are not learnt by heart. seed:
    of the order of samples and of positions. targets: whose expected speeds are reported; the weights are packed for
    the first one. aim: "size", or "speed": masks are tried too, for the first target's sparse kernels. resume: go on
    with what a run before left in `output`. Raises C2CError.
    """
    form = _form(sparsity, pattern, levels)
    _check_training(fine_tune, labels if data is None else None, epochs, mix)
    if pareto and (max_size is not None or max_loss is not None):
        raise OptionsError("the whole front and a budget are asked for", remedy="give one of them")
    if aim not in AIMS:
        raise OptionsError(f"nothing is aimed at '{aim}'", remedy=f"one of {', '.join(AIMS)}")
    budget = Budget(max_size, 0.005 if max_size is max_loss is None and not pareto else max_loss)
    proto = onnx_model.read_model(model)
    spreads = onnx_model.fold_batch_norm(proto)
    inputs = onnx_model.inputs_of(proto)
    arrays = synthetic_samples(proto, inputs, seed) if data is None else _read(data)
    judges = None if judge is None else _read(judge)
    most = sys.maxsize if fine_tune else calibration
    everything = split(arrays, inputs, seed, calibration=most, held_out=held_out, judges=judges, labels=labels)
    everything = replace(everything, synthetic=data is None)
    samples = everything.limited(calibration)
    folder = None if output is None else Path(output)
    machines = [Target.parse(t) for t in targets]
    session = start(proto, samples, form, measure=measure, output=judged, seed=seed, progress=progress)
    if aim == "speed":
        session.speeds = LayerSpeeds(machines[0])
    if samples.synthetic:
        session.runner.settle(samples.arrays, spreads)
    tuning = FineTuning(session, everything, epochs, mix) if fine_tune else None
    if folder is not None:
        session.state = resumed(folder, session.key() + ("" if tuning is None else tuning.key()), resume)
    outcomes = Outcomes(session, machines)
    kept, passes = _fitting(partial(search, session) if tuning is None else tuning.search, budget, outcomes)
    report = make_report(session, kept, passes, outcomes, whole_front=pareto)
    if folder is not None:
        write_outcome(folder, outcomes.of(kept), report.to_json())
    return outcomes.of(kept).model, report


def _fitting(find: Search, budget: Budget, outcomes: Outcomes) -> tuple[Pass, list[Pass]]:
    """The search's result; again within less where the file, padded for its target's kernels, exceeds the budget."""
    kept, passes = find(budget, [])
    most = budget.max_size
    for _ in range(_SHRINKS):
        if most is None or budget.max_size is None or outcomes.of(kept).bytes <= most:
            return kept, passes
        budget = Budget(int(budget.max_size * most / outcomes.of(kept).bytes * _MARGIN))
        kept, passes = find(budget, passes)
    assert most is not None
    for found in sorted(passes, key=lambda p: -p.size.total):
        if found.size.total <= kept.size.total and outcomes.of(found).bytes <= most:
            return found, passes
    least = min(outcomes.of(p).bytes for p in passes if p.price in outcomes.made)
    raise C2CError(f"the model does not fit into {most} bytes; packed for its target it takes {least}")


def _read(samples: Path | str | Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return samples if isinstance(samples, Mapping) else read_samples(samples)


def _check_training(fine_tune: bool, lonely: str | None, epochs: int, mix: float) -> None:
    """lonely: labels without samples."""
    if fine_tune:
        require_torch()
    if lonely is not None:
        raise OptionsError("labels are given without samples", remedy="give --data too")
    if epochs < 1:
        raise OptionsError(f"{epochs} epochs make no sense", remedy="1 or more")
    if not 0 <= mix <= 0.5:
        raise OptionsError(f"a share of {mix!r} of mixed samples makes no sense", remedy="from 0 to 0.5")


def _form(sparsity: float, pattern: str, levels: int) -> Form:
    if not 0 <= sparsity < 1:
        raise OptionsError(f"a sparsity of {sparsity!r} makes no sense", remedy="from 0 to below 1")
    if pattern not in PATTERNS:
        raise OptionsError(f"there is no pattern '{pattern}'", remedy=f"one of {', '.join(PATTERNS)}")
    if not 3 <= levels <= 256:
        raise OptionsError(f"a code book of {levels} levels makes no sense", remedy="3 to 256")
    return Form(0.5 if pattern == "2:4" and not sparsity else sparsity, pattern, levels)
