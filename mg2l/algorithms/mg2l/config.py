"""Keys of MG2L and its ablations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mg2l.algorithms.config import ContextConfig
from mg2l.config.algorithms import register_algorithm
from mg2l.core.schema import bounded


@dataclass
class MG2LConfig(ContextConfig):
    """Multi-level task encoder and its losses (Zhao et al., 2025, sections III and IV)."""

    aggregator: Literal["pia", "transformer", "rnn", "gaussian_product", "mean", "regression"] = (
        "pia"
    )
    """How a context's transitions are aggregated to one vector. With ``regression`` these are the
    coefficients of an agent's rewards on learned features of its transitions, which are also
    ``z^i``."""

    n_blocks: int = bounded(0, ge=0, le=1000)
    """Self-attention blocks before the permutation-invariant attention head (or in the
    transformer aggregator)."""

    n_heads: int = bounded(4, ge=1, le=8192)
    """Attention heads of a block; divides ``context_dim``."""

    dist: Literal["gaussian", "deterministic"] = "gaussian"
    """Representation as a Gaussian, or as a point."""

    bounded_by: Literal["sphere", "none"] = "sphere"
    """How representations are bounded: means on the sphere of radius sqrt(D), where the prior
    N(0, I) concentrates, or not at all."""

    keys: Literal["task", "context"] = "task"
    """Keys of InfoNCE: a learned one per training task, or the representations of other
    contexts."""

    negatives: Literal["shared", "independent"] = "shared"
    """With ``keys: context``: one fresh context per task for all queries, or own ones for every
    query."""

    contrast: Literal["mean", "sample"] = "mean"
    """The query of a Gaussian: its mean, or a sample."""

    score: Literal["dot", "cosine", "bilinear"] = "cosine"
    """Score of a query and a key in InfoNCE."""

    temperature: float = bounded(0.2, gt=0)
    """Divisor of the scores."""

    kl_weight: float = bounded(0.1, ge=0)
    """Weight of KL(q(z|c) || N(0, I)) [nats]."""

    global_objective: Literal["mi", "none"] = "mi"
    """Loss of the global representation beside KL and value loss: the bound on its information
    about the task, or none. With none, the local losses train learned keys."""

    local_objective: Literal["conditional_mi", "mi", "kl", "none"] = "conditional_mi"
    """Loss of the local inference networks: the bound on the conditional mutual information
    reduction, the information about the global representation, closeness to it, or nothing."""

    local_query: Literal["own", "joint"] = "own"
    """With ``conditional_mi``: the query is an agent's own representation, as it must do without
    the global one when it acts, or both together (the paper's literal form)."""

    local_to_encoder: bool = True
    """The local losses also train transition encoder and aggregation; in the paper they do not."""

    actor_latent: Literal["local", "global"] = "local"
    """Latent of the actors: each one's own representation, or for all the global one, which
    requires centralised execution."""

    critic_latent: Literal["local", "global", "both"] = "global"
    """Latent of the critics: the global representation of the replay's contexts, or those that
    actors act on, of all agents, or both."""

    target_decay: float = bounded(0.99, ge=0, lt=1)
    """Decay per update of the slow copy of the encoder (He et al., 2020, arXiv:1911.05722), from
    which come the latents of actors, those of critics that do not train the encoder, and the keys
    of ``keys: context``; 0 is no copy."""

    explore_with: Literal["prior", "tasks", "context"] = "prior"
    """Latents of exploring agents: draws of the prior; mean representations of training tasks
    drawn at random, each agent its own, on which policies are trained; or what each has inferred so
    far, nothing at first (for ``grow_contexts``)."""

    prediction_weight: float = bounded(0.0, ge=0)
    """Weight of the error of rewards, in units of their variance, predicted from a representation
    and the rest of a transition: each agent's from its own, all from the global one. A
    bound on the information about the task, like InfoNCE (Barber and Agakov, 2003), that also
    captures which tasks are alike."""

    prediction_sizes_mlp: list[int] = bounded([64, 64], ge=1, le=8192)  # noqa: RUF009
    """Hidden layers of the networks that predict rewards, all of one width."""

    critic_to_encoder: bool = True
    """The value loss also trains transition encoder, aggregation and global inference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_latent == "local" and self.critic_to_encoder:
            raise ValueError(
                "critic_latent=local and critic_to_encoder=true exclude each other; set "
                "critic_to_encoder=false"
            )
        if self.aggregator == "regression":
            needed = {"dist": "deterministic", "bounded_by": "none"}
            for key, value in needed.items():
                if (came := getattr(self, key)) != value:
                    raise ValueError(f"aggregator=regression needs {key}={value}, got {came}")
            if self.context_dim < 2:
                raise ValueError(
                    "aggregator=regression needs context_dim of at least 2, got "
                    f"{self.context_dim}: one of its features is constant"
                )
            if not self.prediction_weight:
                raise ValueError(
                    "aggregator=regression needs prediction_weight above 0, got 0: its features "
                    "learn to predict rewards"
                )
        sizes = self.prediction_sizes_mlp
        if not sizes or len(set(sizes)) > 1:
            raise ValueError(
                f"prediction_sizes_mlp must be of one width, as in [64, 64]; got {sizes}"
            )
        attends = self.aggregator == "transformer" or (self.aggregator == "pia" and self.n_blocks)
        if attends and self.context_dim % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} must divide context_dim={self.context_dim}")


register_algorithm("mg2l", "mg2l.algorithms.mg2l.algorithm:MG2L", MG2LConfig)
