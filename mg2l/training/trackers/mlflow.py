"""A run in MLflow: at ``MLFLOW_TRACKING_URI``, else in ``mlflow.db`` of the folder of all runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mg2l.core.packages import require
from mg2l.core.schema import ConfigError
from mg2l.training.metrics import read_metrics, scalars
from mg2l.training.trackers.base import ServiceTracker, reason

EXPERIMENT = "mg2l"
TAG = "mg2l.run"
MOST = 1000
"""Metrics of one request; the protocol allows no more."""
LONGEST = 500
"""Characters of a parameter's value at most, in the oldest server."""


class MlflowRun(ServiceTracker):
    """Starts a run, or resumes the one of the same folder.

    MLflow cannot drop metrics of a run: where it has iterations that are done again, the run is
    deleted there, and begun again with what ``metrics.jsonl`` has.

    Args:
        folder: the run's; its last three parts are the run's name.
        iteration: of the checkpoint that the run resumes from, or 0.
        config: its parameters.

    Raises:
        ConfigError: mlflow is not installed, or it cannot start.
    """

    name = "mlflow"

    def __init__(self, folder: Path, iteration: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        require("log_mlflow=true", "mlflow", extra="mlflow")
        from mlflow import entities, tracking

        self._metric, self._parameter = entities.Metric, entities.Param
        name = "-".join(folder.resolve().parts[-3:])
        try:
            self._client: Any = tracking.MlflowClient(tracking_uri=uri(folder))
            self._id = self._open(name, folder / "metrics.jsonl", iteration, config)
        except Exception as error:
            raise ConfigError(
                f"log_mlflow=true: mlflow cannot start: {reason(error)}; "
                f"MLFLOW_TRACKING_URI={uri(folder)}"
            ) from error

    def _open(self, name: str, record: Path, iteration: int, config: Mapping[str, Any]) -> str:
        """Identifier of a run with what was logged up to an iteration.

        A run that goes on keeps its parameters, which MLflow does not let change.
        """
        client = self._client
        experiment = client.get_experiment_by_name(EXPERIMENT)
        group = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        for run in client.search_runs([group], f"tags.`{TAG}` = '{name}'"):
            if 0 < run.data.metrics.get("iteration", 0) <= iteration:
                client.update_run(run.info.run_id, status="RUNNING")
                return str(run.info.run_id)
            client.delete_run(run.info.run_id)
        run_id = str(client.create_run(group, tags={TAG: name}, run_name=name).info.run_id)
        values = [self._parameter(_allowed(k), str(v)[:LONGEST]) for k, v in config.items()]
        for some in _parts(values, 100):
            client.log_batch(run_id, params=some)
        rows = read_metrics(record) if iteration and record.exists() else []
        kept = [row for row in rows if row["iteration"] <= iteration]
        metrics = [x for row in kept for x in self._metrics(scalars(row), row["iteration"])]
        for some in _parts(metrics, MOST):
            client.log_batch(run_id, metrics=some)
        return run_id

    def _metrics(self, numbers: Mapping[str, float], iteration: int) -> list[Any]:
        now = time.time_ns() // 1_000_000
        return [self._metric(_allowed(k), v, now, iteration) for k, v in numbers.items()]

    def _log(self, numbers: Mapping[str, float], iteration: int) -> None:
        for some in _parts(self._metrics(numbers, iteration), MOST):
            self._client.log_batch(self._id, metrics=some)

    def _finish(self) -> None:
        self._client.set_terminated(self._id)


def uri(folder: Path) -> str:
    """Where MLflow has its runs."""
    default = f"sqlite:///{folder.resolve().parents[2] / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def _allowed(name: str) -> str:
    """A name with MLflow's characters."""
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name)


def _parts(items: list[Any], most: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some


def start(folder: Path, iteration: int, config: Mapping[str, Any]) -> MlflowRun:
    """A run in MLflow."""
    return MlflowRun(folder, iteration, config)
