"""TensorBoard, Weights & Biases, MLflow and tables."""

import csv
import importlib.util
import math
import sys
import types
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mg2l import cli
from mg2l.core.schema import ConfigError
from mg2l.training import trackers
from mg2l.training.metrics import MetricsLogger, read_metrics


def row(iteration, value=0.0):
    return {"iteration": iteration, "return": value, "return_by_task": {"a": 1.0, "b": -2.0}}


def logger_of(folder, name, start=0, **config):
    """A logger with a tracker, as a run has it."""
    started = trackers.start([name], folder, start, config)
    return MetricsLogger(folder, start=start, trackers=started)


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def test_tensorboard(tmp_path):
    with logger_of(tmp_path, "tensorboard") as logger:
        for iteration in (1, 2, 3):
            logger.log({**row(iteration, 0.5 * iteration), "bad": math.nan})
    found = events(tmp_path)
    assert set(found.Tags()["scalars"]) == {"return", "return_by_task/a", "return_by_task/b"}
    points = found.Scalars("return")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_tensorboard_hides_what_is_done_again(tmp_path):
    with logger_of(tmp_path, "tensorboard") as logger:
        for iteration in range(1, 5):
            logger.log(row(iteration, 1.0))
    with logger_of(tmp_path, "tensorboard", start=2) as logger:
        logger.log(row(3, 2.0))
    points = events(tmp_path).Scalars("return")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 1.0), (3, 2.0)]


class Wandb(types.ModuleType):
    """Stands in for the package: records its calls."""

    def __init__(self):
        super().__init__("wandb")
        self.rows = []
        self.finished = False

    def init(self, **options):
        self.options = options
        return self

    def log(self, numbers, step):
        self.rows.append((step, numbers))

    def finish(self):
        self.finished = True


@pytest.fixture
def no_wandb_account(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_wandb_works_offline(monkeypatch, tmp_path, no_wandb_account):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder = tmp_path / "mpe-spread" / "mg2l" / "20250101-000000-sd0"
    folder.mkdir(parents=True)
    with logger_of(folder, "wandb", seed=3) as logger:
        logger.log(row(1))
    assert wandb.options["mode"] == "offline"
    assert wandb.options["config"] == {"seed": 3}
    assert wandb.options["dir"] == str(folder)
    assert wandb.options["id"] == "mpe-spread-mg2l-20250101-000000-sd0"
    assert [step for step, _ in wandb.rows] == [1]
    assert wandb.rows[0][1]["return_by_task/b"] == -2.0
    assert wandb.finished


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_API_KEY": "x"}, "online"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_wandb_mode_follows_the_user(monkeypatch, tmp_path, no_wandb_account, variables, mode):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    logger_of(tmp_path, "wandb").close()
    assert wandb.options["mode"] == mode


def test_missing_wandb_is_reported_before_anything_starts(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="log_wandb=true needs the package wandb"):
        logger_of(tmp_path, "wandb")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as info:
        cli.parse(["log_wandb=true"])
    assert info.value.code == 2
    assert capsys.readouterr().err == (
        'error: log_wandb=true needs the package wandb; install with: pip install "mg2l[wandb]"\n'
    )


def test_wandb_that_cannot_start_is_one_line(monkeypatch, tmp_path, no_wandb_account):
    wandb = Wandb()

    def refuse(**_):
        raise RuntimeError("no such host:\n  api.example")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ConfigError, match=r"wandb cannot start: no such host: api\.example; "):
        logger_of(tmp_path, "wandb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["log", "finish"])
def test_wandb_that_fails_later_costs_nothing(
    monkeypatch, tmp_path, no_wandb_account, capsys, what
):
    wandb = Wandb()
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise RuntimeError("the service is gone")

    setattr(wandb, what, fail)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with logger_of(tmp_path, "wandb") as logger:
        for iteration in (1, 2, 3):
            logger.log(row(iteration))
    assert calls == [1]
    assert [row["iteration"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"wandb: {what} failed: the service is gone; it gets no more")


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_column_for_each_number(tmp_path):
    with logger_of(tmp_path, "csv") as logger:
        logger.log(row(1, 0.5))
        logger.log({**row(2, math.nan), "eval/test": 3.0})
        logger.log(row(3, 1.5))
    found = table(tmp_path)
    assert list(found[0]) == [
        "iteration", "return", "return_by_task/a", "return_by_task/b", "eval/test"
    ]  # fmt: skip
    assert [x["iteration"] for x in found] == ["1", "2", "3"]
    assert [x["return"] for x in found] == ["0.5", "", "1.5"]
    assert [x["eval/test"] for x in found] == ["", "3.0", ""]


def test_a_table_drops_what_is_done_again_and_may_begin_late(tmp_path):
    with MetricsLogger(tmp_path) as logger:
        for iteration in range(1, 5):
            logger.log(row(iteration, 1.0))
    with logger_of(tmp_path, "csv", start=2) as logger:
        logger.log(row(3, 2.0))
    assert [(x["iteration"], x["return"]) for x in table(tmp_path)] == [
        ("1", "1.0"), ("2", "1.0"), ("3", "2.0")
    ]  # fmt: skip


class Mlflow:
    """Stands in for the package: runs of one experiment, as its SQL store keeps them."""

    def __init__(self):
        self.runs = []
        self.deleted = []
        self.uri = None
        metric = types.SimpleNamespace
        self.modules: dict[str, Any] = {
            "mlflow": types.ModuleType("mlflow"),
            "mlflow.entities": types.SimpleNamespace(
                Metric=lambda k, v, t, s: metric(key=k, value=v, step=s), Param=lambda k, v: (k, v)
            ),
            "mlflow.tracking": types.SimpleNamespace(MlflowClient=self.client),
        }
        self.modules["mlflow"].entities = self.modules["mlflow.entities"]
        self.modules["mlflow"].tracking = self.modules["mlflow.tracking"]

    def client(self, tracking_uri):
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name) if self.runs else None

    def create_experiment(self, name):
        return name

    def search_runs(self, groups, query):
        return [run for run in self.runs if f"'{run.name}'" in query]

    def create_run(self, group, tags, run_name):
        data = types.SimpleNamespace(metrics={})
        info = types.SimpleNamespace(run_id=str(len(self.runs) + len(self.deleted)))
        run = types.SimpleNamespace(
            info=info, data=data, name=run_name, logged=[], params=[], status="RUNNING"
        )
        self.runs.append(run)
        return run

    def log_batch(self, run_id, metrics=(), params=()):
        run = self.of(run_id)
        run.logged += metrics
        held = dict(run.params)
        for name, value in params:
            assert held.get(name, value) == value, "changing param values is not allowed"
            run.params.append((name, value))
        run.data.metrics.update({metric.key: metric.value for metric in metrics})

    def of(self, run_id):
        return next(run for run in self.runs if run.info.run_id == run_id)

    def delete_run(self, run_id):
        self.deleted.append(self.of(run_id))
        self.runs.remove(self.deleted[-1])

    def update_run(self, run_id, status):
        self.of(run_id).status = status

    def set_terminated(self, run_id):
        self.of(run_id).status = "FINISHED"


@pytest.fixture
def mlflow(monkeypatch):
    package = Mlflow()
    for name, module in package.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return package


def run_folder(tmp_path):
    folder = tmp_path / "mpe-spread" / "mg2l" / "20250101-000000-sd0"
    folder.mkdir(parents=True)
    return folder


def test_mlflow(tmp_path, mlflow):
    with logger_of(run_folder(tmp_path), "mlflow", seed=3, text="x" * 900) as logger:
        logger.log({**row(1, 0.5), "eval": {"targets (0, 1)": 2.0}})
        logger.log(row(2, math.nan))
    (run,) = mlflow.runs
    assert mlflow.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert (run.name, run.status) == ("mpe-spread-mg2l-20250101-000000-sd0", "FINISHED")
    assert run.params == [("seed", "3"), ("text", "x" * 500)]
    logged = {(metric.key, metric.step): metric.value for metric in run.logged}
    assert logged["return", 1] == 0.5
    assert logged["eval/targets _0_ 1_", 1] == 2.0
    assert ("return", 2) not in logged


@pytest.mark.parametrize(("start", "deleted"), [(2, 1), (4, 0)])
def test_mlflow_has_no_iteration_twice(tmp_path, mlflow, start, deleted):
    folder = run_folder(tmp_path)
    with logger_of(folder, "mlflow", n_iters=4) as logger:
        for iteration in range(1, 5):
            logger.log(row(iteration, 1.0))
    with logger_of(folder, "mlflow", start=start, n_iters=9) as logger:
        logger.log(row(start + 1, 2.0))
    (run,) = mlflow.runs
    assert len(mlflow.deleted) == deleted
    found = [(metric.step, metric.value) for metric in run.logged if metric.key == "return"]
    assert found == [*((i, 1.0) for i in range(1, start + 1)), (start + 1, 2.0)]


def test_mlflow_goes_where_its_variable_says(monkeypatch, tmp_path, mlflow):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    logger_of(run_folder(tmp_path), "mlflow").close()
    assert mlflow.uri == "http://localhost:5000"


def test_mlflow_that_cannot_start_is_one_line(monkeypatch, tmp_path, mlflow):
    monkeypatch.setattr(mlflow, "create_experiment", lambda name: 1 / 0)
    with pytest.raises(ConfigError, match="mlflow cannot start: division by zero; MLFLOW_TRACKING"):
        logger_of(run_folder(tmp_path), "mlflow")


def test_mlflow_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        cli.parse(["log_mlflow=true"])
    assert 'log_mlflow=true needs the package mlflow; install with: pip install "mg2l[mlflow]"' in (
        capsys.readouterr().err
    )
