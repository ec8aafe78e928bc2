"""Exported agents: what the learner computes, from what is their own, without what trained them."""

import copy
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from method_helpers import TINY, overrides, tiny_learner

import mg2l.train as train
from mg2l import cli
from mg2l.algorithms.agent import AgentNetwork, ContextAgent, Standardise
from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.config import files as loading
from mg2l.core.schema import ConfigError
from mg2l.deploy import export
from mg2l.deploy.agent import FORMAT, Agent, Context
from mg2l.deploy.policy import Policy
from mg2l.deploy.reference import Reference, References
from mg2l.evaluation import trained
from mg2l.evaluation.meta_test import MetaTest
from mg2l.experience.replay import Context as Contexts
from mg2l.experience.rollout import Rollout
from mg2l.export import main as export_command
from mg2l.training import tree
from mg2l.training.learner import Learner

ROOT = Path(__file__).resolve().parents[1]
CENTRALISED = {"mg2l-global-only": "actor_latent=global", "mate-cen": "all agents act on a belief"}
CHUNKS = {"data_chunk_length": 5}
DISCRETE: dict[str, Any] = {
    "algo": "rl2",
    "env": "rware-layout",
    "n_agents": 2,
    "share_policy": True,
    **CHUNKS,
}
IMAGES: dict[str, Any] = {"algo": "mg2l", "env": "magent-gather", "n_agents": 2, "obs": "cnn"}
NETWORKS = [
    *({"algo": name} | CHUNKS for name in loading.available("algo") if name not in CENTRALISED),
    {"algo": "mg2l", "share_policy": True, "normalize_transitions": False},
    {"algo": "ma-pearl", "n_agents": 1},
    {"algo": "mappo", "use_naive_recurrent_policy": True, "recurrent_N": 2},
    DISCRETE,
    IMAGES,
]
"""Learners whose agents can act alone."""


def build(algo: str, env: str = "mpe-spread", **values) -> Learner:
    return tiny_learner(algo, env, **values)


def named(values: dict) -> str:
    return "-".join(str(value) for value in values.values())


def collect(learner: Learner, latent, episodes: int = 1) -> Rollout:
    """Deterministic episodes of the last task, in one sub-environment, under a given latent."""
    task = [len(learner.env.tasks) - 1]
    test = MetaTest(learner, task, 1, seed=3)
    steps = test.steps * episodes
    if latent == "as always":
        latent = learner.inference.actor_latent(test.ids, steps)
    rollout = test.collector.collect(steps, test.ids, latent, True, [3])
    test.close()
    return rollout


def numbers(rollout: Rollout, agent: int) -> dict[str, np.ndarray]:
    """One agent's part of a rollout of one sub-environment, time first."""
    names = ("observations", "actions", "rewards", "final_observations", "action_mask", "latent")
    values = {name: getattr(rollout, name) for name in names}
    return {name: x[:, 0, agent].numpy() for name, x in values.items() if x is not None}


def latent_of(agent: Agent) -> np.ndarray:
    assert agent.latent is not None
    return agent.latent


def check_follows(agent: Agent, rollout: Rollout) -> None:
    """Given what happened to it, an exported agent acts as its policy did in the rollout."""
    own = numbers(rollout, agent.index)
    for t in range(len(rollout.actions)):
        if rollout.episode_start[t, 0]:
            agent.reset()
        mask = own["action_mask"][t] if "action_mask" in own else None
        if "latent" in own:
            np.testing.assert_allclose(latent_of(agent), own["latent"][t], atol=1e-5)
        action = agent.act(own["observations"][t], mask)
        np.testing.assert_allclose(action, own["actions"][t], atol=1e-5)
        agent.observe(
            own["observations"][t],
            own["actions"][t],
            own["rewards"][t],
            own["final_observations"][t],
        )


@pytest.mark.parametrize("values", NETWORKS, ids=named)
def test_networks_of_one_agent_compute_what_the_learner_does(values):
    learner = build(**values)
    before = copy.deepcopy(learner.networks())
    references = References(learner)
    difference = tree.first_difference(learner.networks(), before)
    assert not difference  # keys, shapes, dtypes
    for name, module in learner.networks().items():
        assert all(torch.equal(value, before[name][key]) for key, value in module.items())
    for index in range(learner.env.num_agents):
        networks: list[tuple[AgentNetwork, list[Reference]]] = [
            (Policy(learner.actor, index), references.policy(index))
        ]
        inference = learner.inference.agent_network(index)
        if inference is not None:
            networks.append((inference, references.inference(index)))
        for network, expected in networks:
            assert len(expected) >= 3
            for answer in expected:
                found = network(**answer.inputs)
                assert len(found) == len(answer.outputs) == len(network.outputs)
                for got, wanted in zip(found, answer.outputs, strict=True):
                    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
        of_policy = sum(p.numel() for p in networks[0][0].parameters())
        of_all = sum(p.numel() for p in learner.actor.parameters())
        groups = 1 if learner.config.policy.share_policy else learner.env.num_agents
        assert of_policy == of_all / groups


def test_a_feature_that_never_varies_costs_no_digits():
    moments = TransitionMoments(2)
    rows = torch.tensor([[300.1, 0.0], [300.1, 1.0]])
    moments.update(rows)
    exact = moments.standardise(rows.double())
    torch.testing.assert_close(Standardise(moments)(rows).double(), exact, rtol=0, atol=1e-6)


# A run of mg2l, all of it through the command line.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of mg2l, exported to ``export`` in its folder."""
    root = tmp_path_factory.mktemp("runs")
    pairs = {**TINY, "save_model": True, "main_save_path": root}
    assert train.run(*cli.parse(overrides(pairs))) == 0
    (folder,) = root.glob("*/mg2l/*")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export", str(folder)])
        export_command()
    return folder


@pytest.fixture(scope="module")
def learner(run: Path) -> Learner:
    return trained.load(run)


def test_the_manifest_says_what_is_there(run):
    found = json.loads((run / "export" / "export.json").read_text())
    assert found["iteration"] == 2
    assert found["format"] == FORMAT
    assert [entry["index"] for entry in found["agents"]] == [0, 1]
    for entry in found["agents"]:
        for files in entry["files"].values():
            assert all((run / "export" / file).is_file() for file in files.values())
        assert set(entry["deviation"]) == set(entry["files"]) == {"policy", "inference"}
        assert max(entry["deviation"].values()) <= found["tolerance"] == 1e-5
    assert found["transition"]["columns"]["reward"] == [12, 13]
    assert found["context"] == {
        "length": 10, "fixed_length": False, "capacity": 100, "prior": "sphere", "act_on": "mean",
        "explore_refresh": 0, "grows": False, "explores_on_context": False,
    }  # fmt: skip
    for path in (run / "export").rglob("*.onnx"):
        onnx.checker.check_model(onnx.load(path))
        assert str(ROOT).encode() not in path.read_bytes()
    for path in (run / "export").rglob("*.pt2"):
        with zipfile.ZipFile(path) as archive:
            assert all(str(ROOT).encode() not in archive.read(name) for name in archive.namelist())


def test_a_context_is_the_agents_own_transitions(run, learner):
    with learner.isolated_rng(0):
        rollout = collect(learner, learner.inference.sample_prior(1))
    expected = learner.inference.transitions(rollout)[:, 0].numpy()
    for index in (0, 1):
        agent = Agent(run / "export", index)
        own = numbers(rollout, index)
        for t in range(len(own["rewards"])):
            step = (own["observations"][t], own["actions"][t] * 9, own["rewards"][t])
            agent.observe(*step, own["final_observations"][t])
        rows = np.stack(agent.context.rows)
        bounds = agent.manifest["transition"]["columns"]["action"]
        kept = np.delete(rows, range(*bounds), 1)
        np.testing.assert_array_equal(kept, np.delete(expected[:, index], range(*bounds), 1))
        clipped = np.clip(own["actions"] * 9, -1, 1)
        np.testing.assert_array_equal(rows[:, slice(*bounds)], clipped)


def test_an_agent_infers_what_the_learner_does_whatever_happens_to_others(run, learner):
    test = MetaTest(learner, [0], 1, seed=1)
    with learner.isolated_rng(0):
        experience = test.explore(2)
    assert experience is not None
    for index in (0, 1):
        agent = Agent(run / "export", index, seed=0)
        others = experience.clone()
        others[:, :, 1 - index] = torch.randn_like(others[:, :, 1 - index])
        for context in (experience, others):
            wanted = learner.inference.latent_for_actors(learner.inference.infer(Contexts(context)))
            mean, _ = agent.represent(context[0, :, index].numpy())
            np.testing.assert_allclose(mean, wanted[0, index].detach(), atol=1e-5)


def test_an_agent_explores_infers_and_acts(run, learner):
    agent = Agent(run / "export", 1, seed=0, deterministic=True)
    draws = []
    for _ in range(3):
        agent.reset()
        draws.append(latent_of(agent))
        np.testing.assert_allclose(np.linalg.norm(draws[-1]), 8**0.5, rtol=1e-5)
    assert len({tuple(draw) for draw in draws}) == 3
    with pytest.raises(RuntimeError, match="nothing was observed yet"):
        agent.infer()
    rollout = collect(learner, torch.zeros(1, 1, 2, 8))
    own = numbers(rollout, 1)
    names = ("observations", "actions", "rewards", "final_observations")
    before, action, reward, after = (own[name][0] for name in names)
    agent.observe(before, action, reward, after, alive=False)
    assert not agent.context.rows
    agent.observe(before, action, reward, after)
    z = agent.infer()
    mean, std = agent.represent(np.stack([agent.context.rows[0]] * 10))
    np.testing.assert_array_equal(z, mean)
    assert (std > 0).all()
    agent.reset()
    assert agent.latent is z
    check_follows(agent, collect(learner, torch.as_tensor(z).expand(1, 1, 2, 8)))
    agent.deterministic = False
    assert len({tuple(agent.act(own["observations"][0])) for _ in range(4)}) == 4
    agent.forget()
    assert not agent.context.rows
    assert not agent.inferred


def test_the_example_runs_without_what_trains(run, tmp_path):
    code = (
        "import runpy, sys; sys.argv = ['example', sys.argv[2], '3']; "
        "runpy.run_path({!r}, run_name='__main__'); "
        "print(sorted(m for m in sys.modules if m.startswith('mg2l.') and m.split('.')[1] in "
        "('algo', 'encoder', 'train', 'config', 'loading', 'replay', 'export', 'evaluate')))"
    ).format(str(ROOT / "examples/exported_team.py"))
    words = [sys.executable, "-c", code, "--", str(run / "export")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == [f"episode {i}" for i in range(3)]
    assert lines[3] == "[]"


def test_an_export_runs_without_mg2l_and_torch(run):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['mg2l'] = None; from agent import Agent; "
        "agent = Agent('.', 0, seed=0, deterministic=True); agent.reset(); "
        "print(agent.act([0.0] * 10).tolist())"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=run / "export", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    agent = Agent(run / "export", 0, seed=0, deterministic=True)
    agent.reset()
    assert json.loads(done.stdout) == agent.act([0.0] * 10).tolist()


# Other algorithms: files of agent 1.


def exported(learner: Learner, folder: Path, **values) -> Agent:
    export.write_team(learner, folder, [1])
    return Agent(folder, 1, seed=0, **{"deterministic": True, **values})


def test_a_memory_over_episodes_with_masks_and_shared_networks(tmp_path):
    learner = build(**DISCRETE)
    agent = exported(learner, tmp_path / "export")
    assert not agent.infers
    rollout = collect(learner, "as always", episodes=2)
    check_follows(agent, rollout)
    agent.forget()
    check_follows(agent, rollout)
    own = numbers(rollout, 1)
    agent.deterministic = False
    mask = np.zeros(agent.manifest["action"]["n"], bool)
    mask[3] = True
    assert {agent.act(own["observations"][0], mask) for _ in range(20)} == {3}
    with pytest.raises(ValueError, match="mask must be"):
        agent.act(own["observations"][0], ~mask & mask)


@pytest.mark.parametrize("reset", ["episode", "task"])
def test_a_belief_step_by_step(tmp_path, reset):
    learner = build("varibad", belief_reset=reset)
    agent = exported(learner, tmp_path / "export")
    check_follows(agent, collect(learner, "as always", episodes=2))


def test_a_team_that_is_given_its_task(tmp_path):
    learner = build("oracle")
    agent = exported(learner, tmp_path / "export")
    assert agent.needs_features
    with pytest.raises(RuntimeError, match="call set_task"):
        agent.act(np.zeros(10))
    agent.set_task(learner.env.tasks.features[-1])
    check_follows(agent, collect(learner, "as always"))
    with pytest.raises(ValueError, match="features must have shape"):
        agent.set_task([0.0])
    with pytest.raises(RuntimeError, match="oracle does not infer from contexts"):
        agent.infer()


def test_a_sampled_posterior(tmp_path):
    agent = exported(build("ma-pearl"), tmp_path / "export")
    agent.observe(np.zeros(10), np.zeros(2), 0.0, np.zeros(10))
    assert not np.array_equal(agent.infer(), agent.infer())
    with pytest.raises(RuntimeError, match="takes no features"):
        agent.set_task([0.0])


OTHERS = [
    {"algo": "focal"},
    {"algo": "corro"},
    {"algo": "mg2l-gaussian-product"},
    {"algo": "mg2l-rnn"},
    {"algo": "mg2l", "n_blocks": 1},
    {"algo": "mg2l-transformer"},
    IMAGES,
]


@pytest.mark.parametrize("values", OTHERS, ids=named)
def test_inference_as_files(tmp_path, values):
    learner = build(**values)
    network = learner.inference.agent_network(1)
    assert isinstance(network, ContextAgent)
    references = References(learner).inference(1)
    deviation = export.write_network(network, references, tmp_path / "inference")
    assert deviation <= export.TOLERANCE
    shapes = [i.type.tensor_type.shape for i in onnx.load(tmp_path / "inference.onnx").graph.input]
    sizes = [d.dim_value for d in shapes[0].dim]
    width = learner.inference.transitions.width
    assert sizes == [0, 10 if values["algo"] == "mg2l-rnn" else 0, width]


# Refusals.


@pytest.mark.parametrize(("algo", "why"), CENTRALISED.items())
def test_teams_that_share_what_they_see_are_refused(algo, why, tmp_path):
    with pytest.raises(ConfigError, match=f"not executed decentrally: {why}.*joint transitions"):
        export.write_team(build(algo), tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_refusals(learner, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"agents 0..1, got 2"):
        export.write_team(learner, tmp_path / "export", [0, 2])
    with pytest.raises(ConfigError, match="exists and is no earlier export"):
        export.write_team(learner, tmp_path)
    with pytest.raises(ConfigError, match=r"policy of agent 0 deviates by .* nothing is exported"):
        export.write_team(learner, tmp_path / "export", [0], tolerance=-1.0)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else 1)
        with pytest.raises(ConfigError, match=r'package onnx; .* pip install "mg2l\[export\]"$'):
            export.write_team(learner, tmp_path / "export")


def test_a_deviation_is_seen(learner, tmp_path):
    network = Policy(learner.actor, 0)
    references = References(learner).policy(1)  # of another agent
    assert export.write_network(network, references, tmp_path / "policy") > export.TOLERANCE
    references[-1].outputs[0][0, 0] = float("nan")
    assert export.deviation(network, references, tmp_path / "policy") == float("inf")


def test_agents_refuse(run, tmp_path):
    with pytest.raises(ValueError, match=r"index must be one of \[0, 1\], got 2"):
        Agent(run / "export", 2)
    agent = Agent(run / "export", 0)
    with pytest.raises(ValueError, match=r"observation must have shape \(10,\), got \(9,\)"):
        agent.act(np.zeros(9))
    folder = shutil.copytree(run / "export", tmp_path / "export")
    shutil.copy(folder / "agent_1/policy.onnx", folder / "agent_0/policy.onnx")
    with pytest.raises(ValueError, match=r"agent_0/policy.onnx is not what was exported"):
        Agent(folder, 0)
    text = (folder / "export.json").read_text()
    (folder / "export.json").write_text(text.replace('"format": 2', '"format": 7'))
    with pytest.raises(ValueError, match="must be of format 2, got 7"):
        Agent(folder, 1)


HOSTILE = {
    "outside": (lambda m: m["agents"][0]["files"]["policy"].update(onnx="../x"), "has no hash"),
    "outside, with a hash": (lambda m: leave(m, "../x"), "must lie in"),
    "absolute": (lambda m: leave(m, "/etc/passwd"), "must lie in"),
    "link": (lambda m: leave(m, "link"), "must lie in"),
    "folder": (lambda m: leave(m, "agent_0"), "must be a file"),
    "no policy": (lambda m: m["agents"][0]["files"].pop("policy"), "has no policy"),
    "wide": (lambda m: m["latent"].update(width=10**12), r"latent\.width must be an integer in"),
    "negative": (lambda m: m["latent"].update(width=-1), r"latent\.width must be an integer in"),
    "a text": (lambda m: m.update(observation="10"), "observation must be an integer"),
    "long": (lambda m: m["context"].update(capacity=2**40), r"context\.capacity must be"),
    "long contexts": (lambda m: m["context"].update(length=2**24), "x transition"),
    "memory": (lambda m: m.update(memory={"shape": [2**20, 2**20], "reset": "task"}), "memory"),
    "no context": (lambda m: m.pop("context"), "KeyError: 'context'"),
    "no inference": (lambda m: m["agents"][0]["files"].pop("inference"), "has no inference"),
    "nothing to infer from": (lambda m: m.update(context=None), "context must be described"),
    "no source": (lambda m: m["latent"].pop("source"), "KeyError: 'source'"),
    "another source": (lambda m: m["latent"].update(source=[]), r"latent\.source must be one of"),
    "no prior": (lambda m: m["context"].pop("prior"), "KeyError: 'prior'"),
    "another prior": (lambda m: m["context"].update(prior=3), r"context\.prior must be one of"),
    "no act_on": (lambda m: m["context"].pop("act_on"), "KeyError: 'act_on'"),
    "no spread": (lambda m: m["latent"].update(reward_std=0), "reward_std must be numbers"),
    "texts as bounds": (lambda m: m["action"].update(low=["x", "y"]), "must hold numbers or null"),
    "a kind of action": (lambda m: m["action"].update(kind="x"), r"action\.kind must be one of"),
    "a list": (lambda m: m.update(agents=[[]]), "cannot be used: TypeError"),
}


def leave(manifest, name):
    """Let the policy of agent 0 be another file."""
    entry = manifest["agents"][0]
    entry["files"]["policy"]["onnx"] = name
    entry["sha256"][name] = ""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_leads_nowhere_and_asks_for_no_absurd_memory(run, tmp_path, name):
    change, said = HOSTILE[name]
    folder = shutil.copytree(run / "export", tmp_path / "export")
    (folder / "link").symlink_to("/etc/passwd")
    manifest = json.loads((folder / "export.json").read_text())
    change(manifest)
    (folder / "export.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=said):
        Agent(folder, 0)


def test_a_network_that_is_none_or_keeps_its_weights_elsewhere(run, tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = shutil.copytree(run / "export", tmp_path / "export")
    path = folder / "agent_0/policy.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    for data, said in [(path.read_bytes(), "must hold its weights itself"), (b"x", "no network")]:
        path.write_bytes(data)
        manifest = json.loads((run / "export/export.json").read_text())
        digest = hashlib.sha256(data).hexdigest()
        manifest["agents"][0]["sha256"]["agent_0/policy.onnx"] = digest
        (folder / "export.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=said):
            Agent(folder, 0)
    (folder / "export.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"export\.json cannot be used: RecursionError"):
        Agent(folder, 0)


def test_a_context_overwrites_its_oldest():
    context = Context(3)
    for number in range(5):
        context.add(np.full(2, number, np.float32))
    drawn = context.draw(200, np.random.default_rng(0))
    assert drawn.shape == (200, 2)
    assert set(drawn[:, 0]) == {2, 3, 4}
    assert context.all()[:, 0].tolist() == [2, 3, 4]


def test_a_context_that_is_not_full_keeps_its_order():
    context = Context(3)
    for number in range(2):
        context.add(np.full(2, number, np.float32))
    assert context.all()[:, 0].tolist() == [0, 1]
