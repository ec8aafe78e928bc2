"""The CUDA kernel of the particle worlds, executed on the CPU: trajectories, faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Finding, Library, Report, Schedule, build, particle_cases, replace
from cuda_host.faults import WRONG, Fault, Outcome, check_is_found, names
from cuda_host.particle_cases import SCENARIOS

pytestmark = pytest.mark.ci

IN_PLACE = ("position", "velocity", "clock")
SCENES = KERNELS.parent / "particle" / "scenarios.h"
SOURCE = (KERNELS / "particle.cuh").read_text()


@pytest.fixture(scope="module")
def particle() -> Library:
    return build(KERNELS / "particle.cu")


def run(library: Library, name: str, worlds: int, steps: int, kind: str = "float") -> Outcome:
    """A trajectory by the kernel, beside that of the scenario's NumPy."""
    scenario = SCENARIOS[name]()
    dtype = np.float32 if kind == "float" else np.float64
    there, here = (
        particle_cases.begin(scenario, worlds, np.random.default_rng(worlds)) for _ in range(2)
    )
    rng, right = np.random.default_rng(1), True
    report: list[Finding] = []
    for index in range(steps):
        actions = rng.uniform(-1.5, 1.5, (worlds, scenario.n_agents, 2)).astype(dtype)
        given = particle_cases.arguments(scenario, there, actions)
        schedule = Schedule(seed=index, check=index < 2)
        report += library.call(
            f"mg2l_particle_step_{kind}", given, in_out=IN_PLACE, schedule=schedule
        )
        observations, rewards = particle_cases.step(scenario, here, actions)
        for found, expected in [
            (given["observations"], observations),
            (given["rewards"], rewards),
            (there.position, here.position),
            (there.velocity, here.velocity),
        ]:
            right &= bool(np.allclose(found, expected, rtol=1e-5, atol=1e-5))
        right &= bool((there.clock == here.clock).all())
    return Outcome(Report(report), right)


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_trajectories_are_the_scenarios(particle: Library, name: str, kind: str) -> None:
    assert run(particle, name, 5, 25, kind) == (Report(), True)


@pytest.mark.parametrize("worlds", [0, 1, 64, 65])
def test_any_number_of_worlds(particle: Library, worlds: int) -> None:
    assert run(particle, "hunting", worlds, 2) == (Report(), True)


def test_without_advancing_only_observations_change(particle: Library) -> None:
    scenario = SCENARIOS["spread"]()
    world = particle_cases.begin(scenario, 3, np.random.default_rng(0))
    given = particle_cases.arguments(scenario, world, np.ones((3, 3, 2), np.float32))
    before = world.position.copy()
    report = particle.call("mg2l_particle_step_float", {**given, "advance": False}, in_out=IN_PLACE)
    assert not report
    observations = np.empty_like(given["observations"])
    scenario.observe(world, observations)
    np.testing.assert_array_equal(given["observations"], observations)
    np.testing.assert_array_equal(world.position, before)
    assert not world.clock.any()


def fault(name: str, old: str, new: str, kind: str) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name), kind, False)


FAULTS = [
    fault("no bound", "if (world >= args.worlds) return;", "", "out of bounds"),
    fault("another world's", "step_world(args, world)", "step_world(args, world / 2)", WRONG),
]


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_particle_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    library = build(
        KERNELS / "particle.cu", edits={"particle.cuh": fault.mutation.text}, folder=tmp_path
    )
    check_is_found(fault, run(library, "hunting", 3, 2), "")
