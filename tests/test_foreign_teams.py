"""Mixed teams of other packages, through adapters, and robots of unequal parts."""

import itertools
import json
from typing import Any

import mixed_envs
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from method_helpers import TINY, overrides

import mg2l
import mg2l.train as train
from mg2l import cli, evaluate
from mg2l.config import files as loading
from mg2l.deploy.agent import Agent
from mg2l.envs import adapters, registry
from mg2l.envs.actions import ActionLayout
from mg2l.evaluation import trained
from mg2l.export import main as export_command
from mg2l.training.metrics import read_metrics


def adapted(make, team=None, others=None, tasks=None, **keys):
    config = adapters.AdapterConfig(**{"n_workers": 1, "max_ep_len": 50, **keys})
    found = adapters.task_set(tasks or [{"goal": 0.0}, {"goal": 1.0}], [], config)
    return adapters.AdaptedEnv("adapted", make, found, config, 2, 0, team, others)


def test_an_adapter_takes_every_kind_of_action():
    env = adapted(mixed_envs.make_workshop)
    assert env.action_spaces == (
        Box(-1, 1, (2,)), Discrete(3), MultiDiscrete([2, 4]), MultiDiscrete([2, 2])
    )  # fmt: skip
    obs, info = env.reset(task_ids=[0, 1])
    assert obs.shape == (2, 4, 6)
    assert obs[1].tolist() == [[1.0] * n + [0.0] * (6 - n) for n in (6, 5, 5, 6)]
    assert info["action_mask"][0].astype(int).tolist() == [
        [0] * 6, [0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 0, 0]
    ]  # fmt: skip
    actions = np.zeros((2, 4, 2))
    actions[:, 0] = [1.0, 0.5]  # from [0, 2] and [0, 4]
    actions[:, 1, 0] = 2  # starts at 5
    actions[:, 2] = [1, 3]  # starts at 1 and 0
    actions[:, 3] = [0, 1]
    rewards = env.step(actions)[1]
    np.testing.assert_allclose(rewards[0], [10 * 2 + 3, 10 * 7, 10 * 2 + 3, 1])
    np.testing.assert_allclose(rewards[1], rewards[0] + 1)
    env.close()


def constant(agent, observation, space):
    assert len(observation) == 1 + len(agent)
    return {"crane": np.array([2, 0], np.float32), "lamp": np.array([1, 3])}[agent]


class Counting:
    """A policy with a memory: how many actions it has chosen in this episode."""

    def __init__(self):
        self.calls = 0

    def reset(self):
        self.calls = 0

    def __call__(self, agent, observation, space):
        self.calls += 1
        assert self.calls == 1 + observation[0], "memory of another sub-environment or episode"
        return space.sample()


def test_a_team_against_scripted_and_random_others():
    env = adapted(mixed_envs.make_workshop, ["gates", "belt"], None)
    assert env.action_spaces == (MultiDiscrete([2, 2]), Discrete(3))
    assert env.num_agents == 2
    obs, info = env.reset(seed=0)
    assert obs.shape == (2, 2, 6)
    assert info["action_mask"].astype(int)[0].tolist() == [[1] * 4, [0, 1, 1, 0]]
    rewards = env.step(np.array([[[1, 1], [2, 0]]] * 2))[1]  # masks of the lamp are kept to
    assert rewards[0].tolist() == [11, 70]
    env.close()
    env = adapted(mixed_envs.make_workshop, ["belt", "gates"], constant_or_random)
    env.reset()
    assert env.step(np.array([[[2, 0], [1, 1]]] * 2))[1][0].tolist() == [70, 11]
    env.close()


def constant_or_random(agent, observation, space):
    return constant(agent, observation, space)


def test_others_have_memories_of_their_own():
    env = adapted(mixed_envs.make_workshop, ["belt", "gates", "lamp"], Counting(), [{"goal": 0.0}])
    env.reset()
    for _ in range(3):
        env.step(np.array([[[2, 0], [1, 1], [1, 3]]] * 2))
    env.reset()
    env.step(np.array([[[2, 0], [1, 1], [1, 3]]] * 2))
    env.close()


class Frozen:
    """The exported agent of another run, which a worker loads itself."""

    def __init__(self, folder):
        self.folder, self.agent = folder, None

    def reset(self):
        if self.agent is not None:
            self.agent.reset()

    def __call__(self, agent, observation, space):
        if self.agent is None:
            self.agent = Agent(self.folder, 0, seed=0)
        action = self.agent.act(observation).clip(-1, 1)  # it was trained on actions in [-1, 1]
        return space.low + (action + 1) / 2 * (space.high - space.low)


def test_others_may_be_agents_of_an_earlier_run(tmp_path, monkeypatch):
    adapters.register("workshop", *FAMILIES["workshop"])
    (tmp_path / "env.yaml").write_text("family: workshop\n")
    folder = run(tmp_path, tmp_path / "env.yaml", n_workers=2)
    check_run(folder, monkeypatch, pictures=False)
    env = adapted(
        mixed_envs.make_workshop, ["belt", "gates", "lamp"], Frozen(folder / "export"),
        [{"goal": 0.0}],
    )  # fmt: skip
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.array([[[2, 0], [1, 1], [1, 3]]] * 2))
    env.close()


def test_a_wrong_team_is_refused():
    with pytest.raises(Exception, match=r"team must be names of agents, all different, of \['cr"):
        adapted(mixed_envs.make_workshop, ["nobody"])
    with pytest.raises(ValueError, match="others must come with team"):
        adapters.register("wrong", mixed_envs.make_workshop, [{}], [], others=constant)


CHASERS = ["adversary_0", "adversary_1", "adversary_2"]
FAMILIES: dict[str, Any] = {
    "workshop": (mixed_envs.make_workshop, [{"goal": 0.0}, {"goal": 1.0}], [{"goal": 0.5}]),
    "tag": (mixed_envs.make_tag, [{"speed": 0.7}, {"speed": 1.3}], [{"speed": 1.0}],
            CHASERS, mixed_envs.flee),
}  # fmt: skip


def run(tmp_path, env, **values):
    """Train two iterations, evaluate with a video, export: the run folder."""
    values = {**TINY, "save_model": True, "main_save_path": tmp_path, "eval_interval": 2,
              "eval_episodes": 1, **values}  # fmt: skip
    assert train.run(*cli.parse(["--algo=mg2l", f"--env={env}", *overrides(values)])) == 0
    (folder,) = (path.parent for path in tmp_path.rglob("metrics.jsonl"))
    assert len(read_metrics(folder / "metrics.jsonl")) == 2
    return folder


def trained_spaces(folder):
    learner = trained.load(folder)
    try:
        return learner.env.action_spaces
    finally:
        learner.close()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("algo", ["mg2l", "rl2"])
def test_a_mixed_run_is_resumed_bit_for_bit(tmp_path, name, algo):
    adapters.register(name, *FAMILIES[name])
    (tmp_path / "env.yaml").write_text(f"family: {name}\n")
    values = {**TINY, "save_model": True, "save_interval": 1, "n_workers": 1, "n_iters": 4}
    keys = {**values, "algo": algo, "env": tmp_path / "env.yaml"}
    whole = mg2l.train(**keys, main_save_path=str(tmp_path / "whole")).folder
    with mg2l.iterations(**keys, main_save_path=str(tmp_path / "parts")) as parts:
        assert len([*itertools.islice(parts, 2)]) == 2
    mg2l.train(resume=parts.path)
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (whole, parts.path)]
    kept = [
        [{k: v for k, v in row.items() if "time/" not in k and "_per_s" not in k} for row in run]
        for run in rows
    ]
    assert len(kept[0]) == 4
    assert repr(kept[0]) == repr(kept[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_foreign_teams_train_evaluate_and_are_exported(tmp_path, monkeypatch, capsys, name):
    adapters.register(name, *FAMILIES[name])
    (tmp_path / "env.yaml").write_text(f"family: {name}\n")
    folder = run(tmp_path, tmp_path / "env.yaml", n_workers=2)
    check_run(folder, monkeypatch)
    team = mg2l.load(folder)  # without its environment
    layout = ActionLayout(team.action_spaces)
    assert layout.counts == ActionLayout(trained_spaces(folder)).counts
    rows = np.zeros((team.num_agents, max(team.observation_sizes)), np.float32)
    actions = team.act(rows)
    np.testing.assert_array_equal(actions, layout.within(actions))
    if layout.options:
        nothing = np.zeros((team.num_agents, layout.options), bool)
        with pytest.raises(ValueError, match="must allow an action to each agent"):
            team.act(rows, action_mask=nothing)
        first = np.zeros_like(nothing)  # the first option of every choice and nothing else
        for agent, counts in enumerate(layout.counts):
            first[agent, np.cumsum([0, *counts[:-1]])[: len(counts)]] = True
        chosen = team.act(rows, action_mask=first).reshape(team.num_agents, -1)
        for agent, counts in enumerate(layout.counts):
            assert not chosen[agent, : len(counts)].any()
    team.observe(np.zeros(team.num_agents), rows)
    assert np.isfinite(team.infer()).all()


@pytest.mark.parametrize(
    ("env", "conf", "agents", "sizes"),
    [
        ("mujoco-ant-dir", "2x4d", 2, [4, 4]),
        ("mujoco-hopper-param", "2+1", 2, [2, 1]),
    ],
)
def test_robots_of_unequal_parts(tmp_path, monkeypatch, env, conf, agents, sizes):
    folder = run(tmp_path, env, agent_conf=conf, n_agents=agents)
    written = check_run(folder, monkeypatch, pictures=False)
    action = written["agents"][0].get("action", written["action"])
    assert len(action["low"]) == sizes[0]
    config = loading.load_config("default", "mg2l", env, {"agent_conf": conf, "n_agents": agents})
    made = registry.make(config.env, 1)
    assert [space.shape for space in made.action_spaces] == [(size,) for size in sizes]
    made.close()


def check_run(folder, monkeypatch, pictures=True):
    """Evaluate, with a video where there are pictures, and export; returns the manifest."""
    words = ["evaluate", str(folder), "--episodes=1", *(["--video=gif"] if pictures else [])]
    monkeypatch.setattr("sys.argv", words)
    evaluate.main()
    assert bool([*folder.rglob("*.gif")]) == pictures
    monkeypatch.setattr("sys.argv", ["export", str(folder), "--trust", "--agents", "0"])
    export_command()
    return json.loads((folder / "export/export.json").read_text())
