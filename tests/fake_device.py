"""A device without a GPU: tensors that lie in the CPU's memory, and say that they do not.

Operators on its tensors are counted and then run on the CPU, so that an iteration can be held to a
budget of kernel launches, copies and synchronisations. A CPU tensor that meets one of the device's
raises, as on a GPU. It says nothing about speed.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from cuda_host.layout import ask
from torch import Tensor, nn
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from mg2l.config.sections import Config
from mg2l.envs.particle.tensors import DeviceParticleEnv
from mg2l.envs.particle.world import ParticleEnv
from mg2l.ops import backend
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate

NAME = "fake"

PHASES = {
    "collect": "rollout",
    "update_policy": "ppo",
    "update_inference": "encoder",
    "explore": "explore",
}
"""Methods of a learner, and the phases that they are."""

aten = torch.ops.aten
_ALLOCATIONS = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}
_WAITING = {
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
}
"""Operators whose result has a shape, or is a number, that the host must wait for."""


def _pool_launches(x: Tensor, query: Tensor, *_: Any) -> int:
    outer, length, inner, _width = x.shape
    return 1 + (ask("pool_splits", outer * inner * len(query), length) > 1)


def _pair_launches(backward: bool, queries: Tensor, keys: Tensor, std: Tensor | None) -> int:
    (groups, count, _), most = queries.shape, keys.shape[1]
    if std is None and count * most >= ask("products_from"):
        chunks = groups * -(-count // ask("product_queries", count, most))
        return chunks * (5 if backward else 3)  # and products of torch among them
    sides = [(count, most), (most, count)][: 1 + backward]
    shared = any(ask("pair_splits", groups, *side) > 1 for side in sides)
    return 1 + shared + (std is not None)


_OPERATORS: dict[str, Callable[..., int]] = {
    "mg2l::gae": lambda *args: 1,
    "mg2l::gae_backward": lambda *args: 1,
    "mg2l::pia_pool": _pool_launches,
    "mg2l::pia_pool_backward": lambda *args: 4,
    "mg2l::pairwise_lse": lambda *args: _pair_launches(False, args[0], args[1], args[4]),
    "mg2l::pairwise_lse_backward": lambda *args: _pair_launches(True, args[4], args[5], args[8]),
    "mg2l::encode_context": lambda *args: 3,
    "mg2l::encode_context_backward": lambda *args: 3,
    "mg2l::film": lambda *args: 1,
    "mg2l::film_backward": lambda *args: 1 if args[3] is None else 2,
    "mg2l::surrogate": lambda *args: 1,
    "mg2l::gaussian_surrogate": lambda *args: 1,
    "mg2l::value_loss": lambda *args: 1,
    "mg2l::contrast": lambda *args: 2,
    "mg2l::clip_norms": lambda *args: 2 * -(-len(args[0]) // 64),
    "mg2l::gelu_mlp": lambda *args: 2 * len(args[1]),
    # Two products, a sum and the activation but of the first layer, which has a product and a sum.
    "mg2l::gelu_mlp_backward": lambda *args: 4 * len(args[2]) - 2 + args[5],
    "mg2l::innovation_moments": lambda *args: 1,
    "mg2l::innovation_moments_backward": lambda *args: 2,
    "mg2l::stacked_mlp": lambda *args: 2 * len(args[1]),
    "mg2l::stacked_mlp_backward": lambda *args: 4 * len(args[2]),  # two products, a sum, the norm
}
"""Launches of the compiled operators, as their launchers in csrc/cuda make them."""


class Counts(Counter[str]):
    """What an iteration, or a phase of it, makes the device do.

    Keys: ``launches`` (kernels), ``copies`` (between host and device, both ways), ``pageable``
    (those of them that wait, as their memory on the host is not pinned), ``synchronisations`` (the
    host waits for the device; those of pageable copies among them), ``waits`` (for actions, in
    pinned memory: an environment on the CPU cannot step without them).
    """


class FakeDevice:
    """Counts by phase; ``device.counts["ppo"]["launches"]``.

    Attributes:
        counts: counts of each phase; ``"other"`` is what no phase is.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        self.phase = "other"
        self.pinned: dict[int, Tensor] = {}

    def add(self, what: str, count: int = 1) -> None:
        self.counts.setdefault(self.phase, Counts())[what] += count

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Count what a block does as a phase's."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    @property
    def total(self) -> Counts:
        return sum(self.counts.values(), Counts())

    def synchronize(self) -> None:
        self.add("synchronisations")

    @staticmethod
    def queues(options: dict[str, Any]) -> bool:
        return bool(options.get("non_blocking", False))

    def copy(self, host: Tensor | None, waits: bool) -> None:
        """Count a copy between the device and ``host``, None for pinned memory."""
        self.add("copies")
        if waits or not (host is None or self.is_pinned(host)):
            self.add("pageable")
            self.add("synchronisations")

    def pin(self, x: Tensor) -> Tensor:
        self.pinned[x.untyped_storage()._cdata] = x
        return x

    def is_pinned(self, x: Tensor) -> bool:
        return x.untyped_storage()._cdata in self.pinned


current: FakeDevice = FakeDevice()
"""What is counted by."""


class DeviceTensor(Tensor):
    """A tensor of the device.

    Attributes:
        raw: where it really is.
    """

    raw: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: Tensor) -> DeviceTensor:
        x = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        x.raw = raw
        return x

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Lets tensors be made on the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = list(_tensors((*args, *kwargs.values())))
    inside = any(isinstance(x, DeviceTensor) for x in tensors)
    target = kwargs.get("device")
    lands = inside if target is None else torch.device(target).type == NAME
    pin = kwargs.pop("pin_memory", None)
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    if func is aten.is_pinned.default:
        return current.is_pinned(args[0])
    if func is aten._pin_memory.default:
        return current.pin(args[0].clone())
    if inside or lands:
        _count(func, args, kwargs, tensors, inside, lands)
    plain_args = _each(_plain, args)
    result = func(*plain_args, **_each(_plain, kwargs))
    if func is aten._to_copy.default and inside != lands and result is plain_args[0]:
        result = result.clone()
    if pin or (func is aten._to_copy.default and inside and not lands and current.queues(kwargs)):
        current.pin(result)
    if func is aten.copy_.default or func is aten._local_scalar_dense.default:
        return args[0] if func is aten.copy_.default else result
    if not lands:
        return result
    written = {id(x.raw): x for x in tensors if isinstance(x, DeviceTensor)}

    def wrap(x: Tensor) -> Tensor:
        return written[id(x)] if id(x) in written else DeviceTensor(x)

    return _each(wrap, result)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for x in values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)


def _plain(x: Tensor) -> Tensor:
    return x.raw if isinstance(x, DeviceTensor) else x


def _each(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """All tensors of nested arguments, changed."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, dict):
        return {key: _each(change, value) for key, value in x.items()}
    return type(x)(_each(change, value) for value in x) if isinstance(x, (list, tuple)) else x


def _count(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[Tensor],
    inside: bool,
    lands: bool,
) -> None:
    """Count what an operator makes the device do.

    Raises:
        RuntimeError: tensors of the host and of the device meet.
    """
    if func is aten._to_copy.default and inside != lands:
        # torch itself pins what it copies to without blocking.
        current.copy(args[0] if lands else None, waits=not current.queues(kwargs))
        return
    if func is aten.copy_.default and isinstance(args[0], DeviceTensor) != isinstance(
        args[1], DeviceTensor
    ):
        host = args[1] if isinstance(args[0], DeviceTensor) else args[0]
        waits = not (kwargs.get("non_blocking", False) or (len(args) > 2 and args[2]))
        current.copy(host, waits)
        return
    if func is aten._local_scalar_dense.default:
        current.add("copies")
        current.add("pageable")
        current.add("synchronisations")
        return
    if func in _ALLOCATIONS or func.is_view:
        return
    indices: list[Tensor] = []
    if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        indices = [x for x in args[1] if x is not None]
        for index in indices:
            if not isinstance(index, DeviceTensor):
                current.copy(index, waits=True)
            if index.dtype == torch.bool and func is aten.index.Tensor:
                current.add("synchronisations")
    elif func in _WAITING:
        current.add("synchronisations")
    held = {id(x) for x in indices}
    foreign = [
        x for x in tensors if not isinstance(x, DeviceTensor) and x.dim() > 0 and id(x) not in held
    ]
    if inside and foreign:
        raise RuntimeError(f"{func}: tensors on two devices, {[list(x.shape) for x in foreign]}")
    launches = _OPERATORS.get(func._schema.name)
    current.add("launches", 1 if launches is None else launches(*args))


class _Stream:
    """The one queue of work of the device."""

    def synchronize(self) -> None:
        current.add("waits")


class _Module:
    """What torch calls the module of a kind of device, such as ``torch.cuda``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Draws are the generators' of a run."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        """Nothing: its generators are those of tests; ``torch.compile`` keeps that of a device."""
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """See `get_rng_state`."""

    def synchronize(self, device: Any = None) -> None:
        current.synchronize()

    def current_stream(self, device: Any = None) -> _Stream:
        return _Stream()


class _Generator(torch.Generator):
    """A stream of the device, whose numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        stream: _Generator = super().__new__(cls)
        return stream

    def __init__(self, device: Any = "cpu") -> None:
        self.on = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.on


@contextlib.contextmanager
def fake_device(patch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """A block in which ``torch.device(NAME)`` is there, and what it does is counted."""
    global current
    if not hasattr(torch, NAME):
        _setup_privateuseone_for_python_backend(NAME, _Module())
    current = FakeDevice()
    patch.setattr(torch, "Generator", _Generator)
    patch.setattr(_foreach_utils, "_foreach_supported_types", [Tensor, nn.Parameter, DeviceTensor])
    patch.setattr(backend, "choose", lambda *_: backend.NATIVE)
    for method, phase in PHASES.items():
        patch.setattr(Learner, method, _counted(getattr(Learner, method), phase))
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Mode():
            yield current
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def _counted(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with current.within(phase):
            return method(*args, **kwargs)

    return call


def count_iteration(config: Config, iterations: int = 2) -> dict[str, Counts]:
    """Counts by phase of the last of some iterations."""
    with pytest.MonkeyPatch.context() as patch, fake_device(patch) as device:
        patch.setattr(ParticleEnv, "to", lambda self, device: self)  # environments on the CPU
        learner = Learner(config, torch.device(NAME, 0))
        learner.prepare()
        for iteration in range(iterations):
            device.counts.clear()
            iterate(learner, iteration)
        return dict(device.counts)


def first_metrics(config: Config, device: torch.device) -> dict[str, object]:
    """Metrics of the first iteration, but its times."""
    learner = Learner(config, device)
    learner.prepare()
    found = iterate(learner, 0)
    return {k: v for k, v in found.items() if "time" not in k and k != "env_steps_per_s"}


def metrics_of_iteration(config: Config) -> dict[str, object]:
    """`first_metrics` on the device."""
    with pytest.MonkeyPatch.context() as patch, fake_device(patch):
        return first_metrics(config, torch.device(NAME, 0))


def worlds_iteration(config: Config, moves: bool) -> tuple[Counts, dict[str, object]]:
    """Counts of a rollout, and metrics, with worlds on the device where they move there."""
    with pytest.MonkeyPatch.context() as patch, fake_device(patch) as device:
        if not moves:
            patch.setattr(ParticleEnv, "to", lambda self, device: self)
        learner = Learner(config, torch.device(NAME, 0))
        assert isinstance(learner.env, DeviceParticleEnv) == moves
        learner.prepare()
        device.counts.clear()
        found = iterate(learner, 0)
        metrics = {k: v for k, v in found.items() if "time" not in k and "per_s" not in k}
        return device.counts["rollout"], metrics
