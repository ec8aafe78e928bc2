"""What a latent does to a network, other than to be read beside its input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.nn.stacked import StackedLinear, StackedMLP
from mg2l.nn.vjp import Pull, PullTwo
from mg2l.ops import reference
from mg2l.ops.backend import NATIVE, Backend


class Latents(NamedTuple):
    """Latents of rows, of which many may have the same one."""

    values: Tensor
    """``[A, N, D]``."""

    which: Tensor | None = None
    """``[rows]`` int64, which of the N a row has; None where there is one for each."""


class _Generator(nn.Module):
    """Latents to what is generated of them, which is 0 before training.

    What a network is at first then does not depend on the latent, as in the Bias-HyperInit of Beck
    et al. (2022): generated weights of the usual random initialisation would be far too large.
    """

    def __init__(
        self, groups: int, latent: int, hidden: int, outputs: int, backend: Backend
    ) -> None:
        super().__init__()
        self.hidden = StackedMLP(groups, latent, hidden, 0, True, True, backend)
        self.output = StackedLinear(groups, hidden, outputs, 0.0)

    def forward(self, latent: Tensor) -> Tensor:
        """``[A, rows, latent] -> [A, rows, outputs]``."""
        generated: Tensor = self.hidden(latent, self.output)
        return generated

    @property
    def has_vjp(self) -> bool:
        """Whether there is a `vjp`: its operator is compiled."""
        return self.hidden.has_vjp

    def vjp(self, latent: Tensor, want_latent: bool) -> tuple[Tensor, Pull]:
        """`forward`, and what takes its gradient back; see `mg2l.nn.vjp`."""
        return self.hidden.vjp(latent, self.output, want_latent)


class FiLM(nn.Module):
    """Features scaled and shifted, ``(1 + s(z)) f + b(z)`` (Perez et al., 2018, arXiv:1709.07871).

    Args:
        groups: networks side by side.
        latent: width of ``z``.
        features: H.
        backend: operators to compute with.
    """

    def __init__(self, groups: int, latent: int, features: int, backend: Backend = NATIVE) -> None:
        super().__init__()
        self.width, self.backend = features, backend
        self.generator = _Generator(groups, latent, features, 2 * features, backend)

    def forward(self, features: Tensor, latent: Tensor, index: Tensor | None = None) -> Tensor:
        """Features ``[A, rows, H]`` and their `Latents` to ``[A, rows, H]``."""
        return self.backend.film(features, self.generator(latent), index)

    @property
    def has_vjp(self) -> bool:
        """Whether there is a `vjp`: its operators are compiled."""
        return self.generator.has_vjp and self.backend.film is not reference.film

    def vjp(self, features: Tensor, latent: Latents, want_latent: bool) -> tuple[Tensor, PullTwo]:
        """`forward`, and what takes its gradient to features and, if wanted, latents."""
        from mg2l.ops.film import film_vjp  # of the operator, if it is compiled

        generated, pull_generated = self.generator.vjp(latent.values, want_latent)
        y, pull_both = film_vjp(features, generated, latent.which)

        def pull(grad: Tensor) -> tuple[Tensor, Tensor | None]:
            to_features, to_generated = pull_both(grad)
            return to_features, pull_generated(to_generated)

        return y, pull


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
        backend: operators to compute with.
    """

    def __init__(
        self, groups: int, latent: int, features: int, embedding: int, backend: Backend = NATIVE
    ) -> None:
        super().__init__()
        self.width = (features + 1) * (1 + embedding)
        self.generator = _Generator(groups, latent, features, embedding, backend)

    def forward(self, features: Tensor, latent: Tensor, index: Tensor | None = None) -> Tensor:
        """Features ``[A, rows, H]`` and their `Latents` to ``[A, rows, (H + 1) (1 + E)]``."""
        return _products(*_with_ones(features, self.generator(latent), index))

    @property
    def has_vjp(self) -> bool:
        """Whether there is a `vjp`: its operator is compiled."""
        return self.generator.has_vjp

    def vjp(self, features: Tensor, latent: Latents, want_latent: bool) -> tuple[Tensor, PullTwo]:
        """`forward`, and what takes its gradient to features and, if wanted, latents."""
        generated, pull_generated = self.generator.vjp(latent.values, want_latent)
        rows, embedding = _with_ones(features, generated, latent.which)

        def pull(grad: Tensor) -> tuple[Tensor, Tensor | None]:
            to_products = grad.unflatten(-1, (embedding.shape[-1], rows.shape[-1]))
            to_features = torch.einsum("areh,are->arh", to_products, embedding)[..., :-1]
            to_generated = torch.einsum("areh,arh->are", to_products, rows)[..., 1:]
            if latent.which is not None:
                to_rows, to_generated = to_generated, torch.zeros_like(generated)
                where = (latent.which,)
                to_generated.transpose(0, 1).index_put_(where, to_rows.transpose(0, 1), True)
            return to_features, pull_generated(to_generated)

        return _products(rows, embedding), pull


def _with_ones(features: Tensor, embedding: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """``[f, 1]`` and ``[1, e]`` of every row."""
    rows = embedding if index is None else embedding[:, index]
    return F.pad(features, (0, 1), value=1.0), F.pad(rows, (1, 0), value=1.0)


def _products(rows: Tensor, embedding: Tensor) -> Tensor:
    return torch.einsum("arh,are->areh", rows, embedding).flatten(2)
