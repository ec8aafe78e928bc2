"""Operators have first derivatives only."""

from __future__ import annotations

from typing import Any

import torch


def differentiable_once(op: str) -> None:
    """Make a derivative of ``<op>_backward`` an error; without it torch would return wrong ones."""

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{op}: there are first derivatives only, got a request for second ones")

    torch.library.register_autograd(f"mg2l::{op}_backward", refuse)
