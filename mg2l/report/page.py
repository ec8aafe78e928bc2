"""The page itself: one file that holds everything it shows."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from mg2l.core.files import FileError, read_bytes
from mg2l.evaluation.results import Run, printable
from mg2l.report.panels import BANDS, Section, Style

FOLDER = Path(__file__).parent
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
"""Of every figure: nothing that leads to another page."""

KINDS = {".gif": "image/gif", ".mp4": "video/mp4"}
MAGIC = {".gif": rb"GIF8[79]a", ".mp4": rb"(?s:....)ftyp"}
"""What the film of each ending is for a browser, and how its bytes begin."""


def html(title: str, about: str, style: Style, parts: dict[str, Sequence[Section]]) -> str:
    """The page.

    Args:
        title: of the page.
        about: a line under it.
        style: colours of the algorithms.
        parts: sections by the environment that they are about.
    """
    body, links = [], []
    for index, (name, sections) in enumerate(parts.items()):
        filled = [section for section in sections if section.html or section.panels]
        anchors = [(f"s{index}-{at}", section) for at, section in enumerate(filled)]
        items = "".join(f'<a href="#{at}">{escape(s.title)}</a>' for at, s in anchors)
        links.append(f"<div><b>{escape(name)}</b>{items}</div>")
        body.append(f"<h2>{escape(name)}</h2>")
        body += [_section(at, section) for at, section in anchors]
    chips = "".join(
        f'<button data-algo="{escape(algo)}" aria-pressed="true">'
        f'<i style="background:{style.colour(algo)}"></i>{escape(algo)}</button>'
        for algo in style.algos
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_asset('page.css')}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>"
        f'<nav id="chips" aria-label="algorithms shown">{chips}</nav>'
        f'<nav id="contents">{"".join(links)}</nav>'
        f"<main>{''.join(body)}</main>"
        f"<script>const BANDS = {BANDS};\n{_asset('page.js')}</script></body></html>\n"
    )


def films(runs: Sequence[Run], most: int) -> tuple[str, list[str]]:
    """Films as HTML, ``most`` bytes of them, and a line for each that is not held."""
    shown, lines, held = [], [], 0
    for run in runs:
        for path in run.films:
            try:
                if held + path.stat().st_size > most:
                    lines.append(f"left out, see --film-mb: {path}")
                    continue
                data = film(path, run.folder, most - held)
            except (FileError, OSError) as error:
                lines.append(f"skipped: {error}")
                continue
            held += len(data)
            source = f"data:{KINDS[path.suffix]};base64,{base64.b64encode(data).decode()}"
            name = escape(printable(f"{run.algo}, seed {run.seed}: {path.stem}"))
            drawn = f'<img src="{source}" alt="{name}">'
            if path.suffix == ".mp4":
                drawn = f'<video src="{source}" controls loop muted></video>'
            shown.append(f"<figure>{drawn}<figcaption>{name}</figcaption></figure>")
    return f'<div class="films">{"".join(shown)}</div>' if shown else "", lines


def film(path: Path, run: Path, most: int) -> bytes:
    """What a film holds.

    Raises:
        FileError: it is none by its first bytes, is no regular file, does not lie in ``run``, or
            has more than ``most`` bytes.
    """
    data = read_bytes(path, inside=run, most=most)
    if not re.match(MAGIC[path.suffix], data):
        raise FileError(f"{path}: is no film of kind {path.suffix[1:]}")
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
        drawn = to_html(
            panel.figure,
            full_html=False,
            include_plotlyjs=False,
            config=CONFIG,
        )
        caption = f"<p>{escape(panel.caption)}</p>" if panel.caption else ""
        kind = "panel wide" if panel.wide else "panel"
        panels.append(f'<div class="{kind}"><h4>{escape(panel.title)}</h4>{caption}{drawn}</div>')
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    return (
        f'<section id="{anchor}"><h3>{escape(section.title)}</h3>{text}{section.html}'
        f'<div class="panels">{"".join(panels)}</div></section>'
    )


def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
