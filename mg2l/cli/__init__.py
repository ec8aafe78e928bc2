"""The command line of a run: ``--expt --algo --env``, ``key=value``, ``--resume``, ``--from``.

``parse`` validates everything that can be validated before anything is built. Every program of mg2l
is a ``command``: a user's mistake is one line and exit status 2, a later failure one line and 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

from mg2l.config import older
from mg2l.config.algorithms import algorithms
from mg2l.config.files import (
    CONFIGS,
    DEFAULTS,
    KINDS,
    Sources,
    available,
    load_config,
    read_sources,
)
from mg2l.config.keys import Schema
from mg2l.config.options import Options
from mg2l.config.saved import RESUMABLE, about, config_from_yaml, config_to_yaml, family_of
from mg2l.config.sections import Config
from mg2l.core.distributed import world
from mg2l.core.errors import RunError, UserError, out_of_memory
from mg2l.core.files import WriteError, read_yaml
from mg2l.core.schema import ConfigError, Key, keys, nearest
from mg2l.envs import registry
from mg2l.envs.base import EnvError
from mg2l.training.choice import choose
from mg2l.training.stop import Output, interruptible, output_status, status_of

__all__ = [
    "RESUMABLE",
    "ConfigError",
    "Options",
    "Parser",
    "abort",
    "about",
    "at_least",
    "command",
    "config_from_yaml",
    "config_to_yaml",
    "help_text",
    "load_config",
    "parse",
    "report_errors",
]

WIDTH = 100
LONGEST = 2000
"""Largest length of an error line: the offending value may be a text of megabytes."""

LARGEST_NUMBER = 10**12
"""Largest value of a numeric option."""

TRUST = "import the code that the run names, where it is what the run was trained with"

P = ParamSpec("P")
Status = TypeVar("Status", bound=int | None)


def abort(message: str, status: int = 2) -> NoReturn:
    """End the program with one line on stderr and an exit status.

    Of several processes of a run, the first that ends so says why.
    """
    if not world.first_to_fail():
        raise SystemExit(status)
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    with contextlib.suppress(OSError):  # of a terminal that is closed
        print(f"error: {line}", file=sys.stderr, flush=True)
    raise SystemExit(status)


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """End the program, see ``abort``."""
        abort(message)

    def parse_overrides(
        self, words: Sequence[str], is_value: Callable[[str, bool, str], bool]
    ) -> argparse.Namespace:
        """Parse a command line whose overrides ``key=value`` may stand anywhere.

        Args:
            words: after the program's name.
            is_value: whether a word that looks like an override belongs to the option before it:
                called with that option, whether the word is the first after it, and the word.
        """
        own, overrides, option, first = list[str](), list[str](), "", False
        for word in words:
            pair = re.match(r"\w[\w.]*=", word) is not None
            (overrides if pair and not is_value(option, first, word) else own).append(word)
            first = word.startswith("-")
            option = word if first else option
        arguments = self.parse_args(own)
        arguments.overrides += overrides
        return arguments


def at_least(least: int, kind: type = int, most: int = LARGEST_NUMBER) -> Callable[[str], Any]:
    """Type of a `Parser`'s argument: a number of ``kind`` from ``least`` to ``most``."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what} from {least} to {most}, got {text!r}")
        return value

    return read


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Report expected errors as one line on stderr.

    The exit status is 2 after a user's mistake; 1 where an environment, a loss, the disk or memory
    failed in the middle of work, an environment's details, such as the traceback of its process,
    before the line; and by the shell's custom after a signal.
    """
    try:
        yield
    except UserError as error:
        abort(str(error))
    except RunError as error:
        abort(str(error), status=1)
    except EnvError as error:
        reason, _, details = str(error).partition("\n")
        if details:
            print(details.rstrip(), file=sys.stderr)
        abort(reason, status=1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        abort(f"{place}{error.strerror or error}", status=1)
    except (MemoryError, RuntimeError) as error:
        shortage = out_of_memory(error)
        if shortage is None:
            raise
        abort(f"this does not fit into memory: {shortage}", status=1)
    except KeyboardInterrupt as error:
        abort(f"interrupted{f' by {error}' if str(error) else ''}", status=status_of(error))


def command(main: Callable[P, Status]) -> Callable[P, Status]:
    """Decorator of a program's entry point.

    Errors are reported by ``report_errors``. SIGTERM and SIGHUP end it as Ctrl-C does. Where its
    output is closed, it finishes its work and exits with status 141.
    """

    @functools.wraps(main)
    def run(*words: P.args, **named: P.kwargs) -> Status:
        with interruptible(), report_errors():
            out = Output(sys.stdout or io.StringIO())  # None where it was closed
            end = None
            try:
                with contextlib.redirect_stdout(out):
                    status = main(*words, **named)
            except SystemExit as error:
                end = error
            finally:
                out.flush()
            if out.broken is not None and not (status if end is None else end.code):
                if output_status(out.broken) == 1:
                    raise WriteError(f"standard output: cannot be written: {out.broken.strerror}")
                raise SystemExit(output_status(out.broken))
            if end is not None:
                raise end
            return status

    return run


def _read_words(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split a command line into ``--name`` options and overrides."""
    values = {*KINDS, "resume", "from", "until", "folder"}
    switches = {"help", "resume-previous", "trust"}
    options: dict[str, str] = {}
    overrides = []
    words = iter(argv)
    for word in words:
        if word in ("-h", "--help", "--help=all"):
            options["help"] = word.partition("=")[2]
            continue
        if not word.startswith("-"):
            overrides.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in values | switches:
            known = [f"--{option}" for option in sorted(values | switches)]
            near = nearest(f"--{name}", known)
            if equals and name in _key_names():
                near = f"; did you mean {word.lstrip('-')!r}?"
            raise ConfigError(f"unknown option {word!r}; options are {', '.join(known)}{near}")
        if name in switches:
            if equals:
                raise ConfigError(f"--{name} takes no value, got {value!r}")
        elif not equals:
            value = next(words, "")
        if name in values and not value:
            example = {"until": "100", **DEFAULTS}.get(name, "RUN")
            raise ConfigError(f"--{name} needs a value, as in --{name}={example}")
        if options.setdefault(name, value) != value:
            raise ConfigError(f"--{name} is given twice: {options[name]} and {value}")
    return options, overrides


def _key_names() -> set[str]:
    """Leaf names of every key of every family and algorithm."""
    families = {key.name for name in registry.names() for key in keys(registry.config_class(name))}
    own = {
        key.name for name in algorithms.names() for key in keys(algorithms.get(name).config_class)
    }
    return {*Schema(DEFAULTS["env"]).by_name, *families, *own}


def read(argv: Sequence[str]) -> tuple[Config, Options] | None:
    """Like ``parse``, but mistakes are raised, and a request for help returns None.

    Raises:
        ConfigError: a mistake on the command line or in a file.
    """
    options, overrides = _read_words(argv)
    if "help" in options:
        return None
    try:
        until = at_least(1)(options["until"]) if "until" in options else 0
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--until {error}") from None
    chosen = choose(
        {kind: options[kind] for kind in KINDS if kind in options},
        overrides,
        options.get("resume"),
        "resume-previous" in options,
        "trust" in options,
        options.get("from"),
        until,
        options.get("folder"),
    )
    config = chosen[0]
    schema = Schema(family_of(config.env), config.algo_name)
    for name in (word.partition("=")[0] for word in overrides):
        if world.is_main and schema.unused(older.current(name)[0]) is not None:
            print(f"{name} has no effect: {config.algo_name} has no such key", file=sys.stderr)
    return chosen


def parse(argv: Sequence[str] | None = None) -> tuple[Config, Options]:
    """Read the command line of ``python -m mg2l.train``.

    Args:
        argv: words after the program's name; None takes those of this process.

    Returns:
        The config, and the other options of the command line. With ``--resume=RUN`` the config is
        the run's own, and only keys in ``RESUMABLE`` may be overridden.

    Raises:
        SystemExit: status 0 after ``--help``; status 2 after a mistake, reported in one line on
            stderr.
    """
    argv = sys.argv[1:] if argv is None else argv
    with report_errors():
        found = read(argv)
        if found is not None:
            return found
        print(help_text(argv))
    raise SystemExit(0)


def _wrap(text: str, indent: int) -> str:
    pad = " " * indent
    return textwrap.fill(text, WIDTH, initial_indent=pad, subsequent_indent=pad)


def shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if value == "" else str(value)


def _key_lines(key: Key, chosen: dict[str, object]) -> str:
    line = f"  {key.name}  {key.kind}, default {shown(key.default)}"
    here = chosen.get(key.path, key.default)
    if here != key.default:
        line += f", here {shown(here)}"
    return f"{line}\n{_wrap(key.help.replace('``', ''), 6)}"


def _summary(section: type) -> str:
    return " ".join((section.__doc__ or "").split()).replace("``", "")


def _files(kind: str) -> list[str]:
    lines = []
    for name in available(kind):
        text = (CONFIGS / kind / f"{name}.yaml").read_text(encoding="utf-8")
        head = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
        note = " ".join(line.removeprefix("# ").strip() for line in head)
        if kind == "env":
            family = next(line for line in text.splitlines() if line.startswith("family:"))
            section = registry.config_class(family.removeprefix("family:").strip())
            note = note or _summary(section)
        mark = "  [default]" if name == DEFAULTS[kind] else ""
        lines.append(f"  --{kind}={name}{mark}" + (f"\n{_wrap(note, 6)}" if note else ""))
    own: dict[str, type] = {}
    if kind == "env":
        own = {name: registry.config_class(name) for name in registry.names()}
    elif kind == "algo":
        files = (CONFIGS / "algo" / f"{name}.yaml" for name in available(kind))
        shipped = {read_yaml(path).get("algo_name", DEFAULTS["algo"]) for path in files}
        own = {
            name: algorithms.get(name).inference
            for name in algorithms.names()
            if name not in shipped
        }
    lines += [
        f"  --{kind}={name}\n{_wrap(_summary(section), 6)}"
        for name, section in sorted(own.items())
        if name not in available(kind)
    ]
    return lines


def help_text(argv: Sequence[str] = ()) -> str:
    """Options, files and keys, with the values that the files chosen by ``argv`` set.

    Keys are those of every run and of the chosen environment and algorithm; with ``--help=all``
    those of every other environment family and algorithm, too.

    Raises:
        ConfigError: ``argv`` chooses a file that cannot be read.
    """
    options = {"help": ""} | _read_words(argv)[0]
    names = {kind: options.get(kind, DEFAULTS[kind]) for kind in KINDS}
    sources: Sources = read_sources(**names)
    chosen = sources.merged()
    choice = " ".join(f"--{kind}={name}" for kind, name in names.items())
    lines = [
        "python -m mg2l.train [--expt=NAME] [--algo=NAME] [--env=NAME] [KEY=VALUE ...]",
        "python -m mg2l.train --resume=RUN [--resume-previous] [--trust] [KEY=VALUE ...]",
        "python -m mg2l.train --from=RUN [--trust] [KEY=VALUE ...]",
        "",
        _wrap(
            "Trains a team of agents on a distribution of tasks. NAME is one of those below, or "
            "the path of a YAML file. Values are taken from the schema's defaults, then env, "
            "algo, expt and the command line; the last one wins. KEY may carry its group, as in "
            "ppo.clip_param=0.3.",
            0,
        ),
        "",
        "  --resume=RUN  continue the run in folder RUN from its last checkpoint, or from",
        "      RUN/checkpoints/NAME; --resume=last is the newest run in main_save_path",
        "  --folder=RUN  continue the run in folder RUN, or begin it there: the same command does",
        "      both, as torchrun needs that starts W processes, and starts them again: torchrun",
        "      --nproc-per-node W -m mg2l.train --folder=RUN [...]",
        "  --resume-previous  where the last checkpoint is damaged, use the one before it",
        "  --from=RUN  begin a new run with the whole state of RUN's last checkpoint, or of",
        "      RUN/checkpoints/NAME, and with new random streams; every KEY that leaves the sizes",
        "      of the networks may be changed, and RUN is named in the new folder",
        "  --until=N  stop after iteration N with a checkpoint; what depends on n_iters stays",
        f"  --trust  {TRUST}",
        "  --help  this text; 'here' is what --expt, --algo and --env on this command line set",
        "  --help=all  the keys of all other environments and algorithms, too",
        "",
    ]
    for kind, title in [("env", "Environments"), ("algo", "Algorithms"), ("expt", "Experiments")]:
        lines += [title, *_files(kind), ""]
    lines += [f"Keys (here: {choice})", "", "run"]
    lines += [_key_lines(key, chosen) for key in keys(Config)]
    schema = sources.schema
    for group, section in schema.groups.items():
        about = {"env": f"env, family {schema.family}", "algo": f"algo, {schema.algorithm}"}
        lines += ["", _wrap(f"{about.get(group, group)}: {_summary(section)}", 0)]
        lines += [_key_lines(key, chosen) for key in keys(section, group)]
    if options["help"] == "all":
        others = [
            *((f"env, family {name}", "env", registry.config_class(name))
              for name in registry.names() if name != schema.family),
            *((f"algo, {name}", "algo", algorithms.get(name).config_class)
              for name in algorithms.names() if name != schema.algorithm),
        ]  # fmt: skip
        for title, group, section in others:
            lines += ["", _wrap(f"{title}: {_summary(section)}", 0)]
            lines += [_key_lines(key, {}) for key in keys(section, group)]
    return "\n".join(lines)
