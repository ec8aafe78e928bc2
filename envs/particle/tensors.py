"""Particle worlds whose state lies on a device: a step of all of them is one kernel.

Episodes are drawn from the same streams as on the CPU, and begin there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mg2l.core.transfer import to_device, to_host
from mg2l.envs.base import DeviceEnv, FloatArray, Info, StepResult
from mg2l.envs.compiled import LIBRARY
from mg2l.envs.particle.world import ParticleEnv

# Defined here and not with the operators: on the CPU it is the simulators' own library.
torch.library.define(
    "mg2l::particle_step",
    "(Tensor(a!) position, Tensor(b!) velocity, Tensor(c!) clock, Tensor(d!) observations,"
    " Tensor(e!) rewards, Tensor actions, Tensor landmarks, Tensor task, Tensor draws,"
    " Tensor acceleration, Tensor size, Tensor max_speed, Tensor collides, int kind, bool advance)"
    " -> ()",
)

_MOVING = ("position", "velocity", "clock")
_STATE = (*_MOVING, "landmarks", "task", "draws")


@torch.library.impl("mg2l::particle_step", "CPU")
def _step(*arguments: Any) -> None:
    from mg2l.envs.particle.simulator import CompiledScenario

    *tensors, kind, advance = arguments
    moving, (observations, rewards, actions), fixed = tensors[:3], tensors[3:6], tensors[6:]
    arrays = (x.numpy() for x in (*moving, *fixed))
    scenario = CompiledScenario(kind, actions.shape[1], *arrays)
    if advance:
        seen, paid = scenario.step(actions.numpy())
        rewards.copy_(torch.from_numpy(paid))
    else:
        seen = scenario.observe()
    observations.copy_(torch.from_numpy(seen))


def moved(env: ParticleEnv, device: torch.device) -> ParticleEnv:
    """``env`` with its state on ``device``; ``env`` itself where no kernel is compiled for it."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    if device.type == "cpu" or LIBRARY is None:
        return env
    if device.type == "cuda" and not has("mg2l::particle_step", "CUDA"):
        return env
    return DeviceParticleEnv(env, device)


class DeviceParticleEnv(ParticleEnv, DeviceEnv):
    """A `ParticleEnv` with tensors for arrays; a `DeviceEnv`.

    As trajectories go through other exponentials and fused products on a GPU, they are those of the
    CPU up to rounding, which contacts magnify.

    Args:
        env: freshly built.
        device: of the tensors.
    """

    def __init__(self, env: ParticleEnv, device: torch.device) -> None:
        vars(self).update(vars(env))
        self.device = device
        bodies = self.scenario.bodies
        self._bodies = [
            to_device(x, device)
            for x in (bodies.acceleration, bodies.size, bodies.max_speed, bodies.collides)
        ]
        self._tensors = {name: self._there(name) for name in _STATE}

    def step_tensors(
        self, actions: Tensor, observations: Tensor, rewards: Tensor
    ) -> tuple[Tensor | None, NDArray[np.bool_]]:
        """See `DeviceEnv.step_tensors`."""
        if not self._started:
            raise RuntimeError("call reset() before the first step")
        self._compute(actions, observations, rewards, advance=True)
        self.world.clock[:] += 1  # known to the host without asking
        over = self.world.clock >= self.max_ep_len
        if not over.any():
            return None, over
        finals = observations.clone()
        if not over.all():
            self._fetch()
        self._begin(np.flatnonzero(over))
        self._send()
        self._compute(actions, observations, rewards, advance=False)
        return finals, over

    def reset(self, seed: Any = None, task_ids: ArrayLike | None = None) -> tuple[FloatArray, Info]:
        """See ``VectorEnv.reset``."""
        started = super().reset(seed, task_ids)
        self._send()
        return started

    def advance(self, actions: ArrayLike, scripted: ArrayLike | None = None) -> StepResult:
        """A step of the CPU's, for callers with arrays."""
        self._fetch()
        found = super().advance(actions, scripted)
        self._send()
        return found

    def set_state(
        self, position: ArrayLike, velocity: ArrayLike, landmarks: ArrayLike, task: ArrayLike
    ) -> FloatArray:
        """See ``ParticleEnv.set_state``."""
        obs = super().set_state(position, velocity, landmarks, task)
        self._send()
        return obs

    def state_dict(self) -> dict[str, Any]:
        """See ``VectorEnv.state_dict``."""
        self._fetch()
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``VectorEnv.load_state_dict``."""
        super().load_state_dict(state)
        self._send()

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._fetch()
        return super().render(index)

    def to(self, device: Any) -> ParticleEnv:
        """Itself: it has moved."""
        return self

    def _compute(
        self, actions: Tensor, observations: Tensor, rewards: Tensor, advance: bool
    ) -> None:
        moving = (self._tensors[name] for name in _MOVING)
        fixed = (self._tensors[name] for name in ("landmarks", "task", "draws"))
        torch.ops.mg2l.particle_step.default(
            *moving,
            observations,
            rewards,
            actions,
            *fixed,
            *self._bodies,
            self.scenario.compiled(),
            advance,
        )

    def _there(self, name: str) -> Tensor:
        return to_device(getattr(self.world, name).copy(), self.device)

    def _send(self) -> None:
        """The host's state to the device."""
        self._tensors = {name: self._there(name) for name in _STATE}

    def _fetch(self) -> None:
        """The device's state to the host."""
        for name in _MOVING:
            getattr(self.world, name)[:] = to_host(self._tensors[name])
