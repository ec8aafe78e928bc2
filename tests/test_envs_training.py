"""Every family through real training, and the names of the original."""

import math

import pytest
import yaml
from method_helpers import TINY

import mg2l.train as train
from mg2l import cli
from mg2l.config.files import CONFIGS, available, load_config
from mg2l.envs import registry
from mg2l.training.metrics import read_metrics


def env_file(family, folder):
    """The family as it is without a file of its own."""
    if family in available("env"):
        return family
    path = folder / "env.yaml"
    path.write_text(yaml.safe_dump({"family": family}))
    return str(path)


@pytest.mark.parametrize("family", registry.names())
def test_two_iterations(family, tmp_path, monkeypatch):
    """Finite losses and returns, and nothing in the working directory but the run."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    values = {**TINY, "main_save_path": "runs", "hidden_sizes_mlp": "[16]"}
    words = [f"{key}={value}".replace("=False", "=false") for key, value in values.items()]
    assert train.run(*cli.parse([f"--env={env_file(family, tmp_path)}", *words])) == 0
    (folder,) = work.glob("runs/*/mg2l/*")
    rows = read_metrics(folder / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        assert all(math.isfinite(row[name]) for name in ("return", "loss/policy", "loss/value"))
        assert math.isfinite(row["mi/global"])
    assert [path.name for path in work.iterdir()] == ["runs"]


def test_names_of_the_original():
    """Its five environments load under its names, with the keys that its files had."""
    cases = {
        "mpe-prey": {"n_agents", "max_ep_len", "n_tasks"},
        "mpe-spread": {"n_agents", "max_ep_len", "n_tasks"},
        "mujoco-cheetah-dir": {"agent_conf", "agent_obsk", "max_ep_len", "n_agents", "n_tasks"},
        "mujoco-hopper-param": {"agent_conf", "agent_obsk", "max_ep_len", "n_agents", "n_tasks"},
        "rware-layout": {"difficulty", "sensor_range", "max_ep_len", "n_agents", "n_tasks"},
    }
    for name, keys in cases.items():
        shipped = yaml.safe_load((CONFIGS / f"env/{name}.yaml").read_text())
        assert keys <= shipped.keys(), name
        config = load_config(env=name)
        for key in keys:
            assert getattr(config.env, key) == shipped[key]
        training = {"ae_batch_size", "ae_buffer_size", "n_init_rollouts", "n_rollout_threads"}
        assert training <= shipped.keys(), name
    hopper = registry.make(load_config(env="mujoco-hopper-param").env, 1)
    assert (hopper.tasks.n_train, len(hopper.tasks.test_ids)) == (50, 20)
