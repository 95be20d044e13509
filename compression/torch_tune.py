"""Training in PyTorch: weights that are pruned bit by bit, and the levels and biases of code books.

Pruning is gradual (Zhu and Gupta 2017), by what a weight's removal costs the loss, w² · E g² (LeCun, Denker and Solla
1989, with squared gradients for the curvature: of probes before, and of the loss, which Adam keeps). Weights that are
out keep getting gradients and may come back (Guo, Yao and Chen 2016). Levels get the sum of their members' gradients
(Han, Mao and Dally 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .coded import Coded, Kind
from .layers import Layer
from .reconstruct import rounded
from .torch_graph import Given
from .torch_lesson import Lesson, laid

PRUNING_RATE, LEVELS_RATE = 1e-3, 2e-4

_RAMP = 0.6
_MASK_EVERY = 50
_PROBES = 20
_LEVELS_SHARE = 0.25
"""Of the epochs: levels are few, and good from the start."""
_BIAS_STEPS = 16.0
"""Steps of the grid of biases in their root mean square."""

Progress = Callable[[str], None]


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
    return {v: Given(laid(tensors[f"weight{i}"]), tensors.get(f"bias{i}")) for i, v in enumerate(layers)}


def coded_given(coded: Mapping[Layer, Coded]) -> dict[Layer, Given]:
    return {
        v: Given(_scaled(laid(torch.from_numpy(c.tensor)), v, c), None if c.bias is None else torch.from_numpy(c.bias))
        for v, c in coded.items()
    }


def prune(learn: Lesson, start: Mapping[Layer, Given], density: float, progress: Progress) -> dict[Layer, Given]:
    """Train with a growing share of zeros until `density` of all the layers' weights is left."""
    weights = {v: g.weight.clone().requires_grad_() for v, g in start.items()}
    biases = {v: g.bias.clone().requires_grad_() for v, g in start.items() if g.bias is not None}
    optimizer = torch.optim.Adam([*weights.values(), *biases.values()], PRUNING_RATE, fused=True)
    masks = {v: (w != 0).float() for v, w in weights.items()}
    kept = sum(float(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    steps = learn.steps()
    ramp = int(steps * _RAMP)
    curvature = _curvature(learn, start)
    for step, batch in enumerate(learn.batches(steps)):
        if step == ramp or 0 < step < ramp and step % _MASK_EVERY == 0:
            left = density + (kept - density) * (1 - step / ramp) ** 3
            costs = {v: w.detach() ** 2 * (curvature[v] + optimizer.state[w]["exp_avg_sq"]) for v, w in weights.items()}
            masks = _dearest(costs, left)
            progress(f"pruning, {left:.1%} of the weights left")
        given = {v: Given((w.detach() * masks[v]).requires_grad_(), biases.get(v)) for v, w in weights.items()}
        loss = learn.loss(given, batch)
        optimizer.zero_grad()
        loss.backward()
        for v, w in weights.items():
            w.grad = given[v].weight.grad
        _cool(optimizer, PRUNING_RATE, step / steps)
        optimizer.step()
    return {v: Given(w.detach() * masks[v], biases[v].detach() if v in biases else None) for v, w in weights.items()}


def _curvature(learn: Lesson, start: Mapping[Layer, Given]) -> dict[Layer, Tensor]:
    """Mean squared gradients of probes by weight."""
    random = torch.Generator().manual_seed(learn.seed)
    given = {v: Given(g.weight.clone().requires_grad_(), g.bias) for v, g in start.items()}
    sums = {v: torch.zeros_like(g.weight) for v, g in start.items()}
    for batch in learn.batches(_PROBES):
        grads = torch.autograd.grad(learn.probe(given, batch, random), [g.weight for g in given.values()])
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
    grids = {v: _bias_step(b) for v, b in biases.items()}
    members = {v: _Members(c) for v, c in books.items()}
    fixed = {v: torch.from_numpy(c.tensor) for v, c in coded.items() if v not in books}
    optimizer = torch.optim.Adam([*levels.values(), *biases.values()], LEVELS_RATE, fused=True)
    steps = learn.steps(_LEVELS_SHARE)
    for step, batch in enumerate(learn.batches(steps)):
        if step % _MASK_EVERY == 0:
            progress(f"training levels, {step / steps:.0%}")
        tensors = fixed | {v: m(levels[v]) for v, m in members.items()}
        given = {
            v: Given(_scaled(laid(tensors[v]), v, c), _on_grid(biases.get(v), grids.get(v, 0.0)))
            for v, c in coded.items()
        }
        loss = learn.loss(given, batch)
        optimizer.zero_grad()
        loss.backward()
        _cool(optimizer, LEVELS_RATE, step / steps)
        optimizer.step()
    return {v: _trained(c, levels.get(v), _on_grid(biases.get(v), grids.get(v, 0.0))) for v, c in coded.items()}


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


def _scaled(tensor: Tensor, layer: Layer, c: Coded) -> Tensor:
    if c.scale is None:
        return tensor
    by_row = layer.kind == "conv" or layer.transposed
    return tensor * torch.from_numpy(c.scale).reshape((-1, *[1] * (tensor.ndim - 1)) if by_row else (1, -1))
