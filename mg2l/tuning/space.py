"""Search space: keys of the configuration, and the values that each may take."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mg2l.config import older
from mg2l.config.keys import Schema
from mg2l.config.saved import RESUMABLE
from mg2l.core.files import parse_yaml
from mg2l.core.schema import ConfigError, Key

if TYPE_CHECKING:
    import optuna

FORMS = "KEY=LOW..HIGH, KEY=log:LOW..HIGH or KEY=A,B,..."

RESAMPLE = 0.25
"""Probability that PBT draws a value afresh in place of perturbing it (Jaderberg et al., 2017)."""

FACTORS = (0.8, 1.2)
"""By one of which PBT multiplies a number (Jaderberg et al., 2017)."""


@dataclass(frozen=True)
class Dimension:
    """A key, and an interval or a list of its values.

    Attributes:
        key: of the configuration.
        choices: in the order in which they were given; empty for an interval.
        low: least value of an interval, which belongs to it.
        high: largest value of an interval, which belongs to it.
        log: whether an interval is searched on a logarithmic scale.
    """

    key: Key
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    @property
    def name(self) -> str:
        """``group.key``."""
        return self.key.path

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all where it matters whether they can be used."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: optuna.trial.Trial) -> Any:
        """The value that a sampler proposes."""
        if self.choices:
            texts = [text(choice) for choice in self.choices]
            return self.choices[texts.index(str(trial.suggest_categorical(self.name, texts)))]
        if self.key.hint is int:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def proposed(self, value: Any) -> Any:
        """A value as `suggest` is given it by a sampler."""
        return text(value) if self.choices else value

    def draw(self, rng: np.random.Generator) -> Any:
        """A value at random."""
        if self.choices:
            return self.choices[rng.integers(len(self.choices))]
        ends = np.array([self.low, self.high], float)
        low, high = np.log(ends) if self.log else ends
        return self._within(
            math.exp(rng.uniform(low, high)) if self.log else rng.uniform(low, high)
        )

    def perturb(self, value: Any, rng: np.random.Generator) -> Any:
        """A value 20 % away from another, or a neighbouring choice; at times one at random."""
        if rng.random() < RESAMPLE:
            return self.draw(rng)
        up = bool(rng.integers(2))
        if self.choices:
            place = self.choices.index(value) + (1 if up else -1)
            return self.choices[min(max(place, 0), len(self.choices) - 1)]
        moved = value * FACTORS[up]
        if self.key.hint is int and round(moved) == value:
            moved = value + (1 if up else -1)
        return self._within(moved)

    def _within(self, value: float) -> Any:
        value = min(max(value, self.low), self.high)
        return round(value) if self.key.hint is int else float(value)


def text(value: Any) -> str:
    """A value as ``key=value`` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def words(params: dict[str, Any]) -> list[str]:
    """Values by key as overrides."""
    return [f"{name}={text(value)}" for name, value in params.items()]


def read(searched: Sequence[str], schema: Schema, given: Sequence[str] = ()) -> list[Dimension]:
    """The space that ``--search`` describes.

    Args:
        searched: one text per key.
        schema: keys of the chosen environment and algorithm.
        given: keys that the command line fixes, as ``Key.path``.

    Raises:
        ConfigError: a text that is of no form, a key that is none, fixed or not to be searched, a
            value that its key refuses, or an interval that is empty.
    """
    found: list[Dimension] = []
    for word in searched:
        dimension = _dimension(word, schema)
        if dimension.name in given:
            raise ConfigError(f"--search {word}: {dimension.name} is also given a fixed value")
        if any(dimension.name == other.name for other in found):
            raise ConfigError(f"--search {word}: {dimension.name} is searched twice")
        found.append(dimension)
    return found


def _dimension(word: str, schema: Schema) -> Dimension:
    name, equals, values = word.partition("=")
    if not name or not equals or not values:
        raise ConfigError(f"--search: expected {FORMS}; got {word!r}")
    try:
        key = schema.find(older.current(name)[0])
    except ConfigError as error:
        raise ConfigError(f"--search {word}: {error}") from None
    if key.path in {*RESUMABLE, "seed", "algo_name", "load_model", "load_model_path"}:
        raise ConfigError(f"--search {word}: {key.path} is not a key of what is learnt")
    interval = re.fullmatch(r"(log:)?([^,]*?)\.\.([^,]*)", values)
    if interval is None:
        return _choices(word, key, values)
    if key.hint not in (int, float):
        raise ConfigError(f"--search {word}: {key.path} is {key.kind}; list its values: A,B,...")
    low, high = (_number(word, key, end) for end in (interval[2], interval[3]))
    if not low < high:
        raise ConfigError(f"--search {word}: {low} must be less than {high}")
    if interval[1] and low <= 0:
        raise ConfigError(f"--search {word}: a logarithmic scale begins above 0, got {low}")
    return Dimension(key, low=low, high=high, log=bool(interval[1]))


def _number(word: str, key: Key, number: str) -> Any:
    try:
        value = parse_yaml(number)
        if isinstance(value, str):
            value = float(value)  # 1e-4, which YAML takes for a text
    except (ConfigError, ValueError):
        raise ConfigError(
            f"--search {word}: {number!r} is not a number; expected {FORMS}"
        ) from None
    try:
        return key.check(value)
    except ConfigError as error:
        raise ConfigError(f"--search {word}: {error}") from None


def _choices(word: str, key: Key, values: str) -> Dimension:
    if values.startswith("log:"):
        raise ConfigError(f"--search {word}: expected {FORMS}")
    try:
        listed = parse_yaml(f"[{values}]")
    except ConfigError:
        listed = None
    if not isinstance(listed, list) or len(listed) < 2:
        raise ConfigError(f"--search {word}: expected {FORMS}, with two values or more")
    try:
        if key.hint is float:
            listed = [float(v) if isinstance(v, str) and _is_number(v) else v for v in listed]
        choices = tuple(key.check(str(v) if key.hint is str else v) for v in listed)
    except ConfigError as error:
        raise ConfigError(f"--search {word}: {error}") from None
    if len({text(choice) for choice in choices}) < len(choices):
        raise ConfigError(f"--search {word}: a value is listed twice")
    return Dimension(key, choices)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
