"""Train the small networks that compression is measured on, and write them as ONNX.

usage: python examples/training/train.py DIR [NETWORK-DATA...]        all by default; needs torch and onnx
makes: DIR/NETWORK-DATA.onnx, DIR/DATA-{train,judge,test}.npz; prints the right answers on the test images

then:  c2c compress DIR/lenet-5-fashion.onnx --data DIR/fashion-train.npz --judge DIR/fashion-judge.npz --labels y
       python examples/training/score.py DIR/fashion-test.npz DIR/lenet-5-fashion.onnx small/model.onnx
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import Data, DataError, Part, load, write
from networks import NETWORKS
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "datasets"
BATCH = 128
COPIES = {"digits": 5, "fashion": 0}
"""Moved copies of each training image in DATA-train.npz: few images alone are learnt by heart in fine-tuning."""


@dataclass(frozen=True)
class Recipe:
    """rate: the highest of one cycle. angle, shift: the most degrees and pixels that images are moved by."""

    epochs: int
    rate: float
    angle: float = 0.0
    shift: float = 1.0
    flip: bool = True
    decay: float = 5e-4


RECIPES = {
    "lenet-300-100-fashion": Recipe(40, 0.08),
    "lenet-300-100-digits": Recipe(150, 0.08, angle=15, shift=2, flip=False, decay=1e-4),
    "lenet-5-fashion": Recipe(14, 0.05),
    "lenet-5-digits": Recipe(60, 0.05, angle=15, shift=2, flip=False),
    "vgg-fashion": Recipe(7, 0.1),
    "resnet-fashion": Recipe(5, 0.2),
}


def moved(x: Tensor, recipe: Recipe, random: torch.Generator) -> Tensor:
    """A batch [N, 1, 28, 28] turned, shifted and mirrored at random."""
    n = len(x)

    def uniform(most: float) -> Tensor:
        return (torch.rand(n, generator=random) * 2 - 1) * most

    turn = uniform(math.radians(recipe.angle))
    sign = torch.where(torch.rand(n, generator=random) < 0.5, -1.0, 1.0) if recipe.flip else torch.ones(n)
    right, down = uniform(recipe.shift / 14), uniform(recipe.shift / 14)
    rows = [
        torch.stack([turn.cos() * sign, -turn.sin(), right], 1),
        torch.stack([turn.sin() * sign, turn.cos(), down], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def with_copies(data: Data, copies: int, recipe: Recipe, seed: int) -> Data:
    """The training images, and `copies` of each moved as in training."""
    random = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(data.train.x)[:, None].float() / 255
    others = [(moved(x, recipe, random)[:, 0] * 255).round().byte().numpy() for _ in range(copies)]
    part = Part(np.concatenate([data.train.x, *others]), np.tile(data.train.y, copies + 1))
    return Data(part, data.judge, data.test)


def train(net: nn.Module, data: Data, recipe: Recipe, seed: int, name: str) -> None:
    """Stochastic gradients with Nesterov momentum and one cycle of the rate (Smith and Topin 2017)."""
    random = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y).long()
    steps = len(x) // BATCH
    optimizer = torch.optim.SGD(net.parameters(), recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, recipe.epochs * steps, pct_start=0.2)
    for epoch in range(recipe.epochs):
        net.train()
        order = torch.randperm(len(x), generator=random)
        total = 0.0
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            images = moved(x[rows, None].float() / 255, recipe, random)
            loss = nn.functional.cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            total += loss.item()
        right = correct(net, data.judge.floats(), data.judge.y)
        print(
            f"{name} epoch {epoch + 1}/{recipe.epochs} loss {total / steps:.4f} judge {right}/{len(data.judge.y)}",
            flush=True,
        )


@torch.no_grad()
def correct(net: nn.Module, x: object, y: object) -> int:
    net.eval()
    images, labels = torch.as_tensor(x), torch.as_tensor(y)
    return sum(int((net(i).argmax(1) == j).sum()) for i, j in zip(images.split(500), labels.split(500), strict=True))


def export(net: nn.Module, path: Path) -> None:
    """Opset 17, batch dimension free, batch norms folded."""
    net.eval().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(1, 1, 28, 28),), str(path), dynamo=False, opset_version=17, input_names=["x"],
            output_names=["logits"], dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NETWORK-DATA", help=" ".join(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    names = options.names or list(RECIPES)
    if unknown := [n for n in names if n not in RECIPES]:
        parser.error(f"no such network: {' '.join(unknown)}; there are {' '.join(RECIPES)}")
    torch.set_num_threads(options.threads)
    sets: dict[str, Data] = {}
    for name in names:
        network, _, kind = name.rpartition("-")
        try:
            if kind not in sets:
                sets[kind] = load(kind, CACHE)
                write(with_copies(sets[kind], COPIES[kind], RECIPES[name], options.seed), options.folder, kind)
        except DataError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        torch.manual_seed(options.seed)
        net = NETWORKS[network]().to(memory_format=torch.channels_last)
        train(net, sets[kind], RECIPES[name], options.seed, name)
        test = sets[kind].test
        print(f"{name}: {correct(net, test.floats(), test.y)}/{len(test.y)} test images right", flush=True)
        export(net, options.folder / f"{name}.onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
