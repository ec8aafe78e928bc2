"""Reading and validation of an export's manifest and files, none of which is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2
"""Version of ``export.json``."""

MAX_MANIFEST = 2**24
"""Bytes of ``export.json`` at most."""

MAX_MODEL = 2**30
"""Bytes of a network at most."""

MAX_SIZE = 2**24
"""Numbers at most in whatever the manifest says the size of."""


def read(folder: Path, name: str, most: int) -> bytes:
    """Read a regular file inside a folder.

    Args:
        folder: an untrusted folder.
        name: name of the file, relative to it.
        most: bytes it may have.

    Raises:
        ValueError: it is missing, larger, no regular file, or leads out of the folder.
    """
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name!r} must lie in {folder}")
        if not path.is_file():  # opening a pipe would block
            raise ValueError(f"{path} must be a file")
        if path.stat().st_size > most:
            raise ValueError(f"{path} must have at most {most} bytes, got {path.stat().st_size}")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def check(manifest: Any) -> None:
    """Validate everything of ``export.json`` that an agent reads, as it determines memory use.

    Raises:
        ValueError: no format, no agents, a size that is missing or absurd, or an unknown word or
            number.
        LookupError: something is missing.
        TypeError: something is of another type.
    """

    def size(value: Any, name: str, least: int = 0) -> int:
        if type(value) is not int or not least <= value <= MAX_SIZE:
            raise ValueError(f"{name} must be an integer in [{least}, {MAX_SIZE}], got {value!r}")
        return value

    def word(value: Any, name: str, *known: str) -> None:
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    def shape(described: Any, name: str) -> None:
        if described is not None:
            count = 1
            for length in described["shape"]:
                count = size(count * size(length, f"{name}.shape"), f"{name}.shape")
            word(described["reset"], f"{name}.reset", "episode", "task")

    if manifest["format"] != FORMAT:
        raise ValueError(f"must be of format {FORMAT}, got {manifest['format']!r}")
    size(manifest["observation"], "observation", 1)
    latent = manifest["latent"]
    word(latent["source"], "latent.source", "nothing", "features", "last_step", "context", "belief")
    size(latent["width"], "latent.width", int(latent["source"] != "nothing"))
    if latent["source"] in ("context", "belief") and manifest[latent["source"]] is None:
        raise ValueError(f"{latent['source']} must be described, as latent.source names it")
    mean, std = latent.get("reward_mean", 0.0), latent.get("reward_std", 1.0)
    if not (abs(mean) < np.inf and 0 < std < np.inf):
        raise ValueError(f"latent.reward_mean and reward_std must be numbers, got {mean} and {std}")
    shape(manifest["memory"], "memory")
    shape(manifest["belief"], "belief")
    if manifest["context"] is not None:
        for name in ("length", "capacity"):
            size(manifest["context"][name], f"context.{name}", 1)
        width = size(manifest["transition"]["width"], "transition.width", 1)
        size(manifest["context"]["length"] * width, "context.length x transition.width")
        word(manifest["context"]["prior"], "context.prior", "sphere", "normal")
        word(manifest["context"]["act_on"], "context.act_on", "sample", "mean")
        size(manifest["context"].get("explore_refresh", 0), "context.explore_refresh")
        for name in ("grows", "explores_on_context"):
            if not isinstance(manifest["context"].get(name, False), bool):
                raise ValueError(f"context.{name} must be true or false")
        if "explorers" in manifest["context"]:
            explorers = np.array(manifest["context"]["explorers"], float)
            rows = explorers.shape[1:]
            if len(rows) != 2 or rows[1] != latent["width"] or not np.isfinite(explorers).all():
                raise ValueError(f"context.explorers must hold {latent['width']} numbers an agent")
    begin, end = manifest["transition"]["columns"]["action"]
    width = size(end, "transition.columns.action") - size(begin, "transition.columns.action")

    def check_action(action: Any) -> None:
        word(action["kind"], "action.kind", "discrete", "choices", "box")
        own = 0
        if action["kind"] == "discrete":
            own = size(action["n"], "action.n", 1)
        elif action["kind"] == "choices":
            own = sum(size(count, "action.counts", 1) for count in action["counts"])
        elif len(action["low"]) != len(action["high"]):
            raise ValueError("action.low and action.high differ in length")
        elif any(type(x) not in (int, float, type(None)) for x in action["low"] + action["high"]):
            raise ValueError("action.low and action.high must hold numbers or null")
        else:
            own = len(action["low"])
        if not 0 < own <= width - size(action.get("first", 0), "action.first"):
            raise ValueError(f"an action of {own} numbers does not fit into transition.columns")

    if manifest["action"] is not None:
        check_action(manifest["action"])
    for entry in manifest["agents"]:
        size(entry["index"], "index")
        if manifest["action"] is None or "action" in entry:
            check_action(entry["action"])
        if not size(entry.get("observation", 1), "observation", 1) <= manifest["observation"]:
            raise ValueError(f"agent {entry['index']} observes more than the team's observation")
        if "policy" not in entry["files"]:
            raise ValueError(f"agent {entry['index']} has no policy")
        if latent["source"] in ("context", "belief") and "inference" not in entry["files"]:
            raise ValueError(f"agent {entry['index']} has no inference")
        np.array(entry.get("initial_belief", []), np.float32)
        for files in entry["files"].values():
            if not isinstance(files["onnx"], str) or files["onnx"] not in entry["sha256"]:
                raise ValueError(f"file {files['onnx']!r} of agent {entry['index']} has no hash")
