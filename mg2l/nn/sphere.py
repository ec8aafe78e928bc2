"""Vectors on the unit sphere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_SMALLEST = 1e-12  # norm that vectors are divided by at least, as in torch


def unit(x: Tensor) -> Tensor:
    """``x / |x|`` over the last axis; ``[*, D]``."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return F.normalize(x, dim=-1)
    y: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return y


def unit_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of ``x``, given that of ``unit(x)``."""
    norm = _norm(x)
    return _gradient(x / norm, norm, grad)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=_SMALLEST)
    return norm


def _gradient(y: Tensor, norm: Tensor, grad: Tensor) -> Tensor:
    along = (grad * y).sum(-1, keepdim=True)
    return torch.addcmul(grad, y, along, value=-1).div_(norm)


class _Unit(torch.autograd.Function):
    """With its gradient in closed form, which takes a fraction of autograd's operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = _norm(x)
        y: Tensor = x / norm
        ctx.save_for_backward(y, norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, norm = ctx.saved_tensors
        return _gradient(y, norm, grad)
