"""The networks of the compression papers, for images of 28x28: LeNets, a VGG-like and a ResNet-like one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def lenet_300_100() -> nn.Module:
    """LeCun et al. 1998: 266 610 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )  # fmt: skip


def lenet_5() -> nn.Module:
    """Caffe's form of LeNet-5, which Deep Compression and its followers use: 431 080 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def _block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def vgg(widths: tuple[int, int, int] = (16, 32, 64), hidden: int = 512) -> nn.Module:
    """3x3 convolutions between poolings, then three dense layers that hold nine tenths of the weights, as in VGG-16."""
    a, b, c = widths
    return nn.Sequential(
        *_block(1, a), nn.MaxPool2d(2), *_block(a, b), *_block(b, b), nn.MaxPool2d(2), *_block(b, c), *_block(c, c),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.4), nn.Linear(9 * c, hidden), nn.ReLU(), nn.Dropout(0.4),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """He et al. 2015, with a 1x1 convolution where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        *first, relu = _block(inputs, outputs, stride)
        self.body = nn.Sequential(*first, relu, *_block(outputs, outputs)[:-1])
        self.short = nn.Sequential()
        if inputs != outputs or stride > 1:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def resnet(widths: tuple[int, ...] = (16, 24, 48, 96), blocks: int = 1) -> nn.Module:
    """A pooled first convolution and stages of residual blocks at 14x14, 7x7 and 4x4."""
    layers: list[nn.Module] = [*_block(1, widths[0]), nn.MaxPool2d(2)]
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        layers.append(Residual(inputs, outputs, 1 if i == 0 else 2))
        layers += [Residual(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "vgg": vgg,
    "resnet": resnet,
}
