"""Versions and builds of this installation: ``python -m mg2l.info``.

Versions, the operators and what they were compiled for, threads, instruction sets and devices:
to include in a bug report.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

import mg2l
from mg2l import cli, ops
from mg2l.ops import native

PACKAGES = ("numpy", "gymnasium", "safetensors", "rich", "tensorboard", "wandb", "mlflow")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _kernels(name: str) -> str:
    """Devices for which the dispatcher has an implementation of an operator."""
    return " ".join(device.upper() for device in native.devices(name)) or "none: its definition"


def _cuda_operators() -> str:
    archs = native.cuda_archs()
    if not archs:
        return "not built (no nvcc when it was installed, or MG2L_CUDA=0)"
    loaded = "loaded"
    if not native.takes_cuda():
        oldest = ".".join(map(str, native.CUDA_TORCH))
        why = "has no CUDA" if torch.version.cuda is None else f"is older than {oldest}"
        loaded = f"not loaded: torch {why}"
    return f"built for compute capabilities {' '.join(archs)}; {loaded}"


def _devices() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("CUDA devices", "none")]
    rows = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        size = f"{device.total_memory / 2**30:.0f} GiB"
        rows.append((f"cuda:{index}", f"{device.name}, sm_{device.major}{device.minor}, {size}"))
    return rows


def describe() -> dict[str, str]:
    """Everything that is printed, by its title."""
    # Asked before the CUDA library is opened to read what it was built for, which registers it.
    kernels = [(f"operator {name}", _kernels(name)) for name in ops.NAMES]
    return dict(
        [
            ("mg2l", f"{mg2l.__version__} in {Path(mg2l.__file__).parent}"),
            ("python", f"{platform.python_version()} on {platform.platform()}"),
            ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
            *((package, _version(package)) for package in PACKAGES),
            ("CPU operators", native.cpu_build()),
            ("CUDA operators", _cuda_operators()),
            *kernels,
            (
                "CPU",
                f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
                f"capability {torch.backends.cpu.get_cpu_capability()}",
            ),
            *_devices(),
        ]
    )


@cli.command
def main() -> None:
    """Print :func:`describe` as a table."""
    rows = describe()
    width = max(map(len, rows))
    for title, text in rows.items():
        print(f"{title:<{width}}  {text}")


if __name__ == "__main__":
    main()
