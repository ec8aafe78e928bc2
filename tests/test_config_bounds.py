"""Every key of every family: its name, help and default, and the values that it refuses."""

import contextlib
import dataclasses
import math
from typing import get_args, get_origin

import pytest

from mg2l.config.keys import Schema
from mg2l.config.older import RETIRED
from mg2l.config.sections import Config
from mg2l.core import schema
from mg2l.envs import EnvConfig, registry

FAMILIES = registry.names()


@pytest.mark.parametrize("family", FAMILIES)
def test_leaf_names_are_unique(family):
    everything = Schema(family)
    names = [key.name for key in everything.by_path.values()]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)
    assert not set(names) & set(everything.groups)
    assert not set(names) & set(RETIRED)
    assert len(names) > 60


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_has_help_and_a_default_that_it_accepts(family):
    for key in Schema(family).by_path.values():
        assert len(key.help) > 5, key.path
        assert key.check(key.default) == key.default


ODD = {
    int: ["-99", "0.5", "1e3", "1" + 30 * "0", "-1" + 30 * "0", 5000 * "9", ".nan", ".inf"],
    float: [".nan", ".inf", "-.inf", "1e999", "-1" + 400 * "0", "1" + 400 * "0"],
    bool: ["0", "1", "yes", "-1", "1.0"],
    str: [],
}
ODD_ANYWHERE = ["", "null", "[]", "[[1]]", "{}", "{a: 1}", "odd", "2024-01-01", "0x10"]


def keys_of(family):
    """The schema of a family and its keys; of all families but one only their own."""
    everything = Schema(family)
    found = everything.by_path.values()
    return everything, [key for key in found if family == "mpe-spread" or key.group == "env"]


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_values_are_refused_in_one_line(family):
    everything, found = keys_of(family)
    for key in found:
        many = get_origin(key.hint) is list
        (element, *_) = get_args(key.hint) or [key.hint]
        if element is str:
            continue  # every text is valid here; its reader validates the meaning
        texts = [*ODD.get(element, []), *ODD_ANYWHERE]
        texts += [f"[{text}]" for text in texts] + ["true", "[true]"] * (element is not bool)
        for text in texts:
            if many and text == "[]":
                continue  # its reader validates whether it may be empty
            with pytest.raises(schema.ConfigError) as caught:
                everything.overrides([f"{key.path}={text}"])
            message = str(caught.value)
            assert message.startswith(f"{key.name} must be "), message
            assert " got " in message
            assert "\n" not in message
            assert len(message) < 600


@pytest.mark.parametrize("family", FAMILIES)
def test_every_integer_has_an_upper_bound_within_which_all_is_validated(family):
    everything, found = keys_of(family)
    defaults = {key.path: key.default for key in everything.by_path.values()}
    for key in found:
        many = get_origin(key.hint) is list
        (element, *_) = get_args(key.hint) or [key.hint]
        if element is not int:
            continue
        assert key.bounds is not None
        assert key.bounds.le is not None
        assert str(key.bounds.le) in key.kind  # as help shows it
        value = [key.bounds.le] if many else key.bounds.le
        with contextlib.suppress(schema.ConfigError):  # it may conflict with another
            everything.build({**defaults, key.path: value})


def test_an_integer_of_a_family_without_bounds_has_some():
    @dataclasses.dataclass
    class Own(EnvConfig):
        extra: int = 3
        many: list[int] = dataclasses.field(default_factory=lambda: [1])

    assert Own(extra=2**31 - 1).extra == 2**31 - 1
    with pytest.raises(schema.ConfigError, match=r"extra must be in \[-2147483647, 2147483647\]"):
        Own(extra=2**31)
    with pytest.raises(schema.ConfigError, match=r"many must be in"):
        Own(many=[1, 10**30])


def test_sections_validate_what_python_gives_them():
    with pytest.raises(ValueError, match="n_iters must be an integer, got '5'"):
        Config(n_iters="5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"clip_param must be in \(0, 1\), got 2"):
        dataclasses.replace(Config().ppo, clip_param=2)
    assert type(dataclasses.replace(Config().ppo, max_grad_norm=1).max_grad_norm) is float


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (schema.Bounds(ge=1), [1, 2], [0, math.nan], "[1, inf)"),
        (schema.Bounds(gt=0, lt=1), [0.5], [0, 1], "(0, 1)"),
        (schema.Bounds(le=3), [3, -9], [3.1], "(-inf, 3]"),
    ],
)
def test_bounds(bounds, inside, outside, text):
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)
    assert str(bounds) == text
