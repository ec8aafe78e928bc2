"""Jobs of SLURM, by submitit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg2l.core.packages import require
from mg2l.core.schema import ConfigError
from mg2l.launch.queue import Queue, QueuedTask
from mg2l.launch.work import LOST, Resources, Work, attend


class Slurm(Queue):
    """Jobs of SLURM, see ``Executor``.

    Args:
        resources: of each job.
        folder: of the sweep, on storage that every node sees at the same path; submitit keeps its
            files in ``slurm/`` there.
        at_once: jobs that are queued at once.
        options: of submitit's SLURM executor by name, such as ``partition`` and ``time`` [min].
        cluster: ``slurm``, or what submitit runs in its place on this machine: ``local``.

    Raises:
        ConfigError: submitit or SLURM is not installed, or an option cannot be.
    """

    def __init__(
        self,
        resources: Resources,
        folder: Path,
        at_once: int,
        options: Mapping[str, str | int] | None = None,
        cluster: str = "slurm",
    ) -> None:
        require("--on=slurm", "submitit", extra="slurm")
        import submitit

        super().__init__("on SLURM", resources, folder, at_once)
        needs: dict[str, Any] = {"slurm_cpus_per_task": resources.cpus, "slurm_job_name": "mg2l"}
        if resources.gpus:
            needs["slurm_gpus_per_node"] = int(resources.gpus)
        if resources.memory:
            needs["slurm_mem"] = f"{round(resources.memory * 1000)}M"
        needs |= {f"slurm_{name}": value for name, value in (options or {}).items()}
        try:
            self._executor = submitit.AutoExecutor(folder / "slurm", cluster=cluster)
            self._executor.update_parameters(**needs)
        except (NameError, RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"--on=slurm: {reason}") from None

    def start(self, work: Work) -> SlurmTask:
        job = self._executor.submit(attend, work, self.threads, self.stop_file, Path.cwd())
        return SlurmTask(work, job)

    def close(self) -> None:
        """Jobs have ended; there is nothing else."""


class SlurmTask(QueuedTask):
    """One job; where SLURM ends it, as at its time limit, its training ends with a checkpoint."""

    def __init__(self, work: Work, job: Any) -> None:
        super().__init__(work)
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return int(self._job.result())
        except (FailedJobError, UncompletedJobError):
            return LOST

    def cancel(self) -> None:
        self._job.cancel()
