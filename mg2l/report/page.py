"""The page itself: one self-contained file."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from mg2l.core.files import FileError, read_bytes
from mg2l.evaluation.results import Run, printable
from mg2l.report.panels import BANDS, Panel, Section, Style
from mg2l.report.training import AXES, Clocks

FOLDER = Path(__file__).parent
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
"""Options of every figure: no link to another page."""

KINDS = {".gif": "image/gif", ".mp4": "video/mp4", ".webp": "image/webp"}
MAGIC = {".gif": rb"GIF8[79]a", ".mp4": rb"(?s:....)ftyp", ".webp": rb"RIFF(?s:....)WEBP"}
"""MIME type and first bytes of a video with each ending."""


def html(
    title: str,
    about: str,
    style: Style,
    parts: dict[str, Sequence[Section]],
    clocks: dict[str, Clocks] | None = None,
) -> str:
    """The page.

    Plotly and the figures are held compressed, a third of their size, and unpacked by the browser.

    Args:
        title: title of the page.
        about: a line under it.
        style: colours of the algorithms.
        parts: sections by the environment that they are about.
        clocks: the x-axes of curves by environment.
    """
    body, links = [], []
    figures: list[str] = []
    for index, (name, sections) in enumerate(parts.items()):
        filled = [section for section in sections if section.html or section.panels]
        anchors = [(f"s{index}-{at}", section) for at, section in enumerate(filled)]
        items = "".join(f'<a href="#{at}">{escape(s.title)}</a>' for at, s in anchors)
        links.append(f"<div><b>{escape(name)}</b>{items}</div>")
        body.append(f"<h2>{escape(name)}</h2>")
        body += [_section(at, section) for at, section in anchors]
        figures += [_figure(panel, name) for _, section in anchors for panel in section.panels]
    chips = "".join(
        f'<button data-algo="{escape(algo)}" aria-pressed="true">'
        f'<svg aria-hidden="true">{style.sample(algo)}</svg>{escape(algo)}</button>'
        for algo in style.algos
    )
    axes = "".join(f"<option>{axis}</option>" for axis in AXES)
    chosen = f'<select id="axis" aria-label="x-axis of curves">{axes}</select>'
    packed = (
        f'<script type="text/plain" id="{name}">{_packed(text)}</script>'
        for name, text in (("plotly", get_plotlyjs()), ("figures", f"[{','.join(figures)}]"))
    )
    constants = {"BANDS": BANDS, "CONFIG": CONFIG, "CLOCKS": clocks or {}}
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_asset('page.css')}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>"
        f'<nav id="chips" aria-label="algorithms shown">{chosen}{chips}</nav>'
        f'<nav id="contents">{"".join(links)}</nav>'
        f"<main>{''.join(body)}</main>{''.join(packed)}"
        f"<script>{''.join(f'const {k} = {_script(v)};' for k, v in constants.items())}"
        f"\n{_asset('page.js')}</script></body></html>\n"
    )


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _script(value: object) -> str:
    """A value as JavaScript that cannot end the script that it is in."""
    return json.dumps(value).replace("<", "\\u003c")


def videos(runs: Sequence[Run], most: int) -> tuple[str, list[str]]:
    """Videos as HTML, ``most`` bytes of them, and a line for each that is left out."""
    shown, lines, held = [], [], 0
    for run in runs:
        for path in run.videos:
            try:
                if held + path.stat().st_size > most:
                    lines.append(f"left out, see --video-mb: {path}")
                    continue
                data = video(path, run.folder, most - held)
            except (FileError, OSError) as error:
                lines.append(f"skipped: {error}")
                continue
            held += len(data)
            source = f"data:{KINDS[path.suffix]};base64,{base64.b64encode(data).decode()}"
            name = escape(printable(f"{run.algo}, seed {run.seed}: {path.stem}"))
            drawn = f'<img src="{source}" alt="{name}">'
            if path.suffix == ".mp4":
                drawn = f'<video src="{source}" autoplay controls loop muted playsinline></video>'
            shown.append(f"<figure>{drawn}<figcaption>{name}</figcaption></figure>")
    return f'<div class="videos">{"".join(shown)}</div>' if shown else "", lines


def video(path: Path, run: Path, most: int) -> bytes:
    """Content of a video file.

    Raises:
        FileError: its first bytes are not a video's, it is no regular file or outside ``run``, or
            has more than ``most`` bytes.
    """
    data = read_bytes(path, inside=run, most=most)
    if not re.match(MAGIC[path.suffix], data):
        raise FileError(f"{path}: is not a video of kind {path.suffix[1:]}")
    return data


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text whose first cell is a name, without columns that hold nothing."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    header, rows = [header[k] for k in kept], [[row[k] for k in kept] for row in rows]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for name, *cells in rows:
        rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><td class="name">{escape(name)}</td>{rest}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def lines(texts: Sequence[str]) -> str:
    """Remarks, one under the other."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def _section(anchor: str, section: Section) -> str:
    panels = []
    for panel in section.panels:
        caption = f"<p>{escape(panel.caption)}</p>" if panel.caption else ""
        kind = "panel wide" if panel.wide else "panel"
        title = f"<h4>{escape(panel.title)}</h4>"
        panels.append(f'<div class="{kind}">{title}{caption}<div class="plot"></div></div>')
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    return (
        f'<section id="{anchor}"><h3>{escape(section.title)}</h3>{text}{section.html}'
        f'<div class="panels">{"".join(panels)}</div></section>'
    )


def _figure(panel: Panel, env: str) -> str:
    """A figure as JSON, with the environment that it is about."""
    return f'{{"env": {json.dumps(env)}, "drawn": {panel.figure.to_json()}}}'


def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
