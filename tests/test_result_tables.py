"""Tables of what runs have shown, and the results that are made of nothing but these."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from run_files import linear, write_run

from mg2l.core.schema import ConfigError
from mg2l.evaluation import frames
from mg2l.evaluation.groups import groups_below
from mg2l.report import __main__ as report
from mg2l.report import charts, results

ROOT = Path(__file__).resolve().parents[1]
TASKS = ["a", "b", "c"]
ERROR = "status 1: `x`"
LEVELS = {"mappo": -30.0, "oracle": -10.0, "mg2l": -15.0, "ma-pearl": -35.0}


def write_tested(root: Path, algo: str, seed: int, env: str) -> None:
    """A run with meta-tests in its course and at its end, and a probe."""
    config = {"algo_name": algo, "env": {"family": "mpe-goals"}}
    folder = write_run(root, algo, seed, linear(1e-4, -40), env=env, config=config)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["time/iteration"] = 2.0
        if row["iteration"] % 10 == 0:
            row["eval/test_1_shots"] = LEVELS[algo] - 30 + row["iteration"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learns = algo == "mg2l"
    tests = []
    for part in ("test", "ood"):
        for mode, shots in (("shots", 0), ("shots", 1), ("online", 0), ("random", 0)):
            level = LEVELS[algo] - (10 if learns and (mode, shots) != ("shots", 1) else 0)
            level = -50.0 if mode == "random" else level + seed
            # On task c of the further tasks the oracle is no better than mappo.
            by_task = dict.fromkeys(TASKS, level)
            if part == "ood":
                by_task["c"] = -30.0
            tests.append(
                {
                    "split": part,
                    "mode": mode,
                    "shots": shots,
                    "sampling": "uniform",
                    "return": float(np.mean(list(by_task.values()))),
                    "by_task": {task: {"return": value} for task, value in by_task.items()},
                }
            )
    scripted = {
        part: {"random": -50.0, "blind": -32.0, "informed": -9.0} for part in ("test", "ood")
    }
    found = {"iteration": 30, "results": tests, "scripted": scripted}
    (folder / "evaluation.json").write_text(json.dumps(found))
    if learns:
        levels = {
            level: {"r2/train": 0.9, "r2/test": r2, "linear": 1.0}
            for level, r2 in (("global", 0.8), ("agent_0", 0.6), ("agent_1", 0.4))
        }
        probe = {"tasks": TASKS, "contexts": {"5": {**levels, "mi/global": 1.0}}, "maps": {}}
        (folder / "probe.json").write_text(json.dumps(probe))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    for env in ("mpe-goals", "mpe-weights"):
        for algo in LEVELS:
            for seed in (0, 1):
                write_tested(root, algo, seed, env)
    lines = [
        {"algo": "mg2l", "env": "mpe-goals", "seed": 0, "state": "done", "error": ""},
        {
            "algo": "focal",
            "env": "mpe-goals",
            "seed": 0,
            "state": "failed",
            "error": "status 1: `x`",
        },
    ]
    (root / "sweep.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def tables(sweep: Path) -> frames.Frames:
    groups, notes = groups_below([sweep], measured=True)
    assert notes == []
    return frames.collect(groups, [sweep])


def section(text: str, title: str) -> str:
    found = re.search(rf"### {re.escape(title)}\n\n(.*?)(?=\n### |\n<!--|\Z)", text, re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def test_tables_are_read_as_they_were_written(tables, tmp_path):
    paths = frames.write(tmp_path / "mine", tables)
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "mine").iterdir()}
    again = frames.read(tmp_path / "mine")
    assert again.records == tables.records
    assert sorted(again.returns) == sorted(tables.returns)
    assert again.bounds == tables.bounds
    assert again.probes == tables.probes
    for ours, theirs in zip(again.points, tables.points, strict=True):
        assert ours[:5] == theirs[:5]
        assert ours[5:] == pytest.approx(theirs[5:], rel=1e-4)
    # What is written is what was read: results do not depend on digits that are not written.
    frames.write(tmp_path / "again", again)
    for path in paths:
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_tables_of_two_machines_become_one(tables):
    def run(row):
        return row.env, row.algo, row.seed

    mine = ("mpe-goals", "mg2l", 0)

    def part(first):
        records = [
            record._replace(state="done" if (run(record) == mine) != first else "waiting")
            for record in tables.records
            if record.state == "done"
        ]
        of_runs = (tables.returns, tables.points, tables.probes)
        returns, points, probes = (
            [x for x in rows if (run(x) == mine) != first] for rows in of_runs
        )
        bounds = [bound for bound in tables.bounds if (bound.env == "mpe-goals") != first]
        return frames.Frames(records, returns, bounds, points, probes)

    here, there = part(False), part(True)
    for kept, added in ((here, there), (there, here)):
        both = frames.merge(kept, added)
        assert sorted(both.returns) == sorted(tables.returns)
        assert sorted(both.points) == sorted(tables.points)
        assert sorted(both.probes) == sorted(tables.probes)
        assert sorted(both.bounds) == sorted(tables.bounds)
        assert sorted(both.records) == sorted(x for x in tables.records if x.state == "done")


def test_a_run_that_is_done_again_replaces_what_it_was(tables):
    again = tables.returns[0]
    higher = [row._replace(value=row.value + 1) for row in tables.returns if row[:4] == again[:4]]
    about = (again.env, again.algo, again.role, again.seed)
    record = next(x for x in tables.records if x[:4] == about)
    both = frames.merge(tables, frames.Frames([record._replace(iterations=7)], higher, [], [], []))
    assert len(both.records) == len(tables.records)
    assert len(both.returns) == len(tables.returns)
    assert {row.value for row in both.returns if row[:4] == again[:4]} == {x.value for x in higher}
    assert [x.iterations for x in both.records].count(7) == 1
    # What failed here does not displace what is done elsewhere.
    failed = frames.Frames([record._replace(state="failed", error="x")], [], [], [], [])
    assert sorted(frames.merge(tables, failed).records) == sorted(tables.records)


def test_the_command_adds_to_tables(sweep, tables, tmp_path):
    from mg2l.report.__main__ import write_frames

    write_frames([sweep / "mpe-goals"], tmp_path / "out")
    few = frames.read(tmp_path / "out")
    assert {record.env for record in few.records} == {"mpe-goals"}
    write_frames([sweep], tmp_path / "out")
    assert sorted(frames.read(tmp_path / "out").returns) == sorted(tables.returns)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="--frames writes what --results reads"):
        write_frames([sweep], tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_records_of_runs_and_of_what_failed(tables):
    done = [record for record in tables.records if record.state == "done"]
    assert len(done) == 2 * 2 * len(LEVELS)
    assert {(record.iterations, record.env_steps, record.seconds) for record in done} == {
        (30, 96000.0, 60.0)
    }
    (failed,) = [record for record in tables.records if record.state != "done"]
    assert (failed.algo, failed.state, failed.error) == ("focal", "failed", ERROR)


def test_tables_that_are_missing_or_damaged(tables, tmp_path):
    with pytest.raises(ConfigError, match="--frames writes what --results reads"):
        frames.read(tmp_path)
    frames.write(tmp_path, tables)
    path = tmp_path / "scripted.csv"
    path.write_text(path.read_text().replace("-50", "low", 1))
    with pytest.raises(ConfigError, match=r"scripted.csv: line 2: could not convert string"):
        frames.read(tmp_path)
    path.write_text("env,part\nmpe-goals,test\n")
    with pytest.raises(ConfigError, match="must have the columns env, part, random"):
        frames.read(tmp_path)


def test_results_say_what_the_tables_hold(tables):
    text = results.markdown("mine", tables)
    assert "16 runs of 4 algorithms on 2 families, 0.3 hours of training" in text
    gain = section(text, "What there is to gain")
    # Means over two seeds are half a unit above the levels. The oracle: (-9.5 + 50) / (-9 + 50).
    assert "| `mpe-goals` | 3 of 3 | -50.0 | -32.0 | -9.0 | -29.5 | -9.5 | 0.99 |" in gain
    pooled = section(text, "All families, held-out tasks").splitlines()
    assert pooled[0] == "| algorithm | families | online | K = 0 | K = 1 |"
    assert [row.split("|")[1].strip() for row in pooled[2:]] == [
        "`oracle`", "`mg2l`", "`mappo`", "`ma-pearl`",
    ]  # fmt: skip
    # -14.5 is 15 of the 20 between -29.5 and -9.5, -24.5 is 5 of them.
    (mine,) = [row for row in pooled if "`mg2l`" in row]
    values = re.findall(r"(-?\d\.\d\d) \[", mine)
    assert values == ["0.25", "0.25", "0.75"]
    at_a_glance = section(text, "Family by family, held-out tasks").splitlines()
    assert at_a_glance[2] == "| family: online, K = 1 | `mg2l` | `ma-pearl` |"
    assert "| `mpe-goals` | 0.25, 0.75 (2) |" in at_a_glance[4]
    episode = section(text, "What one episode is worth")
    assert "| `mg2l` | 2 | 0.50 [0.50, 0.50] |" in episode
    assert "0.80 / 0.50" in section(text, "What representations say about the task")
    costs = section(text, "Environment steps to a score")
    # Meta-tests of mg2l show -35, -25, -15 after 32,000, 64,000 and 96,000 steps.
    assert "| `mpe-goals` | `mg2l` | 1 | 96,000 | never | never |" in costs
    assert "Families of particles" not in text
    grouped = results.markdown("mine", tables, groups={"of particles": ["mpe-weights"]})
    rows = section(grouped, "Families of particles, held-out tasks").splitlines()
    assert {row.split("|")[2].strip() for row in rows[2:]} == {"1"}
    failures = section(text, "Failures")
    assert "- `focal` on `mpe-goals`, seed 0: failed after 0 iterations (status 1: 'x')" in failures
    assert "- `ma-pearl` on `mpe-weights`, held-out tasks: worse than `mappo`" in failures
    assert "tasks beyond the training distribution: 2 of 3 tasks have a score" in failures


def test_families_are_in_the_order_of_a_suite(tables):
    arranged = frames.arrange(tables, ["mpe-weights", "not run"])
    for title in ("Family by family, held-out tasks", "Runs"):
        before, after = (
            section(results.markdown("mine", held), title) for held in (tables, arranged)
        )
        assert before.index("`mpe-goals`") < before.index("`mpe-weights`")
        assert after.index("`mpe-weights`") < after.index("`mpe-goals`")


def test_algorithms_are_compared_by_how_all_were_tested(tables):
    more = [x._replace(shots="2") for x in tables.returns if (x.algo, x.shots) == ("mg2l", "1")]
    assert more
    wider = dataclasses.replace(tables, returns=[*tables.returns, *more])
    text, before = (results.markdown("mine", held) for held in (wider, tables))
    for title in (
        "Family by family, held-out tasks",
        "All families, held-out tasks",
        "What one episode is worth",
    ):
        assert section(text, title) == section(before, title)
    family = "mpe-goals, held-out tasks"
    assert "K = 2" in section(text, family)
    assert "K = 2" not in section(before, family)


def test_runs_that_have_not_begun_are_one_line(tables):
    waiting = [
        tables.records[0]._replace(state="waiting", iterations=0, error="", seed=s) for s in (7, 8)
    ]
    text = results.markdown(
        "mine", dataclasses.replace(tables, records=[*tables.records, *waiting])
    )
    assert section(text, "Failures").count("- 2 runs have not begun, on `mpe-goals`") == 1
    assert "waiting after" not in text


def test_a_page_is_written_between_its_marks(tables, tmp_path):
    page = tmp_path / "results.md"
    results.write(page, "mine", tables, [])
    first = page.read_text()
    page.write_text(f"# Mine\n\nProse.\n\n{first}\nMore.\n")
    results.write(page, "mine", tables, [])
    assert page.read_text() == f"# Mine\n\nProse.\n\n{first}\nMore.\n"
    with pytest.raises(ConfigError, match="must have the lines <!-- results other -->"):
        results.write(page, "other", tables, [])


def test_the_two_commands(sweep, tmp_path, monkeypatch, capsys):
    def run(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["report", *map(str, words)])
        report.main()
        out: str = capsys.readouterr().out
        return out

    assert "returns.csv" in run(sweep, "--frames", tmp_path / "mine")
    shown = run("--results", tmp_path / "mine", "--out", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    pictures = ["mine_shots.png", "mine_curves_test_1_shots.png", "mine_curves_return.png"]
    for name in pictures:
        assert f"]({name})" in page
        assert str(tmp_path / name) in shown
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    # The numbers on the page are those of the tables alone.
    alone = results.markdown("mine", frames.read(tmp_path / "mine"), list(map(Path, pictures)))
    assert alone in page
    for words, said in (
        ([sweep, "--results", tmp_path], "reads tables alone"),
        ([], "a folder of runs is missing"),
    ):
        with pytest.raises(SystemExit):
            run(*words)
        assert said in capsys.readouterr().err


def test_pictures_of_nothing(tmp_path):
    empty = frames.Frames([], [], [], [], [])
    assert charts.draw(tmp_path, "none", empty) == []
    assert results.markdown("none", empty)


@pytest.mark.ci
@pytest.mark.parametrize(
    "folder",
    [table.parent for table in sorted((ROOT / "results").glob("*/runs.csv"))],
    ids=lambda x: x.name,
)
def test_docs_hold_what_the_tables_say(folder, tmp_path, monkeypatch):
    """The page is what the commands of docs/results.md make of the committed tables."""
    page, text = tmp_path / "results.md", (ROOT / "docs/results.md").read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    monkeypatch.setattr(charts, "_grid", lambda path, *_: None)
    monkeypatch.setattr(
        "sys.argv", ["report", "--results", str(folder), "--suite", folder.name, "--out", str(page)]
    )
    report.main()
    assert page.read_text(encoding="utf-8") == text
