"""Compression with training, in the order of Deep Compression (Han, Mao and Dally 2016): prune, cluster, train levels.

Sizes are taken from large to small, each stage going on from the pruned weights of the one before. Clustering is a
compression without labels (`session`) of the pruned network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..ir.errors import C2CError, OptionsError
from .acceptance import Agreement
from .coded import Coded
from .layers import Layer
from .onnx_model import with_constants
from .samples import Samples
from .search import Budget, DoesNotFit, search
from .session import Pass, Session, start

if TYPE_CHECKING:
    from .torch_graph import Given
    from .torch_lesson import Lesson

RATIOS = (16.0, 24.0, 34.0, 48.0, 68.0, 96.0, 136.0)
"""Of the stages without a size that is asked for: fp32 bytes over packed bytes."""

NONZERO_BITS = 2.5
"""What an index other than 0 is expected to take."""

_JUDGES = 32
_FILLED = 0.97
_DENSE_BITS = 4.0


@dataclass(eq=False, slots=True)
class FineTuning:
    """session: of the dense network, whose samples are few; samples: all of them; epochs: over the samples that are
    fitted to, for each stage; mix: the share of each batch that is mixed with other samples."""

    session: Session
    samples: Samples
    epochs: int
    mix: float = 0.0
    learn: Lesson = field(init=False)
    dense: np.ndarray = field(init=False)
    weights: dict[Layer, Given] = field(init=False)

    def __post_init__(self) -> None:
        from . import torch_lesson

        s, fitted = self.session, self.samples.calibration
        labels = self.samples.labels
        self.learn = torch_lesson.lesson(
            s.graph, s.layers, s.output, {name: a[:fitted] for name, a in self.samples.arrays.items()},
            None if labels is None else labels[:fitted], classes=self._classes(), epochs=self.epochs,
            mix=self.mix, seed=s.seed,
        )  # fmt: skip
        self.weights = dict(self.learn.dense)
        self.dense = self._outputs(self.weights)

    def key(self) -> str:
        """What decides the result beside the session's own key."""
        digest = hashlib.sha256(repr((self.epochs, self.mix, self.samples.calibration)).encode())
        for a in (*self.samples.arrays.values(), self.samples.labels):
            digest.update(b"" if a is None else np.ascontiguousarray(a).tobytes())
        return digest.hexdigest()

    def search(self, budget: Budget, known: Sequence[Pass] = ()) -> tuple[Pass, list[Pass]]:
        """The pass to keep, and all that were made. known: passes of a search for another size."""
        self.session.survey()
        if budget.max_size is not None:
            found = self.stage(budget.max_size)
            return found, [*known, found]
        passes: list[Pass] = []
        for ratio in RATIOS:
            try:
                passes.append(self.stage(int(self.session.original_bytes / ratio)))
            except DoesNotFit:
                if passes:
                    break
                raise
            if budget.max_loss is not None and passes[-1].agreement.loss > budget.max_loss:
                break
        most = 0.01 if budget.max_loss is None else budget.max_loss
        good = [p for p in passes if p.agreement.loss <= most]
        if not good and budget.max_loss is not None:
            raise C2CError(
                f"no size gives a loss of {most:.2%} or less: {passes[-1].agreement} at {passes[-1].size.total} bytes",
                remedy="give more samples or epochs, or allow more loss",
            )
        return (min(good, key=lambda p: p.size.total) if good else passes[0]), passes

    def stage(self, size: int) -> Pass:
        """Prune from where the last stage ended, cluster, train the levels; in at most `size` bytes."""
        from . import torch_tune

        s = self.session
        self.weights = self._pruned(size)
        aim = int(size * _FILLED)
        for _ in range(3):
            price, coded = self._clustered(aim)
            coded = torch_tune.train_levels(self.learn, coded, s.progress)
            taken = s.size_of(coded)
            if taken.total <= size:
                return Pass(price, coded, taken, self._agreement(coded))
            aim -= taken.total - size + size // 100
        raise DoesNotFit(f"the model does not fit into {size} bytes; the smallest try took {taken.total}")

    def _pruned(self, size: int) -> dict[Layer, Given]:
        from . import torch_tune

        s = self.session
        density = density_for(8 * size / sum(v.dense.size for v in s.layers))
        kept = s.state.load(f"pruned-{size}")
        if kept is None:
            found = self.weights if density >= 1 else torch_tune.prune(self.learn, self.weights, density, s.progress)
            s.state.save(f"pruned-{size}", torch_tune.to_arrays(s.layers, found))
            return found
        return torch_tune.from_arrays(s.layers, kept)

    def _clustered(self, size: int) -> tuple[float, dict[Layer, Coded]]:
        """The pruned network compressed into `size` bytes, by layers of the dense one, and the price of a bit."""
        s = self.session
        changed = {v.name: g.weight.numpy() for v, g in self.weights.items()}
        for v, g in self.weights.items():
            if v.bias is not None and g.bias is not None:
                changed[v.bias.name] = _shaped(g.bias.numpy(), v.bias.type.dims)
        inner = start(
            with_constants(s.model, changed), s.samples.limited(s.samples.calibration, _JUDGES), s.form,
            measure="cosine", output=s.graph.output_names[s.output], seed=s.seed, progress=s.progress,
        )  # fmt: skip
        kept, _ = search(inner, Budget(max_size=size))
        own = {v.name: v for v in s.layers}
        return kept.price, {own[v.name]: c for v, c in kept.coded.items()}

    def _agreement(self, coded: Mapping[Layer, Coded]) -> Agreement:
        from . import torch_tune

        return self.session.judge(self.dense, self._outputs(torch_tune.coded_given(coded)), self.samples.judge_labels)

    def _outputs(self, given: Mapping[Layer, Given]) -> np.ndarray:
        """The judged output of the samples that judge."""
        import torch

        from . import torch_lesson

        s = self.session
        feeds = {name: torch.from_numpy(a[self.samples.held_out]) for name, a in self.samples.arrays.items()}
        found: np.ndarray = torch_lesson.answered(s.graph, given, s.graph.outputs[s.output], feeds).numpy()
        return found

    def _classes(self) -> bool:
        s = self.session
        return s.measure in ("auto", "top1") and s.graph.outputs[s.output].type.dims[-1] >= 2


def density_for(bits: float) -> float:
    """The share of weights that are not 0 at `bits` a weight: H(p) + p · NONZERO_BITS = bits."""
    if bits >= _DENSE_BITS:
        return 1.0
    low, high = 1e-4, 0.5
    for _ in range(40):
        p = (low + high) / 2
        entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
        low, high = (p, high) if entropy + p * NONZERO_BITS < bits else (low, p)
    return low


def require_torch() -> None:
    """Raises OptionsError where PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise OptionsError("fine-tuning needs PyTorch", remedy="pip install 'c2c[train]'") from e


def _shaped(bias: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    """A bias a channel in the shape of the constant that it stands for, or that broadcasts alike."""
    return bias.reshape(dims) if int(np.prod(dims)) == bias.size else bias
