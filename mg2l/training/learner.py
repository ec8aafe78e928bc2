"""One learner: environments, policies, task inference, and the phases of an iteration."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mg2l.algorithms.base import TaskInference
from mg2l.config.algorithms import algorithms
from mg2l.config.sections import Config
from mg2l.core.distributed import world
from mg2l.core.schema import ConfigError
from mg2l.core.transfer import synchronize
from mg2l.envs import registry
from mg2l.envs.base import EnvConfig, Seed, VectorEnv
from mg2l.experience.finite import checked_together, require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.rollout import Collector, LatentStream, Rollout
from mg2l.nn.adam import Adam
from mg2l.nn.critic import Critic, PooledCritic
from mg2l.nn.policy import Actor
from mg2l.nn.vision import Vision
from mg2l.ops import backend
from mg2l.training.device import keep_freed_memory
from mg2l.training.ppo import PPO
from mg2l.training.random_state import (
    fresh_seed,
    random_state,
    seed_streams,
    set_random_state,
)

LR_FLOOR = 0.05
"""Fraction of a learning rate that is left at the end of a run with linear decay."""


FIRST_ENVS = 1024
"""Sub-environments at most that the first exploration rollouts step together."""


class Learner:
    """Everything that a run trains, and what it trains on.

    Args:
        config: the run.
        device: device of networks and rollouts, and of environments that can step there.
        make: builds an environment from its config, the number of sub-environments and a seed, or
            one seed for each.

    Raises:
        ValueError: a space of the environment's is not supported.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        make: Callable[[EnvConfig, int, Seed], VectorEnv] = registry.make,
    ) -> None:
        self.config, self.device = config, device
        keep_freed_memory()
        self.backend = backend.choose(config.kernels, device, config.precision)
        streams = np.random.SeedSequence(config.seed).spawn(4)
        env_seed, explore_seed, torch_seed = (int(s.generate_state(1)[0]) for s in streams[:3])
        self.rng = np.random.default_rng(streams[3])
        torch.manual_seed(torch_seed)
        self.noise = torch.Generator(device).manual_seed(torch_seed + 1)
        self.draws = torch.Generator(device).manual_seed(torch_seed + 2)

        self._make, self._explore_seed = make, explore_seed
        self.env = self._make_env(config.rollout_envs, env_seed)
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
        algorithm = algorithms.get(config.algo_name).inference
        self.inference: TaskInference = algorithm(spec).to(device)
        inference = self.inference
        self.actor = Actor(
            config.policy,
            agents,
            observation,
            inference.actor_latent_dim,
            layout,
            spec.vision,
            own,
            self.backend,
            inference.make_memory,
        ).to(device)
        sizes = (agents, observation, inference.critic_latent_dim, spec.vision, own)
        make_critic: Callable[..., Critic] = Critic
        if config.policy.critic == "pooled":
            make_critic = functools.partial(PooledCritic, shared_reward=self.env.shared_reward)
        self.critic = make_critic(
            config.policy,
            config.ppo,
            *sizes,
            backend=self.backend,
            make_memory=inference.make_memory,
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
            env = self._make_env(config.rollout.n_ae_rollout_threads, explore_seed)
            self.explorer = Collector(env, self.actor, device, self.noise)
        self.optimisers: dict[str, Adam] = {
            "actor": self.ppo.actor_optimiser,
            "critic": self.ppo.critic_optimiser,
        }
        if inference.optimiser is not None:
            self.optimisers["encoder"] = inference.optimiser
        self.start_lr = {name: o.param_groups[0]["lr"] for name, o in self.optimisers.items()}
        self.seconds: dict[str, float] = {}
        self.env_steps = 0
        self.n_iters = config.n_iters

    def _make_env(self, count: int, seed: int) -> VectorEnv:
        """This process's part of ``count`` sub-environments, on the device if they step there."""
        env = self._make(self.config.env, *_own_envs(count, seed))
        if self.config.kernels != "torch":
            env = env.to(self.device)
        env.first_env = world.rows(count).start
        return env

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
        """A training task for every environment of this process, ``[N]``."""
        return world.own(self.rng.integers(self.tasks, size=self.config.rollout_envs))

    def explore(self, explorer: Collector | None = None, rollouts: int = 1) -> dict[str, float]:
        """An exploration rollout under the prior for the context replay; returns metrics.

        Args:
            explorer: collects it; None is `explorer`.
            rollouts: how many the sub-environments of ``explorer`` are enough for.
        """
        explorer = explorer or self.explorer
        if explorer is None:
            return {}
        with self.timed("explore"):
            rollout, steps = self.config.rollout, self.config.env.max_ep_len
            count = rollouts * rollout.n_ae_rollout_threads
            own = world.rows(count)
            # Every task is visited as often as every other, to within one environment.
            ids = np.resize(self.rng.permutation(self.tasks), count)
            groups = np.arange(count)  # of sub-environments that explore alike
            seeds = None
            if rollout.paired_exploration:
                groups //= self.tasks
            latent: Tensor | LatentStream | None
            if self.inference.explores_on_context:
                latent = self.inference.growing_latent(len(ids[own]))
            else:
                with world.local():  # draws for all sub-environments
                    latent = self.inference.exploration_latent(int(groups[-1]) + 1, steps)
            if rollout.paired_exploration:
                seeds = self.rng.integers(2**31, size=groups[-1] + 1)[groups][own].tolist()
            if isinstance(latent, Tensor):
                latent = latent[:, groups[own]]
            explored = explorer.collect(steps, ids[own], latent, seeds=seeds)
            self.env_steps += count * steps
            self.actor.observe(explored.observations[:-1], explored.active)
            return self.inference.add_exploration(explored, ids[own])

    def prepare(self, on_rollout: Callable[[], object] = lambda: None) -> None:
        """Before the first iteration: explore every task, and train the encoder on that.

        There are ``n_init_rollouts`` exploration rollouts, and more until every task is visited.
        The policies are the same in all of them: where sub-environments are cheap, many are one.

        Args:
            on_rollout: called after each of them.
        """
        left = self.config.rollout.n_init_rollouts
        while left:
            count = self._explore_at_once(left)
            left -= count
            for _ in range(count):
                on_rollout()
        while not self.inference.ready():
            self.explore()
            on_rollout()
        with self.timed("encoder"):
            self.inference.pretrain()
            self._require_finite_parameters()

    def _explore_at_once(self, most: int) -> int:
        """Several of the first exploration rollouts as one; returns how many."""
        size = self.config.rollout.n_ae_rollout_threads
        count = min(most, FIRST_ENVS // size)
        if self.explorer is None or not self.explorer.env.vectorised or count < 2:
            self.explore()
            return 1
        seed = int(np.random.SeedSequence([self._explore_seed, most]).generate_state(1)[0])
        env = self._make_env(count * size, seed)
        try:
            self.explore(Collector(env, self.actor, self.device, self.noise), count)
        finally:
            env.close()
        return count

    def collect(self, tasks: np.ndarray) -> Rollout:
        """A rollout in which each agent acts on its inferred latent."""
        with self.timed("rollout"):
            steps = self.config.rollout_steps
            latent = self.inference.actor_latent(tasks, steps)
            self.env_steps += self.config.rollout_envs * steps
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
            return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))

    def update_inference(self) -> dict[str, Any]:
        """Global and local losses of the task encoder."""
        with self.timed("encoder"):
            metrics = self.inference.update()
            self._require_finite_parameters()
            return metrics

    def _require_finite_parameters(self) -> None:
        """Check the parameters after an update: the next policies would act on NaN.

        Raises:
            NonFiniteLossError: a parameter is NaN or infinite.
        """
        for name, module in self.modules().items():
            held: dict[str, Any] = {k: value.detach() for k, value in module.named_parameters()}
            full = [value for value in held.values() if value.numel()]
            if full:
                largest = torch.stack(torch._foreach_norm(full, float("inf")))
                require_finite(f"parameters/{name}", largest, held)

    @contextmanager
    def isolated_rng(self, seed: int) -> Iterator[None]:
        """A block whose random numbers come from ``seed``; the run's own streams are restored."""
        fresh = np.random.SeedSequence(seed).generate_state(len(self.generators))
        with self.kept_rng():
            for stream, word in zip(self.generators.values(), fresh.tolist(), strict=True):
                if isinstance(stream, torch.Generator):
                    stream.manual_seed(word)
                else:
                    stream.bit_generator.state = np.random.default_rng(word).bit_generator.state
            yield

    @contextmanager
    def kept_rng(self) -> Iterator[None]:
        """A block after which all streams of random numbers are as they were before it."""
        before = random_state(self.generators, self.device)
        try:
            yield
        finally:
            set_random_state(before, self.generators, self.device)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of a block to ``seconds[phase]``; its losses are checked together.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        start = time.perf_counter()
        with checked_together():
            yield
        synchronize(self.device)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def take_times(self) -> dict[str, float]:
        """``time/<phase>`` [s] since the last call."""
        phases = ("rollout", "ppo", "encoder", "explore")
        times = {f"time/{phase}": self.seconds.get(phase, 0.0) for phase in phases}
        self.seconds = {}
        return times

    # Checkpoints.

    def modules(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critic": self.critic, "inference": self.inference}

    def networks(self) -> dict[str, Any]:
        """Parameters and normalisers only, for a warm start."""
        return {name: module.state_dict() for name, module in self.modules().items()}

    def load_networks(self, state: dict[str, Any]) -> None:
        """Take over `networks` of a run with the same sizes."""
        for name, module in self.modules().items():
            module.load_state_dict(state[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit, except `generators`."""
        return {
            "networks": self.networks(),
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
            "buffers": self.inference.buffers_state(),
            "env": world.gather_state(self.env.state_dict()),
            "explore_env": None
            if self.explorer is None
            else world.gather_state(self.explorer.env.state_dict()),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: an optimiser's state is of other parameters.
        """
        self.load_learnt(state)
        self.env.load_state_dict(world.own_state(state["env"]))
        if self.explorer is not None:
            self.explorer.env.load_state_dict(world.own_state(state["explore_env"]))

    def load_learnt(self, state: dict[str, Any]) -> None:
        """Take over all but the environments: networks, optimisers, buffers, steps.

        Raises:
            ValueError: an optimiser's state is of other parameters.
        """
        self.load_networks(state["networks"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.inference.load_buffers_state(state["buffers"])
        self.env_steps = state["env_steps"]

    def reseed(self, iteration: int) -> None:
        """Start every stream of random numbers from the configuration's seed and ``iteration``."""
        entropy = (self.config.seed, iteration)
        seed_streams(self.generators, entropy)
        config = self.config
        _, seed = _own_envs(config.rollout_envs, fresh_seed(entropy, "env"))
        self.env.reset(seed)
        if self.explorer is not None:
            count = config.rollout.n_ae_rollout_threads
            _, seed = _own_envs(count, fresh_seed(entropy, "explore_env"))
            self.explorer.env.reset(seed)

    def close(self) -> None:
        self.env.close()
        if self.explorer is not None:
            self.explorer.env.close()


def _own_envs(count: int, seed: int) -> tuple[int, Any]:
    """How many of ``count`` sub-environments are this process's, and their seeds."""
    if world.size == 1:
        return count, seed
    seeds = np.random.SeedSequence(seed).spawn(count)[world.rows(count)]
    return len(seeds), seeds


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
