"""An exported agent: acts, remembers and infers on its own, by NumPy and onnxruntime.

This file needs nothing else of mg2l. ``python -m mg2l.export`` lays a copy of it beside the
networks: there, ``from agent import Agent`` works where neither mg2l nor torch is installed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'exported agents need the package onnxruntime; install it with: pip install "mg2l[export]"'
    ) from error

FORMAT = 2
"""Of ``export.json``."""

MAX_MANIFEST = 2**24
"""Bytes of ``export.json`` at most."""

MAX_MODEL = 2**30
"""Bytes of a network at most."""

MAX_SIZE = 2**24
"""Numbers at most in whatever the manifest says the size of."""

Array = NDArray[np.float32]


def read(folder: Path, name: str, most: int) -> bytes:
    """What a regular file inside a folder holds.

    Args:
        folder: which may have come from anywhere.
        name: of the file, relative to it.
        most: bytes it may have.

    Raises:
        ValueError: it is missing, larger, no regular file, or leads out of the folder.
    """
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name!r} must lie in {folder}")
        if not path.is_file():  # nor is a pipe one, which would be waited for
            raise ValueError(f"{path} must be a file")
        if path.stat().st_size > most:
            raise ValueError(f"{path} must have at most {most} bytes, got {path.stat().st_size}")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def check(manifest: Any) -> None:
    """Judge all of ``export.json`` that an agent reads, which decides how much memory it asks for.

    Raises:
        ValueError: it says no format, no agents, a size that is none or absurd, or a word or number
            that means nothing.
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


class Context:
    """What an agent went through: rows ``(o, a, r, o')``, the oldest overwritten when it is full.

    Args:
        capacity: rows kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.added = capacity, 0
        self.rows: list[Array] = []

    def add(self, row: Array) -> None:
        """Take in a row ``[F]``."""
        if len(self.rows) < self.capacity:
            self.rows.append(row)
        else:
            self.rows[self.added % self.capacity] = row
        self.added += 1

    def draw(self, length: int, rng: np.random.Generator) -> Array:
        """``[length, F]``: rows drawn uniformly, with replacement.

        Raises:
            RuntimeError: there is none yet.
        """
        if not self.rows:
            raise RuntimeError("nothing was observed yet that the task could be inferred from")
        return np.stack([self.rows[i] for i in rng.integers(len(self.rows), size=length)])


class Network:
    """An ONNX model, run on the CPU by one thread.

    Args:
        model: what its file holds.
    """

    def __init__(self, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Outputs by name, for inputs by name; the first axis of all is the batch."""
        return dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))


class Agent:
    """Agent ``index`` of an exported team, which observes nothing but its own experience.

    It starts with an unknown task: where it infers from a context, its latent is a draw from the
    prior, held for an episode, or what it explored with in training, if that was another
    distribution or was drawn more often, until `infer` is called.

    Args:
        folder: what ``mg2l.export`` wrote.
        index: which agent, from 0.
        seed: of its draws; None is another one every time.
        deterministic: act on the most likely action instead of a sample.

    Attributes:
        latent: ``[D]``, what the policy is conditioned on besides observations, or None.
        infers: whether it infers the task from a context, when `infer` is called.
        needs_features: whether it must be given features of its task by `set_task`.

    Raises:
        ValueError: the folder holds no such agent, another format, a file that has changed or lies
            elsewhere, or a size that is absurd.
    """

    def __init__(
        self, folder: Path | str, index: int, seed: int | None = None, deterministic: bool = False
    ) -> None:
        folder, self.index = Path(folder), index
        manifest = read(folder, "export.json", MAX_MANIFEST)
        try:
            self.manifest: dict[str, Any] = json.loads(manifest)
            check(self.manifest)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{folder / 'export.json'} cannot be used: {reason}") from None
        found = [entry for entry in self.manifest["agents"] if entry["index"] == index]
        if not found:
            known = [entry["index"] for entry in self.manifest["agents"]]
            raise ValueError(f"index must be one of {known}, got {index}")
        networks: dict[str, Network] = {}
        for name, files in found[0]["files"].items():
            data = read(folder, files["onnx"], MAX_MODEL)
            if hashlib.sha256(data).hexdigest() != found[0]["sha256"][files["onnx"]]:
                raise ValueError(f"{folder / files['onnx']} is not what was exported")
            if b"\n\x08location" in data:  # weights kept in other files, wherever those lie
                raise ValueError(f"{folder / files['onnx']} must hold its weights itself")
            try:
                networks[name] = Network(data)
            except Exception as error:  # onnxruntime's own classes
                raise ValueError(f"{folder / files['onnx']} is no network: {error}") from None
        self.policy, self.inference = networks["policy"], networks.get("inference")
        self.action: dict[str, Any] = found[0].get("action", self.manifest["action"])
        self.width: int = found[0].get("observation", self.manifest["observation"])
        self.initial = np.array(found[0].get("initial_belief", []), np.float32)
        self.latent: Array | None = None
        self.state: Array | None = None
        self.belief: Array | None = None
        self.rng, self.deterministic = np.random.default_rng(seed), deterministic
        self.source: str = self.manifest["latent"]["source"]
        self.infers, self.needs_features = self.source == "context", self.source == "features"
        self.forget()

    # The course of events.

    def forget(self) -> None:
        """Start a new task: forget all that was observed, inferred, remembered or given."""
        self.inferred = False
        self.latent = None
        if self.infers:
            self.context = Context(self.manifest["context"]["capacity"])
        if self.source == "last_step":
            self.latent = np.zeros(self.manifest["latent"]["width"], np.float32)
        self.state, self.observed = self._zeros("memory"), 0
        self._begin_belief()
        self._draw_prior()

    def reset(self) -> None:
        """Begin an episode, of the task at hand."""
        if self.source == "last_step" and self.observed and self.latent is not None:
            self.latent[-1] = 1  # an episode has ended
        if self.manifest["memory"] is not None and self.manifest["memory"]["reset"] == "episode":
            self.state = self._zeros("memory")
        if self.source == "belief" and self.manifest["belief"]["reset"] == "episode":
            self._begin_belief()
        if not self.inferred:
            self._draw_prior()

    def act(self, observation: ArrayLike, mask: ArrayLike | None = None) -> Any:
        """Action for an observation ``[O]``; once per step, as a memory goes on with it.

        Args:
            observation: as the environment gives it.
            mask: ``[n]`` bool, discrete actions that are allowed, choice after choice; None is all.

        Returns:
            An integer where actions are discrete, ``[choices]`` int64 where they are several, else
            ``[size]`` float32 that may lie outside the action space: environments clip.

        Raises:
            ValueError: observation or mask has another shape, or no action is allowed.
            RuntimeError: it must be given features of its task first.
        """
        if self.infers and not self.inferred:
            refresh = self.manifest["context"].get("explore_refresh", 0)
            if refresh and self.steps_explored == refresh:
                self._draw_prior()
            self.steps_explored += 1
        inputs = {"observation": self._row("observation", observation)[None]}
        if self.source != "nothing":
            if self.latent is None:
                raise RuntimeError("this agent acts on features of its task: call tell() first")
            inputs["latent"] = self.latent[None]
        if self.state is not None:
            inputs["state"] = self.state[None]
        found = self.policy(**inputs)
        if self.state is not None:
            self.state = found["next_state"][0]
        if "logits" in found:
            return self._choose(found["logits"][0], mask)
        mean, std = found["action_mean"][0], found["action_std"][0]
        return mean if self.deterministic else self._normal(mean, std)

    def observe(
        self,
        observation: ArrayLike,
        action: Any,
        reward: float,
        next_observation: ArrayLike,
        alive: bool = True,
    ) -> None:
        """Take in what a step led to.

        Args:
            observation: ``[O]`` that was acted on.
            action: as `act` gave it.
            reward: of this agent.
            next_observation: ``[O]`` that the step led to, also where the episode ended with it.
            alive: whether the agent was alive when it acted. No task is inferred from what it
                did not live through.

        Raises:
            ValueError: a shape is another one.
        """
        row = self.transition(observation, action, reward, next_observation)
        self.observed += 1
        if self.infers and alive:
            self.context.add(row)
        elif self.source == "belief":
            assert self.inference is not None
            assert self.belief is not None
            found = self.inference(transition=row[None], state=self.belief[None])
            self.latent, self.belief = found["latent"][0], found["next_state"][0]
        elif self.source == "last_step":
            width, size = len(self._row("observation", observation)), self._action_width
            described = self.manifest["latent"]
            mean, std = described.get("reward_mean", 0.0), described.get("reward_std", 1.0)
            paid = (float(row[width + size]) - mean) / std
            self.latent = np.append(row[width : width + size], [paid, 0]).astype(np.float32)

    def infer(self) -> Array:
        """Infer the task from what was observed since `forget`, and act on that from now on.

        Returns:
            The latent, ``[D]``.

        Raises:
            RuntimeError: nothing was observed, or the agent does not infer from contexts.
        """
        if not self.infers:
            raise RuntimeError(f"{self.manifest['algorithm']} does not infer from contexts")
        mean, std = self.represent(self.context.draw(self.manifest["context"]["length"], self.rng))
        sampled = self.manifest["context"]["act_on"] == "sample"
        self.latent, self.inferred = self._normal(mean, std) if sampled else mean, True
        return self.latent

    def set_task(self, features: ArrayLike) -> None:
        """Set features of the task, ``[D]``: only where ``needs_features``.

        Raises:
            RuntimeError: the agent is not conditioned on features.
            ValueError: features have another shape.
        """
        if not self.needs_features:
            raise RuntimeError(f"{self.manifest['algorithm']} takes no features of its task")
        self.latent = self._row("features", features)

    # What it is made of.

    def represent(self, context: Array) -> tuple[Array, Array]:
        """Mean and standard deviation ``[D]`` that a context ``[T, F]`` makes of the task.

        Raises:
            RuntimeError: the agent does not infer from contexts.
        """
        if not self.infers or self.inference is None:
            raise RuntimeError(f"{self.manifest['algorithm']} does not infer from contexts")
        found = self.inference(context=np.asarray(context, np.float32)[None])
        return found["z_mean"][0], found["z_std"][0]

    def transition(
        self, observation: ArrayLike, action: Any, reward: float, next_observation: ArrayLike
    ) -> Array:
        """The row ``(o, a, r, o')`` ``[F]``, its action clipped to its space, or one-hot."""
        space, row = self.action, np.zeros(self._action_width, np.float32)
        first = space.get("first", 0)
        if counts := self._counts:
            chosen = np.atleast_1d(np.asarray(action)).astype(np.int64)
            if chosen.shape != (len(counts),) or (chosen < 0).any() or (chosen >= counts).any():
                raise ValueError(f"action must be in [0, {counts}), got {action!r}")
            row[first + np.cumsum([0, *counts[:-1]]) + chosen] = 1
        else:
            low, high = (
                np.array([limit if bound is None else bound for bound in space[name]], np.float32)
                for name, limit in (("low", -np.inf), ("high", np.inf))
            )
            row[: len(low)] = np.clip(np.asarray(action, np.float32), low, high)
        before = self._row("observation", observation)
        after = self._row("next_observation", next_observation)
        return np.concatenate([before, row, np.array([reward], np.float32), after])

    @property
    def _action_width(self) -> int:
        begin, end = self.manifest["transition"]["columns"]["action"]
        return int(end - begin)

    @property
    def _counts(self) -> list[int]:
        """Options of each choice; none where actions are numbers."""
        if self.action["kind"] == "discrete":
            return [self.action["n"]]
        counts: list[int] = self.action.get("counts", [])
        return counts

    def _row(self, name: str, value: ArrayLike) -> Array:
        manifest = self.manifest
        width = manifest["latent"]["width"] if name == "features" else self.width
        row = np.asarray(value, np.float32)
        if row.shape != (width,):
            raise ValueError(f"{name} must have shape ({width},), got {row.shape}")
        if name == "features" or width == manifest["observation"]:
            return row
        return np.pad(row, (0, manifest["observation"] - width))

    def _zeros(self, name: str) -> Array | None:
        described = self.manifest[name]
        return None if described is None else np.zeros(described["shape"], np.float32)

    def _normal(self, mean: Array, std: Array) -> Array:
        return mean + std * self.rng.standard_normal(mean.shape, np.float32)

    def _begin_belief(self) -> None:
        if self.source == "belief":
            self.latent = self.initial
            self.belief = self._zeros("belief")

    def _draw_prior(self) -> None:
        if self.infers:
            self.steps_explored = 0
            if "explorers" in self.manifest["context"]:
                explorers = np.array(self.manifest["context"]["explorers"], np.float32)
                self.latent = self.rng.choice(explorers[:, self.index])
                return
            z = self.rng.standard_normal(self.manifest["latent"]["width"], np.float32)
            if self.manifest["context"]["prior"] == "sphere":
                z *= np.float32(len(z) ** 0.5) / np.linalg.norm(z)
            self.latent = z

    def _choose(self, logits: Array, mask: ArrayLike | None) -> Any:
        if mask is not None:
            allowed = np.asarray(mask, bool)
            ends = np.cumsum(self._counts)[:-1]
            if allowed.shape != logits.shape or not all(map(np.any, np.split(allowed, ends))):
                raise ValueError(f"mask must be {logits.shape} bool with one allowed, got {mask}")
            logits = np.where(allowed, logits, -np.inf)
        if self.action["kind"] == "discrete":
            return self._draw(logits)
        parts = np.split(logits, np.cumsum(self._counts)[:-1])
        return np.array([self._draw(part) for part in parts])

    def _draw(self, logits: Array) -> int:
        if self.deterministic:
            return int(logits.argmax())
        weights = np.exp(logits.astype(np.float64) - logits.max())
        return int(self.rng.choice(len(weights), p=weights / weights.sum()))
