"""Training in PyTorch: weights that are pruned bit by bit, and the levels and biases of code books.

Pruning is gradual (Zhu and Gupta 2017), by what a weight's removal costs the loss, w² · E g² (LeCun, Denker and Solla
1989, with squared gradients for the curvature: of probes before, and of the loss, which Adam keeps). Weights that are
out keep getting gradients and may come back (Guo, Yao and Chen 2016). Levels get the sum of their members' gradients
(Han, Mao and Dally 2016).
The loss: the dense network's answers (Hinton, Vinyals and Dean 2015), and labels where there are some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..ir.graph import Graph, Value
from . import torch_graph
from .coded import Coded, Kind
from .layers import Layer
from .reconstruct import rounded
from .torch_graph import Given

BATCH = 128
LEAST_STEPS = 300
TEMPERATURE = 2.0
PRUNING_RATE, LEVELS_RATE = 1e-3, 2e-4
TAUGHT = 0.5
"""The dense network's share of the loss beside labels."""

_RAMP = 0.6
_MASK_EVERY = 50
_PROBES = 20
_BIAS_STEPS = 16.0
"""Steps of the grid of biases in their root mean square."""

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Lesson:
    """feeds: [samples, …] by input name; labels: [samples, …] or None; classes: whether the result's last axis holds
    classes; taught: the dense network's result [samples, …]."""

    graph: Graph
    layers: list[Layer]
    result: Value
    feeds: dict[str, Tensor]
    labels: Tensor | None
    classes: bool
    taught: Tensor
    epochs: int
    seed: int

    @property
    def count(self) -> int:
        return len(self.taught)

    @property
    def steps(self) -> int:
        return max(self.epochs * -(-self.count // BATCH), LEAST_STEPS)

    def batches(self) -> Iterator[Tensor]:
        """Rows of each step, all samples in a new order again and again."""
        random = torch.Generator().manual_seed(self.seed)
        rows = torch.zeros(0, dtype=torch.int64)
        for _ in range(self.steps):
            while len(rows) < min(BATCH, self.count):
                rows = torch.cat([rows, torch.randperm(self.count, generator=random)])
            yield rows[:BATCH]
            rows = rows[BATCH:]

    def probe(self, given: Mapping[Layer, Given], rows: Tensor, random: torch.Generator) -> Tensor:
        """What has squared gradients like the loss has curvatures, where the network answers as the dense one does and
        the loss has no gradient: the answers' own likelihood, or the result in a random direction."""
        result = torch_graph.run(self.graph, {k: a[rows] for k, a in self.feeds.items()}, given, self.result)
        if not self.classes:
            signs = torch.randint(0, 2, result.shape, generator=random) * 2 - 1
            return (result * signs).mean() / torch.clamp(self.taught.std(), min=1e-6)
        ours = result.reshape(-1, result.shape[-1])
        drawn = torch.multinomial(torch.softmax(ours.detach(), 1), 1, generator=random)[:, 0]
        return functional.cross_entropy(ours, drawn)

    def loss(self, given: Mapping[Layer, Given], rows: Tensor) -> Tensor:
        result = torch_graph.run(self.graph, {k: a[rows] for k, a in self.feeds.items()}, given, self.result)
        taught = self.taught[rows]
        if not self.classes:
            return functional.mse_loss(result, taught) / torch.clamp(self.taught.var(), min=1e-12)
        ours, theirs = (t.reshape(-1, t.shape[-1]) for t in (result, taught))
        soft = functional.kl_div(
            functional.log_softmax(ours / TEMPERATURE, 1), functional.log_softmax(theirs / TEMPERATURE, 1),
            log_target=True, reduction="batchmean",
        ) * TEMPERATURE**2  # fmt: skip
        if self.labels is None:
            return soft
        return TAUGHT * soft + (1 - TAUGHT) * functional.cross_entropy(ours, self.labels[rows].reshape(-1))


def lesson(
    graph: Graph, layers: list[Layer], output: int, feeds: Mapping[str, np.ndarray], labels: np.ndarray | None, *,
    classes: bool, epochs: int, seed: int,
) -> Lesson:  # fmt: skip
    """Of the dense network; raises UnsupportedOpError where it has an operator that cannot be trained through."""
    result = torch_graph.logits(graph.outputs[output]) if classes else graph.outputs[output]
    torch_graph.check(graph, result)
    tensors = {name: torch.from_numpy(a) for name, a in feeds.items()}
    answers = answered(graph, dense_given(layers), result, tensors)
    marks = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Lesson(graph, layers, result, tensors, marks, classes, answers, epochs, seed)


def answered(graph: Graph, given: Mapping[Layer, Given], result: Value, feeds: Mapping[str, Tensor]) -> Tensor:
    """`result` [samples, …] of all samples."""
    parts = zip(*(a.split(500) for a in feeds.values()), strict=True)
    with torch.no_grad():
        return torch.cat([torch_graph.run(graph, dict(zip(feeds, part, strict=True)), given, result) for part in parts])


def dense_given(layers: list[Layer]) -> dict[Layer, Given]:
    return {v: Given(_laid(torch.from_numpy(np.array(v.dense))), _bias_of(v)) for v in layers}


def to_arrays(layers: list[Layer], given: Mapping[Layer, Given]) -> dict[str, np.ndarray]:
    """For a file: weights and biases by the layers' places."""
    arrays = {
        f"weight{i}": given[v].weight.contiguous(memory_format=torch.contiguous_format).numpy()
        for i, v in enumerate(layers)
    }
    biases = ((i, given[v].bias) for i, v in enumerate(layers))
    return arrays | {f"bias{i}": b.numpy() for i, b in biases if b is not None}


def from_arrays(layers: list[Layer], arrays: Mapping[str, np.ndarray]) -> dict[Layer, Given]:
    """What `to_arrays` was given."""
    tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}
    return {v: Given(_laid(tensors[f"weight{i}"]), tensors.get(f"bias{i}")) for i, v in enumerate(layers)}


def coded_given(coded: Mapping[Layer, Coded]) -> dict[Layer, Given]:
    return {
        v: Given(_scaled(_laid(torch.from_numpy(c.tensor)), v, c), None if c.bias is None else torch.from_numpy(c.bias))
        for v, c in coded.items()
    }


def prune(learn: Lesson, start: Mapping[Layer, Given], density: float, progress: Progress) -> dict[Layer, Given]:
    """Train with a growing share of zeros until `density` of all the layers' weights is left."""
    weights = {v: g.weight.clone().requires_grad_() for v, g in start.items()}
    biases = {v: g.bias.clone().requires_grad_() for v, g in start.items() if g.bias is not None}
    optimizer = torch.optim.Adam([*weights.values(), *biases.values()], PRUNING_RATE)
    masks = {v: (w != 0).float() for v, w in weights.items()}
    kept = sum(float(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    ramp = int(learn.steps * _RAMP)
    curvature = _curvature(learn, start)
    for step, rows in enumerate(learn.batches()):
        if step == ramp or 0 < step < ramp and step % _MASK_EVERY == 0:
            left = density + (kept - density) * (1 - step / ramp) ** 3
            costs = {v: w.detach() ** 2 * (curvature[v] + optimizer.state[w]["exp_avg_sq"]) for v, w in weights.items()}
            masks = _dearest(costs, left)
            progress(f"pruning, {left:.1%} of the weights left")
        given = {v: Given((w.detach() * masks[v]).requires_grad_(), biases.get(v)) for v, w in weights.items()}
        loss = learn.loss(given, rows)
        optimizer.zero_grad()
        loss.backward()
        for v, w in weights.items():
            w.grad = given[v].weight.grad
        _cool(optimizer, PRUNING_RATE, step / learn.steps)
        optimizer.step()
    return {v: Given(w.detach() * masks[v], biases[v].detach() if v in biases else None) for v, w in weights.items()}


def _curvature(learn: Lesson, start: Mapping[Layer, Given]) -> dict[Layer, Tensor]:
    """Mean squared gradients of probes by weight."""
    random = torch.Generator().manual_seed(learn.seed)
    given = {v: Given(g.weight.clone().requires_grad_(), g.bias) for v, g in start.items()}
    sums = {v: torch.zeros_like(g.weight) for v, g in start.items()}
    for _, rows in zip(range(_PROBES), learn.batches(), strict=False):
        grads = torch.autograd.grad(learn.probe(given, rows, random), [g.weight for g in given.values()])
        for v, grad in zip(given, grads, strict=True):
            sums[v] += grad.square() / _PROBES
    return sums


def _dearest(costs: Mapping[Layer, Tensor], density: float) -> dict[Layer, Tensor]:
    """Masks of the share `density` of all weights that costs most."""
    everything = torch.cat([c.flatten() for c in costs.values()])
    least = everything.kthvalue(max(1, int(len(everything) * (1 - density)))).values
    return {v: (c > least).float() for v, c in costs.items()}


def train_levels(learn: Lesson, coded: Mapping[Layer, Coded], progress: Progress) -> dict[Layer, Coded]:
    """Levels of code books and all biases trained, indices as they are."""
    books = {v: c for v, c in coded.items() if c.kind is Kind.BOOK}
    levels = {v: torch.from_numpy(c.levels.copy()).requires_grad_() for v, c in books.items()}
    biases = {v: torch.from_numpy(c.bias.copy()).requires_grad_() for v, c in coded.items() if c.bias is not None}
    steps = {v: _bias_step(b) for v, b in biases.items()}
    members = {v: _Members(c) for v, c in books.items()}
    fixed = {v: torch.from_numpy(c.tensor) for v, c in coded.items() if v not in books}
    optimizer = torch.optim.Adam([*levels.values(), *biases.values()], LEVELS_RATE)
    for step, rows in enumerate(learn.batches()):
        if step % _MASK_EVERY == 0:
            progress(f"training levels, {step / learn.steps:.0%}")
        tensors = fixed | {v: m(levels[v]) for v, m in members.items()}
        given = {
            v: Given(_scaled(_laid(tensors[v]), v, c), _on_grid(biases.get(v), steps.get(v, 0.0)))
            for v, c in coded.items()
        }
        loss = learn.loss(given, rows)
        optimizer.zero_grad()
        loss.backward()
        _cool(optimizer, LEVELS_RATE, step / learn.steps)
        optimizer.step()
    return {v: _trained(c, levels.get(v), _on_grid(biases.get(v), steps.get(v, 0.0))) for v, c in coded.items()}


def _trained(c: Coded, levels: Tensor | None, bias: Tensor | None) -> Coded:
    moved = c.levels if levels is None else rounded(levels.detach().numpy().astype(np.float64))
    return replace(c, levels=moved, bias=None if bias is None else bias.detach().numpy())


class _Members:
    """Levels to the tensor of their members, with a backward pass of one sum over the members that are not 0."""

    def __init__(self, c: Coded) -> None:
        flat = torch.from_numpy(c.index.astype(np.int64)).reshape(-1)
        self.shape = c.index.shape
        self.places = torch.from_numpy(np.flatnonzero(c.levels[c.index.ravel()] != 0))
        self.index = flat[self.places]

    def __call__(self, levels: Tensor) -> Tensor:
        found: Tensor = _Spread.apply(levels, self)
        return found


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, levels: Tensor, members: _Members) -> Tensor:
        ctx.members, ctx.count = members, len(levels)
        flat = torch.zeros(math.prod(members.shape))
        flat[members.places] = levels[members.index]
        return flat.reshape(members.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        members: _Members = ctx.members
        inner = grads[0].reshape(-1)[members.places]
        sums = torch.bincount(members.index, inner, ctx.count)
        return sums.to(inner.dtype), None


def _on_grid(bias: Tensor | None, step: float) -> Tensor | None:
    """Rounded to multiples of `step`; gradients pass."""
    return bias if bias is None or not step else bias + (torch.round(bias / step) * step - bias).detach()


def _bias_step(bias: Tensor) -> float:
    size = float(bias.detach().square().mean().sqrt())
    return 2.0 ** math.floor(math.log2(size / _BIAS_STEPS)) if size > 0 else 0.0


def _cool(optimizer: torch.optim.Adam, rate: float, part: float) -> None:
    """From `rate` to nearly none along half a cosine (Loshchilov and Hutter 2017)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * (0.02 + 0.49 * (1 + math.cos(math.pi * part)))


def _laid(tensor: Tensor) -> Tensor:
    """Filters with channels innermost: PyTorch then computes so, which is faster on CPUs."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _scaled(tensor: Tensor, layer: Layer, c: Coded) -> Tensor:
    if c.scale is None:
        return tensor
    by_row = layer.kind == "conv" or layer.transposed
    return tensor * torch.from_numpy(c.scale).reshape((-1, *[1] * (tensor.ndim - 1)) if by_row else (1, -1))


def _bias_of(layer: Layer) -> Tensor | None:
    return None if layer.bias is None else torch.from_numpy(layer.bias_vector())
