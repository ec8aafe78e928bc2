"""Encoder of single transitions, which the algorithms that infer from contexts share."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mg2l.experience.replay import Context, as_context
from mg2l.nn.moments import RunningMoments
from mg2l.nn.vision import ImageEncoder, Vision


class TransitionMoments(RunningMoments):
    """Moments of every feature of all transitions that the replay has taken so far.

    They are taken over agents too, so that the agents' transitions stay comparable.

    Args:
        features: width F of a transition.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)

    def update(self, rows: Tensor, kept: Tensor | None = None) -> None:
        """Merge those transitions ``[*, F]`` for which ``kept`` ``[*]`` is true."""
        super().update(rows.flatten(0, -2), None if kept is None else kept.flatten())

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A layer on standardised transitions as a layer on transitions as they are.

        Args:
            weight: ``[H, F]``.
            bias: ``[H]``.

        Returns:
            Weight and bias that give the same; unchanged before the first update.
        """
        moments = self.mean, self.std
        folded: tuple[Tensor, Tensor] = _Fold.apply(weight, bias, *moments)  # type: ignore
        return folded

    def unfold(self, to_weight: Tensor, to_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a layer's weight and bias, given those of what `fold` makes of them."""
        return _unfold(to_weight, to_bias, self.mean, self.std)


def _unfold(to_scaled: Tensor, to_bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    to_weight = (to_scaled - to_bias.unsqueeze(1) * mean) / std
    return to_weight.to(to_scaled.dtype), to_bias


class _Fold(torch.autograd.Function):
    """With its gradient in closed form, which takes a fraction of autograd's operations."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mean, std)
        scaled = weight / std  # in float64, like the moments
        return scaled.to(weight.dtype), (bias - scaled @ mean).to(bias.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_scaled: Tensor, to_bias: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_unfold(to_scaled, to_bias, *ctx.saved_tensors), None, None


class TransitionEncoder(nn.Module):
    """Features of single transitions, which are standardised first; shared by all agents.

    Args:
        hidden: widths of the hidden layers.
        transition: width F of a transition.
        outputs: width of the layer after the hidden ones.
        vision: where the image lies in an observation, if it is read as one.
    """

    def __init__(
        self, hidden: list[int], transition: int, outputs: int, vision: Vision | None = None
    ) -> None:
        super().__init__()
        self.image = None if vision is None else ImageEncoder(vision)
        inputs = transition + (0 if self.image is None else 2 * self.image.gain)
        sizes = [inputs, *hidden]
        self.moments = TransitionMoments(transition)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        self.output = nn.Linear(sizes[-1], outputs)

    def forward(self, context: Context | Tensor) -> Tensor:
        """``[B, A, T, outputs]`` of B contexts."""
        features: Tensor = self.output(self._hidden(context))
        return features

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every hidden layer, the first one on transitions as they are."""
        layers: list[tuple[Tensor, Tensor]] = [
            (x.weight, x.bias) for x in self.layers if isinstance(x, nn.Linear)
        ]
        if self.image is not None:  # features of images are standardised before
            return layers
        return [self.moments.fold(*layers[0]), *layers[1:]]

    def _hidden(self, context: Context | Tensor) -> Tensor:
        """Hidden features ``[B, A, T, H]`` of standardised transitions."""
        hidden = as_context(context).gather()
        if self.image is not None:
            hidden = self._read_images(hidden)
        for weight, bias in self._layers():
            hidden = F.gelu(F.linear(hidden, weight, bias))
        return hidden.transpose(1, 2)

    def _read_images(self, transitions: Tensor) -> Tensor:
        """Transitions ``[*, F]``, standardised, the images of both observations as features."""
        assert self.image is not None
        width = self.image.vision.observation
        rows = self.moments.standardise(transitions).flatten(0, -2).unsqueeze(0)
        before, between, after = rows.split([width, rows.shape[-1] - 2 * width, width], -1)
        features = [self.image.see(before), between, self.image.see(after)]
        return torch.cat(features, -1).view(*transitions.shape[:-1], -1)
