"""Suites: comparisons worth repeating, as files of ``configs/suite``.

A file says which algorithms are trained on which families with how many seeds, what is measured of
each run, and in which sizes the whole can be run. Budgets are those of the families' own files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mg2l.cli.jobs import RESULTS
from mg2l.config.files import CONFIGS, available
from mg2l.core.files import read_yaml, require
from mg2l.core.schema import ConfigError, nearest

FULL = "full"
"""Size of a suite where none is asked for."""

ALL = "all"
"""What ``algos`` says for every file of ``configs/algo``."""

SCALAR = (int, float, bool, str)
VALUE = (*SCALAR, [SCALAR])
SHAPE = {
    "runs": [{"envs": [str], "algos": (str, [str]), "seeds": int}],
    "overrides?": {...: VALUE},
    "special?": {...: {...: VALUE}},
    "groups?": {...: [str]},
    "then?": {...: {...: VALUE}},
    "sizes": {...: {"seeds?": int, "budget?": float}},
}
"""``runs``: blocks of a grid. ``overrides`` for all runs, ``special`` for those of one algorithm or
environment. ``groups``: families whose results belong together. ``then``: analyses of
`mg2l.cli.jobs.RESULTS` with their options. ``sizes``: seeds at most, and which fraction of the
budget."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    algo: str
    env: str
    seed: int


def cross(algos: Sequence[str], envs: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Algorithms x environments x seeds, all of one seed before any of the next."""
    return [Cell(algo, env, seed) for seed in seeds for env in envs for algo in algos]


@dataclass(frozen=True)
class Suite:
    """A suite in one of its sizes.

    Attributes:
        cells: its runs, all of one seed before any of the next.
        overrides: ``key=value`` for all of them.
        special: the same by the name of an algorithm or an environment.
        then: options of each analysis, as words of its command line.
        budget: fraction of each run's budget.
        groups: environments by the name of the group that their results are summed up in.
    """

    cells: list[Cell]
    overrides: list[str]
    special: dict[str, list[str]]
    then: dict[str, list[str]]
    budget: float = 1.0
    groups: dict[str, list[str]] = field(default_factory=dict)

    def only(
        self,
        algos: Sequence[str] | None = None,
        envs: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Suite:
        """The suite's runs of these algorithms, environments and seeds; None is all of them.

        Raises:
            ConfigError: it has none of a name or number.
        """
        cells = self.cells
        for option, kind, chosen in (
            ("--algos", "algo", algos), ("--envs", "env", envs), ("--seeds", "seed", seeds),
        ):  # fmt: skip
            if chosen is None:
                continue
            known = list(dict.fromkeys(getattr(cell, kind) for cell in self.cells))
            for one in chosen:
                if one not in known:
                    listed = ", ".join(map(str, known))
                    raise ConfigError(f"{option} {one}: the suite has {listed}")
            cells = [cell for cell in cells if getattr(cell, kind) in chosen]
        return replace(self, cells=cells)


def names() -> list[str]:
    """Suites that are shipped."""
    return available("suite")


def read(name: str, size: str = FULL) -> Suite:
    """A suite by its name, or by the path of its file.

    Args:
        name: of a file of ``configs/suite``, or a path that ends in ``.yaml``.
        size: one of its sizes.

    Raises:
        ConfigError: there is no such file or size, or it is no suite.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in names():
            listed = ", ".join(names())
            raise ConfigError(
                f"--suite={name}: must be one of {listed}, or the path of a YAML file"
                f"{nearest(name, names())}"
            )
        path = CONFIGS / "suite" / f"{name}.yaml"
    found = require(read_yaml(path), SHAPE, path)
    _check_keys(path, "", found, [key.removesuffix("?") for key in SHAPE])
    sizes, then = found["sizes"], found.get("then", {})
    if size not in sizes:
        raise ConfigError(f"--size={size}: {path} has the sizes {', '.join(sizes)}")
    _check_keys(path, f"sizes.{size}.", sizes[size], ["seeds", "budget"])
    _check_keys(path, "then.", then, list(RESULTS))
    for number, block in enumerate(found["runs"]):
        _check_keys(path, f"runs[{number}].", block, ["envs", "algos", "seeds"])
        if isinstance(block["algos"], str) and block["algos"] != ALL:
            raise ConfigError(
                f"{path}: runs[{number}].algos must be a list or {ALL}, got {block['algos']!r}"
            )
    groups, envs = (
        found.get("groups", {}),
        {env for block in found["runs"] for env in block["envs"]},
    )
    for group, members in groups.items():
        _check_keys(path, f"groups.{group}: ", dict.fromkeys(members), sorted(envs))
    budget = float(sizes[size].get("budget", 1))
    if not 0 < budget <= 1:
        raise ConfigError(f"{path}: sizes.{size}.budget must be in (0, 1], got {budget:g}")
    return Suite(
        cells=_cells(found["runs"], sizes[size].get("seeds")),
        overrides=_words(found.get("overrides", {})),
        special={of: _words(values) for of, values in found.get("special", {}).items()},
        then={analysis: _options(values) for analysis, values in then.items()},
        budget=budget,
        groups=groups,
    )


def _check_keys(path: Path, where: str, found: Iterable[str], known: list[str]) -> None:
    for key in found:
        if key not in known:
            listed = ", ".join(known)
            raise ConfigError(
                f"{path}: unknown key {where}{key}; choose one of {listed}{nearest(key, known)}"
            )


def _cells(blocks: list[dict[str, Any]], most: int | None) -> list[Cell]:
    """Runs of all blocks, each once: seed by seed, then in the order of the blocks."""
    seeds: dict[tuple[str, str], int] = {}
    for block in blocks:
        algos = available("algo") if block["algos"] == ALL else block["algos"]
        count = block["seeds"] if most is None else min(block["seeds"], most)
        for env in block["envs"]:
            for algo in algos:
                seeds[env, algo] = max(count, seeds.get((env, algo), 0))
    return [
        Cell(algo, env, seed)
        for seed in range(max(seeds.values(), default=0))
        for (env, algo), count in seeds.items()
        if seed < count
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(values: dict[str, Any]) -> list[str]:
    """Values as overrides of ``mg2l.train``."""
    return [f"{key}={_text(value)}" for key, value in values.items()]


def _options(values: dict[str, Any]) -> list[str]:
    """Values as options of a command."""
    words = []
    for key, value in values.items():
        words.append(f"--{key}")
        words += [_text(item) for item in (value if isinstance(value, list) else [value])]
    return words
