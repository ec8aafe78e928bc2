"""Networks that decode rewards and observations from representations."""

from __future__ import annotations

from torch import Tensor, nn

from mg2l.nn.stacked import StackedLinear, StackedMLP


class Decoder(nn.Module):
    """``[G, *, inputs] -> [G, *, outputs]``, one network per group."""

    def __init__(self, groups: int, inputs: int, sizes: list[int], outputs: int) -> None:
        super().__init__()
        self.mlp = StackedMLP(groups, inputs, sizes[0], len(sizes) - 1, True, True)
        self.output = StackedLinear(groups, sizes[-1], outputs, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.mlp(x.flatten(1, -2), self.output)
        return decoded.view(*x.shape[:-1], -1)
