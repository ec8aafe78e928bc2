"""What a latent does to a network, other than to be read beside its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.nn.stacked import StackedLinear, StackedMLP


class _Generator(nn.Module):
    """Latents to what is generated of them, which is 0 before training.

    What a network is at first then does not depend on the latent, as in the Bias-HyperInit of Beck
    et al. (2022): generated weights of the usual random initialisation would be far too large.
    """

    def __init__(self, groups: int, latent: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = StackedMLP(groups, latent, hidden, 0, True, True)
        self.output = StackedLinear(groups, hidden, outputs, 0.0)

    def forward(self, latent: Tensor) -> Tensor:
        """``[A, rows, latent] -> [A, rows, outputs]``."""
        generated: Tensor = self.output(self.hidden(latent))
        return generated


class FiLM(nn.Module):
    """Features scaled and shifted, ``(1 + s(z)) f + b(z)`` (Perez et al., 2018, arXiv:1709.07871).

    Args:
        groups: networks side by side.
        latent: width of ``z``.
        features: H.
    """

    def __init__(self, groups: int, latent: int, features: int) -> None:
        super().__init__()
        self.width = features
        self.generator = _Generator(groups, latent, features, 2 * features)

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        """``[A, rows, H]`` and latents ``[A, rows, D]`` to ``[A, rows, H]``."""
        scale, shift = self.generator(latent).chunk(2, -1)
        film: Tensor = (1 + scale) * features + shift
        return film


class HyperHead(nn.Module):
    """A hypernetwork for the weights of a linear head (Ha et al., 2017; Beck et al., 2022, 2023).

    The head's weight and bias are linear in an embedding ``e(z)``, ``W(z) = W_0 + sum_k e_k(z)
    W_k``, so that ``W(z) [f, 1]`` is a linear layer ``[W_0, W_1, ...]`` on the products of ``[f,
    1]`` and ``[1, e(z)]``. These are the features that the head is given; no weight matrix is made
    for every row.

    Args:
        groups: networks side by side.
        latent: width of ``z``.
        features: H.
        embedding: width E of ``e``.
    """

    def __init__(self, groups: int, latent: int, features: int, embedding: int) -> None:
        super().__init__()
        self.width = (features + 1) * (1 + embedding)
        self.generator = _Generator(groups, latent, features, embedding)

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        """``[A, rows, H]`` and latents ``[A, rows, D]`` to ``[A, rows, (H + 1) (1 + E)]``."""
        rows = F.pad(features, (0, 1), value=1.0)
        embedding = F.pad(self.generator(latent), (1, 0), value=1.0)
        return torch.einsum("arh,are->areh", rows, embedding).flatten(2)
