"""The sections of a report for each environment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import mg2l
from mg2l.core.files import write_text
from mg2l.evaluation.adaptation import PARTS, of_groups
from mg2l.evaluation.groups import Group, different_steps, end, shown, student
from mg2l.evaluation.results import Run, printable
from mg2l.report import adaptation, page, representation, testing, training
from mg2l.report.panels import Section, Style, ordered, seeds
from mg2l.report.training import Algorithms

UNTOLD = ("seed", "main_save_path", "load_model", "load_model_path", "n_training_threads")
"""Keys in which a difference says nothing about algorithms."""


def write(
    path: Path,
    groups: Sequence[Group],
    notes: Sequence[str],
    *,
    last: int,
    window: int,
    env_steps: int | None,
    video_bytes: int,
) -> list[str]:
    """Write the page; returns a line for each video that is left out.

    Args:
        path: path of the page.
        groups: at least one.
        notes: lines on runs and files that are not in it.
        last: iterations that count as the end of a run.
        window: iterations of running means.
        env_steps: environment steps at which every run is cut.
        video_bytes: largest total size of videos.

    Raises:
        WriteError: the page cannot be written.
    """
    style = Style(ordered(group.algo for group in groups))
    parts: dict[str, Sequence[Section]] = {}
    clocks: dict[str, training.Clocks] = {}
    without: list[str] = []
    scored = of_groups(groups)
    for env in dict.fromkeys(group.env for group in groups):
        of_env = {group.algo: group.runs for group in groups if group.env == env}
        algos = {algo: of_env[algo] for algo in ordered(of_env)}
        videos, more = page.videos([run for runs in algos.values() for run in runs], video_bytes)
        without += more
        scores = testing.scores(algos, last, env_steps)
        parts[env] = [
            Section("Runs", html=overview(algos, last, env_steps)),
            training.returns(style, algos, last, window, env_steps),
            training.tasks(style, algos, window),
            adaptation.section(style, [part for part in scored if part.env == env]),
            testing.few_shots(style, algos),
            testing.profiles(style, scores),
            testing.mismatches(algos),
            training.information(style, algos, window),
            training.diagnostics(style, algos, window),
            representation.maps(algos),
            representation.priorities(style, algos),
            training.phases(algos),
            Section("How the configurations differ", html=differences(algos)),
            Section("Software and hardware", html=origins(algos)),
            Section("Videos", html=videos),
        ]
        clocks[env] = training.clocks(algos)
    if notes:
        parts["Left out"] = [Section("Runs and files", html=page.lines(notes))]
    count = sum(len(group.runs) for group in groups)
    about = f"{count} runs, written {time.strftime('%Y-%m-%d %H:%M')} by mg2l {mg2l.__version__}"
    title = f"MG2L: {', '.join(dict.fromkeys(group.env for group in groups))}"
    write_text(path, page.html(title, about, style, parts, clocks))
    return without


def overview(algos: Algorithms, last: int, env_steps: int | None) -> str:
    """Table of the runs with their final returns, and remarks on those that do not count."""
    rows, notes = [], []
    ends = {algo: end(runs, last, env_steps) for algo, runs in algos.items()}
    for algo, found in ends.items():
        runs = algos[algo]
        if found is None:
            notes.append(f"{algo}: no run has an iteration within {env_steps:,} environment steps")
            continue
        value, low, high = found.interval
        planned = {
            None if run.config.get("n_env_steps") else run.config.get("n_iters") for run in runs
        }
        of = f" of {planned.pop()}" if len(planned) == 1 and None not in planned else ""
        rows.append(
            [
                algo,
                seeds(len(found.runs)),
                f"{found.iterations}{of}",
                f"{found.env_steps:,.0f}",
                f"{value:.1f}",
                "" if low != low else f"± {high - value:.1f}",
                *_tested(runs),
            ]
        )
        notes += found.lines
    notes += different_steps(found for found in ends.values() if found is not None)
    header = [
        "algorithm",
        "runs",
        "iterations",
        "environment steps",
        f"return, last {last}",
        "95 %",
    ]
    header += [f"{where}, most shots" for where in PARTS.values()]
    table = page.table(header, rows)
    return table + page.lines(notes)


def _tested(runs: Sequence[Run]) -> list[str]:
    cells = []
    for split in PARTS:
        shots = testing.shots_of(runs, split)
        found = [r for run in runs if shots and (r := testing.row(run, split, "shots", shots[-1]))]
        if not found:
            cells.append("")
            continue
        value, _, high = student(r["return"] for r in found)
        cells.append(f"{value:.1f}" + ("" if len(found) < 2 else f" ± {high - value:.1f}"))
    return cells


def origins(algos: Algorithms) -> str:
    """Table of what the runs were made with, a row for each combination."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for algo, runs in algos.items():
        for run in runs:
            if run.origin:
                started = run.origin["started"]
                changed = " with changes" if started["uncommitted_changes"] else ""
                commit = f"{(started['commit'] or 'unknown')[:10]}{changed}"
                versions = (str(started["packages"].get(name) or "") for name in ("mg2l", "torch"))
                machine = f"{started['cpu'] or 'unknown'}, {started['cores']} cores"
                gpus = ", ".join(started["gpus"])
                key = (commit, *versions, machine, str(started["threads"]), gpus)
                rows.setdefault(tuple(map(printable, key)), []).append(algo)
    header = ["algorithms", "commit", "mg2l", "torch", "processor", "threads", "GPUs", "runs"]
    lines = [
        [", ".join(dict.fromkeys(of_key)), *key, str(len(of_key))] for key, of_key in rows.items()
    ]
    return page.table(header, lines) if lines else ""


def differences(algos: Algorithms) -> str:
    """Table of the keys whose value is not the same in all runs, a column per algorithm."""
    keys = dict.fromkeys(
        key for runs in algos.values() for run in runs for key in run.config if key not in UNTOLD
    )
    rows = []
    for key in keys:
        cells = [_values(runs, key) for runs in algos.values()]
        if len(set(cells)) > 1:
            rows.append([printable(key), *cells])
    return page.table(["key", *algos], rows) if rows else ""


def _values(runs: Sequence[Run], key: str) -> str:
    """The values of an algorithm's runs, mostly one."""
    found = dict.fromkeys(shown(run.config.get(key, "")) for run in runs)
    return " / ".join(found)
