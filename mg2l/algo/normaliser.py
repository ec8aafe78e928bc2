"""Running moments of value targets: ValueNorm and PopArt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mg2l.algo.networks import StackedLinear


class ValueNorm(nn.Module):
    """Debiased exponential moments of the value targets, one pair per agent.

    ``mean`` and ``std`` are ``[G]``; before the first update they are 0 and 1.
    """

    weight: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, groups: int, beta: float = 0.99999, floor: float = 1e-2) -> None:
        super().__init__()
        self.beta, self.floor = beta, floor
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("first", torch.zeros(groups))
        self.register_buffer("second", torch.zeros(groups))

    @property
    def mean(self) -> Tensor:
        """Mean of the targets, ``[G]``."""
        return self.first / self.weight.clamp(min=1e-8)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the targets, ``[G]``."""
        variance = self.second / self.weight.clamp(min=1e-8) - self.mean.square()
        std = variance.clamp(min=self.floor).sqrt()
        return torch.where(self.weight > 0, std, torch.ones_like(std))

    @torch.no_grad()
    def update(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """Fold in targets ``[A, rows]``.

        Returns:
            The predictions ``[A, rows]`` as the critic would make them now.
        """
        self._fold(targets)
        return predictions

    def _fold(self, targets: Tensor) -> None:
        rows = targets.reshape(len(self.first), -1)
        self.weight.mul_(self.beta).add_(1 - self.beta)
        self.first.mul_(self.beta).add_(rows.mean(1), alpha=1 - self.beta)
        self.second.mul_(self.beta).add_(rows.square().mean(1), alpha=1 - self.beta)

    def normalise(self, targets: Tensor) -> Tensor:
        """``(targets - mean) / std`` for targets ``[A, rows]``."""
        rows = targets.reshape(len(self.first), -1)
        return ((rows - self.mean.unsqueeze(1)) / self.std.unsqueeze(1)).view_as(targets)


class PopArt(ValueNorm):
    """ValueNorm that also rescales the critic's output layer.

    De-normalised predictions stay what they were (van Hasselt et al., 2016, arXiv:1602.07714,
    eq. 9).
    """

    def __init__(self, groups: int, output: StackedLinear, beta: float = 0.99999) -> None:
        super().__init__(groups, beta)
        self._output = [output]  # in a list: the critic owns the parameters

    @torch.no_grad()
    def update(self, targets: Tensor, predictions: Tensor) -> Tensor:
        mean, std = self.mean, self.std
        self._fold(targets)
        output = self._output[0]
        output.weight.mul_((std / self.std)[:, None, None])
        output.bias.mul_(std[:, None]).add_((mean - self.mean)[:, None]).div_(self.std[:, None])
        real = predictions.reshape(len(std), -1) * std[:, None] + mean[:, None]
        return ((real - self.mean[:, None]) / self.std[:, None]).view_as(predictions)
