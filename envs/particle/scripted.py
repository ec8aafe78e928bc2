"""Hand-written teams of the particle families: the value of knowing the task."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.gate import ScriptedTeams
from mg2l.envs.particle.weights import REACH
from mg2l.envs.particle.world import Doubles

CORNERS = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])


def steer(env: Any, target: Doubles) -> Doubles:
    """Actions ``[N, A, 2]`` that go to targets ``[N, A, 2]`` and stop there."""
    position, velocity = env.world.agents, env.world.velocity[:, : env.num_agents]
    actions: Doubles = np.clip(4 * (target - position) - velocity, -1, 1)
    return actions


def assign(position: Doubles, places: Doubles) -> Doubles:
    """Places ``[N, A, 2]`` in the order in which agents get there by the shortest ways."""
    best = np.full(len(position), np.inf)
    found: Doubles = places.copy()
    for order in itertools.permutations(range(position.shape[1])):
        way = np.linalg.norm(position - places[:, order], axis=-1).sum(1)
        closer = way < best
        best[closer], found[closer] = way[closer], places[closer][:, order]
    return found


def medians(points: Doubles, weights: Doubles, groups: int) -> Doubles:
    """``[N, groups, 2]``: places that keep the weighted distances of points to the nearest short.

    Args:
        points: ``[N, L, 2]``.
        weights: ``[N, L]``, not negative.
        groups: places.
    """
    envs, count, _ = points.shape
    best, found = np.full(envs, np.inf), np.zeros((envs, groups, 2))
    for others in itertools.product(range(groups), repeat=count - 1):
        members, places = (0, *others), []  # which group is the first one does not matter
        for group in range(groups):
            own = weights * (np.array(members) == group)
            total = own.sum(1, keepdims=True)
            place = (points * own[..., None]).sum(1) / np.maximum(total, 1e-9)
            for _ in range(10):  # Weiszfeld's steps to the weighted geometric median
                pull = own / (np.linalg.norm(points - place[:, None], axis=-1) + 1e-6)
                mean = (points * pull[..., None]).sum(1) / np.maximum(
                    pull.sum(1, keepdims=True), 1e-9
                )
                place = np.where(total > 0, mean, place)
            places.append(place)
        stacked = np.stack(places, 1)
        distance = np.linalg.norm(points[:, :, None] - stacked[:, None], axis=-1).min(2)
        cost = (distance * weights).sum(1)
        better = cost < best
        best[better], found[better] = cost[better], stacked[better]
    return found


class _Planned:
    """Goes to places that are chosen at the start of an episode."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.places: Doubles | None = None

    def __call__(self, env: Any) -> Doubles:
        if self.places is None or not env.world.clock.any():
            self.places = assign(env.world.agents, self.plan(env))
        return steer(env, self.places)


def spread() -> ScriptedTeams:
    """Cover the targets, or all landmarks alike."""

    def cover(env: Any, weights: Doubles) -> Doubles:
        return medians(env.world.landmarks, weights, env.num_agents)

    return ScriptedTeams(
        informed=_Planned(lambda env: cover(env, env.world.task)),
        blind={
            "all landmarks alike": _Planned(lambda env: cover(env, np.ones_like(env.world.task)))
        },
    )


def goals() -> ScriptedTeams:
    """Go to the own goal, or where goals of training tasks are close on average."""

    def median(env: Any) -> Doubles:
        known = env.scenario.goals(np.asarray(env.tasks.features[env.tasks.train_ids], float))
        places = np.concatenate([
            medians(known[None, :, agent], np.ones((1, len(known))), 1)
            for agent in range(env.num_agents)
        ], 1)  # fmt: skip
        return np.repeat(places, env.num_envs, 0)

    return ScriptedTeams(
        informed=lambda env: steer(env, env.scenario.goals(env.world.task)),
        blind={"median goal": lambda env: steer(env, median(env))},
    )


def weights() -> ScriptedTeams:
    """Choose landmarks (or corners) by what they pay together, or by rules without weights."""

    def best(env: Any) -> Doubles:
        landmarks, task = env.world.landmarks, env.world.task
        corners = np.repeat(CORNERS[None], len(landmarks), 0)
        candidates = np.concatenate([landmarks, corners], 1)
        most = np.full(len(landmarks), -np.inf)
        found = np.zeros((len(landmarks), env.num_agents, 2))
        choices = range(candidates.shape[1])
        for chosen in itertools.combinations_with_replacement(choices, env.num_agents):
            places = candidates[:, chosen]
            distance = np.linalg.norm(places[:, :, None] - landmarks[:, None], axis=-1).min(1)
            paid = (np.exp(-np.square(distance) / (2 * REACH**2)) * task).sum(1)
            better = paid > most
            most[better], found[better] = paid[better], places[better]
        return found

    def fixed(places: Doubles) -> Any:
        return lambda env: np.repeat(places[None, : env.num_agents], env.num_envs, 0)

    return ScriptedTeams(
        informed=_Planned(best),
        blind={
            "corners": _Planned(fixed(np.resize(CORNERS, (16, 2)))),
            "centre": _Planned(fixed(np.zeros((16, 2)))),
            "first landmarks": _Planned(
                lambda env: env.world.landmarks[
                    :, np.arange(env.num_agents) % env.scenario.n_landmarks
                ]
            ),
        },
    )


def hunt() -> ScriptedTeams:
    """Chase the target, or by rules that do not know which one it is."""

    def chase(env: Any, prey: NDArray[np.int64]) -> Doubles:
        ahead = _taken(env.world.scripted, prey) - env.world.agents
        actions: Doubles = np.clip(8 * ahead, -1, 1)
        return actions

    def target(env: Any) -> Doubles:
        distance = np.where(env.world.task[:, None] > 0, _distances(env), np.inf)
        return chase(env, distance.argmin(2))

    def split(env: Any) -> Doubles:
        prey = np.arange(env.num_agents) * env.scenario.n_prey // env.num_agents
        return chase(env, np.repeat(prey[None], env.num_envs, 0))

    return ScriptedTeams(
        informed=target,
        blind={"nearest prey": lambda env: chase(env, _distances(env).argmin(2)), "split": split},
    )


def bounty() -> ScriptedTeams:
    """Follow the prey that pays most, or rules that do not know the pay."""

    def follow(env: Any, prey: NDArray[np.int64]) -> Doubles:
        return steer(env, _taken(env.world.scripted, prey))

    def most(env: Any) -> Doubles:
        """Where all prey cost something, the least bad is to keep away in a corner."""
        task = env.world.task
        prey = np.repeat(task.argmax(1)[:, None], env.num_agents, 1)
        corners = np.resize(CORNERS, (env.num_agents, 2))
        pays = (task.max(1) > 0)[:, None, None]
        return steer(env, np.where(pays, _taken(env.world.scripted, prey), corners))

    return ScriptedTeams(
        informed=most,
        blind={
            "nearest prey": lambda env: follow(env, _distances(env).argmin(2)),
            "corners": lambda env: steer(
                env, np.repeat(np.resize(CORNERS, (1, env.num_agents, 2)), env.num_envs, 0)
            ),
            "first prey": lambda env: follow(env, np.zeros((env.num_envs, env.num_agents), int)),
        },
    )


def _distances(env: Any) -> Doubles:
    """``[N, A, P]`` distances of agents and scripted bodies."""
    offsets = env.world.agents[:, :, None] - env.world.scripted[:, None]
    return np.asarray(np.linalg.norm(offsets, axis=-1))


def _taken(bodies: Doubles, index: NDArray[np.int64]) -> Doubles:
    """``[N, A, 2]`` of bodies ``[N, P, 2]`` by index ``[N, A]``."""
    return np.take_along_axis(bodies, index[..., None], 1)
