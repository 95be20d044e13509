"""What training is judged by: batches of samples and the loss of a network's answers to them.

The loss: the dense network's answers (Hinton, Vinyals and Dean 2015), and labels where there are some. Samples of
floats may be mixed with one another (Zhang et al. 2018), and the dense network is asked for the mixture itself (Beyer
et al. 2022): few samples are then not learnt by heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..ir.graph import Graph, Value
from . import torch_graph
from .layers import Layer
from .torch_graph import Given

SIZE = 128
"""Samples in a batch."""
LEAST_STEPS = 300
TEMPERATURE = 2.0
TAUGHT = 0.5
"""The dense network's share of the loss beside labels."""


@dataclass(frozen=True, slots=True)
class Batch:
    """feeds: [samples, …] by input name; taught: the dense network's result; labels: of the samples and of those that
    are mixed in; share: of a sample beside what is mixed into it, 1 for none [samples]."""

    feeds: dict[str, Tensor]
    taught: Tensor
    labels: tuple[Tensor, Tensor] | None
    share: Tensor


@dataclass(frozen=True, eq=False)
class Lesson:
    """feeds: [samples, …] by input name; labels: [samples, …] or None; classes: whether the result's last axis holds
    classes; dense: what the dense network computes with; taught: its result [samples, …]; mix: the
    share of each batch whose samples are mixed with others, 0.5 at most."""

    graph: Graph
    layers: list[Layer]
    result: Value
    feeds: dict[str, Tensor]
    labels: Tensor | None
    classes: bool
    dense: dict[Layer, Given]
    taught: Tensor
    epochs: int
    mix: float
    seed: int

    @property
    def count(self) -> int:
        return len(self.taught)

    def steps(self, share: float = 1.0) -> int:
        """Of a share of the epochs."""
        return max(round(share * self.epochs * -(-self.count // SIZE)), LEAST_STEPS)

    def batches(self, steps: int) -> Iterator[Batch]:
        """One for each step, all samples in a new order again and again."""
        random = torch.Generator().manual_seed(self.seed)
        rows = torch.zeros(0, dtype=torch.int64)
        for _ in range(steps):
            while len(rows) < min(SIZE, self.count):
                rows = torch.cat([rows, torch.randperm(self.count, generator=random)])
            yield self._mixed(rows[:SIZE], random)
            rows = rows[SIZE:]

    def plain(self, rows: Tensor) -> Batch:
        """The samples as they are."""
        labels = None if self.labels is None else (self.labels[rows], self.labels[rows])
        feeds = {name: a[rows] for name, a in self.feeds.items()}
        return Batch(feeds, self.taught[rows], labels, torch.ones(len(rows)))

    def _mixed(self, rows: Tensor, random: torch.Generator) -> Batch:
        """The first `mix` of the samples mixed with the last."""
        batch, mixed = self.plain(rows), int(len(rows) * self.mix)
        if not mixed or not all(a.is_floating_point() for a in batch.feeds.values()):
            return batch
        share = torch.rand(mixed, generator=random)
        for a in batch.feeds.values():
            a[:mixed] = torch.lerp(a[-mixed:], a[:mixed], share.reshape(-1, *[1] * (a.ndim - 1)))
        batch.share[:mixed] = share
        with torch.no_grad():
            batch.taught[:mixed] = self._result({name: a[:mixed] for name, a in batch.feeds.items()}, self.dense)
        if batch.labels is not None:
            batch.labels[1][:mixed] = batch.labels[0][-mixed:]
        return batch

    def _result(self, feeds: Mapping[str, Tensor], given: Mapping[Layer, Given]) -> Tensor:
        return torch_graph.run(self.graph, feeds, given, self.result)

    def probe(self, given: Mapping[Layer, Given], batch: Batch, random: torch.Generator) -> Tensor:
        """What has squared gradients like the loss has curvatures, where the network answers as the dense one does and
        the loss has no gradient: the answers' own likelihood, or the result in a random direction."""
        result = self._result(batch.feeds, given)
        if not self.classes:
            signs = torch.randint(0, 2, result.shape, generator=random) * 2 - 1
            return (result * signs).mean() / torch.clamp(self.taught.std(), min=1e-6)
        ours = result.reshape(-1, result.shape[-1])
        drawn = torch.multinomial(torch.softmax(ours.detach(), 1), 1, generator=random)[:, 0]
        return functional.cross_entropy(ours, drawn)

    def loss(self, given: Mapping[Layer, Given], batch: Batch) -> Tensor:
        result = self._result(batch.feeds, given)
        if not self.classes:
            return functional.mse_loss(result, batch.taught) / torch.clamp(self.taught.var(), min=1e-12)
        ours, theirs = (t.reshape(-1, t.shape[-1]) for t in (result, batch.taught))
        soft = functional.kl_div(
            functional.log_softmax(ours / TEMPERATURE, 1), functional.log_softmax(theirs / TEMPERATURE, 1),
            log_target=True, reduction="batchmean",
        ) * TEMPERATURE**2  # fmt: skip
        if batch.labels is None:
            return soft
        own, other = (
            functional.cross_entropy(ours, marks.reshape(-1), reduction="none").reshape(len(result), -1).mean(1)
            for marks in batch.labels
        )
        return TAUGHT * soft + (1 - TAUGHT) * (batch.share * own + (1 - batch.share) * other).mean()


def lesson(
    graph: Graph, layers: list[Layer], output: int, feeds: Mapping[str, np.ndarray], labels: np.ndarray | None, *,
    classes: bool, epochs: int, mix: float, seed: int,
) -> Lesson:  # fmt: skip
    """Of the dense network; raises UnsupportedOpError where it has an operator that cannot be trained through."""
    result = torch_graph.logits(graph.outputs[output]) if classes else graph.outputs[output]
    torch_graph.check(graph, result)
    tensors = {name: torch.from_numpy(a) for name, a in feeds.items()}
    dense = dense_given(layers)
    answers = answered(graph, dense, result, tensors)
    marks = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Lesson(graph, layers, result, tensors, marks, classes, dense, answers, epochs, mix, seed)


def answered(graph: Graph, given: Mapping[Layer, Given], result: Value, feeds: Mapping[str, Tensor]) -> Tensor:
    """`result` [samples, …] of all samples."""
    parts = zip(*(a.split(500) for a in feeds.values()), strict=True)
    with torch.no_grad():
        return torch.cat([torch_graph.run(graph, dict(zip(feeds, part, strict=True)), given, result) for part in parts])


def dense_given(layers: list[Layer]) -> dict[Layer, Given]:
    biases = {v: torch.from_numpy(v.bias_vector()) for v in layers if v.bias is not None}
    return {v: Given(laid(torch.from_numpy(np.array(v.dense))), biases.get(v)) for v in layers}


def laid(tensor: Tensor) -> Tensor:
    """Filters with channels innermost: PyTorch then computes so, which is faster on CPUs."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
