"""Videos of environments: an environment that records frames, and files made of them.

GIF and WebP are written by pillow; MP4 by imageio and the ffmpeg of the package imageio-ffmpeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mg2l.core.files import replacing
from mg2l.core.packages import require
from mg2l.core.schema import ConfigError
from mg2l.envs.base import FloatArray, Info, StepResult, VectorEnv

Frames = Sequence[NDArray[np.uint8]]

PACKAGES = {".gif": ("PIL",), ".webp": ("PIL",), ".mp4": ("imageio", "imageio_ffmpeg")}
"""Packages that a video with this ending needs."""


class RecordedEnv(VectorEnv):
    """An environment that renders one of its sub-environments before every step.

    Attributes:
        frames: pictures since the last ``reset``, ``[height, width, 3]`` each.
    """

    def __init__(self, env: VectorEnv, index: int = 0) -> None:
        self.env, self.index = env, index
        self.frames: list[NDArray[np.uint8]] = []
        self.num_envs, self.num_agents = env.num_envs, env.num_agents
        self.observation_spaces, self.action_spaces = env.observation_spaces, env.action_spaces
        self.tasks, self.max_ep_len = env.tasks, env.max_ep_len

    @property
    def task_ids(self) -> NDArray[np.int64]:  # type: ignore[override]
        """See ``VectorEnv``."""
        return self.env.task_ids

    def reset(
        self, seed: int | Sequence[int] | None = None, task_ids: ArrayLike | None = None
    ) -> tuple[FloatArray, Info]:
        self.frames = []
        return self.env.reset(seed, task_ids)

    def step(self, actions: ArrayLike) -> StepResult:
        try:
            self.frames.append(self.env.render(self.index))
        except NotImplementedError as error:
            reason = f": {error}" if str(error) else ""
            name = type(self.env).__name__
            raise ConfigError(
                f"{name} makes no pictures, its render() is missing{reason}"
            ) from None
        return self.env.step(actions)

    def state_dict(self) -> dict[str, Any]:
        return self.env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.env.load_state_dict(state)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        return self.env.render(index)

    def close(self) -> None:
        self.env.close()


def check(path: Path) -> None:
    """Validate a video's file name before anything is recorded.

    Raises:
        ConfigError: it ends in none of `PACKAGES`, or what writes it is missing.
    """
    kind = path.suffix.lower()
    if kind not in PACKAGES:
        raise ConfigError(f"a video must end in {' or '.join(PACKAGES)}, got {path}")
    require(f"a {kind} video", *PACKAGES[kind], extra="video")


def write(path: Path, frames: Frames, fps: float = 20) -> None:
    """Write a video.

    Args:
        path: ends in ``.gif``, ``.webp`` or ``.mp4``.
        frames: pictures of one size.
        fps: pictures per second; a GIF's are whole hundredths of a second long.

    Raises:
        ConfigError: see `check`.
        ValueError: there are no frames.
        WriteError: it cannot be written, such as to a full disk; an earlier video stays.
    """
    check(path)
    if not len(frames):
        raise ValueError("frames must hold at least one picture, got none")
    with replacing(path) as partial:
        if path.suffix.lower() == ".mp4":
            _write_mp4(partial, frames, fps)
        else:
            _write_pillow(partial, frames, fps)


def _write_pillow(path: Path, frames: Frames, fps: float) -> None:
    from PIL import Image

    first, *rest = map(Image.fromarray, frames)
    kind: Any = {"quality": 60, "method": 4} if path.suffix.lower() == ".webp" else {}
    duration = round(1000 / fps)
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0, **kind)


def _write_mp4(path: Path, frames: Frames, fps: float) -> None:
    import imageio.v2 as imageio
    import imageio_ffmpeg

    # The codec wants even sizes: an odd one gets its last row or column again.
    height, width = frames[0].shape[:2]
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    writer: Any = imageio.get_writer(
        path, format="FFMPEG", fps=fps, macro_block_size=1, ffmpeg_log_level="quiet"
    )
    try:
        with writer:
            for frame in frames:
                writer.append_data(np.pad(frame, odd, mode="edge"))
        written, _ = imageio_ffmpeg.count_frames_and_secs(path)  # ffmpeg's status is not reported
    except (OSError, RuntimeError):
        written = 0
    if written != len(frames):
        raise OSError(f"ffmpeg has written {written} of {len(frames)} pictures")
