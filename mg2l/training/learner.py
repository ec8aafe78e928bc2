"""One learner: environments, policies, task inference, and the phases of an iteration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mg2l.algorithms.base import TaskInference
from mg2l.config import algorithms
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.envs.base import EnvConfig, VectorEnv
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.rollout import Collector, Rollout
from mg2l.nn.policy import Actor, Critic
from mg2l.nn.vision import Vision
from mg2l.ops import backend
from mg2l.training.ppo import PPO
from mg2l.training.random_state import random_state, set_random_state

LR_FLOOR = 0.05
"""Fraction of a learning rate that is left at the end of a run with linear decay."""


class Learner:
    """Everything that a run trains and trains with.

    Args:
        config: the run.
        device: where networks and rollouts live; environments stay on the CPU.
        make: builds an environment from its config, the number of sub-environments and a seed.

    Raises:
        ValueError: a space of the environment's is not supported.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        make: Callable[[EnvConfig, int, int], VectorEnv] = registry.make,
    ) -> None:
        self.config, self.device = config, device
        self.backend = backend.choose(config.kernels, device)
        streams = np.random.SeedSequence(config.seed).spawn(4)
        env_seed, explore_seed, torch_seed = (int(s.generate_state(1)[0]) for s in streams[:3])
        self.rng = np.random.default_rng(streams[3])
        torch.manual_seed(torch_seed)
        self.noise = torch.Generator(device).manual_seed(torch_seed + 1)
        self.draws = torch.Generator().manual_seed(torch_seed + 2)

        self.env = make(config.env, config.rollout_envs, env_seed)
        self.tasks = self.env.tasks.n_train
        observation, layout = self.env.observation_width, self.env.action_layout
        own = _observed(self.env)
        agents = self.env.num_agents
        self.spec = spec = ProblemSpec(
            config,
            self.env.tasks,
            agents,
            observation,
            layout,
            self.noise,
            self.draws,
            self.backend,
            _vision(config, self.env),
        )
        algorithm = algorithms.load(config.algo_name)
        self.inference: TaskInference = algorithm(spec).to(device)
        joint = observation * agents if config.policy.use_centralized_V else observation
        inference = self.inference
        self.actor = Actor(
            config.policy,
            agents,
            observation,
            inference.actor_latent_dim,
            layout,
            spec.vision,
            own,
        ).to(device)
        if own is not None and config.policy.use_centralized_V:
            own = own.flatten().expand(agents, 1, -1)
        self.critic = Critic(
            config.policy,
            config.ppo,
            agents,
            joint,
            inference.critic_latent_dim,
            spec.vision,
            own,
        ).to(device)
        self.ppo = PPO(
            config.ppo,
            config.policy,
            self.actor,
            self.critic,
            inference.trained_by_critic(),
            inference.optimiser,
            self.draws,
            self.backend,
        )
        self.collector = Collector(self.env, self.actor, device, self.noise)
        self.explorer: Collector | None = None
        if inference.explores:
            env = make(config.env, config.rollout.n_ae_rollout_threads, explore_seed)
            self.explorer = Collector(env, self.actor, device, self.noise)
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "actor": self.ppo.actor_optimiser,
            "critic": self.ppo.critic_optimiser,
        }
        if inference.optimiser is not None:
            self.optimisers["encoder"] = inference.optimiser
        self.start_lr = {name: o.param_groups[0]["lr"] for name, o in self.optimisers.items()}
        self.seconds: dict[str, float] = {}
        self.env_steps = 0
        self.n_iters = config.n_iters

    @property
    def generators(self) -> dict[str, np.random.Generator | torch.Generator]:
        """Every stream of random numbers but the environments', whose state is with them."""
        return {"tasks": self.rng, "noise": self.noise, "draws": self.draws}

    # The phases of an iteration, in the order of `mg2l.train`.

    def decay_learning_rates(self, iteration: int) -> dict[str, float]:
        """Set every learning rate for this iteration; returns them as ``lr/*``."""
        left = 1.0
        if self.config.ppo.use_linear_lr_decay:
            left = 1 - (1 - LR_FLOOR) * iteration / self.n_iters
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = self.start_lr[name] * left
        return {f"lr/{name}": lr * left for name, lr in self.start_lr.items()}

    def draw_tasks(self) -> np.ndarray:
        """A training task for every environment, ``[N]``."""
        return self.rng.integers(self.tasks, size=self.env.num_envs)

    def explore(self) -> dict[str, float]:
        """An exploration rollout under the prior for the context replay; returns metrics."""
        if self.explorer is None:
            return {}
        with self.timed("explore"):
            count, steps = self.explorer.env.num_envs, self.config.env.max_ep_len
            # Every task is visited as often as every other, to within one environment.
            ids = np.resize(self.rng.permutation(self.tasks), count)
            seeds = None
            if self.config.rollout.paired_exploration:
                group = np.arange(count) // self.tasks
                latent = self.inference.exploration_latent(int(group[-1]) + 1, steps)
                latent = None if latent is None else latent[:, group]
                seeds = self.rng.integers(2**31, size=group[-1] + 1)[group].tolist()
            else:
                latent = self.inference.exploration_latent(count, steps)
            rollout = self.explorer.collect(steps, ids, latent, seeds=seeds)
            self.env_steps += count * steps
            self.actor.observe(rollout.observations[:-1], rollout.active)
            return self.inference.add_exploration(rollout, ids)

    def prepare(self, on_rollout: Callable[[], object] = lambda: None) -> None:
        """Before the first iteration: explore every task, and train the encoder on that.

        There are ``n_init_rollouts`` exploration rollouts, and more until every task is visited.

        Args:
            on_rollout: called after each of them.
        """
        for _ in range(self.config.rollout.n_init_rollouts):
            self.explore()
            on_rollout()
        while not self.inference.ready():
            self.explore()
            on_rollout()
        with self.timed("encoder"):
            self.inference.pretrain()
            self._require_finite_parameters()

    def collect(self, tasks: np.ndarray) -> Rollout:
        """Each agent acts on what it infers of its environment's task."""
        with self.timed("rollout"):
            steps = self.config.rollout_steps
            latent = self.inference.actor_latent(tasks, steps)
            self.env_steps += self.env.num_envs * steps
            rollout = self.collector.collect(steps, tasks, latent)
            self.inference.add_rollout(rollout, tasks)
            return rollout

    def update_policy(self, rollout: Rollout, tasks: np.ndarray) -> dict[str, float]:
        """PPO of all agents; the value loss reaches the encoder."""
        with self.timed("ppo"):
            acted: dict[str, Any] = {"observations": rollout.observations}
            require_finite("action", rollout.actions, acted | {"actions": rollout.actions})
            latent = self.inference.critic_latent(tasks, rollout)
            with torch.no_grad():
                initial = latent()
            metrics = self.ppo.update(self.ppo.prepare(rollout, initial), latent)
            self._require_finite_parameters()
            self.actor.observe(rollout.observations[:-1], rollout.active)
            return {name: float(value) for name, value in metrics.items()}

    def update_inference(self) -> dict[str, Any]:
        """Global and local losses of the task encoder."""
        with self.timed("encoder"):
            metrics = self.inference.update()
            self._require_finite_parameters()
            return metrics

    def _require_finite_parameters(self) -> None:
        """The guard of whatever an update did: the next policies would act on NaN.

        Raises:
            NonFiniteLossError: a parameter is NaN or infinite.
        """
        for name, module in self._modules().items():
            held: dict[str, Any] = {k: value.detach() for k, value in module.named_parameters()}
            full = [value for value in held.values() if value.numel()]
            if full:
                largest = torch.stack(torch._foreach_norm(full, float("inf")))
                require_finite(f"parameters/{name}", largest, held)

    @contextmanager
    def isolated_rng(self, seed: int) -> Iterator[None]:
        """A block whose random numbers come from ``seed``; the run's own streams are restored."""
        before = random_state(self.generators)
        fresh = np.random.SeedSequence(seed).generate_state(len(self.generators))
        for stream, word in zip(self.generators.values(), fresh.tolist(), strict=True):
            if isinstance(stream, torch.Generator):
                stream.manual_seed(word)
            else:
                stream.bit_generator.state = np.random.default_rng(word).bit_generator.state
        try:
            yield
        finally:
            set_random_state(before, self.generators)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of a block to ``seconds[phase]``."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def take_times(self) -> dict[str, float]:
        """``time/<phase>`` [s] since the last call."""
        phases = ("rollout", "ppo", "encoder", "explore")
        times = {f"time/{phase}": self.seconds.get(phase, 0.0) for phase in phases}
        self.seconds = {}
        return times

    # Checkpoints.

    def _modules(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critic": self.critic, "inference": self.inference}

    def networks(self) -> dict[str, Any]:
        """Parameters and normalisers only: what a warm start takes over."""
        return {name: module.state_dict() for name, module in self._modules().items()}

    def load_networks(self, state: dict[str, Any]) -> None:
        """Take over `networks` of a run with the same sizes."""
        for name, module in self._modules().items():
            module.load_state_dict(state[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continuation bit for bit needs, but for `generators`."""
        return {
            "networks": self.networks(),
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
            "buffers": self.inference.buffers_state(),
            "env": self.env.state_dict(),
            "explore_env": None if self.explorer is None else self.explorer.env.state_dict(),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: an optimiser's state is of other parameters.
        """
        self.load_networks(state["networks"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
            check_moments(name, optimiser)
        self.inference.load_buffers_state(state["buffers"])
        self.env.load_state_dict(state["env"])
        if self.explorer is not None:
            self.explorer.env.load_state_dict(state["explore_env"])
        self.env_steps = state["env_steps"]

    def close(self) -> None:
        self.env.close()
        if self.explorer is not None:
            self.explorer.env.close()


def check_moments(name: str, optimiser: torch.optim.Optimizer) -> None:
    """Validate the state of an optimiser, which torch loads whatever it is.

    Raises:
        ValueError: it holds something else than a moment or a count of steps per parameter.
    """
    for parameter, held in optimiser.state.items():
        for key, value in held.items():
            if not isinstance(value, Tensor) or value.shape not in (parameter.shape, ()):
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{key} of the optimiser {name} must have shape {list(parameter.shape)}, "
                    f"got {got}"
                )


def _vision(config: Config, env: VectorEnv) -> Vision | None:
    """Where the image lies in an observation, if it is to be read as one."""
    if config.policy.obs == "mlp":
        return None
    if env.image is None:
        raise ConfigError("obs=cnn needs observations that begin with an image; these do not")
    return Vision(env.image, env.observation_width)


def _observed(env: VectorEnv) -> Tensor | None:
    """``[A, 1, O]`` bool, which numbers of an observation are an agent's; None where all are."""
    widths = torch.tensor([space.shape[0] for space in env.observation_spaces])
    if bool((widths == env.observation_width).all()):
        return None
    return torch.arange(env.observation_width) < widths.view(-1, 1, 1)
