"""What ``import mg2l`` offers: training, callbacks, trained teams, results."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import TINY

import mg2l
from mg2l import cli
from mg2l.api.training import Training
from mg2l.evaluation.meta_test import MetaTest, PeriodicTest
from mg2l.evaluation.trained import iteration_of
from mg2l.experience.replay import Context
from mg2l.train import main
from mg2l.training import checkpoint
from mg2l.training.metrics import read_metrics

SIZES: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if key not in ("n_iters", "save_model")},
    "max_ep_len": 6, "n_ae_rollout_threads": 2, "n_init_rollouts": 1, "sample_ae_interval": 2,
    "data_chunk_length": 6, "n_training_threads": 1,
}  # fmt: skip
TESTED: dict[str, Any] = {"eval_interval": 1, "eval_episodes": 1, "eval_shots": [0]}


def clean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what is measured in seconds."""
    timed = ("time/", "env_steps_per_s")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]


@pytest.fixture(autouse=True)
def sizes(tmp_path: Path) -> dict[str, Any]:
    return {**SIZES, "main_save_path": str(tmp_path)}


class Recorder(mg2l.Callback):
    """Notes what is called, in its order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_exploration(self, training, steps, total):
        self.calls.append(("exploration", steps, total))

    def on_start(self, training):
        self.calls.append("start")

    def on_iteration(self, training, metrics):
        self.calls.append(("iteration", metrics["iteration"]))

    def on_evaluation(self, training, metrics):
        self.calls.append(("evaluation", sorted(metrics)))

    def on_checkpoint(self, training, path):
        self.calls.append(("checkpoint", path.name))

    def on_end(self, training):
        self.calls.append("end")


def test_train_is_what_the_command_does(sizes, tmp_path, monkeypatch):
    run = mg2l.train(algo="mg2l", env="mpe-spread", n_iters=3, **sizes)
    assert run.folder.parent == tmp_path / "mpe-spread" / "mg2l"
    words = [f"{key}={str(value).lower()}" for key, value in sizes.items() if "path" not in key]
    words += ["n_iters=3", f"main_save_path={tmp_path / 'other'}"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    assert main() == 0
    (other,) = (tmp_path / "other").glob("*/*/*")
    assert clean(run.rows) == clean(read_metrics(other / "metrics.jsonl"))
    assert (run.folder / "spaces.json").read_bytes() == (other / "spaces.json").read_bytes()
    assert {p.name for p in run.folder.iterdir()} == {p.name for p in other.iterdir()}


def test_callbacks_in_their_order(sizes):
    recorder = Recorder()
    mg2l.train(algo="mg2l", n_iters=2, save_interval=1, callbacks=[recorder], **TESTED, **sizes)
    tested = ["eval/test_0_shots", "eval/train_0_shots"]
    explored, calls = recorder.calls[:-8], recorder.calls[-8:]
    assert explored[0] == ("exploration", 0, 12)
    assert [steps for _, steps, _ in explored] == [12 * k for k in range(len(explored))]
    assert calls == [
        "start",
        *(("evaluation", tested), ("iteration", 1), ("checkpoint", "00000001")),
        *(("evaluation", tested), ("iteration", 2), ("checkpoint", "00000002")),
        "end",
    ]


@pytest.mark.parametrize("how", ["break", "stop"])
def test_a_loop_that_is_left_can_be_resumed(sizes, how):
    whole = mg2l.train(algo="mappo", n_iters=4, seed=1, **sizes)
    training = mg2l.iterations(algo="mappo", n_iters=4, seed=1, **sizes)
    for metrics in training:
        if metrics["iteration"] == 2:
            if how == "break":
                break
            training.stop()
    assert checkpoint.iterations(training.path / "checkpoints") == [2]
    with pytest.raises(RuntimeError, match="is closed; continue it by resume="):
        next(iter(training))
    resumed = mg2l.train(resume=training.path)
    assert clean(resumed.rows) == clean(whole.rows)


def test_what_fails_frees_the_folder_and_saves_nothing(sizes):
    class Failing(mg2l.Callback):
        def on_iteration(self, training, metrics):
            if metrics["iteration"] == 2:
                raise ZeroDivisionError

    training = mg2l.iterations(algo="mappo", n_iters=4, callbacks=[Failing()], **sizes)
    with pytest.raises(ZeroDivisionError):
        list(training)
    assert checkpoint.iterations(training.path / "checkpoints") == []
    assert len(mg2l.train(resume=training.path, n_iters=1).rows) == 1


def test_mistakes_are_exceptions(sizes, tmp_path):
    with pytest.raises(mg2l.ConfigError, match=r"unknown key 'n_iter'; did you mean 'n_iters'\?"):
        mg2l.train(n_iter=3)
    with pytest.raises(mg2l.ConfigError, match="clip_param must be in"):
        mg2l.train(ppo={"clip_param": 3.0})
    with pytest.raises(mg2l.ConfigError, match="no run lies there"):
        mg2l.load(tmp_path / "nothing")
    with pytest.raises(mg2l.ConfigError, match="--resume=last: no run lies in"):
        mg2l.train(resume="last", main_save_path=str(tmp_path / "nothing"))
    with pytest.raises(mg2l.ConfigError, match="there is no such folder"):
        mg2l.results(tmp_path / "nothing")
    run = mg2l.train(algo="mappo", n_iters=1, save_model=False, **sizes)
    with pytest.raises(mg2l.CheckpointError, match="no checkpoint lies there"):
        mg2l.load(run)
    with pytest.raises(mg2l.ConfigError, match="conflicts with --resume"):
        mg2l.train(resume=run.folder, gamma=0.5)


def scores(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Let the meta-tests measure these."""
    held = iter(values)
    measure = lambda self: {"eval/test_0_shots": next(held), "time/eval": 0.0}  # noqa: E731
    monkeypatch.setattr(PeriodicTest, "measure", measure)


def test_early_stopping(sizes, monkeypatch):
    scores(monkeypatch, 1.0, 2.0, 2.05, 1.5, 3.0)
    stopping = mg2l.EarlyStopping("eval/test_0_shots", patience=2, min_delta=0.1)
    run = mg2l.train(algo="mappo", n_iters=5, callbacks=[stopping], **TESTED, **sizes)
    assert len(run.rows) == 4
    assert checkpoint.iterations(run.folder / "checkpoints") == [4]
    scores(monkeypatch, 1.0, 2.0)
    falling = mg2l.EarlyStopping(patience=1, mode="min")
    run = mg2l.train(algo="mappo", n_iters=5, callbacks=[falling], **TESTED, **sizes)
    assert len(run.rows) == 2


def test_callbacks_refuse_what_cannot_be(sizes):
    with pytest.raises(mg2l.ConfigError, match="EarlyStopping needs meta-tests: set eval_interval"):
        mg2l.train(algo="mappo", n_iters=1, callbacks=[mg2l.EarlyStopping()], **sizes)
    best = mg2l.BestCheckpoint("return")
    with pytest.raises(mg2l.ConfigError, match=r"metric must be one of .* got 'return'"):
        mg2l.train(algo="mappo", n_iters=1, callbacks=[best], **TESTED, **sizes)
    with pytest.raises(ValueError, match="mode must be 'max' or 'min', got 'most'"):
        mg2l.BestCheckpoint(mode="most")
    with pytest.raises(ValueError, match="need patience >= 1"):
        mg2l.EarlyStopping(patience=0)


def test_the_best_checkpoint_stays_and_is_loaded_everywhere(sizes, monkeypatch, tmp_path):
    scores(monkeypatch, 1.0, 3.0, 2.0, 2.5)
    given: dict[str, Any] = {**TESTED, **sizes, "save_interval": 1, "keep_checkpoints": 1}
    run = mg2l.train(algo="mappo", n_iters=4, callbacks=[mg2l.BestCheckpoint()], **given)
    folder = run.folder / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["00000004", "best"]
    assert iteration_of(folder / "best") == 2
    best, last = mg2l.load(folder / "best"), mg2l.load(run)
    weights = [team.learner.networks()["actor"] for team in (best, last)]
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

    # A resumed run continues to compare with it.
    scores(monkeypatch, 2.9)
    mg2l.train(resume="last", main_save_path=sizes["main_save_path"], n_iters=5,
               callbacks=[mg2l.BestCheckpoint()])  # fmt: skip
    assert iteration_of(folder / "best") == 2

    # Resumed from it, the run is as it was then, and later checkpoints are gone.
    scores(monkeypatch, *[0.0] * 9)
    again = mg2l.train(resume=folder / "best", n_iters=3)
    assert [row["iteration"] for row in again.rows] == [1, 2, 3]
    assert clean(again.rows[2:])[0]["return"] == clean(run.rows[2:3])[0]["return"]
    assert sorted(p.name for p in folder.iterdir()) == ["00000003", "best"]

    # Resumed from before it, it is of a past that was given up.
    config, options = cli.parse([f"--resume={run.folder}", "n_iters=3"])
    with Training(config, options):
        checkpoint.remove_best_after(folder, 1)
    assert checkpoint.iterations(folder) == [3]
    assert not (folder / "best").exists()


def test_evaluate_reads_a_checkpoint_of_choice(sizes, monkeypatch, capsys):
    from mg2l import evaluate

    run = mg2l.train(algo="mappo", n_iters=2, save_interval=1, **sizes)
    chosen = run.folder / "checkpoints" / "00000001"
    monkeypatch.setattr(sys, "argv", ["evaluate", str(chosen), "--episodes=1", "--shots", "0"])
    evaluate.main()
    out = capsys.readouterr().out
    assert json.loads((run.folder / "evaluation.json").read_text())["iteration"] == 1
    tasks = mg2l.load(run).tasks
    for part, ids in tasks.parts.items():
        for task in ids:
            assert f"{part:5}  {tasks.names[task]}:  0 shots, uniform " in out
    assert "meta-test: 0/0 ways of acting  0:00" in out
    assert "meta-test: 6/6 ways of acting  train: random" in out


def test_a_budget_of_environment_steps(sizes):
    # 24 steps an iteration, 12 an exploration: as many before iteration 1 as it takes to see all
    # tasks, and one in every second iteration.
    run = mg2l.train(algo="mg2l", n_env_steps=200, **sizes)
    steps = [row["env_steps"] for row in run.rows]
    assert steps[-2] < 200 <= steps[-1]
    assert run.rows[-1]["lr/actor"] < 2 * 5e-4 / len(steps) + 0.05 * 5e-4
    more = mg2l.train(resume=run.folder, n_env_steps=300)
    steps = [row["env_steps"] for row in more.rows]
    assert steps[-2] < 300 <= steps[-1]
    assert len(mg2l.train(resume=run.folder, n_iters=len(steps) + 1).rows) == len(steps) + 1
    with pytest.raises(mg2l.ConfigError, match="n_iters=3 and n_env_steps=200 are both budgets"):
        mg2l.train(n_iters=3, n_env_steps=200)
    with pytest.raises(mg2l.ConfigError, match="n_env_steps=20 must be at least 36, what one"):
        mg2l.train(algo="mg2l", n_env_steps=20, **sizes)


# Trained teams.

ALGORITHMS = [
    "mg2l",
    "mg2l-adapt",
    "mg2l-online",
    "mg2l-regression",
    "ma-pearl",
    "focal",
    "corro",
    "varibad",
    "mate-ind",
    "rl2",
    "mappo",
    "oracle",
]


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Teams by the name of their algorithm, each trained once."""
    held: dict[str, mg2l.Team] = {}
    folder = tmp_path_factory.mktemp("teams")

    def team(algo: str) -> mg2l.Team:
        if algo not in held:
            run = mg2l.train(algo=algo, n_iters=1, **{**SIZES, "main_save_path": str(folder)})
            held[algo] = mg2l.load(run)
        return held[algo]

    return team


def seed(team: mg2l.Team) -> None:
    team.learner.draws.manual_seed(1)
    team.learner.noise.manual_seed(1)


def features_for(team: mg2l.Team) -> Any:
    return team.tasks.features[0] if team.learner.config.algo_name == "oracle" else None


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_team_acts_as_in_a_meta_test(teams, algo):
    """In an environment of ours, step by step, it earns what the meta-test says, to the digit."""
    team = teams(algo)
    test = MetaTest(team.learner, [0, 0], 1, seed=3, deterministic=True)
    shots = 0 if team.infers else 1
    env = test.env
    team.reset(2, features_for(team))
    if team.infers and team.learner.inference.explores_on_context:
        wanted = test.play(0).rollout
    elif team.infers:
        team.latent = test.infer(None, "uniform")[0].clone()
        wanted = test.act(team.latent.unsqueeze(0))
    else:
        wanted = test.play_through(shots)[0]
    # The same episodes: the meta-test's own seeds, of the first where there are several.
    number = int(len(wanted.rewards) > 6)
    seeds = np.random.SeedSequence([3, number]).generate_state(2).tolist()
    observations, _ = env.reset(seeds, [0, 0])
    for t in range(len(wanted.rewards)):
        actions = team.act(observations, deterministic=True)
        np.testing.assert_allclose(
            actions, wanted.actions[t].clamp(-1, 1).numpy(), rtol=1e-5, atol=1e-6
        )
        observations, rewards, terminated, truncated, info = env.step(actions)
        team.observe(rewards, info["final_obs"], (terminated | truncated).all(1))
    test.close()


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_an_agent_by_itself_does_what_it_does_in_its_team(teams, algo):
    team = teams(algo)
    rng = np.random.default_rng(0)
    width = team.observation_sizes[0]
    agent = team.agent(1)
    team.reset(features=features_for(team))
    agent.reset(features_for(team))
    for step in range(4):
        seen, after, paid = rng.normal(size=(2, width)), rng.normal(size=(2, width)), rng.random(2)
        if team.infers and step < 3 and not team.learner.inference.explores_on_context:
            agent.latent = team.latent[0, 1]
        joint, own = team.act(seen, True), agent.act(seen[1], True)
        np.testing.assert_allclose(own, joint[1], rtol=1e-5, atol=1e-6)
        team.observe(paid, after, step == 2)
        agent.observe(paid[1], after[1], step == 2)
        if team.infers and step == 2:
            seed(team)
            z = team.infer()
            seed(team)
            np.testing.assert_allclose(agent.infer(), z[1], rtol=1e-5, atol=1e-6)


def test_shared_inference_is_not_decentralised(sizes):
    run = mg2l.train(algo="mate-cen", n_iters=1, **sizes)
    with pytest.raises(ValueError, match="the joint transitions of the team"):
        mg2l.load(run).agent(0)


def test_contexts_of_ones_own(teams):
    team = teams("mg2l")
    team.reset()
    width, count = team.observation_sizes[0], 5
    rng = np.random.default_rng(0)
    seen, after = rng.normal(size=(2, count, 2, width))
    rows = team.transitions(seen, rng.normal(size=(count, 2, 2)), rng.random((count, 2)), after)
    seed(team)
    z = team.infer(rows)
    assert z.shape == (2, SIZES["context_dim"])
    # Rows of the dead count for nothing.
    dead = np.concatenate([np.full_like(rows[:2], np.nan), rows])
    seed(team)
    np.testing.assert_array_equal(team.infer(dead), z)
    team.reset(3)
    assert team.infer(np.stack([rows] * 3)).shape == (3, *z.shape)
    with pytest.raises(ValueError, match=r"contexts must have shape \[3, S, 2, \d+\], got \[5"):
        team.infer(rows)


def test_growing_contexts_hold_all_that_is_given_in_its_order(teams):
    """Twice as many transitions as a context of the replay, some of them of dead agents."""
    team = teams("mg2l-regression")
    team.reset()
    inference = team.learner.inference
    width, count = team.observation_sizes[0], 2 * inference.context_length
    rng = np.random.default_rng(0)
    states = rng.normal(size=(count + 1, 2, width))
    actions, paid = rng.normal(size=(count, 2, 2)), rng.random((count, 2))
    rows = team.transitions(states[:-1], actions, paid, states[1:])
    wanted = inference.infer(Context(torch.as_tensor(rows)[None])).local.mean[0]
    np.testing.assert_allclose(team.infer(rows), wanted, rtol=1e-4, atol=1e-5)
    dead = rows.copy()
    dead[3:5, 1] = np.nan
    found = team.infer(dead)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    order = [*range(3), *range(5, count), 0, 1]
    wanted = inference.infer(Context(torch.as_tensor(rows[order])[None])).local.mean[0]
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-5)


def test_the_team_refuses_what_it_cannot_take(teams):
    team = teams("mappo")
    team.reset()
    width = team.observation_sizes[0]
    with pytest.raises(
        ValueError, match=rf"observations must have shape \[2, {width}\], got \[3\]"
    ):
        team.act(np.zeros(3))
    with pytest.raises(ValueError, match="observations must be finite"):
        team.act(np.full((2, width), np.nan))
    with pytest.raises(ValueError, match="action_mask is for discrete actions"):
        team.act(np.zeros((2, width)), action_mask=np.ones((2, 5)))
    with pytest.raises(RuntimeError, match="does not infer tasks from contexts"):
        team.infer()
    with pytest.raises(RuntimeError, match=r"observe\(\) needs an act\(\) before it"):
        team.observe(np.zeros(2), np.zeros((2, width)))
    with pytest.raises(ValueError, match="mappo is not given its tasks"):
        team.reset(features=np.zeros(3))
    with pytest.raises(ValueError, match=r"index must be in \[0, 1\], got 2"):
        team.agent(2)
    oracle = teams("oracle")
    oracle.reset()
    with pytest.raises(RuntimeError, match=r"call reset\(features=\.\.\.\) first"):
        oracle.act(np.zeros((2, width)))
    with pytest.raises(ValueError, match=r"features must have shape"):
        oracle.reset(features=np.zeros(99))


def test_no_environment_is_needed(teams, monkeypatch):
    from mg2l.envs import registry

    team = teams("mg2l")
    monkeypatch.setattr(registry, "make", None)
    assert type(team.learner.env).__name__ == "SpacesOnly"
    with pytest.raises(RuntimeError, match="loaded without its environment"):
        team.learner.env.reset()


def test_evaluation_of_a_team(teams):
    found = teams("mg2l").evaluate(shots=[0, 1], episodes=1)
    assert {row["mode"] for row in found["results"]} == {"shots", "online", "random"}
    with pytest.raises(ValueError, match="need shots >= 0 and episodes >= 1"):
        teams("mg2l").evaluate(shots=[])


# Results.


def test_results_as_tables_and_for_marl_eval(sizes, tmp_path, monkeypatch):
    from mg2l import evaluate

    for seed in (0, 1):
        run = mg2l.train(algo="mappo", n_iters=2, seed=seed, **TESTED, **sizes)
    monkeypatch.setattr(sys, "argv", ["evaluate", str(run.folder), "--episodes=2", "--shots", "0"])
    evaluate.main()
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    found = mg2l.results(tmp_path)
    assert [(row["seed"], row["iteration"]) for row in found.metrics] == [
        (0, 1), (0, 2), (1, 1), (1, 2),
    ]  # fmt: skip
    assert {row["algo"] for row in found.metrics} == {"mappo"}
    assert {row["seed"] for row in found.evaluations} == {1}
    assert set(found.evaluations[0]) == {
        *("env", "algo", "seed", "run", "split", "mode", "shots", "sampling", "task", "return"),
    }
    held = json.loads(json.dumps(found.marl_eval()))
    assert list(held) == ["mpe-spread"]
    assert set(held["mpe-spread"]) == {"train_0_shots", "test_0_shots"}
    seeds = held["mpe-spread"]["test_0_shots"]["mappo"]
    assert set(seeds) == {"seed_0", "seed_1"}
    assert set(seeds["seed_0"]) == {"step_0", "step_1", "absolute_metrics"}
    step = seeds["seed_0"]["step_1"]
    assert set(step) == {"step_count", "return"}
    assert step["step_count"] == 48
    assert step["return"] == [found.metrics[1]["eval/test_0_shots"]]
    assert seeds["seed_0"]["absolute_metrics"]["return"] == step["return"]
    tasks = len(mg2l.load(run).tasks.test_ids)
    absolute = seeds["seed_1"]["absolute_metrics"]["return"]
    assert len(absolute) == 2 * tasks
    rows = [row for row in found.evaluations if row["mode"] == "shots" and row["split"] == "test"]
    assert np.mean(absolute) == pytest.approx(np.mean([row["return"] for row in rows]), rel=1e-4)


def test_frames_where_pandas_is_installed(sizes, tmp_path, monkeypatch):
    pandas = importlib.import_module("pandas")
    mg2l.train(algo="mappo", n_iters=2, **sizes)
    frames = mg2l.results(tmp_path)
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "pandas", None)
        rows = mg2l.results(tmp_path)
    assert frames.metrics["iteration"].tolist() == [1, 2]
    assert {frames.metrics["algo"].unique().item(), frames.metrics["seed"].max()} == {"mappo", 0}
    pandas.testing.assert_frame_equal(frames.metrics, pandas.DataFrame(rows.metrics))
    assert frames.evaluations.empty
    assert rows.evaluations == []


def test_marl_eval_gets_every_algorithm_in_every_task(sizes, tmp_path):
    """A run that has no meta-test yet would make a task of its own, without the others."""
    tested = mg2l.train(algo="mappo", n_iters=1, **TESTED, **sizes)
    new = mg2l.train(algo="oracle", n_iters=1, **sizes)
    held = mg2l.results(tested.folder, new.folder).marl_eval()["mpe-spread"]
    assert {tuple(task) for task in held.values()} == {("mappo",)}
    alone = mg2l.results(new.folder).marl_eval()["mpe-spread"]
    assert {name: list(task) for name, task in alone.items()} == {"training": ["oracle"]}


# The package.


def test_the_import_is_light():
    code = (
        "import sys, mg2l;"
        "heavy = {'torch', 'numpy', 'gymnasium', 'omegaconf', 'rich', 'tensorboard', 'mg2l.config',"
        "'mg2l.api'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert callable(mg2l.train); import mg2l.train; assert callable(mg2l.train);"
        "assert set(mg2l.__all__) <= set(dir(mg2l)); [getattr(mg2l, n) for n in mg2l.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'mg2l' has no attribute 'trian'"):
        mg2l.trian  # noqa: B018


@pytest.mark.ci
def test_a_run_imports_nothing_that_it_does_not_use(tmp_path):
    """No suite but its own, and of torch neither the compiler, longer than itself, nor algebra."""
    code = (
        "import sys, mg2l;"
        f"mg2l.train(algo='mg2l', env='mpe-spread', main_save_path={str(tmp_path)!r}, gpu_id=-1,"
        "n_iters=1, max_ep_len=5, ae_batch_size=5, n_rollout_threads=4, n_ae_rollout_threads=3,"
        "n_init_rollouts=1, n_init_updates=1, ae_updates_per_iter=1, ppo_epoch=1);"
        "heavy = {'torch._dynamo', 'torch._inductor', 'torch.onnx', 'sympy', 'mujoco', 'magent2',"
        "'rware', 'lbforaging', 'pettingzoo', 'vmas', 'onnxruntime', 'ray', 'wandb', 'matplotlib'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
