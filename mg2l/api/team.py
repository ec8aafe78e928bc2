"""Trained teams from Python: ``mg2l.load``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mg2l.envs.actions import ActionLayout
from mg2l.envs.base import TaskSet
from mg2l.evaluation import measure, trained
from mg2l.evaluation.results import Run
from mg2l.experience.replay import Context, active_transitions
from mg2l.experience.rollout import LatentStream, Step
from mg2l.experience.transitions import Transitions
from mg2l.training.learner import Learner

Array = NDArray[Any]


class Team:
    """A trained team: acts on observations, remembers, and infers the task.

    It acts in N environments at once, or in a single one: then arrays have no axis N. What it is
    conditioned on depends on its algorithm. From contexts (``mg2l``, ``ma-pearl``, ``focal``,
    ``corro``): until `infer` is called the latents of exploration, such as a draw from the prior
    for each episode, then what was inferred. Step by step (``varibad``, ``mate``, ``rl2``): the
    steps given to `observe`. The oracle: the features given to `reset`.

    >>> import mg2l, numpy
    >>> run = mg2l.train(algo="mappo", n_iters=1, max_ep_len=5, n_rollout_threads=2)
    >>> team = mg2l.load(run, device="cpu")
    >>> team.reset()
    >>> action = team.act(numpy.zeros((team.num_agents, team.observation_sizes[0])))
    >>> action.shape
    (2, 2)

    Args:
        learner: the learner of a run, whose networks act.
        iteration: iterations that they were trained for.

    Attributes:
        num_agents: agents A.
        observation_sizes: width of each agent's observation.
        action_spaces: the action space of each agent.
        tasks: tasks of the run's environment, by id: ``names``, ``features`` and ``parts``.
    """

    def __init__(self, learner: Learner, iteration: int = 0) -> None:
        self.learner, self.iteration = learner, iteration
        self.num_agents = learner.env.num_agents
        self.observation_sizes = [int(s.shape[0]) for s in learner.env.observation_spaces]
        self.action_spaces = learner.env.action_spaces
        self._layout = ActionLayout(self.action_spaces)
        self.tasks: TaskSet = learner.env.tasks
        self._inference = learner.inference
        self._transitions = Transitions(learner.spec)
        self.reset()

    # Acting and observing.

    def reset(self, num_envs: int | None = None, features: ArrayLike | None = None) -> None:
        """Start new tasks: forget everything observed, inferred and remembered.

        Args:
            num_envs: N; None is a single environment, whose arrays have no axis N.
            features: ``[task_dim]`` or ``[N, task_dim]``, the tasks, for the oracle.

        Raises:
            ValueError: ``features`` has the wrong shape, or the team needs none.
        """
        if num_envs is not None and num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self._single, self._envs = num_envs is None, num_envs or 1
        body, device = self.learner.actor.body, self.learner.device
        self._state: Tensor | None = None
        if body.memory is not None:
            self._state = body.memory.initial_state(self.num_agents, self._envs)
        self._starts = torch.ones(1, self._envs, dtype=torch.bool, device=device)
        self._last: tuple[Tensor, Tensor] | None = None
        self._steps: list[Tensor] = []
        self._stream: LatentStream | None = None
        self._latent: Tensor | None = None
        self._inferred = False
        if self.infers:
            self._explorer = self._explore()
            self._clock = torch.zeros(self._envs, dtype=torch.int64, device=device)
            self._latent = self._explorer[0]
            if self._inference.explores_on_context:
                self._stream = self._inference.growing_latent(self._envs)
        elif self._inference.latent_source in ("last_step", "belief"):
            stream = self._inference.actor_latent(np.zeros(self._envs, np.int64), 1)
            self._stream = cast("LatentStream", stream)
        if features is not None:
            self._latent = self._latent_of(features)

    @property
    def infers(self) -> bool:
        """Whether tasks are inferred from contexts, when `infer` is called."""
        return self._inference.infers_from_contexts

    @property
    def needs_features(self) -> bool:
        """Whether the team acts on the features of its tasks, as the oracle does."""
        return self._inference.latent_source == "features"

    @property
    def latent(self) -> Tensor | None:
        """Latents ``[N, A, D]`` that actors are conditioned on, or None.

        May be set where tasks are inferred from contexts; kept until the episode ends or `infer`.
        """
        return self._latent if self._stream is None else self._stream.current()

    @latent.setter
    def latent(self, latent: Tensor) -> None:
        if not self.infers:
            name = self.learner.config.algo_name
            raise ValueError(f"latent cannot be set: {name} infers no tasks from contexts")
        self._stream, self._latent = None, latent
        self._explorer = latent.unsqueeze(0)

    def act(
        self,
        observations: ArrayLike,
        deterministic: bool = False,
        action_mask: ArrayLike | None = None,
    ) -> Array:
        """Choose actions; once per step, since recurrent states advance.

        Args:
            observations: ``[N, A, O]``, or of a single environment ``[A, O]``; zeros at the end of
                those of agents that observe less.
            deterministic: take the most likely action instead of a sample.
            action_mask: ``[N, A, n]`` or ``[A, n]`` bool, discrete actions that are allowed.

        Returns:
            Indices ``[N, A]`` int64 of discrete actions, or ``[N, A, size]`` float32 within their
            space, or as `mg2l.envs.actions.ActionLayout` says where there are several choices or
            agents differ; without N of a single environment.

        Raises:
            ValueError: a shape is wrong, a number is not finite, or no action is allowed.
            RuntimeError: the team needs the features of its tasks first.
        """
        width = max(self.observation_sizes)
        rows = self._array("observations", observations, (self.num_agents, width))
        if self.needs_features and self._latent is None:
            raise RuntimeError(
                "this team acts on the features of its tasks: call reset(features=...) first"
            )
        mask = None
        if action_mask is not None:
            options = self._layout.options
            if not options:
                raise ValueError("action_mask is for discrete actions, got one for a box")
            mask = self._array("action_mask", action_mask, (self.num_agents, options)).bool()
            if not self._layout.allows(mask.cpu().numpy()).all():
                raise ValueError("action_mask must allow an action to each agent")
        latent = self.latent
        actor = self.learner.actor
        starts = self._starts
        inputs = actor.body.inputs(
            rows.transpose(0, 1), None if latent is None else latent.transpose(0, 1)
        )
        allowed = None if mask is None else mask.transpose(0, 1)
        action, _, self._state = actor.act(
            inputs, self._state, starts, allowed, self.learner.noise, deterministic
        )
        self._starts = torch.zeros_like(starts)
        action = action.transpose(0, 1)
        self._last = (rows, action)
        taken = action.cpu().numpy()
        taken = self._layout.within(taken).astype(taken.dtype)
        return taken[0] if self._single else taken

    def observe(
        self,
        rewards: ArrayLike,
        next_observations: ArrayLike,
        done: ArrayLike = False,
        active: ArrayLike | None = None,
    ) -> None:
        """Record what the last actions led to, from which tasks are inferred.

        Args:
            rewards: ``[N, A]``, or of a single environment ``[A]``.
            next_observations: ``[N, A, O]`` or ``[A, O]`` that the step led to, also where the
                episode ended with it.
            done: ``[N]`` bool, or one for all: an episode ended with the step.
            active: ``[N, A]`` or ``[A]`` bool, agents that were alive; None is all. No task is
                inferred from transitions of the dead.

        Raises:
            ValueError: a shape is wrong.
            RuntimeError: there was no `act` since the last step.
        """
        if self._last is None:
            raise RuntimeError("observe() needs an act() before it, one for each step")
        (rows, action), self._last = self._last, None
        paid = self._array("rewards", rewards, (self.num_agents,))
        after = self._array("next_observations", next_observations, tuple(rows.shape[1:]))
        ends = torch.as_tensor(np.broadcast_to(np.asarray(done, bool), (self._envs,)).copy())
        ends = ends.to(rows.device)
        alive: Tensor | None = None
        if active is not None:
            alive = self._array("active", active, (self.num_agents,)).bool()
        if self.infers:
            joined = self._transitions.join(rows, action, paid, after)
            if alive is not None:
                joined = joined.masked_fill(~alive.unsqueeze(-1), float("nan"))
            self._steps.append(joined)
        if self._stream is not None:
            self._stream.update(Step(rows, action, paid, after, ends, alive))
        if not self.learner.actor.body.remembers_episodes:
            self._starts = ends[None]
        if self.infers and self._stream is None and not self._inferred:
            self._clock = (self._clock + 1).masked_fill(ends, 0)
            if bool(ends.any()):
                fresh = self._explore()
                self._explorer = torch.where(ends[:, None, None], fresh, self._explorer)
            steps = self._clock.clamp(max=len(self._explorer) - 1)
            self._latent = self._explorer[steps, torch.arange(self._envs, device=ends.device)]

    def infer(self, contexts: ArrayLike | None = None) -> Array:
        """Infer the tasks, and act on the result until `reset`.

        Each agent infers from its own transitions; as many as in training are drawn of them. Where
        contexts grow, it infers from all, and again after every step.

        Args:
            contexts: ``[N, S, A, F]`` or ``[S, A, F]`` transitions, as `transitions` makes them;
                None is all that was observed since `reset`. Rows of NaN are left out.

        Returns:
            Latents of the actors, ``[N, A, D]`` or ``[A, D]``.

        Raises:
            RuntimeError: the algorithm does not infer from contexts, or nothing was observed.
            ValueError: ``contexts`` has the wrong shape.
        """
        if not self.infers:
            name = self.learner.config.algo_name
            raise RuntimeError(f"{name} does not infer tasks from contexts")
        if contexts is None:
            if not self._steps:
                raise RuntimeError("nothing was observed yet that the tasks could be inferred from")
            held = torch.stack(self._steps, 1)
        else:
            width = self._transitions.width
            given: Array = np.asarray(contexts, np.float32)
            given = given[None] if self._single else given
            shape, right = list(given.shape), [self._envs, self.num_agents, width]
            if len(shape) != 4 or [shape[0], *shape[2:]] != right or not shape[1]:
                wanted = f"{'' if self._single else f'{self._envs}, '}S, {self.num_agents}, {width}"
                raise ValueError(
                    f"contexts must have shape [{wanted}], got {list(np.shape(contexts))}"
                )
            held = torch.as_tensor(given, device=self.learner.device)
            self._steps = list(held.unbind(1))
        with torch.no_grad():
            grows, length = self._inference.grows_contexts, self._inference.context_length
            drawn = _living(held) if grows else _draw(held, length, self.learner)
            self._latent = self._inference.latent_for_actors(self._inference.infer(Context(drawn)))
            if grows:
                seen = torch.full((self._envs,), held.shape[1])
                self._stream = self._inference.growing_latent(self._envs, drawn, seen)
        self._inferred = True
        latent: Array = self._latent.cpu().numpy()
        return latent[0] if self._single else latent

    def transitions(
        self,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        next_observations: ArrayLike,
    ) -> Array:
        """Rows ``(o, a, r, o')`` of recorded steps, ``[*, A, F]``, for `infer`.

        Args:
            observations: ``[*, A, O]``.
            actions: ``[*, A, size]``, or ``[*, A]`` int where they are discrete.
            rewards: ``[*, A]``.
            next_observations: ``[*, A, O]``.
        """
        discrete = isinstance(self.action_spaces[0], spaces.Discrete)
        taken = np.asarray(actions, np.int64 if discrete else np.float32)
        rows = self._transitions.join(
            torch.as_tensor(np.asarray(observations, np.float32)),
            torch.as_tensor(taken),
            torch.as_tensor(np.asarray(rewards, np.float32)),
            torch.as_tensor(np.asarray(next_observations, np.float32)),
        )
        joined: Array = rows.numpy()
        return joined

    # The agents one by one.

    def agent(self, index: int) -> Agent:
        """Agent ``index`` on its own: it sees only its own observations and rewards.

        Raises:
            ValueError: there is no such agent, or this algorithm's agents share a representation.
        """
        if not 0 <= index < self.num_agents:
            raise ValueError(f"index must be in [0, {self.num_agents - 1}], got {index}")
        self._inference.agent_network(index)  # raises where they share a representation
        return Agent(Team(self.learner), index)

    def save(self, folder: Path | str) -> Path:
        """Write the team alone, a few hundred kB, to pass on: `load` takes its folder.

        These are config, spaces and networks, with which it acts and is evaluated. A run is resumed
        from its own folder, which also has optimisers, replay and metrics.

        Returns:
            The folder.

        Raises:
            ConfigError: it exists.
            WriteError: it cannot be written.
        """
        trained.save(self.learner, self.iteration, Path(folder))
        return Path(folder)

    # Measuring.

    def evaluate(
        self,
        shots: Sequence[int] = (0, 1, 2, 5),
        episodes: int = 32,
        seed: int = 0,
        deterministic: bool = False,
    ) -> dict[str, Any]:
        """Meta-test on all tasks, as ``python -m mg2l.evaluate``; needs the environment.

        Args:
            shots: episodes of exploration before acting.
            episodes: per task.
            seed: random seed.
            deterministic: act on the most likely action instead of a sample, except while
                exploring.

        Returns:
            Content of ``evaluation.json``; ``results`` has a row per part of the tasks and way of
            acting, with ``return`` and its 95 % ``interval``.
        """
        if not shots or min(shots) < 0 or episodes < 1:
            raise ValueError(f"need shots >= 0 and episodes >= 1, got {list(shots)} and {episodes}")
        return measure.evaluate(
            self.learner, None, sorted(set(shots)), episodes, seed, deterministic
        )[0]

    # Arrays.

    def _explore(self) -> Tensor:
        """Latents of an episode in which nothing is known about the task, ``[T | 1, N, A, D]``."""
        latent = self._inference.exploration_latent(self._envs, self.learner.config.env.max_ep_len)
        assert latent is not None
        return latent

    def _latent_of(self, features: ArrayLike) -> Tensor:
        if not self.needs_features:
            name = self.learner.config.algo_name
            raise ValueError(f"features must be None: {name} is not given its tasks")
        width = self.tasks.task_dim
        given = np.asarray(features, np.float32)
        if given.shape not in ((width,), (self._envs, width)):
            raise ValueError(f"features must have shape [{width}], got {list(given.shape)}")
        rows = torch.as_tensor(np.broadcast_to(given, (self._envs, width)).copy())
        return rows.to(self.learner.device).unsqueeze(1).expand(-1, self.num_agents, -1)

    def _array(self, name: str, value: ArrayLike, shape: tuple[int, ...]) -> Tensor:
        array = np.asarray(value, np.float32)
        wanted = shape if self._single else (self._envs, *shape)
        if array.shape != wanted:
            raise ValueError(f"{name} must have shape {list(wanted)}, got {list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        tensor = torch.as_tensor(np.array(array), device=self.learner.device)
        return tensor.unsqueeze(0) if self._single else tensor


class Agent:
    """One agent of a trained team, executed decentralised in a single environment.

    Args:
        team: a team of its own, in which all other agents see zeros.
        index: which agent.
    """

    def __init__(self, team: Team, index: int) -> None:
        self._team, self.index = team, index

    def reset(self, features: ArrayLike | None = None) -> None:
        """Begin with a new task, see `Team.reset`."""
        self._team.reset(features=features)

    def act(
        self,
        observation: ArrayLike,
        deterministic: bool = False,
        action_mask: ArrayLike | None = None,
    ) -> Any:
        """Action for an observation ``[O]``, see `Team.act`."""
        mask = None
        if action_mask is not None:
            own = np.asarray(action_mask, bool)
            mask = np.ones((self._team.num_agents, *own.shape), bool)
            mask[self.index] = own
        return self._team.act(self._among_zeros(observation), deterministic, mask)[self.index]

    def observe(
        self, reward: float, next_observation: ArrayLike, done: bool = False, active: bool = True
    ) -> None:
        """Record what the last action led to, see `Team.observe`."""
        alive = np.full(self._team.num_agents, active)
        rewards = self._among_zeros(reward)
        self._team.observe(rewards, self._among_zeros(next_observation), done, alive)

    def infer(self) -> Array:
        """Infer the task from its own transitions; returns the latent that it acts on, ``[D]``."""
        latent: Array = self._team.infer()[self.index]
        return latent

    @property
    def latent(self) -> Tensor | None:
        """Latent ``[D]`` that it is conditioned on, see `Team.latent`."""
        joint = self._team.latent
        return None if joint is None else joint[0, self.index]

    @latent.setter
    def latent(self, latent: Tensor) -> None:
        self._team.latent = latent.expand(1, self._team.num_agents, -1)

    def _among_zeros(self, own: ArrayLike) -> Array:
        value = np.asarray(own, np.float32)
        rows = np.zeros((self._team.num_agents, *value.shape), np.float32)
        rows[self.index] = value
        return rows


def _living(held: Tensor) -> Tensor:
    """Transitions ``[N, S, A, F]`` in their order, where each agent's of when it was alive recur.

    Rows of the dead are NaN. An agent that never was alive has transitions of zeros.
    """
    alive = ~held.isnan().any(-1)
    rows = active_transitions(held.transpose(0, 1), alive.transpose(0, 1)).transpose(0, 1)
    return rows.nan_to_num(0.0)


def _draw(held: Tensor, length: int, learner: Learner) -> Tensor:
    """``[N, length, A, F]`` drawn of `_living` uniformly, with replacement."""
    envs, _, agents, features = held.shape
    counts = (~held.isnan().any(-1)).sum(1, keepdim=True).clamp(min=1)
    drawn = torch.rand(envs, length, 1, generator=learner.draws, device=held.device)
    index = (drawn.expand(-1, -1, agents) * counts).long().unsqueeze(-1)
    return _living(held).gather(1, index.expand(-1, -1, -1, features))


def load(
    run: Run | Path | str,
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    trust: bool = False,
) -> Team:
    """Load a trained team, from the last checkpoint of a run or from a given one.

    >>> import mg2l
    >>> run = mg2l.train(algo="mappo", n_iters=1, max_ep_len=5, n_rollout_threads=2)
    >>> team = mg2l.load(run.folder / "checkpoints" / "00000001")
    >>> team.num_agents
    2

    Args:
        run: what `mg2l.train` returned, its folder, or one of its checkpoints, such as
            ``RUN/checkpoints/best``.
        device: device of its networks; None is the one that it was trained on.
        seed: random seed of sampling.
        trust: import the code that the run names, where it is what the run was trained with.

    Raises:
        ConfigError: no run lies there, or it names code that is not imported.
        CheckpointError: it has no checkpoint, or a damaged one.
    """
    path = run.folder if isinstance(run, Run) else Path(run)
    where = None if device is None else torch.device(device)
    learner = trained.load(path, where, trust, with_env=False)
    learner.noise.manual_seed(seed)
    learner.draws.manual_seed(seed)
    return Team(learner, trained.iteration_of(path))
