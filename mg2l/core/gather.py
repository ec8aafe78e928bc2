"""Rows of all processes, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.core.distributed import world


class Gather(torch.autograd.Function):
    """`World.gather`; backward, gradients of all processes are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, count: int | None) -> Tensor:
        ctx.dim, ctx.rows = dim, x.shape[dim]
        count = x.shape[dim] * world.size if count is None else count
        ctx.start = world.rows(count).start
        rows = x.movedim(dim, 0)
        missing = -(-count // world.size) - len(rows)
        if missing:
            rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
        return torch.cat(world.all_gather(rows.contiguous()))[:count].movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return world.sum(grad.contiguous()).narrow(ctx.dim, ctx.start, ctx.rows), None, None
