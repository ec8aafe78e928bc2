"""What a report says of each environment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mg2l
from mg2l import statistics
from mg2l.report import page, representation, testing, training
from mg2l.report.panels import Section, Style, ordered, seeds
from mg2l.report.training import Algorithms
from mg2l.results import Run, by_algorithm

UNTOLD = ("seed", "main_save_path", "load_model", "load_model_path", "n_training_threads")
"""Keys that say nothing of how algorithms differ."""


def write(
    path: Path,
    runs: Sequence[Run],
    *,
    last: int,
    window: int,
    env_steps: int | None,
    film_bytes: int,
) -> list[Path]:
    """Write the page; returns the films that found no room.

    Args:
        path: of the page.
        runs: at least one.
        last: iterations that count as the end of a run.
        window: iterations of running means.
        env_steps: where every run ends at the latest.
        film_bytes: of films at most.
    """
    style = Style(ordered([run.algo for run in runs]))
    parts: dict[str, Sequence[Section]] = {}
    left: list[Path] = []
    for env in dict.fromkeys(run.env for run in runs):
        of_env = [run for run in runs if run.env == env]
        found = by_algorithm(of_env)
        algos = {algo: found[algo] for algo in ordered(list(found))}
        films, more = page.films(of_env, film_bytes)
        left += more
        scores = testing.scores(algos, last, env_steps)
        parts[env] = [
            Section("Runs", html=overview(algos, last, env_steps)),
            training.returns(style, algos, last, window, env_steps),
            training.tasks(style, algos, window),
            testing.few_shots(style, algos),
            testing.profiles(style, scores),
            testing.mismatches(algos),
            training.information(style, algos, window),
            representation.maps(algos),
            representation.priorities(style, algos),
            training.phases(algos),
            Section("How the configurations differ", html=differences(of_env)),
            Section("Films", html=films),
        ]
    about = (
        f"{len(runs)} runs, written {time.strftime('%Y-%m-%d %H:%M')} by mg2l {mg2l.__version__}"
    )
    title = f"MG2L: {', '.join(parts)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page.html(title, about, style, parts), encoding="utf-8")
    partial.replace(path)
    return left


def overview(algos: Algorithms, last: int, env_steps: int | None) -> str:
    """Table of what there is, with the return at the end."""
    rows = []
    for algo, runs in algos.items():
        end = statistics.student([run.last_return(last, env_steps) for run in runs])
        planned = {run.config.get("n_iters") for run in runs}
        done = [len(run.rows) for run in runs]
        of = f" of {planned.pop()}" if len(planned) == 1 and None not in planned else ""
        rows.append(
            [
                algo,
                seeds(runs),
                f"{min(done)}{of}" if min(done) == max(done) else f"{min(done)} to {max(done)}{of}",
                f"{min(run.rows[-1]['env_steps'] for run in runs):,}",
                f"{end.value:.1f}",
                "" if end.low != end.low else f"± {end.high - end.value:.1f}",
                *_tested(runs),
            ]
        )
    header = [
        "algorithm",
        "runs",
        "iterations",
        "environment steps",
        f"return, last {last}",
        "95 %",
    ]
    return page.table([*header, "held out, most shots", "trained on, most shots"], rows)


def _tested(runs: Sequence[Run]) -> list[str]:
    cells = []
    for split in testing.SPLITS:
        shots = testing.shots_of(runs, split)
        found = [r for run in runs if shots and (r := testing.row(run, split, "shots", shots[-1]))]
        if not found:
            cells.append("")
            continue
        end = statistics.student([r["return"] for r in found])
        cells.append(
            f"{end.value:.1f}" + ("" if len(found) < 2 else f" ± {end.high - end.value:.1f}")
        )
    return cells


def differences(runs: Sequence[Run]) -> str:
    """Table of the keys whose value is not the same in all runs, a column per algorithm."""
    algos = by_algorithm(runs)
    names = ordered(list(algos))
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in UNTOLD)
    rows = []
    for key in keys:
        cells = [_values(algos[name], key) for name in names]
        if len(set(cells)) > 1:
            rows.append([key, *cells])
    return page.table(["key", *names], rows) if rows else ""


def _values(runs: Sequence[Run], key: str) -> str:
    """The values of an algorithm's runs, mostly one."""
    found: dict[str, Any] = dict.fromkeys(str(run.config.get(key, "")) for run in runs)
    return " / ".join(found)
