"""Sub-environments in Ray actors, for environments that are slow to step.

Each actor hosts part of the sub-environments and is asked for fragments: the weights of the
policies go there, and a whole rollout of its part comes back. A fragment depends on nothing but
what it is sent (weights, random stream, tasks, state of the environments), so that one that is
lost with its machine is collected again elsewhere, the same. In an actor, policies act on as many
rows as there are sub-environments in all, of which its own are real: the same random numbers are
drawn for each row, and matrix products round as they do for all, so that all actors together give
bit for bit what a `Collector` gives on one machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mg2l.config.algorithms import algorithms
from mg2l.config.saved import config_from_yaml, config_to_yaml
from mg2l.config.sections import Config
from mg2l.core.cluster import connect
from mg2l.core.distributed import world
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.envs.base import EnvConfig, EnvError, FloatArray, Info, Seed, StepResult, VectorEnv
from mg2l.experience.rollout import Collector, LatentStream, Rollout
from mg2l.training.learner import Learner

ROLLOUT, EXPLORATION = "rollout", "exploration"


class PaddedEnv(VectorEnv):
    """Some of the sub-environments, in arrays of full size; other rows repeat theirs.

    Args:
        own: sub-environments of the part.
        num_envs: of all.
        part: rows that are the part's.
    """

    def __init__(self, own: VectorEnv, num_envs: int, part: slice) -> None:
        self.own, self.part, self.num_envs = own, part, num_envs
        self.num_agents, self.tasks = own.num_agents, own.tasks
        self.observation_spaces, self.action_spaces = own.observation_spaces, own.action_spaces
        self.max_ep_len, self.image = own.max_ep_len, own.image
        self.vectorised, self.shared_reward = own.vectorised, own.shared_reward
        self.rows = np.arange(num_envs) % own.num_envs
        self.rows[part] = np.arange(own.num_envs)
        own.first_env = part.start

    def place(self, env_id: int) -> str:
        return self.own.place(int(self.rows[env_id]))

    def _info(self, info: Info, given: FloatArray, padded: FloatArray) -> Info:
        return {
            name: padded if value is given else value[self.rows] for name, value in info.items()
        }

    def reset(
        self, seed: int | Sequence[int] | None = None, task_ids: ArrayLike | None = None
    ) -> tuple[FloatArray, Info]:
        seeds: Any = seed if seed is None or isinstance(seed, int) else [*seed][self.part]
        ids = None if task_ids is None else np.asarray(task_ids)[self.part]
        obs, info = self.own.reset(seeds, ids)
        padded = obs[self.rows]
        return padded, self._info(info, obs, padded)

    def step(self, actions: ArrayLike) -> StepResult:
        obs, rewards, terminated, truncated, info = self.own.step(np.asarray(actions)[self.part])
        padded, rows = obs[self.rows], self.rows
        info = self._info(info, obs, padded)
        return padded, rewards[rows], terminated[rows], truncated[rows], info

    def state_dict(self) -> dict[str, Any]:
        return self.own.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.own.load_state_dict(state)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        return self.own.render(index)

    def close(self) -> None:
        self.own.close()


class Host:
    """Hosts part of the sub-environments; what an actor runs.

    Args:
        config: the run, as YAML, which also names the code of its environment.
        rank: number of the part.
        size: parts.
    """

    def __init__(self, config: str, rank: int, size: int) -> None:
        torch.set_num_threads(1)
        self.rank, self.size = rank, size
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(config, encoding="utf-8")
            # It is trusted as the run itself, which has sent it.
            found = config_from_yaml(path, trust=True)
        self.learner = Learner(found, torch.device("cpu"), self._make)

    def _make(self, config: EnvConfig, num_envs: int, seed: Seed) -> VectorEnv:
        assert isinstance(seed, int)
        part = parts(num_envs, self.size)[self.rank]
        seeds = np.random.SeedSequence(seed).spawn(num_envs)[part]
        return PaddedEnv(registry.make(config, len(seeds), seeds), num_envs, part)

    def _collector(self, kind: str) -> Collector:
        collector = self.learner.collector if kind == ROLLOUT else self.learner.explorer
        assert collector is not None
        return collector

    def state(self, kind: str) -> dict[str, Any]:
        """State of the environments as they were built."""
        return self._collector(kind).env.state_dict()

    def reset(self, kind: str, seed: int) -> dict[str, Any]:
        """Start the streams of random numbers from ``seed``; returns the environments' state."""
        env = self._collector(kind).env
        seeds: Any = np.random.SeedSequence(seed).spawn(env.num_envs)
        env.reset(seeds)
        return env.state_dict()

    def fragment(
        self,
        kind: str,
        networks: dict[str, Any],
        noise: Tensor,
        state: dict[str, Any],
        steps: int,
        task_ids: np.ndarray,
        latent: Tensor | dict[str, Any] | None,
        deterministic: bool,
        seeds: Sequence[int] | None,
    ) -> tuple[Rollout, dict[str, Any], Tensor]:
        """Collect a rollout; returns own rows of it, and states of environments and noise after it.

        ``latent`` holds own rows, and ``task_ids`` and ``seeds`` those of all.
        """
        learner, collector = self.learner, self._collector(kind)
        env = collector.env
        assert isinstance(env, PaddedEnv)
        learner.actor.load_state_dict(networks["actor"])
        learner.inference.load_state_dict(networks["inference"])
        learner.noise.set_state(noise)
        env.load_state_dict(state)
        given: Tensor | LatentStream | None = None
        if isinstance(latent, Tensor):
            given = latent[:, env.rows]
        elif latent:
            given = learner.inference.growing_latent(**latent)
        elif latent is not None:
            given = learner.inference.actor_latent(task_ids, steps)
        rollout = collector.collect(steps, task_ids, given, deterministic, seeds)
        return _rows(rollout, env.part), env.state_dict(), learner.noise.get_state()


def parts(num_envs: int, size: int) -> list[slice]:
    """Rows of each actor; the first ones have more where they cannot be split evenly."""
    ends = np.cumsum([len(rows) for rows in np.array_split(np.arange(num_envs), size)])
    return [slice(int(a), int(b)) for a, b in zip([0, *ends], ends, strict=False)]


def _rows(rollout: Rollout, part: slice) -> Rollout:
    kept: dict[str, Any] = {}
    for name, value in vars(rollout).items():
        whole = slice(None)
        rows = (whole, whole, part) if name == "states" else (whole, part)
        kept[name] = None if value is None else value[rows].clone()
    return Rollout(**kept)


class HostedEnv(VectorEnv):
    """Spaces, tasks and state of sub-environments that actors host; they are stepped there alone.

    Args:
        described: an environment of the family.
        num_envs: sub-environments of all actors.
        kind: `ROLLOUT` or `EXPLORATION`.
        ray: the module.
        actors: one of each part.
    """

    def __init__(
        self, described: VectorEnv, num_envs: int, kind: str, ray: Any, actors: Sequence[Any]
    ) -> None:
        self.num_envs, self.num_agents = num_envs, described.num_agents
        self.observation_spaces = described.observation_spaces
        self.action_spaces = described.action_spaces
        self.tasks, self.max_ep_len = described.tasks, described.max_ep_len
        self.image, self.task_ids = described.image, np.zeros(num_envs, np.int64)
        self.vectorised, self.shared_reward = described.vectorised, described.shared_reward
        self.kind, self.ray, self.actors = kind, ray, actors
        self.parts = parts(num_envs, len(actors))
        self.states: list[dict[str, Any]] = self.get([a.state.remote(kind) for a in actors])

    def get(self, references: list[Any]) -> list[Any]:
        """Wait for the results of actors.

        Raises:
            EnvError: an environment failed, or the cluster is gone.
        """
        errors = self.ray.exceptions
        try:
            return list(self.ray.get(references))
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            reason = str(error).partition("\n")[0]
            raise EnvError(f"env_actors: the Ray cluster does not answer: {reason}") from None

    def state_dict(self) -> dict[str, Any]:
        first = self.states[0]
        return {
            name: np.concatenate([state[name] for state in self.states])
            if np.ndim(value)
            else value
            for name, value in first.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows = {len(value) for value in state.values() if np.ndim(value)}
        if rows != {self.num_envs} or set(state) != set(self.states[0]):
            raise ValueError(f"the state must be of {self.num_envs} sub-environments, got {rows}")
        self.states = [
            {name: value[part] if np.ndim(value) else value for name, value in state.items()}
            for part in self.parts
        ]

    def reset(
        self, seed: int | Sequence[int] | None = None, task_ids: ArrayLike | None = None
    ) -> tuple[FloatArray, Info]:
        if not isinstance(seed, int) or task_ids is not None:
            raise RuntimeError("sub-environments in actors are given tasks by their collector")
        self.states = self.get([actor.reset.remote(self.kind, seed) for actor in self.actors])
        shape = (self.num_envs, self.num_agents, self.observation_width)
        return np.zeros(shape, np.float32), {}

    def step(self, actions: ArrayLike) -> StepResult:
        raise RuntimeError("sub-environments in actors are stepped by their collector")

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        raise RuntimeError("sub-environments in actors are not rendered")

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)


class HostedCollector(Collector):
    """Collects rollouts from `HostedEnv`, a fragment of every actor at once.

    Args:
        env: where to act.
        learner: its policies, its inference and its noise.
    """

    env: HostedEnv

    def __init__(self, env: HostedEnv, learner: Learner) -> None:
        super().__init__(env, learner.actor, learner.device, learner.noise)
        self.env, self.inference = env, learner.inference

    def collect(
        self,
        steps: int,
        task_ids: np.ndarray,
        latent: Tensor | LatentStream | None,
        deterministic: bool = False,
        seeds: Sequence[int] | None = None,
        episodes: int | None = None,
    ) -> Rollout:
        """See `Collector.collect`; ``episodes`` is not supported.

        Raises:
            EnvError: an environment failed, or the cluster is gone.
        """
        if episodes is not None:
            raise ValueError("a fragment has as many steps as it is asked for")
        env = self.env
        networks = env.ray.put({"actor": _on_cpu(self.actor), "inference": _on_cpu(self.inference)})
        noise = self._noise()
        arguments = None
        if latent is not None and not isinstance(latent, Tensor):
            arguments = env.ray.put(latent.arguments())
        fragments = [
            actor.fragment.remote(
                env.kind,
                networks,
                noise,
                state,
                steps,
                task_ids,
                latent[:, part].cpu() if isinstance(latent, Tensor) else arguments,
                deterministic,
                seeds,
            )
            for actor, state, part in zip(env.actors, env.states, env.parts, strict=True)
        ]  # fmt: skip
        answers = env.get(fragments)
        env.states = [state for _, state, _ in answers]
        env.task_ids = task_ids
        if self.generator.device.type == "cpu":
            self.generator.set_state(answers[0][2])
        joined = self._joined([rollout for rollout, _, _ in answers])
        if isinstance(latent, Tensor) and len(latent) == 1:  # as here, where nothing is copied
            joined.latent = latent.expand(steps, -1, -1, -1)
        return joined

    def _noise(self) -> Tensor:
        """State of the policies' noise on the CPU, where they act.

        A stream of a GPU cannot continue there: it draws a seed for each rollout.
        """
        if self.generator.device.type == "cpu":
            return self.generator.get_state()
        device = self.generator.device
        seed = torch.randint(2**62, (1,), generator=self.generator, device=device)
        return torch.Generator().manual_seed(int(seed)).get_state()

    def _joined(self, parts: Sequence[Rollout]) -> Rollout:
        joined: dict[str, Any] = {}
        for name, value in vars(parts[0]).items():
            rows = 2 if name == "states" else 1
            values = [getattr(part, name) for part in parts]
            joined[name] = None if value is None else torch.cat(values, rows).to(self.device)
        return Rollout(**joined)


def _on_cpu(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def build(config: Config, device: torch.device) -> Learner:
    """The learner of a run whose sub-environments are hosted by ``env_actors`` actors.

    Raises:
        ConfigError: no cluster answers, or the sub-environments are too few.
    """
    count = config.rollout.env_actors
    if world.size > 1:
        raise ConfigError(
            f"env_actors={count} needs a single process of training, got {world.size}"
        )
    if count > config.rollout_envs:
        raise ConfigError(
            f"env_actors={count} must be at most the {config.rollout_envs} sub-environments"
        )
    explored = config.rollout.n_ae_rollout_threads
    if algorithms.get(config.algo_name).inference.explores and count > explored:
        raise ConfigError(f"env_actors={count} must be at most n_ae_rollout_threads={explored}")
    ray = connect("auto", f"env_actors={count}")
    host = ray.remote(Host).options(
        num_cpus=1, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
    )
    actors = [host.remote(config_to_yaml(config), rank, count) for rank in range(count)]
    kinds = iter((ROLLOUT, EXPLORATION))

    def make(env: EnvConfig, num_envs: int, seed: Seed) -> VectorEnv:
        kind = next(kinds, None)
        if kind is None:  # for the first exploration at once, where many cost little more than few
            return registry.make(env, num_envs, seed)
        described = registry.make(env, 1)
        try:
            return HostedEnv(described, num_envs, kind, ray, actors)
        finally:
            described.close()

    try:
        learner = Learner(config, device, make)
    except BaseException:
        for actor in actors:
            ray.kill(actor)
        raise
    assert isinstance(learner.env, HostedEnv)
    learner.collector = HostedCollector(learner.env, learner)
    if learner.explorer is not None:
        assert isinstance(learner.explorer.env, HostedEnv)
        learner.explorer = HostedCollector(learner.explorer.env, learner)
    return learner
