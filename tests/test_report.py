"""The report of a small sweep, looked at in a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from method_helpers import TINY, overrides
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from mg2l import cli, evaluate, probe, results, train
from mg2l.envs import video
from mg2l.report import __main__ as report
from mg2l.report import contents, page, panels, testing

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def trained(root: Path, algo: str, seed: int, n_iters: int = 3) -> Path:
    values = {**TINY, "save_model": True, "eval_interval": 1, "eval_episodes": 1}
    values |= {"eval_shots": [0, 1], "n_iters": n_iters, "seed": seed, "main_save_path": root}
    words = [f"--algo={algo}", *overrides(values)]
    assert train.train(*cli.parse(words)) == 0
    (folder,) = root.glob(f"*/{algo}/*-sd{seed}")
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of three algorithms, tested and probed, and a run that has only begun."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "EPISODES", 4)
        patch.setattr(probe, "CONTEXTS", 8)
        for algo in ("mg2l", "mappo", "oracle"):
            for seed in (0, 1):
                folder = trained(root, algo, seed)
                patch.setattr("sys.argv", ["", str(folder), "--shots", "0", "2", "--episodes", "2"])
                evaluate.main()
                if algo == "mg2l":
                    patch.setattr("sys.argv", ["", str(folder), "--episodes", "1", "--by", "pca"])
                    probe.main()
    film = np.random.default_rng(0).integers(255, size=(4, 40, 60, 3), dtype=np.uint8)
    (first,) = root.glob("*/mg2l/*-sd0")
    for name in ("task.gif", "task.mp4"):
        video.write(first / "videos" / name, list(film))
    return root


@pytest.fixture(scope="module")
def runs(sweep: Path) -> list[results.Run]:
    return results.find([sweep])


def write(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["report", *map(str, words)])
    report.main()


# What it says.


def test_finds_each_run_once(sweep: Path, runs: list[results.Run]) -> None:
    assert len(runs) == 6
    assert [run.folder for run in results.find([sweep, sweep / "mpe-spread", runs[0].folder])] == [
        run.folder for run in runs
    ]
    assert [(run.algo, run.env, run.seed) for run in runs[:2]] == [
        ("mappo", "mpe-spread", 0), ("mappo", "mpe-spread", 1),
    ]  # fmt: skip


def measured(algo: str, seed: int, **returns: list[float]) -> results.Run:
    """A run whose meta-test gave these returns, ``random=[of task b, of task a]``."""
    run = results.Run(Path(f"env/{algo}/run-sd{seed}"), [])
    ways = {"random": ("random", 0), "none": ("shots", 0), "two": ("shots", 2)}
    run.__dict__["evaluation"] = {
        "results": [
            {
                "split": "test",
                "mode": ways[name][0],
                "shots": ways[name][1],
                "sampling": "uniform",
                "by_task": {task: {"return": x} for task, x in zip("ba", values, strict=True)},
            }
            for name, values in returns.items()
        ]
    }
    return run


def test_scores_are_normalised_by_task() -> None:
    algos = {
        "mg2l": [
            measured("mg2l", 0, random=[0, 10], none=[1, 10], two=[5, 20]),
            measured("mg2l", 1, random=[2, 10], none=[1, 10], two=[1, 40]),
        ],
        "oracle": [measured("oracle", 0, random=[1, 10], none=[0, 0], two=[9, 30])],
    }
    found = testing.scores(algos, 20, None)
    assert found.normalised
    assert found.what == "normalised return on held-out tasks, 2 shots"
    # Columns are the tasks a and b: from 10 to 30, and from 1 to 9.
    np.testing.assert_allclose(found.by_algo["mg2l"], [[0.5, 0.5], [1.5, 0]])
    np.testing.assert_allclose(found.by_algo["oracle"], [[1, 1]])
    algos["oracle"] = [measured("oracle", 0, random=[1, 10], none=[0, 0], two=[9, 9])]
    found = testing.scores(algos, 20, None)
    assert not found.normalised
    np.testing.assert_allclose(found.by_algo["mg2l"], [[20, 5], [40, 1]])


def test_untested_runs_are_scored_by_training(runs: list[results.Run]) -> None:
    algos = {"mg2l": runs[2:4], "other": [results.Run(runs[0].folder, runs[0].rows)]}
    assert all(run.algo == "mg2l" for run in algos["mg2l"])
    algos["other"][0].__dict__["evaluation"] = None
    found = testing.scores(algos, 2, None)
    assert found.what == "return at the end of training"
    met_by_both = set.intersection(*({*run.last_by_task(2)} for run in algos["mg2l"]))
    for task, column in zip(sorted(met_by_both), found.by_algo["mg2l"].T, strict=True):
        for run, value in zip(algos["mg2l"], column, strict=True):
            met = [row["return_by_task"] for row in run.rows[-2:]]
            values = [row[task] for row in met if task in row]
            assert value == pytest.approx(np.mean(values))


def test_cut_at_environment_steps(runs: list[results.Run]) -> None:
    run = results.by_algorithm(runs)["mappo"][0]
    steps = run.rows[0]["env_steps"]
    assert run.last_return(20, steps) == run.rows[0]["return"]
    assert np.isnan(run.last_return(20, steps - 1))


def test_configurations_differ_where_they_do(runs: list[results.Run]) -> None:
    html = contents.differences(runs)
    assert "algo_name" in html
    assert "gamma" not in html
    assert "main_save_path" not in html


def test_colours_are_the_same_on_every_page() -> None:
    names = [f"a{k}" for k in range(30)]
    few, many = (
        panels.Style(panels.ordered(["b", "oracle", "mg2l"])),
        panels.Style(panels.ordered([*names, "oracle", "mg2l"])),
    )
    assert few.colour("mg2l") == many.colour("mg2l")
    looks = {(many.colour(name), many.dash(name)) for name in many.algos}
    assert len(looks) == len(many.algos)


# What a browser makes of it.


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    assert CHROMIUM, "needs Chromium: apt-get install chromium"
    assert DRIVER, "needs its driver: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def look(browser: webdriver.Chrome, path: Path, width: int) -> list[dict[str, Any]]:
    """Open a page, see that it is sound, and return what each figure shows."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(path.resolve().as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {path.resolve().as_uri()}
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    figures: list[dict[str, Any]] = browser.execute_script(
        """return [...document.querySelectorAll(".js-plotly-plot")].map((plot) => ({
          title: plot.closest(".panel").querySelector("h4").textContent,
          algos: plot.data.map((trace) => trace.meta),
          drawn: plot.querySelectorAll(".trace, .hm image, .bars .point").length,
          width: plot.getBoundingClientRect().width,
          right: plot.getBoundingClientRect().right,
        }))"""
    )
    for figure in figures:
        assert figure["drawn"] > 0, figure
        assert 200 < figure["width"] <= figure["right"] <= width, figure
    return figures


@pytest.mark.parametrize("width", [1280, 400])
def test_everything_is_drawn(
    browser: webdriver.Chrome, sweep: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    write(monkeypatch, sweep)
    figures = look(browser, sweep / "report.html", width)
    titles = {figure["title"] for figure in figures}
    assert {
        "Learning curves", "At the end", "Task 0", "Task 2", "On held-out tasks",
        "On tasks of training", "1 shots on held-out tasks, while training", "Interquartile mean",
        "Probability that mg2l improves on the other", "Performance profiles",
        "mg2l, tasks of training", "Global information", "Gap from global to local",
        "mg2l: agent 1, PCA", "Phases of an iteration",
    } <= titles  # fmt: skip
    (curves,) = [figure for figure in figures if figure["title"] == "Learning curves"]
    assert curves["algos"] == ["mg2l", "mappo", "oracle"] * 2  # intervals below all lines
    headings = browser.execute_script(
        "return [...document.querySelectorAll('h3')].map((heading) => heading.textContent)"
    )
    assert {"Runs", "Attention priorities", "How the configurations differ", "Films"} <= {*headings}
    for size in ("querySelector('img').naturalWidth", "querySelector('video').videoWidth"):
        wide = browser.execute_async_script(
            """const [size, done] = arguments, ask = new Function(`return document.${size}`);
            const again = () => (ask() ? done(ask()) : setTimeout(again, 20)); again()""",
            size,
        )
        assert wide == 60


def test_a_click_hides_an_algorithm_everywhere(
    browser: webdriver.Chrome, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(monkeypatch, sweep)
    look(browser, sweep / "report.html", 1280)
    seen = """return [...document.querySelectorAll(".js-plotly-plot")].flatMap((plot) =>
      plot.data.filter((trace) => trace.meta === "mappo").map((trace) => trace.visible ?? true))"""
    assert all(browser.execute_script(seen))
    browser.execute_script("document.querySelector('[data-algo=mappo]').click()")
    assert not any(browser.execute_script(seen))
    browser.execute_script("document.querySelector('[data-algo=mappo]').click()")
    assert all(browser.execute_script(seen))
    assert browser.get_log("browser") == []


def test_intervals_are_shown_where_few_algorithms_are(
    browser: webdriver.Chrome,
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(panels, "BANDS", 2)
    monkeypatch.setattr(page, "BANDS", 2)
    write(monkeypatch, sweep, "--out", tmp_path / "page.html")
    look(browser, tmp_path / "page.html", 1280)
    shown = """return document.querySelector(".js-plotly-plot").data.map(
      (trace) => [trace.meta, trace.fill === "toself", trace.visible ?? true])"""

    def bands() -> list[str]:
        traces = browser.execute_script(shown)
        return [algo for algo, band, visible in traces if band and visible]

    assert bands() == []
    browser.execute_script("document.querySelector('[data-algo=mappo]').click()")
    assert bands() == ["mg2l", "oracle"]
    browser.execute_script("document.querySelector('[data-algo=mappo]').click()")
    assert bands() == []


def test_a_run_that_has_only_begun(
    browser: webdriver.Chrome, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = sweep.glob("*/mg2l/*-sd1")
    run = tmp_path / "mpe-spread" / "mg2l" / source.name
    run.mkdir(parents=True)
    shutil.copy(source / "config.yaml", run)
    lines = (source / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(lines[0] + lines[1][:100])
    (run / "evaluation.json").write_text('{"results": [')  # cut short
    write(monkeypatch, run, "--out", tmp_path / "page.html")
    titles = {figure["title"] for figure in look(browser, tmp_path / "page.html", 400)}
    assert "Learning curves" in titles
    assert "On held-out tasks" not in titles


# What it refuses.


def test_films_without_room_are_named(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(monkeypatch, sweep, "--out", tmp_path / "page.html", "--film-mb", 0)
    assert capsys.readouterr().out.count("left out, see --film-mb") == 2
    assert "<img" not in (tmp_path / "page.html").read_text().partition("</script>")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no run lies below nowhere"),
        (["runs", "--last", "0"], "--last must be at least 1, got 0"),
        (["runs", "--env-steps", "-5"], "--env-steps must be at least 1, got -5"),
    ],
)
def test_refusals(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        write(monkeypatch, *words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_missing_packages_are_told(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "PACKAGES", ("plotly", "no_such_package"))
    with pytest.raises(SystemExit):
        write(monkeypatch, sweep)
    assert '".[report]"' in capsys.readouterr().err
