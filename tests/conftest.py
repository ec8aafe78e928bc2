import os
import signal
from collections.abc import Iterator

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # before torch: they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest
import torch

from mg2l.config.algorithms import algorithms
from mg2l.envs import registry
from mg2l.envs.mujoco import opengl

opengl.choose()  # before a test's import of mujoco

# A background job of a shell ignores Ctrl-C, one under nohup SIGHUP, and so do all its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that is there: a GPU is tested on machines that have one."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    with registry.families.scope(), algorithms.scope():
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
