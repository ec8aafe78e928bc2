"""Which OpenGL MuJoCo draws with: it reads ``MUJOCO_GL`` when it is imported, and only then."""

from __future__ import annotations

import ctypes
import os

from mg2l.core.schema import ConfigError

# Each backend, and the libraries of which one of every group must be there.
_LIBRARIES = {
    "egl": (("libEGL.so.1",), ("libOpenGL.so.0", "libGL.so.1")),
    "osmesa": (("libOSMesa.so.8", "libOSMesa.so.6"),),
}


def missing() -> str:
    """The message where pictures are wanted and there is no OpenGL."""
    return (
        f"MuJoCo found no OpenGL to draw with (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}); "
        "install it with: apt-get install libegl1 libopengl0 libgl1-mesa-dri"
    )


def choose() -> None:
    """Set ``MUJOCO_GL``, where it is not set, to a backend that is here and needs no display.

    Without one MuJoCo could not even be imported; it then goes without OpenGL, and all but pictures
    works.

    Raises:
        ConfigError: ``MUJOCO_GL`` is set to a backend whose libraries are not here.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not wanted:
        os.environ["MUJOCO_GL"] = next((name for name in _LIBRARIES if _here(name)), "disable")
    elif wanted in _LIBRARIES and not _here(wanted):
        raise ConfigError(missing())


def _here(backend: str) -> bool:
    return all(any(map(_loads, group)) for group in _LIBRARIES[backend])


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
