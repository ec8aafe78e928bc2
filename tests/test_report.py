"""The report of a small sweep, looked at in a browser."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from method_helpers import TINY, overrides
from plotly.offline import get_plotlyjs
from run_files import GIF, write_run
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

import mg2l.train as train
from mg2l import cli, evaluate
from mg2l.envs import video
from mg2l.evaluation import groups, probe, results
from mg2l.probe import main as probe_command
from mg2l.report import __main__ as report
from mg2l.report import contents, page, panels, testing
from mg2l.report.watch import Watch

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def trained(root: Path, algo: str, seed: int, n_iters: int = 3) -> Path:
    values = {**TINY, "save_model": True, "eval_interval": 1, "eval_episodes": 1}
    values |= {"eval_shots": [0, 1], "n_iters": n_iters, "seed": seed, "main_save_path": root}
    words = [f"--algo={algo}", *overrides(values)]
    assert train.run(*cli.parse(words)) == 0
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
                    probe_command()
    frames = np.random.default_rng(0).integers(255, size=(4, 40, 60, 3), dtype=np.uint8)
    (first,) = root.glob("*/mg2l/*-sd0")
    for name in ("task.gif", "task.mp4"):
        video.write(first / "videos" / name, list(frames))
    return root


@pytest.fixture(scope="module")
def runs(sweep: Path) -> list[results.Run]:
    found, skipped = results.find([sweep], measured=True)
    assert skipped == []
    return found


def write(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["report", *map(str, words)])
    report.main()


# What it says.


def test_finds_each_run_once(sweep: Path, runs: list[results.Run]) -> None:
    assert len(runs) == 6
    again, _ = results.find([sweep, sweep / "mpe-spread", runs[0].folder])
    assert [run.folder for run in again] == [run.folder for run in runs]
    assert [(run.algo, run.env, run.seed) for run in runs[:2]] == [
        ("mappo", "mpe-spread", 0), ("mappo", "mpe-spread", 1),
    ]  # fmt: skip


def measured(algo: str, seed: int, **returns: list[float]) -> results.Run:
    """A run whose meta-test gave these returns, ``random=[of task b, of task a]``."""
    ways = {"random": ("random", 0), "none": ("shots", 0), "two": ("shots", 2)}
    evaluation = {
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
    folder = Path(f"env/{algo}/run-sd{seed}")
    return results.Run(folder, [], {"algo_name": algo}, evaluation=evaluation)


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
    found = testing.scores(algos, 2, None)
    assert found.what == "return at the end of training"
    met: list[set[str]] = [
        {t for row in run.rows[-2:] for t in row["return_by_task"]} for run in runs[2:4]
    ]
    met.append({task for row in runs[0].rows[-2:] for task in row["return_by_task"]})
    met_by_all = sorted(set.intersection(*met))
    assert met_by_all
    for task, column in zip(met_by_all, found.by_algo["mg2l"].T, strict=True):
        for run, value in zip(algos["mg2l"], column, strict=True):
            by_task = [row["return_by_task"] for row in run.rows[-2:]]
            values = [row[task] for row in by_task if task in row]
            assert value == pytest.approx(np.mean(values))


def test_cut_at_environment_steps(runs: list[results.Run]) -> None:
    of_mappo = [run for run in runs if run.algo == "mappo"]
    steps = of_mappo[0].rows[0]["env_steps"]
    found = groups.end(of_mappo, 20, steps)
    assert found is not None
    assert found.returns == [run.rows[0]["return"] for run in of_mappo]
    assert groups.end(of_mappo, 20, steps - 1) is None


def test_configurations_differ_where_they_do(runs: list[results.Run]) -> None:
    found, _ = groups.grouped(runs)
    html = contents.differences({group.algo: group.runs for group in found})
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


def wait(browser: webdriver.Chrome, condition: str) -> Any:
    """What a script returns as soon as that is true."""
    return WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(condition))


def look(browser: webdriver.Chrome, path: Path, width: int) -> list[dict[str, Any]]:
    """Open a page, see that it is sound, and return what each figure shows."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(path.resolve().as_uri())
    wait(browser, "return document.documentElement.dataset.drawn")
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
        "Learning curves", "At the end", "landmark 0+1", "landmark 1+2", "On held-out tasks",
        "Explained variance", "Clip fraction", "Policy change", "Entropy",
        "On training tasks",
        "1 shots on held-out tasks, while training", "Interquartile mean",
        "Probability that mg2l improves on the other", "Performance profiles",
        "mg2l, training tasks", "Global information", "Gap from global to local",
        "mg2l: agent 1, PCA", "Phases of an iteration",
    } <= titles  # fmt: skip
    (curves,) = [figure for figure in figures if figure["title"] == "Learning curves"]
    assert curves["algos"] == ["mg2l", "mappo", "oracle"] * 2  # intervals below all lines
    headings = browser.execute_script(
        "return [...document.querySelectorAll('h3')].map((heading) => heading.textContent)"
    )
    expected = {"Runs", "Attention priorities", "How the configurations differ", "Videos"}
    expected |= {"Software and hardware"}
    assert expected <= {*headings}
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


def test_curves_turn_to_other_axes(
    browser: webdriver.Chrome, sweep: Path, runs: list[results.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(monkeypatch, sweep)
    look(browser, sweep / "report.html", 1280)
    last = """const plot = document.querySelector(".js-plotly-plot"), [name] = arguments;
      const axis = document.querySelector("#axis");
      axis.value = name; axis.dispatchEvent(new Event("change"));
      const {x} = plot.data.find((trace) => trace.meta === "mappo" && trace.fill !== "toself");
      return [plot.layout.xaxis.title.text, x.filter((value) => value !== null).at(-1)]"""
    of_mappo = [run for run in runs if run.algo == "mappo"]
    minutes = [sum(row["time/iteration"] + row.get("time/eval", 0) for row in run.rows) / 60
               for run in of_mappo]  # fmt: skip
    ends = {
        "iterations": 3.0,
        "minutes": np.mean(minutes),
        "environment steps": of_mappo[0].env_steps[-1],
    }
    for name, end in ends.items():
        title, value = browser.execute_script(last, name)
        assert title == name
        assert value == pytest.approx(end, rel=1e-4)
    assert browser.get_log("browser") == []


def test_the_reader_chooses_dark(
    browser: webdriver.Chrome, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(monkeypatch, sweep)
    look(browser, sweep / "report.html", 1280)
    seen = """return [getComputedStyle(document.documentElement).backgroundColor,
      document.querySelector(".js-plotly-plot").layout.font.color]"""
    ways = {"dark": ["rgb(22, 24, 29)", "#e4e4e4"], "light": ["rgb(255, 255, 255)", "#222222"]}
    for scheme, wanted in ways.items():
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        WebDriverWait(browser, 20).until(
            lambda driver, wanted=wanted: driver.execute_script(seen) == wanted  # type: ignore[misc]
        )


def test_tables_are_files(
    browser: webdriver.Chrome, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(monkeypatch, sweep)
    look(browser, sweep / "report.html", 1280)
    rows = browser.execute_script("return csv(cells(document.querySelector('table')))").split(
        "\r\n"
    )
    assert rows[0].startswith('"algorithm","runs","iterations"')
    assert [row.partition(",")[0] for row in rows[1:]] == ['"mg2l"', '"mappo"', '"oracle"', ""]
    lines = browser.execute_script("return latex(cells(document.querySelector('table')))")
    assert "\\toprule\nalgorithm & runs" in lines
    assert lines.count("\\\\\n") == 4
    assert browser.execute_script("return latex([['a_b', '3 ± 1 %']])").splitlines()[2] == (
        r"a\_b & 3 $\pm$ 1 \% \\"
    )


def test_the_page_is_at_most_half_of_plotly(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(monkeypatch, sweep, "--video-mb", "0")
    assert (sweep / "report.html").stat().st_size < len(get_plotlyjs()) / 2


def test_a_served_page_follows_its_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path, "mappo", 0)
    page = tmp_path / "page.html"
    written: list[int] = []

    def write_page() -> None:
        written.append(len(written))
        page.write_text(f"page {len(written)}")

    write_page()
    watch = Watch([tmp_path], page, write_page, port=0)
    thread = threading.Thread(target=watch.server.serve_forever, daemon=True)
    thread.start()

    def get(path: str) -> str:
        with urllib.request.urlopen(watch.url + path) as answer:
            return str(answer.read().decode())

    assert (get(""), get("version")) == ("page 1", "0")
    assert not watch.look()
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    assert watch.look()
    assert (get(""), get("version")) == ("page 2", "1")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get("../secret")
    with pytest.raises(OSError, match="in use"):
        Watch([tmp_path], page, write_page, port=watch.server.server_port)
    watch.server.shutdown()
    watch.server.server_close()


def test_what_a_reader_chose_outlives_a_new_page(
    browser: webdriver.Chrome, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(monkeypatch, sweep)
    watch = Watch([sweep], sweep / "report.html", lambda: None, port=0)
    threading.Thread(target=watch.server.serve_forever, daemon=True).start()
    browser.get(watch.url)
    wait(browser, "return document.documentElement.dataset.drawn")
    browser.execute_script(
        "document.querySelector('#chips button').click(); axis.value = 'iterations'; turn();"
        "window.before = true; scrollTo(0, 700); setInterval(() => window.scrolled = scrollY, 50);"
    )
    wait(browser, "return window.scrolled === 700")
    time.sleep(3)  # the page has asked for the version
    watch.version += 1
    wait(browser, "return !window.before && document.documentElement.dataset.drawn")
    view = browser.execute_script(
        "return [axis.value, buttons[0].getAttribute('aria-pressed'), scrollY,"
        " document.querySelector('.plot').layout.xaxis.title.text]"
    )
    assert view == ["iterations", "false", 700, "iterations"]
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # is not of the next test
    watch.server.shutdown()
    watch.server.server_close()


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


TAG = "<img src=x onerror=document.title='broken'><a href='https://example.org'>{}</a></script>"


def test_names_are_text_wherever_they_are_shown(
    browser: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [TAG.format(k).replace("/", "\u2215") for k in range(2)]  # no folder has a slash
    tasks = [TAG.format(name) for name in ("left", "right")]
    measured = {
        "split": "test", "shots": 0, "sampling": "uniform", "return": 1.0,
        "by_task": {task: {"return": 1.0} for task in tasks},
    }  # fmt: skip
    evaluation = {
        "results": [measured | {"mode": "shots"}, measured | {"mode": "random"}],
        "mismatch": {"test": {"shots": 1, "tasks": tasks, "returns": [[1.0, 2.0], [3.0, 4.0]]}},
    }
    points = [[[0.0, 1.0], [1.0, 0.0]], [[2.0, 1.0], [1.0, 2.0]]]
    probed = {
        "tasks": tasks,
        "contexts": {TAG: {"global": {"linear": 0.5}}},
        "maps": {TAG: {TAG: points}},
        "priorities": [[[1.0, 1.0]], [[0.5, 1.5]]],
    }
    for k, name in enumerate(names):
        for seed in range(2):
            config = {"a": {TAG: TAG.format(k)}, "n_iters": 30}
            run = write_run(tmp_path, name, seed, env=name, config=config)
            (run / "evaluation.json").write_text(json.dumps(evaluation))
            (run / "probe.json").write_text(json.dumps(probed))
            rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
            for row in rows:
                row["return_by_task"] = dict.fromkeys(tasks, 1.0)
                row["time/rollout"] = 1.0
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            (run / "videos").mkdir()
            (run / "videos" / f"{name}.gif").write_bytes(GIF)
    config = {"a": {TAG: "another"}}
    write_run(tmp_path, names[0], 0, env=names[0], stamp="20260102-000000", config=config)
    bad = write_run(tmp_path, names[0], 7, env=names[0])
    (bad / "metrics.jsonl").write_text("[]\n")
    write(monkeypatch, tmp_path, "--out", tmp_path / "page.html")
    figures = look(browser, tmp_path / "page.html", 1280)
    assert len(figures) > 10
    assert browser.title.startswith("MG2L: <img")
    assert browser.execute_script("return document.querySelectorAll('main img').length") == 4
    count = "return document.querySelectorAll('[src=x], svg a, main a, script[src]').length"
    assert browser.execute_script(count) == 0
    chips = browser.find_elements("css selector", "#chips button")
    assert [chip.text for chip in chips if "another" in chip.text]
    chips[0].click()
    assert browser.get_log("browser") == []


def test_videos_without_room_are_named(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(monkeypatch, sweep, "--out", tmp_path / "page.html", "--video-mb", 0)
    assert capsys.readouterr().out.count("left out, see --video-mb") == 2
    assert "<img" not in (tmp_path / "page.html").read_text().partition("</script>")[2]
