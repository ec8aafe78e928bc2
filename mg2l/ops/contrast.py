"""Loss of Gaussian representations on a sphere: InfoNCE against keys, and the KL to the prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import refuse, without_autograd
from mg2l.ops.results import Contrast


def contrast(
    raw: Tensor,
    keys: Tensor,
    positive: Tensor,
    *,
    temperature: float,
    kl_weight: float,
    std_floor: float,
) -> Contrast:
    """Contrastive loss of Gaussians ``N(m, diag s^2)`` whose means lie on a sphere.

    ``kl_weight KL(N(m, diag s^2) || N(0, I)) - I_NCE``, the mean over rows, where ``I_NCE = log K +
    log softmax_k(cos(m, key_k) / temperature)`` at a row's own key (van den Oord et al., 2018,
    arXiv:1807.03748, eq. 4, with K learned keys). ``m`` is the first half of a row of ``raw``,
    projected to the sphere of radius ``sqrt(D)``, and ``s`` is ``softplus`` of the second half plus
    ``std_floor``.

    Args:
        raw: ``[G, B, 2 D]`` float32 or float64: raw means and standard deviations of G groups.
        keys: ``[K, D]`` like ``raw``, of any length.
        positive: ``[B]`` int64 in ``[0, K)``, a row's own key.
        temperature: positive.
        kl_weight: at least 0.
        std_floor: smallest standard deviation, positive.

    Returns:
        :class:`Contrast`. Differentiable once, the loss with respect to ``raw`` and ``keys``.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit, a number is out of bounds, on the CPU
            ``positive`` names no key; or a second derivative is asked for.

    Example:
        >>> raw, keys = torch.tensor([[[2.0, 0.0, 0.5, 0.5]]]), torch.eye(2)
        >>> own = torch.tensor([0])
        >>> contrast(raw, keys, own, temperature=0.1, kl_weight=0.0, std_floor=1e-3).bound
        tensor([0.6931])
    """
    arguments = raw, keys, positive, temperature, kl_weight, std_floor
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return Contrast(*_Contrast.apply(*arguments))  # type: ignore[no-untyped-call]
    return Contrast(*torch.ops.mg2l.contrast.default(*arguments)[:4])


def contrast_vjp(
    raw: Tensor,
    keys: Tensor,
    positive: Tensor,
    *,
    temperature: float,
    kl_weight: float,
    std_floor: float,
) -> tuple[Contrast, Tensor, Tensor]:
    """`contrast` without a graph.

    Returns:
        Its result, and what each group's loss changes by with ``raw``, ``[G, B, 2 D]``, and with
        the keys, ``[G, K, D]``. To be called under ``torch.no_grad``.
    """
    *results, raw_slope, key_slope = without_autograd(
        torch.ops.mg2l.contrast.default, raw, keys, positive, temperature, kl_weight, std_floor
    )
    return Contrast(*results), raw_slope, key_slope


class _Contrast(torch.autograd.Function):
    """What is registered with the dispatcher below, whose calls take longer on small inputs."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *results, raw_slope, key_slope = without_autograd(
            torch.ops.mg2l.contrast.default, *arguments
        )
        ctx.save_for_backward(raw_slope, key_slope)
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grad)


class _FirstDerivative(torch.autograd.Function):
    """Whose derivative is an error: torch would return that of constant slopes."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, raw: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return raw * grad.view(-1, 1, 1), (grad @ keys.flatten(1)).view(keys.shape[1:])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        refuse("contrast")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[4:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    none = None, None, None, None
    if grad is None:
        return None, None, *none
    raw, keys = ctx.saved_tensors
    if torch.is_grad_enabled():
        to_raw, to_keys = _FirstDerivative.apply(grad, raw, keys)  # type: ignore[no-untyped-call]
        return to_raw, to_keys, *none
    wanted = ctx.needs_input_grad
    to_raw = raw * grad.view(-1, 1, 1) if wanted[0] else None
    to_keys = (grad @ keys.flatten(1)).view(keys.shape[1:]) if wanted[1] else None
    return to_raw, to_keys, *none


@torch.library.register_fake("mg2l::contrast")
def _contrast_fake(raw: Tensor, keys: Tensor, *_: Any) -> tuple[Tensor, ...]:
    each = [raw.new_empty(raw.shape[:1]) for _ in range(4)]
    return *each, raw.new_empty(raw.shape), raw.new_empty(raw.shape[0], *keys.shape)


torch.library.register_autograd("mg2l::contrast", _backward, setup_context=_setup_context)
