"""A causal transformer as the memory of all agents, with a cache of keys and values for acting."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.nn.stacked import StackedLinear

_ROTATION_BASE = 10_000.0


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding: scores of rotated queries and keys depend on how far apart they are.

    Su et al., 2021, arXiv:2104.09864, section 3.2.2.

    Args:
        x: ``[*, T, d]``, d even.
        positions: ``[T]``, or a shape that broadcasts with that of ``x`` but for its last axis.
    """
    half = x.shape[-1] // 2
    order = torch.arange(half, device=x.device, dtype=x.dtype) / half
    angles = positions.to(x.dtype).unsqueeze(-1) * _ROTATION_BASE**-order
    cosine, sine = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


class _Block(nn.Module):
    """Self-attention and feed forward, each normalised before and added to what it read."""

    def __init__(self, groups: int, width: int, heads: int, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = StackedLinear(groups, width, 3 * width, 1.0)
        self.output = StackedLinear(groups, width, width, gain)
        self.up = StackedLinear(groups, width, 2 * width, math.sqrt(2))
        self.down = StackedLinear(groups, 2 * width, width, gain)

    def forward(
        self, x: Tensor, positions: Tensor, cache: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend to what is cached and to what is new.

        Args:
            x: ``[A, T, rows, H]``.
            positions: ``[A rows, 1, T]`` of these steps.
            cache: ``[A, rows, M, 2 H]``, rotated keys and values of the M steps before.
            mask: ``[A rows, 1, T, M + T]`` bool, what each step may attend to; None is causal.

        Returns:
            ``[A, T, rows, H]``, and the keys and values of the new steps, ``[A, rows, T, 2 H]``.
        """
        agents, steps, rows, width = x.shape

        def split(y: Tensor) -> Tensor:
            """``[A, rows, S, H]`` as ``[A rows, heads, S, d]``."""
            heads: Tensor = y.flatten(0, 1).unflatten(-1, (self.heads, -1))
            return heads.transpose(1, 2)

        normed = F.layer_norm(x, (width,)).flatten(1, 2)
        qkv = self.qkv(normed).view(agents, steps, rows, 3 * width).transpose(1, 2)
        query, key, value = qkv.chunk(3, -1)
        rotated = rotate(split(key), positions).transpose(1, 2).reshape(key.shape)
        new = torch.cat([rotated, value], -1)
        keys, values = torch.cat([cache, new], 2).chunk(2, -1)
        attended = F.scaled_dot_product_attention(
            rotate(split(query), positions),
            split(keys),
            split(values),
            attn_mask=mask,
            is_causal=mask is None,
        )
        joined = attended.transpose(1, 2).reshape(agents, rows, steps, width).transpose(1, 2)
        x = x + self.output(joined.flatten(1, 2)).view(x.shape)
        normed = F.layer_norm(x, (width,)).flatten(1, 2)
        return x + self.down(F.gelu(self.up(normed))).view(x.shape), new


class StackedTransformer(nn.Module):
    """Memory like `mg2l.nn.stacked.StackedGRU`, with attention to the past instead of a state.

    Its state is a cache of keys and values of the last ``window`` steps, and a column of their
    positions, from 1: ``[A, rows, M, C]``, M growing from 0 to ``window``. Zeros in place of steps
    that have not been are not attended to, so that a state may as well have its full size from the
    beginning. Steps of a whole trial are computed at once.

    Args:
        groups: number of networks, A or 1 where agents share one.
        width: H.
        layers: blocks.
        heads: of the attention; H must be a multiple of twice as many.
        window: steps that are attended to, the present one included.
    """

    keeps_states = False

    def __init__(self, groups: int, width: int, layers: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        gain = 1 / math.sqrt(2 * layers)
        self.blocks = nn.ModuleList(_Block(groups, width, heads, gain) for _ in range(layers))
        self.state_shape: tuple[int, ...] = (window, 2 * layers * width + 1)

    def initial_state(self, agents: int, rows: int) -> Tensor:
        """The state before the first step of a trial, ``[A, rows, 0, C]``."""
        one = next(self.parameters())
        shape = (agents, rows, 0, self.state_shape[1])
        return torch.zeros(shape, device=one.device, dtype=one.dtype)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Run over T steps.

        Args:
            x: ``[A, T, rows, H]``.
            state: ``[A, rows, M, C]`` before the first of them.
            reset: ``[T, rows]`` bool; not read, as a trial begins with `initial_state`.

        Returns:
            Outputs ``[A, T, rows, H]`` (layer-normalised), and the state after the last step.
        """
        agents, steps, rows, width = x.shape
        held, window = state.shape[2], self.window
        before = state[:, :, -1:, -1:] if held else state.new_zeros(agents, rows, 1, 1)
        positions = before + torch.arange(1, steps + 1, device=x.device).unsqueeze(1)
        rotation = positions.flatten(0, 1).transpose(1, 2)
        mask = None
        if held or steps > window:
            past = torch.cat([state[..., -1:], positions], 2).flatten(0, 1).transpose(1, 2)
            distance = rotation.transpose(1, 2) - past
            mask = ((past > 0) & (distance >= 0) & (distance < window)).unsqueeze(1)
        caches, new = state[..., :-1].split(2 * width, -1), []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, of_steps = block(x, rotation, cache, mask)
            new.append(of_steps)
        state = torch.cat([state, torch.cat([*new, positions], -1)], 2)
        return F.layer_norm(x, (width,)), state[:, :, -window:]
