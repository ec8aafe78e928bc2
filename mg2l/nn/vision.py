"""Observations that begin with an image, through two convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CHANNELS = (16, 32)
_KERNEL = 3


@dataclass(frozen=True)
class Vision:
    """Position of the image within an observation.

    Raises:
        ValueError: the image is too small for two convolutions.
    """

    image: tuple[int, int, int]
    """Height, width and channels: the observation's first numbers, row by row, channels last."""

    observation: int
    """Width O of an observation."""

    def __post_init__(self) -> None:
        if min(self.image[:2]) < 2 * _KERNEL - 1:
            side = 2 * _KERNEL - 1
            raise ValueError(
                f"obs=cnn needs images of at least {side} x {side} cells, got {self.image[:2]}"
            )

    @property
    def pixels(self) -> int:
        """Numbers of the image."""
        height, width, channels = self.image
        return height * width * channels

    @property
    def width(self) -> int:
        """Width of an observation whose image has become features."""
        height, width = ((size - _KERNEL - 2) // 2 + 1 for size in self.image[:2])
        return _CHANNELS[1] * height * width + self.observation - self.pixels


class StackedConv(nn.Module):
    """A 3 x 3 convolution per group: ``[G, rows, in, h, w] -> [G, rows, out, h', w']``."""

    def __init__(self, groups: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs, _KERNEL, _KERNEL))
        self.bias = nn.Parameter(torch.zeros(groups, outputs))
        for filters in self.weight.data:
            nn.init.orthogonal_(filters.flatten(1), nn.init.calculate_gain("relu"))

    def forward(self, x: Tensor) -> Tensor:
        groups, rows = x.shape[:2]
        together = x.transpose(0, 1).flatten(1, 2)
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        y: Tensor = F.conv2d(together, weight, bias, self.stride, groups=groups)
        return y.view(rows, groups, -1, *y.shape[2:]).transpose(0, 1)


class ImageEncoder(nn.Module):
    """Turns the images of observations into features, and passes on the other numbers.

    Args:
        vision: where the image lies.
        groups: networks, one for each agent or one for all.
        count: observations that lie side by side at the beginning of an input.
    """

    def __init__(self, vision: Vision, groups: int = 1, count: int = 1) -> None:
        super().__init__()
        self.vision, self.groups, self.count = vision, groups, count
        self.convs = nn.ModuleList(
            [
                StackedConv(groups, vision.image[2], _CHANNELS[0], 1),
                StackedConv(groups, *_CHANNELS, 2),
            ]
        )

    @property
    def gain(self) -> int:
        """How much wider an input becomes; negative where it becomes narrower."""
        return self.count * (self.vision.width - self.vision.observation)

    def see(self, observations: Tensor) -> Tensor:
        """``[A, rows, O] -> [A, rows, vision.width]``."""
        agents, rows, _ = observations.shape
        image, rest = observations.split(
            [self.vision.pixels, self.vision.observation - self.vision.pixels], -1
        )
        height, width, channels = self.vision.image
        x = image.reshape(self.groups, -1, height, width, channels).movedim(-1, 2)
        for conv in self.convs:
            x = F.relu(conv(x))
        return torch.cat([x.reshape(agents, rows, -1), rest], -1)

    def forward(self, x: Tensor) -> Tensor:
        """``[A, rows, count * O + rest] -> [A, rows, count * vision.width + rest]``."""
        agents, rows, inputs = x.shape
        seen = self.count * self.vision.observation
        observations, rest = x.split([seen, inputs - seen], -1)
        observations = observations.reshape(agents, rows * self.count, self.vision.observation)
        return torch.cat([self.see(observations).reshape(agents, rows, -1), rest], -1)
