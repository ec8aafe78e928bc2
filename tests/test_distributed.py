"""W processes on this machine train as one does."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_cases
import numpy as np
import pytest
import torch
from method_helpers import tiny_learner

from mg2l.core.distributed import World, world
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.envs.finite import NonFiniteStepError, require_finite
from mg2l.evaluation.meta_test import PeriodicTest
from mg2l.nn.distributions import draw_categorical

ROOT = Path(__file__).resolve().parents[1]
CLOSE = 1e-5


def torchrun(size: int, *words: str, restarts: int = 0) -> list[str]:
    """The command that starts W processes on this machine."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    return [sys.executable, "-m", *launcher, f"--max-restarts={restarts}", *words]


def on_nodes(nodes: int, *words: str) -> list[str]:
    """The same with a process on each of several nodes, all of which are this machine.

    They exchange by Gloo, as they know nothing of each other's memory.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    options = [f"--nnodes={nodes}", "--nproc-per-node=1", "--rdzv-backend=c10d", endpoint]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--local-addr=127.0.0.1"]
    agents = "; ".join(shlex.join([*command, *words]) + f" & p{i}=$!" for i in range(nodes))
    waits = " && ".join(f"wait $p{i}" for i in range(nodes))
    return ["bash", "-c", f"trap 'kill 0' TERM; {agents}; {waits}"]


def launch(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command; where it takes too long, torchrun is asked to end its processes, too."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            out, err = process.communicate(timeout=600)
        finally:
            process.terminate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What `distributed_cases` finds with each number of processes."""
    folder, found = tmp_path_factory.mktemp("gradients"), {}
    script = str(ROOT / "tests/distributed_cases.py")
    for size in (1, 2, 4):
        done = launch(torchrun(size, script, str(folder / f"{size}.pt")))
        assert done.returncode == 0, done.stderr
        found[size] = torch.load(folder / f"{size}.pt")
    return found


@pytest.mark.ci
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", distributed_cases.CASES)
def test_gradients_do_not_depend_on_the_number_of_processes(measured, case, size):
    """At the first step of each optimiser, and of each part of an iteration."""
    one, many = measured[1][case], measured[size][case]
    assert many["equal"], "the processes differ"
    assert set(one["gradients"]) == set(many["gradients"])
    for name, gradients in one["gradients"].items():
        assert len(gradients) == len(many["gradients"][name])
        if gradients:
            difference = (gradients[0] - many["gradients"][name][0]).norm()
            assert difference <= CLOSE * gradients[0].norm(), name
            assert gradients[0].norm() > 0
    assert many["return"] == pytest.approx(one["return"], rel=1e-5)


@pytest.mark.ci
@pytest.mark.parametrize("nodes", [2, 4])
def test_gradients_do_not_depend_on_where_the_processes_are(measured, tmp_path, nodes):
    names = ["mg2l", "focal", "varibad"]
    script = str(ROOT / "tests/distributed_cases.py")
    done = launch(on_nodes(nodes, script, str(tmp_path / "nodes.pt"), *names))
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "nodes.pt")
    for name in names:
        assert found[name]["equal"]
        for part, gradients in measured[1][name]["gradients"].items():
            if gradients:
                difference = (gradients[0] - found[name]["gradients"][part][0]).norm()
                assert difference <= CLOSE * gradients[0].norm(), (name, part)


@pytest.mark.ci
def test_the_same_number_of_processes_gives_the_same_bits(measured, tmp_path):
    names = ["mg2l", "varibad", "gru"]
    script = str(ROOT / "tests/distributed_cases.py")
    done = launch(torchrun(2, script, str(tmp_path / "again.pt"), *names))
    assert done.returncode == 0, done.stderr
    again = torch.load(tmp_path / "again.pt")
    assert [again[n]["hash"] for n in names] == [measured[2][n]["hash"] for n in names]


def test_rows_are_split_in_order():
    for count in (0, 3, 8, 10):
        parts = []
        for rank in range(4):
            world = World()
            world.size, world.rank = 4, rank
            parts += list(range(count))[world.rows(count)]
        assert parts == list(range(count))


def test_own_rows_of_a_draw_are_those_of_a_single_process():
    def draw(shape: list[int]) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(3))

    whole = draw([2, 6, 3])
    for rank in range(3):
        world = World()
        world.size, world.rank = 3, rank
        own = world.draw(draw, (2, 2, 3), dim=1)
        assert torch.equal(own, whole[:, 2 * rank : 2 * rank + 2])


def test_own_rows_of_each_of_several_steps():
    def draw(shape: list[int]) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(3))

    whole = draw([2, 5 * 6, 3]).unflatten(1, (5, 6))
    for rank in range(3):
        world = World()
        world.size, world.rank = 3, rank
        with world.repeated(5):
            own = world.draw(draw, (2, 5 * 2, 3), dim=1)
        assert torch.equal(own.unflatten(1, (5, 2)), whole[:, :, 2 * rank : 2 * rank + 2])


def test_a_single_process_gets_back_what_it_gives():
    world, x = World(), torch.ones(3)
    assert world.sum(x) is world.gather(x) is world.own(x) is x
    assert not world.any(False)
    assert world.from_main(lambda: 3) == 3
    assert world.is_main
    assert world.first_to_fail()
    assert world.reductions == 0


def test_what_cannot_be_divided_is_named():
    world = World()
    world.size = 3
    world.check_divides(update_contexts=12)
    with pytest.raises(ConfigError, match="n_rollout_threads=8 must be a multiple of 3"):
        world.check_divides(n_rollout_threads=8)


def test_each_process_tests_some_parts_of_the_tasks(monkeypatch):
    """All of them together what a single process does, bit for bit."""
    learner = tiny_learner("mg2l", eval_episodes=2, eval_shots=[2, 0])
    whole = PeriodicTest(learner).measure()
    parts = []
    monkeypatch.setattr(world, "size", 2)
    monkeypatch.setattr(World, "sum", lambda self, x: x)
    for rank in range(2):
        monkeypatch.setattr(world, "rank", rank)
        tests = PeriodicTest(learner)
        parts.append(tests.measure())
        assert len(tests.tests) == 1
    names = [name for name in whole if name.startswith("eval/")]
    assert names == [f"eval/{part}_{shots}_shots" for part in ("train", "test") for shots in (0, 2)]
    for name in names:
        assert {found[name] for found in parts} == {0.0, whole[name]}


def test_errors_name_the_sub_environment_of_the_whole_run():
    env = registry.make("mpe-spread", num_envs=2, seed=0)
    env.reset(task_ids=[0, 1])
    env.first_env = 6
    rewards = np.zeros((2, env.num_agents))
    rewards[1, 0] = np.nan
    with pytest.raises(NonFiniteStepError, match="to agent 0 in sub-environment 7, task"):
        require_finite(env, "reward", rewards, 3)
    env.close()


def test_the_race_draws_what_multinomial_draws():
    probs = torch.rand(2, 50, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    drawn = draw_categorical(probs, torch.Generator().manual_seed(1))
    known = torch.multinomial(probs.flatten(0, 1), 1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, known.view(2, 50))
