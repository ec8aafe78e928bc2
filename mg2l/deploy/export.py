"""Agents of a run as files: networks as torch.export programs and as ONNX, and their manifest."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from mg2l.algorithms.agent import AgentNetwork
from mg2l.config.saved import family_of
from mg2l.core.files import write_bytes, write_json, writing
from mg2l.core.packages import require
from mg2l.core.schema import ConfigError
from mg2l.deploy.policy import Policy
from mg2l.deploy.reference import Reference, References
from mg2l.envs import registry
from mg2l.envs.actions import ActionLayout
from mg2l.training.learner import Learner

TOLERANCE = 1e-5
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
VERSIONS = ("mg2l", "torch", *PACKAGES)
RUNTIME = Path(__file__).parent / "agent"


def require_packages() -> None:
    """Check that ONNX can be written and run here.

    Raises:
        ConfigError: a package is missing.
    """
    require("exporting", *PACKAGES, extra="export")


# One network.


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress warnings of torch's exporter about other packages and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_network(network: AgentNetwork, references: list[Reference], stem: Path) -> float:
    """Write ``stem.pt2`` and ``stem.onnx``, read them again, and compare.

    Args:
        network: network of one agent.
        references: the outputs that it must have.
        stem: path without the suffix.

    Returns:
        Largest deviation of the network itself and of both files from the references: absolute,
        and relative for numbers beyond 1.
    """
    if network.fixed_length:
        length = references[-1].inputs["context"].shape[1]
        references = [one for one in references if one.inputs["context"].shape[1] == length]
    example, shapes = {}, {}
    for name, value in references[-1].inputs.items():
        # torch specialises a size of 1 to a constant.
        sizes, dynamic = [2, *value.shape[1:]], {0: torch.export.Dim("batch")}
        if name == "context" and not network.fixed_length:
            sizes[1], dynamic[1] = 2, torch.export.Dim("length")
        example[name], shapes[name] = torch.zeros(sizes), dynamic
    with _quietly(), torch.no_grad():
        program = torch.export.export(network, (), example, dynamic_shapes=shapes)
        for node in program.graph.nodes:  # these would reveal paths of this machine
            node.meta.pop("stack_trace", None)
        # torch and onnx report a full disk in ways of their own, so they write to memory.
        data = io.BytesIO()
        torch.export.save(program, data)
        write_bytes(stem.with_suffix(".pt2"), data.getvalue())
        onnx = torch.onnx.export(
            program, dynamo=True, verbose=False, output_names=list(network.outputs)
        )
        assert onnx is not None
        for written in onnx.model.graph.all_nodes():
            written.metadata_props.clear()
        write_bytes(stem.with_suffix(".onnx"), onnx.model_proto.SerializeToString())
        return deviation(network, references, stem)


def deviation(network: AgentNetwork, references: list[Reference], stem: Path) -> float:
    """Largest deviation of a network, ``stem.pt2`` and ``stem.onnx`` from its references."""
    from mg2l.deploy.agent import Network as Session  # needs onnxruntime

    reloaded = torch.export.load(stem.with_suffix(".pt2")).module()
    session = Session(stem.with_suffix(".onnx").read_bytes())
    largest = 0.0
    for reference in references:
        inputs = {name: value.contiguous() for name, value in reference.inputs.items()}
        by_name = session(**{name: value.numpy() for name, value in inputs.items()})
        by_onnx = [torch.as_tensor(by_name[name]) for name in network.outputs]
        for outputs in (network(**inputs), reloaded(**inputs), by_onnx):
            for got, expected in zip(outputs, reference.outputs, strict=True):
                error = (got - expected).abs() / expected.abs().clamp(min=1)
                error = error.nan_to_num(math.inf)  # NaN is no agreement
                largest = max(largest, float(error.max()))
    return largest


# The manifest.


def _bounds(values: Any) -> list[float | None]:
    """Bounds of a space; None where there is none."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _action(layout: ActionLayout, agent: int) -> dict[str, Any]:
    """An agent's action space; ``first`` is its offset within the action of a transition."""
    space, counts = layout.spaces[agent], layout.counts[agent]
    if not counts:
        return {"kind": "box", "low": _bounds(space.low), "high": _bounds(space.high)}
    first = {"first": layout.numbers} if layout.numbers else {}
    if isinstance(space, spaces.Discrete):
        return {"kind": "discrete", "n": counts[0], **first}
    return {"kind": "choices", "counts": counts, **first}


def describe(learner: Learner, network: AgentNetwork | None) -> dict[str, Any]:
    """Entries of ``export.json`` that all agents have in common.

    Args:
        learner: the learner of the run.
        network: the inference network of an agent.
    """
    from mg2l.deploy.agent import FORMAT  # needs onnxruntime

    config, inference, actor = learner.config, learner.inference, learner.actor
    observation, layout = learner.env.observation_width, learner.env.action_layout
    family = family_of(config.env)
    names = ("observation", "action", "reward", "next_observation")
    edges = [0, *itertools.accumulate([observation, layout.width, 1, observation])]
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "algorithm": config.algo_name,
        "environment": {
            "family": family,
            "module": (registry.families.origin(family) or (None, ""))[0],
            "config": asdict(config.env),
        },
        "team": learner.env.num_agents,
        "observation": observation,
        "action": _action(layout, 0) if layout.equal else None,
        "transition": {
            "width": edges[-1],
            "columns": dict(zip(names, itertools.pairwise(edges), strict=True)),
        },
        "latent": {"source": inference.latent_source, "width": inference.actor_latent_dim},
        "memory": None,
        "context": None,
        "belief": None,
    }
    if (memory := actor.body.memory) is not None:
        reset = config.policy.recurrent_reset
        manifest["memory"] = {"shape": list(memory.state_shape), "reset": reset}
    for part, said in inference.agent_manifest().items():
        manifest[part] = {**(manifest[part] or {}), **said}
    if manifest["context"] is not None and network is not None:
        manifest["context"]["fixed_length"] = network.fixed_length
    return manifest


# A team.


def write_team(
    learner: Learner,
    out: Path,
    agents: Sequence[int] | None = None,
    tolerance: float = TOLERANCE,
    iteration: int | None = None,
    on_agent: Callable[[dict[str, Any]], object] = lambda entry: None,
) -> dict[str, Any]:
    """Export a learner's agents.

    Args:
        learner: on the CPU.
        out: folder to write, all at once; an earlier export there is replaced.
        agents: which; None is all.
        tolerance: largest deviation from what the learner's networks compute: absolute, and
            relative for numbers beyond 1.
        iteration: iteration of the run that its networks are from, for the manifest.
        on_agent: called after each agent with its entry in ``export.json``.

    Returns:
        Content of ``export.json``.

    Raises:
        ConfigError: there is no such agent, execution is not decentralised, a package is missing,
            ``out`` holds something else, or a network deviates by more than ``tolerance``.
        WriteError: it cannot be written; an earlier export is as it was.
    """
    require_packages()
    if out.exists() and not (out / "export.json").is_file():
        raise ConfigError(f"--out={out}: exists and is no earlier export")
    last = learner.env.num_agents - 1
    for index in agents or ():
        if not 0 <= index <= last:
            raise ConfigError(f"--agents: the team has agents 0..{last}, got {index}")
    try:
        manifest = describe(learner, learner.inference.agent_network(0))
    except ValueError as error:
        name = learner.config.algo_name
        raise ConfigError(f"this {name} is not executed decentrally: {error}") from None
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(out):
            partial.mkdir(parents=True)
            shutil.copytree(
                RUNTIME, partial / "agent", ignore=shutil.ignore_patterns("__pycache__")
            )
        references = References(learner)
        manifest["iteration"], manifest["tolerance"] = iteration, tolerance
        manifest["versions"] = {name: importlib.metadata.version(name) for name in VERSIONS}
        manifest["agents"] = []
        for index in range(last + 1) if agents is None else agents:
            entry = write_agent(learner, references, index, partial, tolerance)
            manifest["agents"].append(entry)
            on_agent(entry)
        write_json(partial / "export.json", manifest)
        with writing(out):
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def write_agent(
    learner: Learner, references: References, index: int, folder: Path, tolerance: float
) -> dict[str, Any]:
    """Write the networks of one agent below ``folder``.

    Returns:
        Its entry in ``export.json``.

    Raises:
        ConfigError: a network deviates by more than ``tolerance``.
        WriteError: it cannot be written.
    """
    place = folder / f"agent_{index}"
    with writing(place):
        place.mkdir()
    entry: dict[str, Any] = {"index": index, "files": {}, "sha256": {}, "deviation": {}}
    env = learner.env
    if not env.action_layout.equal:
        entry["action"] = _action(env.action_layout, index)
    if (width := int(env.observation_spaces[index].shape[0])) != env.observation_width:
        entry["observation"] = width
    policy, inference = Policy(learner.actor, index), learner.inference.agent_network(index)
    networks: list[tuple[str, AgentNetwork, list[Reference]]] = [
        ("policy", policy, references.policy(index))
    ]
    if inference is not None:
        networks.append(("inference", inference, references.inference(index)))
        if (latent := inference.initial_latent()) is not None:
            entry["initial_belief"] = latent.tolist()
    for name, network, expected in networks:
        largest = write_network(network, expected, place / name)
        if not largest <= tolerance:
            raise ConfigError(
                f"the {name} of agent {index} deviates by {largest:.1e} from the run's own, by "
                f"more than {tolerance:.1e}; nothing is exported"
            )
        entry["deviation"][name] = largest
        files = {kind: f"{place.name}/{name}.{kind}" for kind in ("onnx", "pt2")}
        for file in files.values():
            entry["sha256"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        entry["files"][name] = files
    return entry
