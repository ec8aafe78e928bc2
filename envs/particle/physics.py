"""Physics step and geometry of the particle world in NumPy: the definition of ``csrc/particle``.

Installations without compiled code compute with it. Same arguments, results and refusals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

TIME_STEP = 0.1
"""[s]"""
DAMPING = 0.25
"""Fraction of its velocity that a body loses in a step."""
WALL = 1.2
"""Walls are the lines x, y = +-WALL [length]."""

_WALL_SIZE, _FORCE, _MARGIN = 0.2, 100.0, 1e-3


def step(
    position: Doubles,
    velocity: Doubles,
    actions: NDArray[np.floating],
    scripted: NDArray[np.floating],
    acceleration: Doubles,
    size: Doubles,
    max_speed: Doubles,
    collides: NDArray[np.bool_],
) -> None:
    """Advance ``position`` and ``velocity`` ``[N, B, 2]`` in place by one step.

    Args:
        position: ``[N, B, 2]``, agents first [length].
        velocity: ``[N, B, 2]`` [length / s].
        actions: ``[N, A, 2]`` of the agents, clipped to ``[-1, 1]``.
        scripted: ``[N, B - A, 2]`` of the scripted bodies, clipped likewise.
        acceleration: ``[B]`` [length / s^2].
        size: ``[B]`` radius [length].
        max_speed: ``[B]`` [length / s].
        collides: ``[B]`` whether it touches other bodies that collide.

    Raises:
        ValueError: actions do not fit the bodies, or are not numbers.
    """
    if velocity.shape != position.shape:
        raise ValueError(
            f"velocity must have the shape of position {position.shape}, got {velocity.shape}"
        )
    joined = np.concatenate([actions, scripted], axis=1)
    if joined.shape != position.shape:
        raise ValueError(
            f"actions {actions.shape} and scripted {scripted.shape} together must have the shape "
            f"of position {position.shape}"
        )
    if np.isnan(joined).any():
        raise ValueError("actions must be numbers, got NaN")
    force = joined.astype(np.float64).clip(-1, 1) * acceleration[:, None]
    for wall in (WALL, -WALL):
        offset = position - wall
        push = _contact_force(np.abs(offset) - (size[:, None] + _WALL_SIZE))
        # On the very line of a wall a body is pushed inwards.
        force += np.where((offset > 0) | ((offset == 0) & (wall < 0)), push, -push)
    colliding = np.flatnonzero(collides)
    for index, a in enumerate(colliding):
        for b in colliding[index + 1 :]:
            delta = position[:, a] - position[:, b]
            distance = np.sqrt(np.square(delta).sum(-1, keepdims=True))
            # Two bodies in the same place have no direction of separation: take x.
            direction = np.where(
                distance > 0, delta / np.where(distance > 0, distance, 1), [1.0, 0.0]
            )
            push = _contact_force(distance - (size[a] + size[b])) * direction
            force[:, a] += push
            force[:, b] -= push
    velocity *= 1 - DAMPING
    velocity += force * TIME_STEP
    speed = np.sqrt(np.square(velocity).sum(-1))
    fast = speed > max_speed
    scale = np.where(fast, max_speed, 1) / np.where(fast, speed, 1)
    velocity *= scale[..., None]
    position += velocity * TIME_STEP


def write_positions(out: NDArray[np.float32], column: int, observers: Doubles) -> None:
    """Write each observer's position into ``out[:, :, column:]``."""
    _room(out, column, 2)[...] = observers


def write_offsets(
    out: NDArray[np.float32],
    column: int,
    observers: Doubles,
    points: Doubles,
    skip_self: bool = False,
    radius: float = np.inf,
) -> None:
    """Write ``point - observer`` into ``out[:, :, column:]``, zero from ``radius`` on.

    ``skip_self`` leaves out point a for observer a.
    """
    delta, distance = _geometry(observers, points, skip_self)
    if np.isfinite(radius):
        delta = np.where((distance < radius)[..., None], delta, 0)
    flat = delta.reshape(*delta.shape[:2], 2 * delta.shape[2])
    _room(out, column, flat.shape[2])[...] = flat


def write_distances(
    out: NDArray[np.float32],
    column: int,
    observers: Doubles,
    points: Doubles,
    skip_self: bool = False,
    radius: float = np.inf,
) -> None:
    """Write ``|point - observer|`` into ``out[:, :, column:]``, zero from ``radius`` on."""
    _, distance = _geometry(observers, points, skip_self)
    _room(out, column, distance.shape[2])[...] = np.where(distance < radius, distance, 0)


def distances(observers: Doubles, points: Doubles) -> Doubles:
    """Distances between observers ``[N, P, 2]`` and points ``[N, Q, 2]``: ``[P, Q, N]``."""
    _, distance = _geometry(observers, points, skip_self=False)
    return np.ascontiguousarray(distance.transpose(1, 2, 0))


def _contact_force(gap: Doubles) -> Doubles:
    """Force between surfaces at a distance ``gap``: a softplus of the penetration ``-gap``."""
    force: Doubles = _FORCE * _MARGIN * np.logaddexp(0, -gap / _MARGIN)
    return force


def _geometry(observers: Doubles, points: Doubles, skip_self: bool) -> tuple[Doubles, Doubles]:
    """Offsets ``[N, P, Q, 2]`` and their lengths; without the diagonal with ``skip_self``."""
    envs, seers = observers.shape[:2]
    count = points.shape[1]
    if points.shape[0] != envs or (skip_self and count < seers):
        raise ValueError(f"points {points.shape} do not fit observers {observers.shape}")
    delta = points[:, None] - observers[:, :, None]
    if skip_self:
        others = ~np.eye(seers, count, dtype=np.bool_)
        delta = delta[:, others].reshape(envs, seers, count - 1, 2)
    return delta, np.sqrt(np.square(delta).sum(-1))


def _room(out: NDArray[np.float32], column: int, width: int) -> NDArray[np.float32]:
    if column < 0 or column + width > out.shape[2]:
        raise ValueError(f"out {out.shape} has no room for {width} numbers from column {column}")
    return out[:, :, column : column + width]
