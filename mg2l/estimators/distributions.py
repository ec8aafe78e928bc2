"""Pairs of variables whose mutual information is known (Czyz et al., 2023, arXiv:2306.11078)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Known(NamedTuple):
    """A joint distribution of x and y."""

    name: str
    mi: float
    """``I(x; y)`` [nats]."""

    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    """``(N, generator) -> x [N, d], y [N, d]``."""

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """``count`` pairs, float32."""
        x, y = self.draw(count, torch.Generator().manual_seed(seed))
        return x.float(), y.float()


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _uniform(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=g, dtype=torch.float64)


def correlated_normal(d: int, mi: float) -> Known:
    """Vectors of d equally correlated pairs of normals: ``I = -d/2 log(1 - rho^2)``."""
    rho = math.sqrt(1 - math.exp(-2 * mi / d))

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        x = _normal(g, count, d)
        return x, rho * x + math.sqrt(1 - rho**2) * _normal(g, count, d)

    return Known(f"normal {d}x{d}, MI {mi:g}", mi, draw)


def bivariate_normal(rho: float) -> Known:
    """Two normals of correlation rho: ``I = -1/2 log(1 - rho^2)``."""
    mi = -0.5 * math.log(1 - rho**2)
    return correlated_normal(1, mi)._replace(name=f"normal, rho {rho:g}")


def additive_uniform(eps: float) -> Known:
    """``y = x + n``, x uniform on [0, 1], n on [-eps, eps]."""
    mi = 1 / (4 * eps) if eps > 0.5 else eps - math.log(2 * eps)

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        x = _uniform(g, count, 1)
        return x, x + eps * (2 * _uniform(g, count, 1) - 1)

    return Known(f"additive uniform noise, eps {eps:g}", mi, draw)


def student_t(d: int, degrees: int) -> Known:
    """Jointly Student-t x and y, d-dimensional each, uncorrelated: they share only their scale.

    ``I = f(v) + f(v + 2d) - 2 f(v + d)``, ``f(a) = log Gamma(a/2) - a/2 psi(a/2)``.
    """

    def f(a: float) -> float:
        half = torch.tensor(a / 2, dtype=torch.float64)
        return float(torch.lgamma(half) - half * torch.digamma(half))

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        chi2 = _normal(g, count, degrees).square().sum(1, keepdim=True)
        both = _normal(g, count, 2 * d) * (degrees / chi2).sqrt()
        return both[:, :d], both[:, d:]

    mi = f(degrees) + f(degrees + 2 * d) - 2 * f(degrees + d)
    return Known(f"Student-t {d}x{d}, {degrees} degrees", mi, draw)


def mapped(base: Known, name: str, x_map: Callable[[Tensor], Tensor]) -> Known:
    """The same with x and y mapped by bijections, which preserve information."""

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = base.draw(count, g)
        return x_map(x), x_map(y)

    return Known(f"{base.name}, {name}", base.mi, draw)


def part_of(base: Known, share: float, kept: int) -> Known:
    """The same with only the first ``kept`` coordinates of y, which hold a fraction of ``I``."""

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = base.draw(count, g)
        return x, y[:, :kept]

    return Known(f"{base.name}, {kept} coordinates of y", share * base.mi, draw)


def rotated(base: Known, d: int) -> Known:
    """The same with x and y turned by a fixed random rotation."""
    turn, _ = torch.linalg.qr(_normal(torch.Generator().manual_seed(0), d, d))
    return mapped(base, "rotated", lambda x: x @ turn)


def known() -> list[Known]:
    """Distributions in the table of `docs/estimators.md`."""
    normal = correlated_normal(5, 2.0)
    return [
        correlated_normal(1, 0.0)._replace(name="independent"),
        bivariate_normal(0.75),
        additive_uniform(0.1),
        additive_uniform(0.75),
        student_t(1, 1),
        student_t(2, 1),
        student_t(3, 3),
        student_t(5, 2),
        *(correlated_normal(5, mi) for mi in (2.0, 4.0, 6.0, 8.0, 10.0)),
        mapped(normal, "cubed", lambda x: x**3),
        mapped(normal, "asinh", torch.asinh),
        rotated(normal, 5),
        part_of(normal, 2 / 5, 2),
        correlated_normal(10, 4.0),
    ]
