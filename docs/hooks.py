"""Hooks of mkdocs for pages that are written for a repository.

- A link to a file outside ``docs/`` leads to a page with that file: `on_files` makes these pages
  and `on_page_markdown` points links at them.
- Notebooks are executed, and shown with what they print and draw.
- Formulas, ``$...$`` and blocks of the language ``math``, become MathML, which browsers draw
  without a script.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+|\.\./)(?=[)#])")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"```math\n(.*)```", re.DOTALL)
INLINE = re.compile(r"\$([^$\n]+)\$")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cff": "yaml"}


def outside(page: str, target: str) -> str | None:
    """Path in the repository of a link's target, None if it is a page of the docs.

    Args:
        page: the page with the link, relative to ``docs/``.
        target: of the link, without an anchor.
    """
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") or not (ROOT / path).is_file() else path


def source(path: str) -> str:
    """The page of a file of the repository, relative to ``docs/``."""
    return f"source/{path.removesuffix('.md').replace('.', '_')}.md"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every notebook, and for every file outside that is linked from a page."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            page = file.src_uri.replace(".ipynb", ".md")
            files.append(File.generated(config, page, content=notebook(file.content_string)))
    texts = {x.src_uri: x.content_string for x in files.documentation_pages() if _markdown(x)}
    while texts:
        page, text = texts.popitem()
        for target in LINK.findall(text):
            path = outside(page, target)
            if path is None or source(path) in files.src_uris:
                continue
            content = _page(path)
            files.append(File.generated(config, source(path), content=content))
            texts[source(path)] = content
    return files


@cache
def notebook(text: str) -> str:
    """Execute a notebook and return it as Markdown.

    Args:
        text: content of the ``.ipynb``.

    Raises:
        CellExecutionError: a cell fails.
    """
    held = nbformat.reads(text, as_version=4)
    NotebookClient(held, timeout=300, kernel_name="python3").execute()
    parts = []
    for cell in held.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        parts += [_output(output) for output in cell.outputs]
    return "\n\n".join(parts) + "\n"


def _output(output: Any) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        picture = f"data:image/png;base64,{data['image/png'].strip()}"
        return f'<img alt="drawn by the cell above" src="{picture}">'
    text = output.get("text") or data.get("text/plain", "")
    return f"```text\n{text.rstrip()}\n```"


def _markdown(file: File) -> bool:
    return file.src_uri.endswith(".md")


def _page(path: str) -> str:
    """A file as a page: Markdown as it is, with links from the page's place, else as code."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".md"):
        return f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}````\n"
    folder = posixpath.dirname(path)
    here = posixpath.dirname(source(path))

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if not (ROOT / target).exists():
            return match[1]
        return posixpath.relpath(target, posixpath.join("docs", here))

    return re.sub(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])", link, text)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at pages of files, and draw formulas."""
    here = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        path = outside(here, match[1])
        return posixpath.relpath(source(path), posixpath.dirname(here)) if path else match[1]

    markdown = re.sub(r"(?<=\w)\.ipynb(?=\))", ".md", markdown)
    parts = CODE.split(LINK.sub(link, markdown))
    return "".join(_formulas(part) for part in parts)


def _formulas(text: str) -> str:
    if block := BLOCK.fullmatch(text):
        return f'<div class="formula">{convert(block[1].strip(), display="block")}</div>'
    if text.startswith("`"):
        return text
    return INLINE.sub(lambda match: convert(match[1].strip()), text)
