"""Everything that an environment may draw random numbers from, seeded for each sub-environment."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_MARK = 0x6D67326C << 96  # prefix of the entropy of generators that were made without a seed
_real_seed = random.Random.seed


class Randomness:
    """States of ``random``, ``numpy.random`` and torch, and entropy for unseeded generators.

    Each sub-environment has its own: those in one process do not disturb each other.

    Args:
        seed: random seed of all of them.
    """

    active: Randomness | None = None  # of the sub-environment at work

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.numpy = np.random.MT19937(seed)
        self.python = random.Random(seed).getstate()
        self.entropy = random.Random(seed)
        self.torch: Any = None

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Draw from these states in the meantime."""
        np.random.set_bit_generator(self.numpy)  # type: ignore[attr-defined]  # stubs lack it
        random.setstate(self.python)
        self._restore_torch()
        Randomness.active = self
        try:
            yield
        finally:
            Randomness.active = None
            self.python = random.getstate()
            self.torch = _torch_state()

    def _restore_torch(self) -> None:
        torch = sys.modules.get("torch")
        if torch is None:
            return
        if self.torch is None:
            torch.manual_seed(self.seed)
            return
        torch.set_rng_state(self.torch[0])
        if self.torch[1] is not None:
            torch.cuda.set_rng_state_all(self.torch[1])


def _torch_state() -> tuple[Any, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda


def replace_entropy() -> None:
    """Let what is made or imported without a seed take it from the active one."""

    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        self.__dict__["unseeded"] = a is None and Randomness.active is not None
        _real_seed(self, _bits(128) if self.__dict__["unseeded"] else a, version)

    def numpy_seed(value: Any = None) -> None:
        real_numpy_seed(_bits(32) if value is None else value)

    real_numpy_seed = np.random.seed
    random.Random.seed = seed  # type: ignore[method-assign]
    random.seed = random._inst.seed
    np.random.seed = numpy_seed  # type: ignore[assignment]
    sys.meta_path.insert(0, _TorchFinder())
    np.random.bit_generator.randbits = _bits  # type: ignore[attr-defined]


_system = random.SystemRandom()


def _bits(count: int) -> int:
    if Randomness.active is None:
        return _system.getrandbits(count)
    if count == 128:
        return _MARK | Randomness.active.entropy.getrandbits(96)
    return Randomness.active.entropy.getrandbits(count)


class _TorchFinder(importlib.abc.MetaPathFinder):
    """Seeds torch as soon as it is imported, which may be in the middle of an episode."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_seed(module: Any) -> None:
                execute(module)
                if Randomness.active is not None:
                    module.manual_seed(Randomness.active.seed)

            spec.loader.exec_module = execute_and_seed  # type: ignore[method-assign]
        return spec


def seed_unseeded(holders: Iterable[Any], seed: int) -> None:
    """Seed the generators that these objects hold and that were made without a seed.

    Those made with one stay: they are part of the task.
    """
    for index, generator in enumerate(_unseeded(holders)):
        if isinstance(generator, random.Random):
            _real_seed(generator, seed + index)
        else:
            sequence = np.random.SeedSequence([_MARK, seed, index])
            generator.state = type(generator)(sequence).state


def _unseeded(holders: Iterable[Any]) -> Iterator[Any]:
    for holder in holders:
        for value in list(getattr(holder, "__dict__", {}).values()):
            if isinstance(value, random.Random):
                if value.__dict__.get("unseeded"):
                    yield value
                continue
            bits = getattr(value, "bit_generator", getattr(value, "_bit_generator", value))
            if isinstance(bits, np.random.BitGenerator):
                entropy = getattr(bits.seed_seq, "entropy", None)
                if isinstance(entropy, int) and entropy >> 96 == _MARK >> 96:
                    yield bits
