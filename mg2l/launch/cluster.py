"""Tasks of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mg2l.core.cluster import connect
from mg2l.core.schema import ConfigError
from mg2l.launch.queue import Queue, QueuedTask
from mg2l.launch.work import LOST, Resources, Work, attend


class Ray(Queue):
    """Tasks of a Ray cluster, see ``Executor``.

    Args:
        on: see `connect`.
        resources: of each task.
        folder: of the sweep, on storage that every node sees at the same path.
        at_once: tasks that are queued at once.

    Raises:
        ConfigError: nothing answers, or no node has as much as a task needs.
    """

    def __init__(self, on: str, resources: Resources, folder: Path, at_once: int) -> None:
        self._ray = connect(on, f"--on={on}")
        super().__init__(f"on Ray, {on}", resources, folder, at_once)
        needed = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory * 1e9}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(n.get(k, 0) >= v for k, v in needed.items()) for n in nodes):
            self._ray.shutdown()
            raise ConfigError(
                f"--on={on}: none of {len(nodes)} nodes has {resources.cpus} CPUs, "
                f"{resources.gpus:g} GPUs and {resources.memory:g} GB of memory"
            )
        self._attend = self._ray.remote(attend).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=int(resources.memory * 1e9) or None,
            max_retries=0,  # what is to be done then is decided here
        )

    def start(self, work: Work) -> RayTask:
        reference = self._attend.remote(work, self.threads, self.stop_file, Path.cwd())
        return RayTask(work, self._ray, reference)

    def close(self) -> None:
        self._ray.shutdown()


class RayTask(QueuedTask):
    """One task; it is lost where its node or worker dies."""

    def __init__(self, work: Work, ray: Any, reference: Any) -> None:
        super().__init__(work)
        self._ray, self._reference = ray, reference

    def poll(self) -> int | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        errors = self._ray.exceptions
        try:
            return int(self._ray.get(self._reference))
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.TaskCancelledError):
            return LOST
        except errors.RayTaskError as error:
            raise ConfigError(f"a task cannot run on the cluster: {error.cause!r}") from None
        except errors.OutOfMemoryError:
            return LOST
        except errors.RayError as error:
            reason = str(error).partition("\n")[0]
            raise ConnectionError(f"the Ray cluster does not answer any more: {reason}") from None

    def cancel(self) -> None:
        self._ray.cancel(self._reference)
