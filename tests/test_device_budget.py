"""What an iteration makes a GPU do, counted without one and held to a budget.

A GPU works through a queue: kernels of a few microseconds keep it busy only while the host queues
them faster than that, and each time the host waits for a result the queue runs dry.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from fake_device import (
    NAME,
    Counts,
    count_iteration,
    fake_device,
    first_metrics,
    metrics_of_iteration,
)
from method_helpers import TINY

from mg2l.config import files as loading
from mg2l.experience.finite import NonFiniteLossError, checked_together, require_finite

BUDGET = {
    "mappo": Counts(launches=4_700, copies=230, pageable=10, synchronisations=15, waits=100),
    "mg2l": Counts(launches=12_100, copies=230, pageable=10, synchronisations=15, waits=100),
}
"""Most of each in an iteration on mpe-spread at its defaults, without exploration."""

ITERATION = ("rollout", "ppo", "encoder", "other")


@pytest.fixture(scope="module")
def fresh() -> Iterator[Executor]:
    """Another process: the first backward pass of one settles which devices autograd knows."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


def tiny(
    fresh: Executor, algo: str, steps: int, epochs: int, updates: int, **values: object
) -> dict[str, Counts]:
    sizes = {
        "max_ep_len": steps,
        "ppo_epoch": epochs,
        "num_mini_batch": 4,
        "ae_updates_per_iter": updates,
        "hidden_sizes_mlp": [16, 16, 16],
    }
    config = loading.load_config("default", algo, "mpe-spread", {**TINY, **sizes, **values})
    return fresh.submit(count_iteration, config).result()


def check(algo: str, found: Counts) -> None:
    budget = BUDGET[algo]
    over = {what: found[what] for what in budget if found[what] > budget[what]}
    assert not over, f"{over} of {dict(budget)}"
    assert found["launches"] > 0.8 * budget["launches"], f"lower the budget: {found['launches']}"


def test_default_iteration_is_within_its_budget(fresh: Executor) -> None:
    """By what a step, an epoch and an encoder update add to a short iteration."""
    algo = "mg2l"
    whole = loading.load_config("default", algo, "mpe-spread", {})
    assert whole.ppo.num_mini_batch == 4
    short, longer = tiny(fresh, algo, 5, 1, 1), tiny(fresh, algo, 6, 2, 2)
    units = {
        "rollout": whole.rollout_steps - 5,
        "ppo": whole.ppo.ppo_epoch - 1,
        "encoder": getattr(whole.algo, "ae_updates_per_iter", 1) - 1,
        "other": 0,
    }
    total = Counts()
    for phase, added in units.items():
        for what in BUDGET[algo]:
            slope = longer[phase][what] - short[phase][what]
            total[what] += short[phase][what] + slope * added
            if what == "synchronisations":
                assert slope == 0, f"{phase} waits for the device in a loop"
    assert longer["rollout"]["waits"] == 6
    assert longer["explore"]["copies"] - short["explore"]["copies"] == 2
    check(algo, total)


@pytest.mark.ci
@pytest.mark.parametrize("algo", BUDGET)
def test_whole_iteration_is_within_its_budget(fresh: Executor, algo: str) -> None:
    values = {"n_init_rollouts": 1, "n_init_updates": 1, "save_model": False}
    config = loading.load_config("default", algo, "mpe-spread", values)
    phases = fresh.submit(count_iteration, config).result()
    check(algo, sum((phases[phase] for phase in ITERATION), Counts()))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("algo", "values"),
    [
        ("mappo", {"use_recurrent_policy": True, "data_chunk_length": 5}),
        ("mappo", {"observation_normalization": "running"}),
        ("oracle", {}),
        ("oracle", {"conditioning": "film"}),
        ("mg2l", {"conditioning": "film"}),
        ("focal", {}),
        ("corro", {}),
        ("varibad", {}),
        ("mate-ind", {}),
        ("rl2", {"n_rollout_threads": 24}),
        ("mg2l", {"num_mini_batch": 2, "min_context_episodes": 1}),
        ("mg2l-adapt", {}),
    ],
)
def test_no_phase_waits_in_a_loop(fresh: Executor, algo: str, values: dict[str, object]) -> None:
    """Nor do tensors of the host and of the device meet."""
    short, longer = tiny(fresh, algo, 5, 1, 1, **values), tiny(fresh, algo, 5, 2, 2, **values)
    for phase in ("ppo", "encoder"):
        assert longer[phase]["synchronisations"] == short[phase]["synchronisations"], phase


def test_what_the_device_computes_is_what_the_cpu_computes(fresh: Executor) -> None:
    """Except that contexts are drawn in the same order, too: the streams are the same."""
    config = loading.load_config("default", "mg2l", "mpe-spread", {**TINY, "max_ep_len": 5})
    there = fresh.submit(metrics_of_iteration, config).result()
    assert there == first_metrics(config, torch.device("cpu"))


def test_first_loss_that_is_not_finite_is_named_at_the_end_of_its_phase() -> None:
    with pytest.MonkeyPatch.context() as patch, fake_device(patch) as device:

        def there(value: float) -> torch.Tensor:
            return torch.tensor([1.0, value], device=torch.device(NAME, 0))

        losses = {"a": there(0.0), "b": there(float("nan")), "c": there(float("inf"))}

        def phase() -> None:
            with checked_together():
                device.counts.clear()
                for name, value in losses.items():
                    require_finite(name, value, {"x": value})
                assert not device.total["synchronisations"]
                raise ValueError("of what the loss has brought about")

        with pytest.raises(NonFiniteLossError, match=r"b is \[1.0, nan\]"):
            phase()
        require_finite("d", losses["a"], {})


def test_the_device_refuses_tensors_of_the_host() -> None:
    with pytest.MonkeyPatch.context() as patch, fake_device(patch):
        x = torch.zeros(3, device=torch.device(NAME, 0))
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.zeros(3)
