"""Keys that several algorithms have: of those that learn to infer, from contexts or beliefs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mg2l.config.algorithms import AlgorithmConfig
from mg2l.core.distributed import world
from mg2l.core.schema import ConfigError, bounded, check_steps

if TYPE_CHECKING:
    from mg2l.config.sections import Config


@dataclass
class LearnedConfig(AlgorithmConfig):
    """Keys of the algorithms that learn to infer the task."""

    context_dim: int = bounded(16, ge=1, le=8192)
    """Width D of a task representation."""

    normalize_transitions: bool = True
    """Standardise transitions with the moments of all that the replay has taken."""

    lr: float = bounded(2e-3, gt=0)
    """Learning rate of the encoder."""

    ae_updates_per_iter: int = bounded(50, ge=0, le=1_000_000)
    """Encoder updates per iteration."""

    train_ae_interval: int = bounded(1, ge=1)
    """Iterations between two rounds of encoder updates."""


@dataclass
class ContextConfig(LearnedConfig):
    """Keys of the algorithms that infer the task from contexts."""

    hidden_sizes_mlp: list[int] = bounded([64, 64, 64], ge=1, le=8192)  # noqa: RUF009
    """Hidden layers of the transition encoder and of the local inference networks."""

    ae_batch_size: int = bounded(100, ge=1, le=1_000_000)
    """Transitions in a context from which the latents of actors and critics are inferred."""

    context_episodes: int = bounded(10, ge=1, le=1_000_000)
    """Episodes, or where they end early stretches of ``max_ep_len`` steps, that the transitions of
    such a context are drawn from."""

    min_context_episodes: int = bounded(0, ge=0, le=1_000_000)
    """If not 0, contexts of fewer episodes, too: log-uniform between this and ``context_episodes``.
    At meta-test there are only the few that an agent has explored."""

    grow_contexts: bool = False
    """Contexts grow with every step in which agents act on them, also in the episode that counts.
    Policies are trained as at meta-test: from no context in half of the sub-environments, in the
    others from 1 to ``context_episodes`` of the replay (log-uniform). Encoder updates learn from
    the first transitions of ``update_episodes``, from one to all (half of a regression's: all)."""

    replay_rollouts: bool = False
    """Keep the rollouts that policies are trained on in the context replay, beside explored ones:
    more episodes of each task, at no environment step."""

    explore_refresh: int = bounded(0, ge=0, le=1_000_000)
    """Steps after which an exploring agent draws another latent; 0 is one for the whole episode."""

    update_contexts: int = bounded(160, ge=1, le=1_000_000)
    """Contexts that an encoder update learns from."""

    update_transitions: int = bounded(10, ge=1, le=1_000_000)
    """Transitions in a context that an encoder update learns from. Short ones must be recognised by
    single transitions, long ones can be by the average layout of their episodes."""

    update_episodes: int = bounded(1, ge=1, le=1_000_000)
    """Episodes that the transitions of such a context are drawn from."""

    n_init_updates: int = bounded(500, ge=0, le=1_000_000_000)
    """Encoder updates on the first exploration rollouts, before any policy acts on what is
    inferred."""

    ae_buffer_size: int = bounded(100_000, ge=1, le=100_000_000)
    """Transitions kept per task in the context replay, unless ``replay_memory`` is less."""

    replay_memory: int = bounded(1000, ge=1, le=10_000_000)
    """Memory of the context replay of all tasks together at most [MB]; each keeps as many whole
    episodes as fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden_sizes_mlp:
            raise ValueError("hidden_sizes_mlp must have at least one layer, got []")
        if self.min_context_episodes > self.context_episodes:
            raise ValueError(
                f"min_context_episodes={self.min_context_episodes} must be at most "
                f"context_episodes={self.context_episodes}"
            )

    def check_config(self, config: Config) -> None:
        steps = config.env.max_ep_len
        if self.ae_buffer_size < steps:
            raise ConfigError(
                f"ae_buffer_size={self.ae_buffer_size} holds no episode of max_ep_len={steps} "
                f"steps; {config.algo_name} keeps whole ones of every task"
            )
        rollout = config.rollout
        check_steps(n_ae_rollout_threads=rollout.n_ae_rollout_threads, max_ep_len=steps)
        check_steps(n_rollout_threads=rollout.n_rollout_threads, ae_batch_size=self.ae_batch_size)
        check_steps(
            update_contexts=self.update_contexts, update_transitions=self.update_transitions
        )
        world.check_divides(
            n_ae_rollout_threads=rollout.n_ae_rollout_threads,
            update_contexts=self.update_contexts,
        )


@dataclass
class BeliefConfig(LearnedConfig):
    """Keys of the algorithms whose agents update a belief with every transition."""

    belief_hidden: int = bounded(64, ge=1, le=8192)
    """Width of the GRU."""

    decoder_sizes_mlp: list[int] = bounded([64, 64], ge=1, le=8192)  # noqa: RUF009
    """Hidden layers of the decoders, all of one width."""

    belief_reset: Literal["episode", "task"] = "episode"
    """When a belief is reset: with every episode, or with every rollout, which has one task."""

    kept_trajectories: int = bounded(32, ge=1, le=1_000_000)
    """Latest trajectories that updates learn from, each a rollout of one environment."""

    update_trajectories: int = bounded(32, ge=1, le=1_000_000)
    """Trajectories in an update."""

    observation_weight: float = bounded(1.0, ge=0)
    """Weight of the error of decoded next observations, in units of their variance."""

    reward_weight: float = bounded(1.0, ge=0)
    """Weight of the error of decoded rewards, in units of their variance."""

    kl_weight: float = bounded(0.1, ge=0)
    """Weight of the KL to the prior or to the previous belief [nats]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.decoder_sizes_mlp
        if not sizes or len(set(sizes)) > 1:
            raise ValueError(f"decoder_sizes_mlp must be of one width, as in [64, 64]; got {sizes}")

    def check_config(self, config: Config) -> None:
        if self.update_trajectories > self.kept_trajectories:
            raise ConfigError(
                f"update_trajectories={self.update_trajectories} exceeds kept_trajectories="
                f"{self.kept_trajectories}"
            )
        check_steps(
            kept_trajectories=self.kept_trajectories,
            max_ep_len=config.env.max_ep_len,
            episodes_per_task=config.rollout.episodes_per_task,
        )
        world.check_divides(update_trajectories=self.update_trajectories)
