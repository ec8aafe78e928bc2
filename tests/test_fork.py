"""A fork takes a run's whole state, and its own configuration and random streams."""

import json
from pathlib import Path

import pytest
import torch
from method_helpers import TINY

import mg2l
from mg2l import cli
from mg2l.api.training import Training
from mg2l.config.saved import config_from_yaml
from mg2l.training import checkpoint
from mg2l.training.metrics import read_metrics

SMALL: dict = {
    **TINY, "n_iters": 6, "save_model": True, "save_interval": 2, "max_ep_len": 6,
    "n_ae_rollout_threads": 4, "n_init_rollouts": 1, "sample_ae_interval": 2, "seed": 3,
}  # fmt: skip


def parent(root: Path, until: int = 4) -> Path:
    training = mg2l.iterations(algo="mg2l", main_save_path=str(root), **SMALL)
    for metrics in training:
        if metrics["iteration"] == until:
            break
    return training.path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return parent(tmp_path_factory.mktemp("parent"))


def plain(row: dict) -> dict:
    return {k: v for k, v in row.items() if not k.startswith("time/") and k != "env_steps_per_s"}


def rows(run: Path) -> list[dict]:
    return [plain(row) for row in read_metrics(run / "metrics.jsonl")]


def same(left, right) -> bool:
    return json.dumps(left, default=lambda x: x.tolist()) == json.dumps(
        right, default=lambda x: x.tolist()
    )


def test_state_is_the_parents_and_streams_are_new(source, tmp_path):
    fork = mg2l.iterations(fork=source, main_save_path=str(tmp_path))
    held = checkpoint.load_last(source / "checkpoints")
    assert held is not None
    state = fork.learner.state_dict()
    for part in ("networks", "optimisers", "buffers", "env_steps"):
        assert same(state[part], held.state[part]), part
    own = fork.learner.generators["noise"]
    assert isinstance(own, torch.Generator)
    assert not torch.equal(own.get_state(), held.state["random"]["generators"]["noise"])
    assert not same(state["env"]["streams"], held.state["env"]["streams"])
    assert not same(state["explore_env"]["streams"], held.state["explore_env"]["streams"])
    fork.close()


def test_its_parent_is_named_and_its_metrics_are_whole(source, tmp_path):
    run = mg2l.train(fork=source, main_save_path=str(tmp_path), actor_lr=1e-3, seed=8)
    notes = json.loads((run.folder / "environment.json").read_text())
    assert notes["parent"] == {"run": str(source), "iteration": 4}
    assert run.folder.name.endswith("-sd8")
    found = rows(run.folder)
    assert [row["iteration"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert found[:4] == rows(source)
    assert found[4]["lr/actor"] == pytest.approx(1e-3 * (1 - 0.95 * 4 / 6))
    config = config_from_yaml(run.folder / "config.yaml")
    assert (config.ppo.actor_lr, config.ppo.critic_lr, config.seed) == (1e-3, 5e-4, 8)
    assert [path.name for path in (source / "checkpoints").iterdir()] != []


def test_optimisers_take_the_new_configuration(source, tmp_path):
    root = str(tmp_path)
    fork = mg2l.iterations(fork=source, weight_decay=0.25, opti_eps=1e-3, main_save_path=root)
    groups = [g for name in ("actor", "critic") for g in fork.learner.optimisers[name].param_groups]
    assert {(group["weight_decay"], group["eps"]) for group in groups} == {(0.25, 1e-3)}
    fork.close()


def test_a_fork_is_the_same_each_time_and_another_with_another_seed(source, tmp_path):
    runs = [
        mg2l.train(fork=source, main_save_path=str(tmp_path / str(k)), seed=seed).folder
        for k, seed in enumerate((3, 3, 4))
    ]
    assert rows(runs[0]) == rows(runs[1])
    assert rows(runs[0])[4] != rows(runs[2])[4]


def test_a_fork_resumes_bit_for_bit(source, tmp_path):
    whole = mg2l.train(fork=source, main_save_path=str(tmp_path / "whole")).folder
    begun = mg2l.iterations(fork=source, main_save_path=str(tmp_path / "cut"))
    begun.close()  # as after a kill: nothing but what it began with
    mg2l.train(resume=begun.path)
    assert rows(begun.path) == rows(whole)


def test_an_earlier_checkpoint_and_more_sub_environments(source, tmp_path):
    at = source / "checkpoints" / "00000002"
    run = mg2l.train(fork=at, main_save_path=str(tmp_path), n_rollout_threads=6)
    assert json.loads((run.folder / "environment.json").read_text())["parent"]["iteration"] == 2
    assert [row["iteration"] for row in rows(run.folder)] == [1, 2, 3, 4, 5, 6]
    assert rows(run.folder)[:2] == rows(source)[:2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n_iters=4"], "n_iters=4 must be more than 4"),
        (["--algo=mappo"], "--algo=mappo conflicts with --from"),
        (["--resume=x"], "exclude each other"),
        (["algo_hidden_size=8"], "does not fit this run"),
        (["actor_lrr=1"], "did you mean 'actor_lr'"),
        (["--until=0"], "--until must be a whole number"),
        (["--until=5", "save_model=false"], "needs save_model=true"),
    ],
)
def test_mistakes(source, tmp_path, words, said):
    def begin() -> None:
        found = cli.read([f"--from={source}", f"main_save_path={tmp_path}", *words])
        assert found is not None
        Training(*found)

    with pytest.raises((cli.ConfigError, checkpoint.CheckpointError), match=said):
        begin()
    assert not any(tmp_path.rglob("*-sd*"))


def test_nothing_to_fork(tmp_path):
    with pytest.raises(cli.ConfigError, match="no run lies there"):
        cli.read([f"--from={tmp_path}"])


def test_until_stops_there_and_keeps_the_decay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train"])
    words = ["--algo=mappo", f"main_save_path={tmp_path}", "save_interval=50", "--until=2"]
    keys = ("n_iters", "gpu_id", "max_ep_len", "n_rollout_threads", "ppo_epoch", "seed")
    words += [f"{key}={SMALL[key]}" for key in keys] + ["log_tensorboard=false"]
    import mg2l.train as train

    assert train.run(*cli.parse(words)) == 0
    assert "stopped after iteration 2 (--until)" in capsys.readouterr().out
    (run,) = tmp_path.glob("*/*/*")
    assert checkpoint.iterations(run / "checkpoints") == [2]
    assert rows(run)[1]["lr/actor"] == pytest.approx(5e-4 * (1 - 0.95 / 6))
    mg2l.train(resume=run)
    assert len(rows(run)) == 6
