"""Checkpoints: safetensors for numbers, JSON for everything else; atomic, hashed, no pickle.

A checkpoint is a folder ``<iteration>/`` of two files. It is written beside its place under
another name, flushed to the disk and renamed, so that a process killed at any moment leaves every
older checkpoint whole. ``state.json`` holds the hash of ``state.safetensors`` and of itself:
one changed byte in either is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from mg2l.config.saved import upgrade
from mg2l.core.errors import UserError
from mg2l.core.files import FileError, MissingFileError, parse_json, read_bytes, require
from mg2l.training import older, tree

FORMAT = 2
"""Version of the format; `mg2l.training.older` converts the networks of earlier ones."""

TENSORS, STRUCTURE = "state.safetensors", "state.json"

BEST = "best"
"""Name of the checkpoint that is best by a metric; it is never pruned."""

_PARTIAL, _ASIDE, _TRASH = ".partial-", ".aside-", ".trash-"

MAX_STRUCTURE = 2**26
"""Bytes of ``state.json`` at most."""

MAX_TENSORS = 2**38
"""Bytes of ``state.safetensors`` at most."""

CONTENT = {
    "format": int,
    "mg2l": str,
    "iteration": int,
    "about": dict,
    "tensors_sha256": str,
    "state": dict,
}
"""Schema of ``state.json``."""

FINITE = ("networks", "optimisers")
"""Parts of a state that never hold NaN or infinity, unless they were tampered with."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be used; its message is one line that says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    path: Path
    iteration: int
    """Iterations that were complete when it was written."""

    state: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    """Description of the run: ``mg2l.config.saved.flat(config)`` or the like."""

    version: str = ""
    """Version of mg2l that wrote it."""


def _canonical(content: Any) -> str:
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def to_document(content: Any) -> bytes:
    """Bytes of a JSON file that holds ``content`` and its hash."""
    digest = hashlib.sha256(_canonical(content).encode()).hexdigest()
    return (_canonical({"sha256": digest, "content": content}) + "\n").encode()


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def iterations(folder: Path | str) -> list[int]:
    """Iterations that have a checkpoint in ``folder``, the oldest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    folders = [path for path in folder.iterdir() if re.fullmatch("[0-9]{8,18}", path.name)]
    return sorted(int(path.name) for path in folders if path.is_dir() and not path.is_symlink())


def last_iteration(folder: Path | str) -> int:
    """Iteration of the last checkpoint in ``folder``, 0 before the first."""
    return max(iterations(folder), default=0)


def path_of(folder: Path | str, iteration: int) -> Path:
    """Path of the checkpoint of an iteration."""
    return Path(folder) / f"{iteration:08d}"


def _delete(path: Path) -> None:
    """Remove a folder, file or link at a path; the target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint atomically."""
    trash = path.with_name(_TRASH + path.name)
    _delete(trash)
    path.rename(trash)
    _delete(trash)


def clean(folder: Path | str) -> None:
    """Remove the remains of interrupted writes. Only for the process that owns the run."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if path.name.startswith(_ASIDE):
            place = path.with_name(path.name.removeprefix(_ASIDE))
            if place.exists():
                _delete(path)
            else:
                path.rename(place)
        elif path.name.startswith((_PARTIAL, _TRASH)):
            _delete(path)


def save(
    folder: Path | str,
    iteration: int,
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of an iteration, and remove those of later iterations.

    Args:
        folder: where the run's checkpoints lie; made if missing, in the folder of the run.
        iteration: iterations that are complete.
        state: nested dictionaries, lists and tuples of tensors, arrays and plain values.
        keep: latest checkpoints that stay, this one among them.
        about: description of the run, as plain values; ``load`` compares it.

    Returns:
        The folder of the checkpoint, complete and on the disk.

    Raises:
        TypeError: the state holds something that cannot be saved; the message names its path.
        ValueError: ``keep`` or ``iteration`` is out of range.
        OSError: the disk refused; every older checkpoint is still there.
    """
    if keep < 1 or iteration < 0:
        raise ValueError(f"need keep >= 1 and iteration >= 0, got {keep} and {iteration}")
    folder = Path(folder)
    place = _write_checkpoint(path_of(folder, iteration), iteration, state, about)
    remove_later(folder, iteration)
    for number in iterations(folder)[:-keep]:
        _remove(path_of(folder, number))
    return place


def save_best(
    folder: Path | str,
    iteration: int,
    state: Mapping[str, Any],
    *,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint `BEST` beside those of iterations; arguments and errors as of `save`."""
    return _write_checkpoint(Path(folder) / BEST, iteration, state, about)


def _write_checkpoint(
    place: Path, iteration: int, state: Mapping[str, Any], about: Mapping[str, Any] | None
) -> Path:
    """Write a checkpoint, or replace the one at its place."""
    from mg2l import __version__

    folder = place.parent
    folder.mkdir(exist_ok=True)
    clean(folder)
    structure, tensors = tree.flatten(state)
    about_structure, about_tensors = tree.flatten(dict(about or {}))
    if about_tensors:
        raise TypeError(
            f"about must hold plain values, got a tensor at {next(iter(about_tensors))}"
        )
    partial = place.with_name(_PARTIAL + place.name)
    partial.mkdir()
    try:
        data = safetensors.torch.save(tensors)
        _write(partial / TENSORS, data)
        content = {
            "format": FORMAT,
            "mg2l": __version__,
            "iteration": iteration,
            "about": about_structure,
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
            "state": structure,
        }
        _write(partial / STRUCTURE, to_document(content))
        _sync(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if place.exists():
        place.rename(place.with_name(_ASIDE + place.name))
    partial.rename(place)
    _sync(folder)
    clean(folder)
    return place


def remove_later(folder: Path | str, iteration: int) -> None:
    """Remove checkpoints of later iterations: a run that is resumed here computes them again."""
    folder = Path(folder)
    for number in iterations(folder):
        if number > iteration:
            _remove(path_of(folder, number))


def remove_best_after(folder: Path | str, iteration: int) -> None:
    """Remove `BEST` where it is of a later iteration, which a resumed run computes again."""
    place = Path(folder) / BEST
    if place.is_dir() and load(place).iteration > iteration:
        _remove(place)


def roll_back(folder: Path | str, chosen: Checkpoint) -> None:
    """Make a checkpoint that was loaded the last one of its run, under its iteration's name."""
    folder = Path(folder)
    clean(folder)
    place = path_of(folder, chosen.iteration)
    if not place.exists():
        _write_checkpoint(place, chosen.iteration, chosen.state, chosen.about)
    remove_later(folder, chosen.iteration)


def locate(path: Path | str) -> tuple[Path, str]:
    """Run folder and name of the checkpoint that a path means; the name of a run's last is empty.

    >>> locate("runs/mpe-spread/mg2l/20260101-120000-sd0/checkpoints/best")[1]
    'best'
    """
    path = Path(path)
    if path.parent.name == "checkpoints" and not (path / "config.yaml").exists():
        return path.parent.parent, path.name
    return path, ""


def _read_structure(path: Path) -> dict[str, Any]:
    """Content of ``state.json``, verified. Raises ValueError with the reason it cannot be used."""
    raw = _read(path / STRUCTURE, MAX_STRUCTURE)
    try:
        document = parse_json(raw, STRUCTURE, surrogates=True)
        content = require(document, {"content": dict}, STRUCTURE)["content"]
        whole = to_document(content) == raw
    except ValueError as error:
        raise ValueError(f"{STRUCTURE} is damaged, or not a checkpoint of mg2l") from error
    if not whole:
        raise ValueError(f"{STRUCTURE} is damaged: its hash does not agree")
    if (written := content.get("format")) not in older.FORMATS:
        known = " and ".join(map(str, older.FORMATS))
        raise ValueError(f"{STRUCTURE} has format {written}, this version of mg2l reads {known}")
    structure: dict[str, Any] = require(content, CONTENT, STRUCTURE)
    if path_of(path.parent, content["iteration"]).name != path.name and path.name.isdecimal():
        raise ValueError(f"{STRUCTURE} is of iteration {content['iteration']}, not of this one")
    return structure


def _read(path: Path, most: int) -> bytes:
    """A file of a checkpoint. Raises ValueError with the reason, without the path."""
    try:
        return read_bytes(path, inside=path.parent, most=most)
    except MissingFileError:
        missing = path.name if path.parent.is_dir() else "the folder"
        raise ValueError(f"{missing} is missing") from None
    except FileError as error:
        raise ValueError(str(error).replace(str(path), path.name, 1)) from None


def _advice(path: Path) -> str:
    """Other checkpoints to resume from, as advice."""
    if not path.name.isdecimal():
        return ""
    older = [number for number in iterations(path.parent) if number < int(path.name)]
    if not older:
        return "; there is no earlier checkpoint"
    return f"; the one before it is {path_of(path.parent, older[-1])}: use --resume-previous"


def load(
    path: Path | str,
    *,
    about: Mapping[str, Any] | None = None,
    template: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: folder of the checkpoint.
        about: description of this run; every key must agree with that of the checkpoint.
        template: state of a freshly built run; keys, shapes and dtypes below each of its keys
            must agree (an empty dictionary in it accepts anything).

    Returns:
        The checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, of another format, or of another kind of run.
    """
    path = Path(path)
    try:
        content = _read_structure(path)
        data = _read(path / TENSORS, MAX_TENSORS)
        if hashlib.sha256(data).hexdigest() != content["tensors_sha256"]:
            raise ValueError(f"{TENSORS} is damaged: its hash does not agree")
        tensors = safetensors.torch.load(data)
        state = tree.unflatten(content["state"], tensors)
        said = upgrade(tree.unflatten(content["about"], {}))
        state = older.convert(state, content["format"], said.get("algo_name"))
        for key in FINITE:
            if bad := tree.first_not_finite(state.get(key), key):
                raise ValueError(f"{bad} holds NaN or infinity")
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: {error}{_advice(path)}") from None
    for key, value in (about or {}).items():
        if said.get(key) != value:
            theirs = f"{key}={said[key]}" if key in said else f"no {key}"
            raise CheckpointError(
                f"checkpoint {path} is of another run: it has {theirs}, this run {key}={value}"
            )
    if template is not None:
        compared = {key: value for key, value in state.items() if key in template}
        difference = tree.first_difference(compared, template)
        if difference:
            raise CheckpointError(f"checkpoint {path} does not fit this run: {difference}")
    return Checkpoint(path, content["iteration"], state, said, content["mg2l"])


def load_last(
    folder: Path | str,
    *,
    previous: bool = False,
    about: Mapping[str, Any] | None = None,
    template: Mapping[str, Any] | None = None,
) -> Checkpoint | None:
    """Read the last checkpoint of a run to resume, and remove later ones.

    Args:
        folder: where the run's checkpoints lie.
        previous: where the last one is damaged, take the newest that is whole.
        about: see ``load``.
        template: see ``load``.

    Returns:
        The checkpoint, or None if the run has not written any.

    Raises:
        CheckpointError: see ``load``; the message names the checkpoint before it, if there is one.
    """
    folder = Path(folder)
    clean(folder)
    candidates = iterations(folder)[::-1]
    loaded = None
    for iteration in candidates:
        try:
            loaded = load(path_of(folder, iteration), about=about, template=template)
            break
        except CheckpointError:
            if not previous or iteration == candidates[-1]:
                raise
    if loaded is not None:
        remove_later(folder, loaded.iteration)
    return loaded


def load_networks(
    path: Path | str, template: Mapping[str, Any] | None = None, key: str = "networks"
) -> dict[str, Any]:
    """The networks of a checkpoint, for a warm start.

    Args:
        path: folder of a checkpoint, or of a run, whose last checkpoint is then read.
        template: state of freshly built networks, with which keys and shapes must agree.
        key: where the state keeps its networks.

    Raises:
        CheckpointError: there is no whole checkpoint, or its networks are of other sizes.
    """
    path = Path(path)
    if not (path / STRUCTURE).exists():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        saved = iterations(folder)
        if not saved:
            raise CheckpointError(f"{path}: no checkpoint lies there")
        path = path_of(folder, saved[-1])
    state = load(path).state
    if not isinstance(state.get(key), dict):
        raise CheckpointError(f"checkpoint {path} holds no {key}")
    networks: dict[str, Any] = state[key]
    difference = tree.first_difference(networks, template, key) if template is not None else None
    if difference:
        raise CheckpointError(f"checkpoint {path} does not fit this run: {difference}")
    return networks
