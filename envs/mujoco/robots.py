"""Robots whose joints are divided among agents (MaMuJoCo; Peng et al., 2021, arXiv:2003.06709).

Joints, their order within an agent and the graph that says which are neighbours are those of the
code that the paper's experiments ran on; ``gymnasium_robotics`` orders some of them otherwise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import gymnasium

Joints = tuple[str, ...]

ASSETS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"


@dataclass(frozen=True)
class Robot:
    """A robot and the ways to divide its joints among agents."""

    xml: str
    """Its model, among gymnasium's."""

    frame_skip: int
    """Steps of the simulator to a step of the environment."""

    edges: tuple[Joints, ...]
    """Sets of joints that are neighbours of each other."""

    partitions: dict[str, tuple[Joints, ...]]
    """Joints of each agent, by the name of the partition, in the order of its actions."""

    def parts(self, partition: str) -> tuple[Joints, ...]:
        """Joints of each agent.

        Args:
            partition: a name, or numbers of joints such as ``2+1``: so many of the robot's joints
                for the first agent, the next for the second, in the order of the finest partition.

        Raises:
            ValueError: there is no such partition.
        """
        if partition in self.partitions:
            return self.partitions[partition]
        joints = [part[0] for part in max(self.partitions.values(), key=len)]
        sizes = [int(size) if size.isdecimal() else 0 for size in partition.split("+")]
        if sum(sizes) != len(joints) or 0 in sizes:
            raise ValueError(
                f"agent_conf must be one of {list(self.partitions)} or numbers of joints that add "
                f"up to {len(joints)}, such as {len(joints) - 1}+1, got {partition!r}"
            )
        rest = iter(joints)
        return tuple(tuple(itertools.islice(rest, size)) for size in sizes)

    def sees(self, partition: str, agent: int, distance: int) -> list[list[str]]:
        """Joints that an agent sees: its own, then those one edge away, and so on, each sorted."""
        new = set(self.parts(partition)[agent])
        seen = set(new)
        rings = [sorted(new)]
        for _ in range(distance):
            touching = (
                set(edge) - {joint} for edge in self.edges for joint in new if joint in edge
            )
            new = set(itertools.chain.from_iterable(touching)) - seen
            seen |= new
            rings.append(sorted(new))
        return rings


def _chain(*joints: str) -> tuple[Joints, ...]:
    return tuple(itertools.pairwise(joints))


_BACK, _FRONT = ("bfoot", "bshin", "bthigh"), ("ffoot", "fshin", "fthigh")
_RIGHT = ("foot_joint", "leg_joint", "thigh_joint")
_LEFT = ("foot_left_joint", "leg_left_joint", "thigh_left_joint")
_LEGS = tuple((f"hip_{i}", f"ankle_{i}") for i in (1, 2, 3, 4))


def _each(*groups: Joints) -> tuple[Joints, ...]:
    return tuple((joint,) for group in groups for joint in group)


CHEETAH = Robot(
    "half_cheetah.xml",
    frame_skip=5,
    edges=_chain("bfoot", "bshin", "bthigh", "fthigh", "fshin", "ffoot"),
    partitions={"2x3": (_BACK, _FRONT), "6x1": _each(_BACK, _FRONT)},
)
HOPPER = Robot(
    "hopper.xml",
    frame_skip=4,
    edges=_chain("foot_joint", "leg_joint", "thigh_joint"),
    partitions={"3x1": _each(("thigh_joint", "leg_joint", "foot_joint"))},
)
WALKER = Robot(
    "walker2d.xml",
    frame_skip=4,
    edges=_chain(*_RIGHT, *reversed(_LEFT)),
    partitions={"2x3": (_RIGHT, _LEFT), "6x1": _each(_RIGHT, _LEFT)},
)
ANT = Robot(
    "ant.xml",
    frame_skip=5,
    edges=(*_LEGS, tuple(hip for hip, _ in _LEGS)),
    partitions={
        "4x2": _LEGS,
        "2x4": (_LEGS[0] + _LEGS[1], _LEGS[2] + _LEGS[3]),
        "2x4d": (_LEGS[0] + _LEGS[2], _LEGS[1] + _LEGS[3]),
        "8x1": _each(*_LEGS),
    },
)
