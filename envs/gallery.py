"""Pictures of all families on one page: ``python -m mg2l.envs.gallery --out docs``.

Writes ``gallery.md`` and, below ``gallery/``, a moving picture of each file of ``configs/env``: its
first task of each part, played by the informed scripted team, or by random actions where there is
none. What is hidden from the agents is drawn, or stands in the title.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mg2l import cli
from mg2l.config.files import CONFIGS, available
from mg2l.core.files import write_text
from mg2l.envs import EnvConfig, registry, video
from mg2l.envs.command import env_config
from mg2l.envs.gate import ScriptedTeams
from mg2l.envs.render import record_scripted

SIDE, TITLE = 160, 20
"""Height of a picture and of the title above it [px]."""

PICTURES, FPS = 40, 10
"""How many there are at most, and how many are shown in a second."""

PAGE = """# Gallery

One task of each part, side by side. What is hidden from agents stands above, or is drawn: rings
around places that pay, colours of what is worth something. All of it is drawn by

```
python -m mg2l.envs.gallery --out docs
```
"""


def panels(config: EnvConfig, names: Sequence[str], ids: Sequence[int], team: str) -> video.Frames:
    """Pictures of several tasks side by side, each under its title."""
    from PIL import Image, ImageDraw, ImageFont

    recordings = [record_scripted(config, task, 0, team) for task in ids]
    length = min(map(len, recordings))
    shown = range(0, length, -(-length // PICTURES))
    font = ImageFont.load_default(12)

    def panel(picture: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        image = Image.fromarray(picture)
        width = round(SIDE * image.width / image.height)
        paper = Image.new("RGB", (width + 4, SIDE + TITLE), "white")
        paper.paste(image.resize((width, SIDE), Image.Resampling.LANCZOS), (2, TITLE))
        ImageDraw.Draw(paper).text((4, 3), name, "#1a1a1a", font)
        return np.asarray(paper)

    return [
        np.concatenate([panel(x[i], name) for x, name in zip(recordings, names, strict=True)], 1)
        for i in shown
    ]


def entry(name: str, folder: Path) -> str:
    """Draw a family into a folder, and return its part of the page."""
    config = env_config(name)
    env = registry.make(config, 1)
    tasks = env.tasks
    env.close()
    first = {part: int(ids[0]) for part, ids in tasks.parts.items()}
    titles = [
        f"{part}: {tasks.names[task].removeprefix(part + ' ')}" for part, task in first.items()
    ]
    informed = registry.has_scripted(config) and isinstance(
        registry.scripted(config), ScriptedTeams
    )
    team = "informed" if informed else "random"
    frames = panels(config, titles, list(first.values()), team)
    video.write(folder / f"{name}.webp", frames, FPS)
    text = (CONFIGS / "env" / f"{name}.yaml").read_text(encoding="utf-8")
    about = text.partition("\n")[0].removeprefix("# ")
    actions = "the informed scripted team" if informed else "random actions"
    return f"\n## {name}\n\n{about} Shown: {actions}.\n\n![{name}](gallery/{name}.webp)\n"


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = cli.Parser(prog="python -m mg2l.envs.gallery", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="environments (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args(arguments)
    folder = options.out / "gallery"
    video.check(folder / "any.webp")  # before anything is recorded
    entries = [entry(name, folder) for name in options.names or available("env")]
    write_text(options.out / "gallery.md", PAGE + "".join(entries))
    print(f"{options.out / 'gallery.md'}: {len(entries)} families")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
