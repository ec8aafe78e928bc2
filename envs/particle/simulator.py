"""The physics of ``physics`` and whole scenarios in C++ (``csrc/particle``), all worlds at once."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mg2l.envs.compiled import INTEGER, POINTER, address, check, function

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

_BOOL = ctypes.c_bool
_DOUBLE, _FLOAT = np.dtype(np.float64), np.dtype(np.float32)
_FIXED = ("landmarks", "task", "draws", "acceleration", "size", "max_speed", "collides")
_MOVING = ("position", "velocity", "clock")


class _Scene(ctypes.Structure):
    """``ParticleArgs<double>`` of ``csrc/cuda/launchers.h``, field by field."""

    _fields_ = (
        *((name, INTEGER) for name in ("worlds", "kind", "agents", "bodies", "objects")),
        *((name, INTEGER) for name in ("task_width", "draw_count", "width")),
        ("advance", _BOOL),
        *((name, POINTER) for name in ("actions", *_FIXED, *_MOVING)),
        *((name, POINTER) for name in ("force", "observations", "rewards")),
    )


_SCENE = ctypes.POINTER(_Scene)
_GEOMETRY = (*[INTEGER] * 3, _BOOL, ctypes.c_double, *[POINTER] * 3, INTEGER, INTEGER)
_width = function("particle_width", _SCENE, returns=INTEGER)
_scenario = function("particle_scenario", _SCENE, *[POINTER] * 3, _BOOL, returns=_BOOL)
_step = function("particle_step", *[INTEGER] * 3, *[POINTER] * 8, returns=_BOOL)
_offsets = function("particle_offsets", *_GEOMETRY)
_lengths = function("particle_lengths", *_GEOMETRY)
_distances = function("particle_distances", *[INTEGER] * 3, *[POINTER] * 3)


class CompiledScenario:
    """A scenario of ``csrc/particle/scenarios.h`` in N worlds of B bodies.

    Arrays are checked here once, and then read and written where they lie.

    Args:
        kind: its number there.
        agents: A, the first of the bodies.
        position: ``[N, B, 2]``, advanced in place, as ``velocity`` and ``clock``.
        velocity: ``[N, B, 2]``.
        clock: ``[N]`` int64, steps since the episode began.
        landmarks: ``[N, L, 2]``.
        task: ``[N, task_dim]`` features of the tasks.
        draws: ``[N, n_draws]`` the episodes' random numbers.
        acceleration: ``[B]``, and so on, as for `step`.
        size: ``[B]``.
        max_speed: ``[B]``.
        collides: ``[B]``.

    Raises:
        TypeError: an array is not C-contiguous, or of another dtype.
        ValueError: an array has the wrong shape.
    """

    def __init__(
        self,
        kind: int,
        agents: int,
        position: Doubles,
        velocity: Doubles,
        clock: NDArray[np.int64],
        landmarks: Doubles,
        task: Doubles,
        draws: Doubles,
        acceleration: Doubles,
        size: Doubles,
        max_speed: Doubles,
        collides: NDArray[np.bool_],
    ) -> None:
        worlds, bodies, _ = _contiguous("position", position).shape
        objects = _contiguous("landmarks", landmarks).shape[1]
        for name, array in (("task", task), ("draws", draws)):
            if array.ndim != 2:
                raise ValueError(f"{name} must have two axes, got shape {array.shape}")
        if not 0 < agents <= bodies:
            raise ValueError(f"agents must be in [1, {bodies}], got {agents}")
        check("position", position, _DOUBLE, (worlds, bodies, 2))
        check("velocity", velocity, _DOUBLE, (worlds, bodies, 2))
        check("clock", clock, np.dtype(np.int64), (worlds,))
        check("landmarks", landmarks, _DOUBLE, (worlds, objects, 2))
        check("task", task, _DOUBLE, (worlds, task.shape[1]))
        check("draws", draws, _DOUBLE, (worlds, draws.shape[1]))
        _check_bodies(bodies, acceleration, size, max_speed, collides)
        self._held: dict[str, NDArray[Any]] = {  # alive, where the scene points to
            "position": position, "velocity": velocity, "clock": clock, "landmarks": landmarks,
            "task": task, "draws": draws, "acceleration": acceleration, "size": size,
            "max_speed": max_speed, "collides": collides,
        }  # fmt: skip
        self._scene = _Scene(
            worlds=worlds, kind=kind, agents=agents, bodies=bodies, objects=objects,
            task_width=task.shape[1], draw_count=draws.shape[1],
            **{name: array.ctypes.data for name, array in self._held.items()},
        )  # fmt: skip
        self._at = ctypes.byref(self._scene)
        self._scene.width = _width(self._at)
        self._seen = (worlds, agents, self._scene.width)
        self._acting = (worlds, agents, 2)

    def step(self, actions: ArrayLike) -> tuple[Floats, Floats]:
        """Advance all worlds by a step; a new episode begins nowhere.

        Args:
            actions: ``[N, A, 2]``, clipped to ``[-1, 1]``.

        Returns:
            Observations ``[N, A, O]`` and rewards ``[N, A]``.

        Raises:
            ValueError: actions have another shape, or one is not a number.
        """
        chosen = np.ascontiguousarray(actions, np.float64)
        if chosen.shape != self._acting:
            raise ValueError(f"actions must have shape {self._acting}, got {chosen.shape}")
        observations = np.empty(self._seen, np.float32)
        rewards = np.empty(self._acting[:2], np.float32)
        if not _scenario(self._at, address(chosen), address(observations), address(rewards), True):
            raise ValueError("actions must be numbers, got NaN")
        return observations, rewards

    def observe(self) -> Floats:
        """What there is to observe, ``[N, A, O]``."""
        observations = np.empty(self._seen, np.float32)
        _scenario(self._at, None, address(observations), None, False)
        return observations


def step(
    position: Doubles,
    velocity: Doubles,
    actions: ArrayLike,
    scripted: ArrayLike,
    acceleration: Doubles,
    size: Doubles,
    max_speed: Doubles,
    collides: NDArray[np.bool_],
) -> None:
    """See `physics.step`; arrays that are written must be C-contiguous float64."""
    worlds, bodies, _ = _contiguous("position", position).shape
    check("position", position, _DOUBLE, (worlds, bodies, 2))
    check("velocity", velocity, _DOUBLE, (worlds, bodies, 2))
    own, others = _contiguous("actions", actions), _contiguous("scripted", scripted)
    agents = own.shape[1]
    if not len(own) == len(others) == worlds or agents + others.shape[1] != bodies:
        raise ValueError(
            f"actions {own.shape} and scripted {others.shape} together must have the shape of "
            f"position {position.shape}"
        )
    _check_bodies(bodies, acceleration, size, max_speed, collides)
    if not _step(
        worlds, agents, bodies, address(own), address(others), address(acceleration),
        address(size), address(max_speed), address(collides), address(position), address(velocity),
    ):  # fmt: skip
        raise ValueError("actions must be numbers, got NaN")


def write_offsets(
    out: Floats,
    column: int,
    observers: Doubles,
    points: Doubles,
    skip_self: bool = False,
    radius: float = np.inf,
) -> None:
    """See `physics.write_offsets`."""
    _observe(_offsets, 2, out, column, observers, points, skip_self, radius)


def write_distances(
    out: Floats,
    column: int,
    observers: Doubles,
    points: Doubles,
    skip_self: bool = False,
    radius: float = np.inf,
) -> None:
    """See `physics.write_distances`."""
    _observe(_lengths, 1, out, column, observers, points, skip_self, radius)


def distances(observers: Doubles, points: Doubles) -> Doubles:
    """See `physics.distances`."""
    own, others = _contiguous("observers", observers), _contiguous("points", points)
    worlds, seers, _ = own.shape
    if others.shape[0] != worlds:
        raise ValueError(f"points {others.shape} do not fit observers {own.shape}")
    out = np.empty((seers, others.shape[1], worlds))
    _distances(worlds, seers, others.shape[1], address(own), address(others), address(out))
    return out


def _observe(
    write: Any,
    width: int,
    out: Floats,
    column: int,
    observers: Doubles,
    points: Doubles,
    skip_self: bool,
    radius: float,
) -> None:
    own, others = _contiguous("observers", observers), _contiguous("points", points)
    (worlds, seers, _), (also, count, _) = own.shape, others.shape
    if also != worlds or (skip_self and count < seers):
        raise ValueError(f"points {others.shape} do not fit observers {own.shape}")
    row, numbers = out.shape[-1], width * (count - skip_self)
    if not 0 <= column <= row - numbers:
        raise ValueError(f"out {out.shape} has no room for {numbers} numbers from column {column}")
    check("out", out, _FLOAT, (worlds, seers, row))
    write(
        worlds, seers, count, skip_self, radius, address(own), address(others), address(out), row,
        column,
    )  # fmt: skip


def _contiguous(name: str, points: ArrayLike) -> Doubles:
    """Points ``[N, P, 2]`` in C order: to copy a view is faster than to ask for its address."""
    array = np.ascontiguousarray(points, np.float64)
    if array.ndim != 3 or array.shape[2] != 2:
        raise ValueError(f"{name} must have shape [envs, points, 2], got {array.shape}")
    return array


def _check_bodies(
    bodies: int,
    acceleration: Doubles,
    size: Doubles,
    max_speed: Doubles,
    collides: NDArray[np.bool_],
) -> None:
    check("acceleration", acceleration, _DOUBLE, (bodies,))
    check("size", size, _DOUBLE, (bodies,))
    check("max_speed", max_speed, _DOUBLE, (bodies,))
    check("collides", collides, np.dtype(np.bool_), (bodies,))
