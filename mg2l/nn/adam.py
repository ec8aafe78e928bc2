"""Adam (Kingma and Ba, 2015, arXiv:1412.6980), and clipping of the gradients it takes.

``torch.optim.Adam(fused=True)`` computes the same numbers, but takes longer to find out what to
compute than to compute it, and imports the compiler of torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mg2l.ops.backend import Backend

_NEVER = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam:
    """Steps on parameters that have gradients; its state has the form of ``torch.optim.Adam``'s.

    Args:
        parameters: float32 or float64, all of one dtype and on one device.
        lr: learning rate.
        eps: added to the root of the second moment.
        weight_decay: factor of the L2 penalty whose gradient is added.
        betas: decays of the first and the second moment.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [{**options, "params": list(parameters)}]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._taken: list[int] = []
        self._lists: tuple[list[Tensor], ...] = ()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters it updates."""
        parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        return parameters

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        """Take a step; parameters without a gradient stay as they are."""
        (group,) = self.param_groups
        taken = [p for p in group["params"] if p.grad is not None]
        if not taken:
            return
        if new := [p for p in taken if p not in self.state]:
            self._begin(new)
        if self._taken != [*map(id, taken)]:
            self._take(taken)
        counts, moments, squares, steps = self._lists
        with torch.no_grad():
            for count in counts:
                count.add_(1)
            torch._fused_adam_(
                taken,
                [p.grad for p in taken],
                moments,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _begin(self, parameters: list[nn.Parameter]) -> None:
        step = torch.zeros((), device=parameters[0].device)  # of all: each would be counted up
        for parameter in parameters:
            moments = {name: torch.zeros_like(parameter.detach()) for name in _MOMENTS}
            self.state[parameter] = {"step": step, **moments}

    def _take(self, taken: list[nn.Parameter]) -> None:
        """List the states of parameters that are stepped on, as long as these are the same.

        Parameters share their number of steps only if all or none of them are taken.
        """
        self._taken = [*map(id, taken)]
        shared: dict[tuple[int, bool], Tensor] = {}
        for parameter, state in self.state.items():
            step, now = state["step"], id(parameter) in self._taken
            own = step.clone() if (id(step), not now) in shared else step
            state["step"] = shared.setdefault((id(step), now), own)
        moments, squares, steps = (
            [self.state[p][name] for p in taken] for name in (*_MOMENTS, "step")
        )
        self._lists = [*{id(step): step for step in steps}.values()], moments, squares, steps

    def state_dict(self) -> dict[str, Any]:
        """Moments and numbers of steps by the parameters' numbers, and the options."""
        (group,) = self.param_groups
        numbers = range(len(group["params"]))
        state = {
            i: {**self.state[p], "step": self.state[p]["step"].clone()}
            for i, p in enumerate(group["params"])
            if p in self.state
        }
        options = {**group, **dict.fromkeys(_NEVER, False), "foreach": None, "fused": True}
        return {"state": state, "param_groups": [{**options, "params": [*numbers]}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the moments and the learning rate of `state_dict`; other options stay.

        Raises:
            ValueError: there is anything but a moment or a number of steps per parameter.
        """
        (group,), (saved,) = self.param_groups, state["param_groups"]
        group["lr"] = saved["lr"]
        loaded = {}
        steps: dict[float, Tensor] = {}
        for number, held in state["state"].items():
            parameter = group["params"][number]
            for name in ("step", *_MOMENTS):
                shape = parameter.shape if name in _MOMENTS else ()
                value = held[name]
                if not isinstance(value, Tensor) or value.shape != shape:
                    got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise ValueError(
                        f"{name} of parameter {number} must have shape {list(shape)}, got {got}"
                    )
            moments = {name: held[name].to(parameter, copy=True) for name in _MOMENTS}
            step = held["step"].to(parameter.device, torch.float32, copy=True)
            loaded[parameter] = {"step": steps.setdefault(float(held["step"]), step), **moments}
        self.state, self._taken = loaded, []


def clip_grad_norm(parameters: Iterable[nn.Parameter], limit: float, backend: Backend) -> Tensor:
    """Scale all gradients together to a norm of at most ``limit``.

    Returns:
        The norm before, a scalar.
    """
    return backend.clip_norms(_gradients(parameters), limit).squeeze(0)


def clip_grad_norm_per_agent(
    parameters: Iterable[nn.Parameter], limit: float, backend: Backend
) -> Tensor:
    """Scale the gradients of stacked parameters ``[G, ...]`` to norms of at most ``limit`` each.

    Returns:
        The norms before, ``[G]``.
    """
    return backend.clip_norms(_gradients(parameters), limit, per_group=True)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
