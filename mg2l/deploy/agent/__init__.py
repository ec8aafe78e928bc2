"""An exported agent: acts, remembers and infers on its own, by NumPy and onnxruntime.

These files need nothing else of mg2l. ``python -m mg2l.export`` copies them beside the networks:
there, ``from agent import Agent`` works where neither mg2l nor torch is installed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .context import Array, Context
from .manifest import FORMAT, MAX_MANIFEST, MAX_MODEL, check, read
from .network import Network

__all__ = ["FORMAT", "Agent", "Context", "Network"]


class Agent:
    """Agent ``index`` of an exported team, which observes nothing but its own experience.

    It starts with an unknown task: where it infers from a context, its latent is a draw from the
    prior, held for an episode, or if training explored with another distribution or drew more
    often, then as there, until `infer` is called.

    Args:
        folder: folder that ``mg2l.export`` wrote.
        index: which agent, from 0.
        seed: random seed; None is another one every time.
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
        entries = [entry for entry in self.manifest["agents"] if entry["index"] == index]
        if not entries:
            known = [entry["index"] for entry in self.manifest["agents"]]
            raise ValueError(f"index must be one of {known}, got {index}")
        networks: dict[str, Network] = {}
        for name, files in entries[0]["files"].items():
            data = read(folder, files["onnx"], MAX_MODEL)
            if hashlib.sha256(data).hexdigest() != entries[0]["sha256"][files["onnx"]]:
                raise ValueError(f"{folder / files['onnx']} is not what was exported")
            if b"\n\x08location" in data:  # weights kept in other files, wherever those lie
                raise ValueError(f"{folder / files['onnx']} must hold its weights itself")
            try:
                networks[name] = Network(data)
            except Exception as error:  # onnxruntime's own classes
                raise ValueError(f"{folder / files['onnx']} is no network: {error}") from None
        self.policy, self.inference = networks["policy"], networks.get("inference")
        self.action: dict[str, Any] = entries[0].get("action", self.manifest["action"])
        self.width: int = entries[0].get("observation", self.manifest["observation"])
        self.initial = np.array(entries[0].get("initial_belief", []), np.float32)
        self.latent: Array | None = None
        self.state: Array | None = None
        self.belief: Array | None = None
        self.rng, self.deterministic = np.random.default_rng(seed), deterministic
        self.source: str = self.manifest["latent"]["source"]
        self.infers, self.needs_features = self.source == "context", self.source == "features"
        self.forget()

    # Acting and observing.

    def forget(self) -> None:
        """Start a new task: forget everything observed, inferred, remembered or given."""
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
        """Begin an episode of the current task."""
        if self.source == "last_step" and self.observed and self.latent is not None:
            self.latent[-1] = 1  # an episode has ended
        if self.manifest["memory"] is not None and self.manifest["memory"]["reset"] == "episode":
            self.state = self._zeros("memory")
        if self.source == "belief" and self.manifest["belief"]["reset"] == "episode":
            self._begin_belief()
        if not self.inferred and not self._explores_on_context:
            self._draw_prior()

    def act(self, observation: ArrayLike, mask: ArrayLike | None = None) -> Any:
        """Choose an action for an observation ``[O]``; once per step, since memory advances.

        Args:
            observation: as the environment gives it.
            mask: ``[n]`` bool, discrete actions that are allowed, choice after choice; None is all.

        Returns:
            An integer where actions are discrete, ``[choices]`` int64 where they are several, else
            ``[size]`` float32 that may lie outside the action space: environments clip.

        Raises:
            ValueError: observation or mask has the wrong shape, or no action is allowed.
            RuntimeError: it must be given features of its task first.
        """
        if self.infers and not self.inferred and not self._explores_on_context:
            refresh = self.manifest["context"].get("explore_refresh", 0)
            if refresh and self.steps_explored == refresh:
                self._draw_prior()
            self.steps_explored += 1
        inputs = {"observation": self._row("observation", observation)[None]}
        if self.source != "nothing":
            if self.latent is None:
                raise RuntimeError("this agent acts on features of its task: call set_task() first")
            inputs["latent"] = self.latent[None]
        if self.state is not None:
            inputs["state"] = self.state[None]
        outputs = self.policy(**inputs)
        if self.state is not None:
            self.state = outputs["next_state"][0]
        if "logits" in outputs:
            return self._choose(outputs["logits"][0], mask)
        mean, std = outputs["action_mean"][0], outputs["action_std"][0]
        return mean if self.deterministic else self._normal(mean, std)

    def observe(
        self,
        observation: ArrayLike,
        action: Any,
        reward: float,
        next_observation: ArrayLike,
        alive: bool = True,
    ) -> None:
        """Record what a step led to.

        Args:
            observation: ``[O]`` that was acted on.
            action: as `act` gave it.
            reward: reward of this agent.
            next_observation: ``[O]`` that the step led to, also where the episode ended with it.
            alive: whether the agent was alive when it acted. No task is inferred from
                transitions in which it was dead.

        Raises:
            ValueError: a shape is wrong.
        """
        row = self.transition(observation, action, reward, next_observation)
        self.observed += 1
        if self.infers and alive:
            self.context.add(row)
            described = self.manifest["context"]
            if described.get("grows" if self.inferred else "explores_on_context", False):
                self._infer(self._seen())
        elif self.source == "belief":
            assert self.inference is not None
            assert self.belief is not None
            outputs = self.inference(transition=row[None], state=self.belief[None])
            self.latent, self.belief = outputs["latent"][0], outputs["next_state"][0]
        elif self.source == "last_step":
            width, size = len(self._row("observation", observation)), self._action_width
            described = self.manifest["latent"]
            mean, std = described.get("reward_mean", 0.0), described.get("reward_std", 1.0)
            paid = (float(row[width + size]) - mean) / std
            self.latent = np.append(row[width : width + size], [paid, 0]).astype(np.float32)

    def infer(self) -> Array:
        """Infer the task from everything observed since `forget`, and act on the result.

        Where contexts grow, the agent infers again with every step that it observes.

        Returns:
            The latent, ``[D]``.

        Raises:
            RuntimeError: nothing was observed, or the agent does not infer from contexts.
        """
        if not self.infers:
            raise RuntimeError(f"{self.manifest['algorithm']} does not infer from contexts")
        grows = self.manifest["context"].get("grows", False)
        latent = self._infer(self._seen() if grows else self._drawn())
        self.inferred = True
        return latent

    def set_task(self, features: ArrayLike) -> None:
        """Set features of the task, ``[D]``: only where ``needs_features``.

        Raises:
            RuntimeError: the agent is not conditioned on features.
            ValueError: features have another shape.
        """
        if not self.needs_features:
            raise RuntimeError(f"{self.manifest['algorithm']} takes no features of its task")
        self.latent = self._row("features", features)

    # Parts.

    def _seen(self) -> Array:
        """Everything observed; where networks need contexts of one length, as many draws of it."""
        fixed = self.manifest["context"]["fixed_length"]
        return self._drawn() if fixed else self.context.all()

    def _drawn(self) -> Array:
        return self.context.draw(self.manifest["context"]["length"], self.rng)

    def _infer(self, context: Array) -> Array:
        mean, std = self.represent(context)
        sampled = self.manifest["context"]["act_on"] == "sample"
        self.latent = self._normal(mean, std) if sampled else mean
        return self.latent

    def represent(self, context: Array) -> tuple[Array, Array]:
        """Mean and standard deviation ``[D]`` of the representation of a context ``[T, F]``.

        Raises:
            RuntimeError: the agent does not infer from contexts.
        """
        if not self.infers or self.inference is None:
            raise RuntimeError(f"{self.manifest['algorithm']} does not infer from contexts")
        outputs = self.inference(context=np.asarray(context, np.float32)[None])
        return outputs["z_mean"][0], outputs["z_std"][0]

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

    @property
    def _explores_on_context(self) -> bool:
        return self.infers and self.manifest["context"].get("explores_on_context", False) is True

    def _draw_prior(self) -> None:
        if self.infers:
            self.steps_explored = 0
            if self._explores_on_context:
                self.latent = np.zeros(self.manifest["latent"]["width"], np.float32)
                return
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
