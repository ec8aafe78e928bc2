"""MAPPO in the shortest loop that a good engineer writes in plain PyTorch, on our environment.

It normalises no values, checks nothing, and clips one norm over all agents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg2l.config import files
from mg2l.envs import registry

GAMMA, LAMBDA, CLIP, ENTROPY, MAX_NORM, EPOCHS = 0.95, 0.9, 0.2, 0.01, 10.0, 15
HALF_LOG_2PI = 0.9189385


def network(agents: int, *sizes: int) -> list[Tensor]:
    """Weights ``[A, out, in]`` and biases ``[A, 1, out]``, in turn."""
    found = []
    for inputs, outputs in itertools.pairwise(sizes):
        weight = torch.empty(agents, outputs, inputs)
        for own in weight:
            torch.nn.init.orthogonal_(own)
        found += [weight.requires_grad_(), torch.zeros(agents, 1, outputs, requires_grad=True)]
    return found


def forward(layers: list[Tensor], x: Tensor) -> Tensor:
    """``[A, rows, in]`` to ``[A, rows, out]``."""
    *hidden, weight, bias = layers
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = F.layer_norm(torch.relu(torch.baddbmm(b, x, w.transpose(1, 2))), (w.shape[1],))
    return torch.baddbmm(bias, x, weight.transpose(1, 2))


def make(hidden: int, minibatches: int) -> Callable[[], object]:
    """An iteration with networks ``hidden`` wide."""
    config = files.load_config("default", "mappo", "mpe-spread", [])
    envs, steps = config.rollout.n_rollout_threads, config.env.max_ep_len
    env = registry.make(config.env, envs, 0)
    agents, rng = env.num_agents, np.random.default_rng(0)
    width, size = (
        int(np.prod(space.shape or ()))
        for space in (env.observation_spaces[0], env.action_spaces[0])
    )
    actor, critic = (
        network(agents, width, hidden, hidden, size),
        network(agents, agents * width, hidden, hidden, 1),
    )
    log_std = torch.zeros(agents, 1, size, requires_grad=True)
    actor_parameters = [*actor, log_std]
    actor_adam = torch.optim.Adam(actor_parameters, 5e-4, eps=1e-5, fused=True)
    critic_adam = torch.optim.Adam(critic, 5e-4, eps=1e-5, fused=True)

    def log_prob(mean: Tensor, action: Tensor) -> Tensor:
        error = (action - mean) * torch.exp(-log_std)
        return (-0.5 * error.square() - log_std - HALF_LOG_2PI).sum(-1)

    @torch.no_grad()
    def collect() -> tuple[Tensor, ...]:
        observation, _ = env.reset(None, rng.integers(3, size=envs))
        observations, actions, log_probs, rewards = [observation], [], [], []
        for _ in range(steps):
            mean = forward(actor, torch.as_tensor(observation).transpose(0, 1))
            action = mean + log_std.exp() * torch.randn_like(mean)
            actions.append(action)
            log_probs.append(log_prob(mean, action))
            observation, gained, _, _, _ = env.step(action.transpose(0, 1).contiguous().numpy())
            observations.append(observation)
            rewards.append(torch.as_tensor(gained))
        rows = torch.as_tensor(np.stack(observations))  # [T + 1, N, A, O]
        states = rows.flatten(2).expand(agents, -1, -1, -1)
        values = forward(critic, states.flatten(1, 2)).view(agents, steps + 1, envs)
        reward, advantages = torch.stack(rewards).permute(2, 0, 1), torch.zeros(agents, steps, envs)
        last = torch.zeros(agents, envs)
        for t in reversed(range(steps)):
            delta = reward[:, t] + GAMMA * values[:, t + 1] - values[:, t]
            last = delta + GAMMA * LAMBDA * last
            advantages[:, t] = last
        returns = advantages + values[:, :-1]
        mean, std = advantages.mean((1, 2), keepdim=True), advantages.std((1, 2), keepdim=True)
        return (
            rows[:-1].permute(2, 0, 1, 3).flatten(1, 2).contiguous(),
            states[:, :-1].flatten(1, 2).contiguous(),
            torch.stack(actions, 1).flatten(1, 2),
            torch.stack(log_probs, 1).flatten(1),
            ((advantages - mean) / (std + 1e-5)).flatten(1),
            returns.flatten(1),
            values[:, :-1].flatten(1),
        )

    def actor_loss(rows: Tensor, actions: Tensor, before: Tensor, advantages: Tensor) -> Tensor:
        ratio = (log_prob(forward(actor, rows), actions) - before).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages).mean(1).sum()
        return -surrogate - ENTROPY * (log_std + 0.5 + HALF_LOG_2PI).sum()

    def critic_loss(states: Tensor, before: Tensor, returns: Tensor) -> Tensor:
        values = forward(critic, states).squeeze(-1)
        clipped = before + (values - before).clamp(-CLIP, CLIP)
        losses = [F.huber_loss(x, returns, reduction="none", delta=10.0) for x in (values, clipped)]
        return torch.maximum(*losses).mean(1).sum()

    def step(optimiser: torch.optim.Optimizer, parameters: list[Tensor], loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimiser.step()

    def iterate() -> None:
        rows, states, actions, log_probs, advantages, returns, values = collect()
        for _ in range(EPOCHS):
            parts = (
                (slice(None),)
                if minibatches == 1
                else torch.randperm(steps * envs).chunk(minibatches)
            )
            for i in parts:
                step(
                    actor_adam,
                    actor_parameters,
                    actor_loss(rows[:, i], actions[:, i], log_probs[:, i], advantages[:, i]),
                )
                step(critic_adam, critic, critic_loss(states[:, i], values[:, i], returns[:, i]))

    return iterate
