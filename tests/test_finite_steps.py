"""An environment whose numbers are not finite is named before anybody learns from them."""

import re

import numpy as np
import pytest
import torch
from method_helpers import TINY, KnownConfig, KnownEnv, env_of, known_learner, overrides

import mg2l.train as train
from mg2l import cli
from mg2l.envs import registry
from mg2l.envs.finite import NonFiniteStepError
from mg2l.evaluation.meta_test import MetaTest
from mg2l.experience.finite import NonFiniteLossError
from mg2l.training.learner import Learner


def spoil(learner, what, step, value, index=2, agent=1):
    """Make an environment give ``value`` at one of its steps; 0 is the reset."""
    env, clock = env_of(learner), [0]
    honest_reset, honest_step = env.reset, env.step

    def reset(*arguments):
        clock[0] = 0
        observation, info = honest_reset(*arguments)
        if what == "observation" and step == 0:
            observation[index, agent, 3] = value
        return observation, info

    def stepped(actions):
        observation, reward, terminated, truncated, info = honest_step(actions)
        clock[0] += 1
        if clock[0] == step:
            if what == "reward":
                reward[index, agent] = value
            else:
                {"observation": observation, "final": info["final_obs"]}[what][index, agent, 3] = (
                    value
                )
        return observation, reward, terminated, truncated, info

    env.reset, env.step = reset, stepped  # type: ignore[method-assign]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(
    ("what", "step", "value", "said"),
    [
        ("observation", 0, np.nan, r"an observation of nan \(number 3 of it\) .* at the reset"),
        ("observation", 4, np.inf, r"an observation of inf \(number 3 of it\) .* at step 4;"),
        ("final", 10, np.nan, r"an observation of nan \(number 3 of it\) .* at step 10;"),
        ("reward", 7, -np.inf, "a reward of -inf to .* at step 7;"),
    ],
)
def test_what_is_not_finite_is_named(monkeypatch, what, step, value, said, discrete):
    learner = known_learner(discrete=discrete)
    spoil(learner, what, step, value)
    with pytest.raises(NonFiniteStepError, match=said) as raised:
        learner.collect(np.array([0, 1, 1, 0]))
    assert "agent 1 in sub-environment 2, task 'b'" in str(raised.value)
    assert "; 1 of the " in str(raised.value)


def test_large_numbers_pass(monkeypatch):
    learner = known_learner()
    spoil(learner, "observation", 3, 1e30)
    assert learner.collect(np.array([0, 1, 1, 0])).observations.max() > 1e29


def test_training_ends_with_one_line(monkeypatch, tmp_path, capsys):
    class Broken(KnownEnv):
        def step(self, actions):
            found = super().step(actions)
            found[1][0] = np.nan
            return found

    registry.register("known", KnownConfig, Broken)
    pairs = {**TINY, "main_save_path": tmp_path}
    path = tmp_path / "known.yaml"
    path.write_text("family: known\n")
    words = ["--algo=mg2l", f"--env={path}", *overrides(pairs)]
    monkeypatch.setattr("sys.argv", ["train", *words])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: iteration 0: ")  # the exploration before the first
    assert "a reward of nan to agent 0 in sub-environment 0" in line


def test_random_actions_are_checked_too(monkeypatch):
    learner = known_learner()
    test = MetaTest(learner, [0], 3, seed=0)
    monkeypatch.setattr(learner, "env", test.env)
    spoil(learner, "reward", 2, np.nan)
    with pytest.raises(NonFiniteStepError, match="a reward of nan"):
        test.play_random()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=1e308", "(parameters/inference|loss/encoder) is"),
        ("actor_lr=1e308", "(parameters/actor|loss/policy) is"),
        ("critic_lr=1e308", "(parameters/critic|loss/value) is"),
    ],
)
@pytest.mark.parametrize("env", ["mpe-spread", "mpe-hunting"])
def test_a_learning_rate_that_ruins_the_networks(
    monkeypatch, tmp_path, capsys, env, override, said
):
    pairs = {**TINY, "main_save_path": tmp_path, "ppo_epoch": 1, "num_mini_batch": 1}
    words = ["--algo=mg2l", f"--env={env}", *overrides(pairs), override]
    monkeypatch.setattr("sys.argv", ["train", *words])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(
        rf"error: iteration \d: {said} (nan|-?inf); the run stops, the batch is in", line
    )
    (batch,) = tmp_path.glob("*/*/*/nonfinite-*.safetensors")
    assert str(batch) in line


@pytest.mark.parametrize("env", ["mpe-spread", "rware-layout"])
def test_networks_whose_numbers_overflow_end_the_run_as_a_loss_does(env):
    config, _ = cli.parse(["--algo=mappo", f"--env={env}", *overrides(TINY)])
    learner = Learner(config, torch.device("cpu"))
    with torch.no_grad():
        for parameter in learner.actor.parameters():
            parameter.fill_(3e38)
    with pytest.raises(NonFiniteLossError, match="action is"):
        learner.collect(np.zeros(learner.env.num_envs, np.int64))
    learner.close()


@pytest.mark.parametrize("key", ["gain", "observation_clip"])
def test_numbers_beyond_float32_are_refused(key, capsys):
    with pytest.raises(SystemExit):
        cli.parse([f"{key}=1e308"])
    assert f"{key} must be" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_actions_that_are_not_finite_are_named(monkeypatch, fails):
    learner = known_learner()
    act = learner.actor.act

    def spoilt(*arguments):
        action, *rest = act(*arguments)
        return action * np.nan, *rest

    monkeypatch.setattr(learner.actor, "act", spoilt)
    if fails:
        spoil(learner, "reward", 1, np.nan)
    tasks = np.array([0, 1, 1, 0])

    def iterate():
        learner.update_policy(learner.collect(tasks), tasks)

    with pytest.raises(NonFiniteLossError, match="action is") as raised:
        iterate()
    assert "observations" in raised.value.batch
