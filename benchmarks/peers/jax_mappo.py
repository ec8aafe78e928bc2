"""MAPPO and the world of ``mpe-spread`` in pure JAX: an iteration is two compiled calls.

The work is ours: ValueNorm's moments, one clipped norm an agent, and checks that losses are finite.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

AGENTS, LANDMARKS, ENVS, STEPS = 2, 3, 32, 100
WIDTH, SIZE = 2 + 2 * LANDMARKS + 2 * (AGENTS - 1), 2
GAMMA, LAMBDA, CLIP, ENTROPY, MAX_NORM, DELTA, EPOCHS = 0.95, 0.9, 0.2, 0.01, 10.0, 10.0, 15
BETA, HALF_LOG_2PI = 0.99999, 0.9189385
TARGETS = jnp.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], jnp.float32)
ADAM = optax.adam(5e-4, eps=1e-5)

Array = Any
Layers = list[tuple[Array, Array]]


class Moments(NamedTuple):
    """Debiased exponential moments of the returns of each agent, ``[A]``."""

    weight: Array
    mean: Array
    variance: Array

    def fold(self, returns: Array) -> Moments:
        """Include the returns ``[A, rows]`` of one more rollout."""
        weight = self.weight + (1 - BETA) * (1 - self.weight)
        fraction = (1 - BETA) / weight
        distance = returns.mean(1) - self.mean
        variance = returns.var(1) + (1 - fraction) * distance**2
        return Moments(
            weight,
            self.mean + fraction * distance,
            self.variance + fraction * (variance - self.variance),
        )

    @property
    def std(self) -> Array:
        """Standard deviation, 1 before the first rollout."""
        return jnp.where(self.weight > 0, jnp.sqrt(self.variance).clip(1e-4), 1.0)


class State(NamedTuple):
    """All that changes in training."""

    actor: tuple[Layers, Array]
    critic: Layers
    actor_adam: Any
    critic_adam: Any
    moments: Moments
    finite: Array


class Batch(NamedTuple):
    """A rollout, ``[A, rows, ...]``."""

    observations: Array
    states: Array
    actions: Array
    log_probs: Array
    advantages: Array
    returns: Array
    values: Array


# The world.


def observe(position: Array, landmarks: Array) -> Array:
    """``[N, A, O]``: own position, offsets to landmarks, offset to the other agent."""
    to_landmarks = landmarks[:, None] - position[:, :, None]
    to_other = position[:, ::-1] - position
    return jnp.concatenate([position, to_landmarks.reshape(ENVS, AGENTS, -1), to_other], -1)


def step(
    position: Array, velocity: Array, landmarks: Array, target: Array, actions: Array
) -> tuple[Array, Array, Array]:
    """Positions and velocities after a step, and the rewards ``[N]`` of every agent.

    ``mpe-spread``'s agents do not collide.
    """
    velocity = velocity * 0.75 + 5.0 * jnp.clip(actions, -1, 1) * 0.1
    position = position + velocity * 0.1
    distance = jnp.linalg.norm(landmarks[:, None] - position[:, :, None], axis=-1).min(1)
    return position, velocity, -AGENTS * (distance * target).sum(-1)


# Networks.


def network(key: Array, *sizes: int) -> Layers:
    """Orthogonal weights ``[A, in, out]`` and biases ``[A, 1, out]``."""
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        key, own = jax.random.split(key)
        draw = jax.nn.initializers.orthogonal()
        weights = jax.vmap(lambda k, a=inputs, b=outputs, f=draw: f(k, (a, b)))(
            jax.random.split(own, AGENTS)
        )
        layers.append((weights, jnp.zeros((AGENTS, 1, outputs))))
    return layers


def forward(layers: Sequence[tuple[Array, Array]], x: Array) -> Array:
    """``[A, rows, in]`` to ``[A, rows, out]``."""
    *hidden, (weight, bias) = layers
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return x @ weight + bias


def log_prob(mean: Array, log_std: Array, actions: Array) -> Array:
    """Log-density of a diagonal Gaussian, ``[A, rows]``."""
    return (-0.5 * ((actions - mean) * jnp.exp(-log_std)) ** 2 - log_std - HALF_LOG_2PI).sum(-1)


# An iteration.


def collect(state: State, key: Array) -> tuple[Moments, Batch]:
    """A rollout with its advantages and normalised returns."""
    starts, lands, tasks, noise = jax.random.split(key, 4)
    position = jax.random.uniform(starts, (ENVS, AGENTS, 2), minval=-1.0, maxval=1.0)
    landmarks = jax.random.uniform(lands, (ENVS, LANDMARKS, 2), minval=-0.9, maxval=0.9)
    target = TARGETS[jax.random.randint(tasks, (ENVS,), 0, len(TARGETS))]
    layers, log_std = state.actor

    def act(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Any]:
        position, velocity = carry
        rows = observe(position, landmarks).swapaxes(0, 1)
        mean = forward(layers, rows)
        actions = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        position, velocity, reward = step(
            position, velocity, landmarks, target, actions.swapaxes(0, 1)
        )
        return (position, velocity), (rows, actions, log_prob(mean, log_std, actions), reward)

    keys = jax.random.split(noise, STEPS)
    (position, _), (rows, actions, log_probs, rewards) = jax.lax.scan(
        act, (position, jnp.zeros_like(position)), keys
    )
    final = observe(position, landmarks).swapaxes(0, 1)
    every = jnp.concatenate([rows, final[None]])  # [T + 1, A, N, O]
    joint = every.swapaxes(1, 2).reshape(STEPS + 1, 1, ENVS, AGENTS * WIDTH)
    states = jnp.broadcast_to(joint, (STEPS + 1, AGENTS, ENVS, AGENTS * WIDTH))
    said = forward(state.critic, states.swapaxes(0, 1).reshape(AGENTS, -1, AGENTS * WIDTH))
    said = said.reshape(AGENTS, STEPS + 1, ENVS)
    before = state.moments
    values = said * before.std[:, None, None] + before.mean[:, None, None]

    def accumulate(last: Array, x: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, value, following = x
        last = reward + GAMMA * following - value + GAMMA * LAMBDA * last
        return last, last

    times = (
        jnp.broadcast_to(rewards[:, None], (STEPS, AGENTS, ENVS)),
        values[:, :-1].swapaxes(0, 1),
        values[:, 1:].swapaxes(0, 1),
    )
    _, advantages = jax.lax.scan(accumulate, jnp.zeros((AGENTS, ENVS)), times, reverse=True)

    def flat(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(AGENTS, STEPS * ENVS, *x.shape[3:])

    advantages = flat(advantages)
    returns = advantages + values[:, :-1].reshape(AGENTS, -1)
    moments = before.fold(returns)
    centred = advantages - advantages.mean(1, keepdims=True)
    return moments, Batch(
        flat(rows),
        flat(states[:-1]),
        flat(actions),
        flat(log_probs),
        centred / (centred.std(1, keepdims=True) + 1e-5),
        (returns - moments.mean[:, None]) / moments.std[:, None],
        said[:, :-1].reshape(AGENTS, -1),
    )


def actor_loss(actor: tuple[Layers, Array], part: Batch) -> Array:
    """Clipped surrogate and entropy, summed over agents."""
    layers, log_std = actor
    new = log_prob(forward(layers, part.observations), log_std, part.actions)
    ratio = jnp.exp(new - part.log_probs)
    clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
    surrogate = jnp.minimum(ratio * part.advantages, clipped * part.advantages).mean(1).sum()
    return -surrogate - ENTROPY * (log_std + 0.5 + HALF_LOG_2PI).sum()


def critic_loss(critic: Layers, part: Batch) -> Array:
    """Clipped Huber loss, summed over agents."""
    values = forward(critic, part.states)[..., 0]
    clipped = part.values + jnp.clip(values - part.values, -CLIP, CLIP)
    losses = (optax.huber_loss(x - part.returns, delta=DELTA) for x in (values, clipped))
    return jnp.maximum(*losses).mean(1).sum()


def clip_per_agent(gradient: Any) -> Any:
    """Each agent's gradient, at most ``MAX_NORM`` long."""
    squares = [(x**2).sum(tuple(range(1, x.ndim))) for x in jax.tree.leaves(gradient)]
    scale = jnp.minimum(1.0, MAX_NORM / (jnp.sqrt(sum(squares)) + 1e-6))
    return jax.tree.map(lambda x: x * scale.reshape(-1, *[1] * (x.ndim - 1)), gradient)


def descend(loss: Any, parameters: Any, adam: Any, part: Batch) -> tuple[Any, Any, Array]:
    """A step of Adam; also whether the loss is finite."""
    value, gradient = jax.value_and_grad(loss)(parameters, part)
    updates, adam = ADAM.update(clip_per_agent(gradient), adam)
    return optax.apply_updates(parameters, updates), adam, jnp.isfinite(value)


def update(state: State, moments: Moments, batch: Batch, key: Array, minibatches: int) -> State:
    """All epochs over a batch."""

    def one(state: State, index: Array) -> tuple[State, None]:
        part = batch
        if minibatches > 1:
            part = Batch(*(x[:, index] for x in batch))
        actor, actor_adam, fine = descend(actor_loss, state.actor, state.actor_adam, part)
        critic, critic_adam, good = descend(critic_loss, state.critic, state.critic_adam, part)
        finite = state.finite & fine & good
        return State(actor, critic, actor_adam, critic_adam, state.moments, finite), None

    rows = STEPS * ENVS
    orders = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, EPOCHS))
    parts = orders.reshape(EPOCHS * minibatches, -1)
    trained: State = jax.lax.scan(one, state._replace(moments=moments), parts)[0]
    return trained


def make(hidden: int, minibatches: int) -> Callable[[], object]:
    """An iteration with networks ``hidden`` wide."""
    key, for_actor, for_critic = jax.random.split(jax.random.key(0), 3)
    actor = (network(for_actor, WIDTH, hidden, hidden, SIZE), jnp.zeros((AGENTS, 1, SIZE)))
    critic = network(for_critic, AGENTS * WIDTH, hidden, hidden, 1)
    zeros = jnp.zeros(AGENTS)
    state = State(
        actor, critic, ADAM.init(actor), ADAM.init(critic), Moments(zeros, zeros, zeros),
        jnp.array(True),
    )  # fmt: skip
    gather, learn = jax.jit(collect), jax.jit(update, static_argnums=4)

    def iterate() -> None:
        nonlocal state, key
        key, rollout, order = jax.random.split(key, 3)
        moments, batch = gather(state, rollout)
        state = jax.block_until_ready(learn(state, moments, batch, order, minibatches))
        if not state.finite:
            raise FloatingPointError("a loss is not finite")

    return iterate
