"""Operators have first derivatives only, and calls that need none go straight to the kernel."""

from __future__ import annotations

from typing import Any, NoReturn

import torch


def differentiable_once(op: str) -> None:
    """Make a derivative of ``<op>_backward`` an error; without it torch would return wrong ones."""
    torch.library.register_autograd(f"mg2l::{op}_backward", lambda ctx, *grads: refuse(op))


def refuse(op: str) -> NoReturn:
    """Raise the error of a second derivative."""
    raise RuntimeError(f"{op}: there are first derivatives only, got a request for second ones")


def without_autograd(op: Any, *arguments: Any) -> Any:
    """Call an operator where no gradients are recorded: in a forward pass, or under ``no_grad``.

    What is registered for autograd is Python, and takes longer than the kernels on small inputs.
    """
    if torch.is_grad_enabled():
        return op(*arguments)
    return below_autograd(op, *arguments)


def below_autograd(op: Any, *arguments: Any) -> Any:
    """Call an operator on arguments none of which needs a gradient."""
    if torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)
