"""A Ray cluster of several nodes on this machine, which leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

STORE = {"object_store_memory": 100 * 2**20}

PATIENCE = {
    "RAY_worker_niceness": "0",  # else tasks wait for all others of a machine
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "240",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "240",
}
"""What Ray starts within its 30 s on an idle machine may take longer on cores that are shared."""


def processes(session: str) -> list[int]:
    """Processes of a Ray session, by its name in their command lines."""
    listed = subprocess.run(["pgrep", "-f", session], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def patiently(start: Callable[[], T], attempts: int = 3) -> T:
    """Start a node; Ray waits 30 s for it, which is short on cores that are shared."""
    try:
        return start()
    except Exception:
        if attempts == 1:
            raise
    return patiently(start, attempts - 1)


def add_node(cluster: Any, cpus: int) -> None:
    patiently(lambda: cluster.add_node(num_cpus=cpus, **STORE))


def _started(cpus: tuple[int, ...], port: int | None) -> Any:
    from ray.cluster_utils import Cluster

    head: dict[str, Any] = {"num_cpus": cpus[0], "include_dashboard": False, **STORE}
    if port is not None:
        head["ray_client_server_port"] = port
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for count in cpus[1:]:
            add_node(cluster, count)
    except BaseException:
        cluster.shutdown()
        raise
    return cluster


@contextmanager
def ray_cluster(*cpus: int, client: bool = False) -> Iterator[Any]:
    """A cluster with a head and nodes of so many CPUs; programs join it by ``--on auto``.

    Args:
        cpus: of the head, and of every further node.
        client: serve Ray Client at ``cluster.client_port``.
    """
    port = free_port() if client else None
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    cluster = _started(cpus, port)
    cluster.client_port = port
    session = Path(cluster.head_node.get_session_dir_path()).name
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()
        for pid in processes(session):
            os.kill(pid, signal.SIGKILL)


def kill_node(cluster: Any, node: Any) -> None:
    """End a node as a power cut does: its raylet at once, and with it all its workers."""
    cluster.remove_node(node, allow_graceful=False)
