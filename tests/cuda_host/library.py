"""Calls the launchers of a built library with NumPy arrays."""

from __future__ import annotations

import ctypes
import re
import subprocess
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DTYPES = {
    "float": np.float32,
    "double": np.float64,
    "uint8_t": np.uint8,
    "uint16_t": np.uint16,
    "int32_t": np.int32,
    "int64_t": np.int64,
}
SCALARS = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
ALIGNMENT = 256  # what cudaMalloc promises
UNDEFINED = 0xFF  # every byte of what nobody wrote: NaN as a floating-point number


@dataclass(frozen=True)
class Schedule:
    """How the threads of a block take turns."""

    seed: int = 0
    """0: in the order of their index, each until it waits. Else every choice is drawn."""

    preempt: int = 0
    """Switch threads at about one in so many accesses to memory as well; 0: never."""

    check: bool = True
    """Watch every access. Without, only what can be told from the outside is reported."""


IN_ORDER = Schedule()


class Finding(NamedTuple):
    """One kind of fault at one place."""

    kind: str
    """A word of the table in README.md."""

    message: str
    """What happened, with the lines of the source."""

    times: int
    """How often."""


class Report(tuple[Finding, ...]):
    """What a call found; false if nothing."""

    __slots__ = ()

    @property
    def kinds(self) -> set[str]:
        """The kinds of all findings."""
        return {finding.kind for finding in self}

    def __str__(self) -> str:
        lines = (f"{finding.kind} ({finding.times} x): {finding.message}" for finding in self)
        return "\n".join(lines)

    __repr__ = __str__  # what pytest shows when a report should have been empty


class Parameter(NamedTuple):
    """A parameter of a launcher."""

    name: str
    type: str
    is_pointer: bool
    is_const: bool
    is_optional: bool


class Launch(NamedTuple):
    """Sizes of a launch: x, y, z."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]


class Library:
    """A kernel file that runs on the CPU.

    Its launchers are the functions that ``launchers.h`` declares with ``MG2L_API int``; a pointer
    to const is an input, any other an output, and a name that begins with ``optional_`` may be
    left out.
    """

    def __init__(self, path: Path, launchers: str) -> None:
        self.path = path
        self.launchers = parse_launchers(launchers)
        self._dll = ctypes.CDLL(str(path))
        self._dll.cuda_host_report.restype = ctypes.c_char_p
        self._dll.cuda_host_switches.restype = ctypes.c_uint64
        self._dll.cuda_host_accesses.restype = ctypes.c_uint64
        weakref.finalize(self, self._dll.cuda_host_release)

    def call(
        self,
        function: str,
        arguments: Mapping[str, Any],
        *,
        schedule: Schedule = IN_ORDER,
        in_out: Collection[str] = (),
    ) -> Report:
        """Run a launcher.

        Every array is copied to memory of its own, with forbidden memory as large as itself on both
        sides. What outputs hold counts as undefined, and is, unless ``in_out`` names them.

        Args:
            function: Name of the launcher.
            arguments: Value or array of every parameter, by name (without ``optional_``), except
                ``stream``. bool arrays count as uint8.
            schedule: How threads take turns.
            in_out: Outputs that are read as well.

        Returns:
            What was found.

        Raises:
            TypeError: An argument is missing, unknown, or of the wrong type.
        """
        parameters = self.launchers[function]
        _check_names(function, parameters, arguments)
        options = (schedule.seed, schedule.preempt, int(schedule.check))
        self._dll.cuda_host_begin(*options)
        memory = _Memory()
        converted: list[object] = []
        for parameter in parameters:
            if not parameter.is_pointer:
                converted.append(SCALARS[parameter.type](arguments[parameter.name]))
            elif (value := arguments.get(parameter.name)) is not None or not parameter.is_optional:
                defined = parameter.is_const or parameter.name in in_out
                copy = memory.place(_as_type(parameter, value), is_output=not parameter.is_const)
                if not defined:
                    copy.view(np.uint8).fill(UNDEFINED)
                converted.append(ctypes.c_void_p(copy.ctypes.data))
                self._dll.cuda_host_add_buffer(
                    parameter.name.encode(),
                    ctypes.c_void_p(copy.ctypes.data),
                    ctypes.c_size_t(copy.nbytes),
                    ctypes.c_size_t(copy.itemsize),
                    int(not parameter.is_const),
                    int(defined),
                )
            else:
                converted.append(None)
        status = getattr(self._dll, function)(*converted, None)
        memory.copy_outputs_back()
        report = self._report()
        if status and not report:
            return Report([Finding("launch", f"{function} returned status {status}", 1)])
        return report

    @property
    def last_launch(self) -> Launch:
        """Sizes of the latest launch."""
        sizes = (ctypes.c_uint * 6)()
        self._dll.cuda_host_last_launch(sizes)
        gx, gy, gz, bx, by, bz = sizes
        return Launch((gx, gy, gz), (bx, by, bz))

    @property
    def switches(self) -> int:
        """How often threads have changed places so far."""
        return int(self._dll.cuda_host_switches())

    @property
    def accesses(self) -> int:
        """How many accesses to global and shared memory there were so far."""
        return int(self._dll.cuda_host_accesses())

    def _report(self) -> Report:
        text = self._dll.cuda_host_report().decode()
        addresses = sorted(set(re.findall(r"\+0x[0-9a-f]+", text)))
        if addresses:
            lines = subprocess.run(
                ["addr2line", "--basenames", "-e", str(self.path), *addresses],
                text=True,
                capture_output=True,
                check=True,
            ).stdout.splitlines()
            # "gae.cuh:81 (discriminator 2)": the discriminator tells copies of a line apart.
            places = dict(zip(addresses, (line.split(" ")[0] for line in lines), strict=True))
            text = re.sub(r"\+0x[0-9a-f]+", lambda match: places[match.group()], text)
        counts: Counter[tuple[str, str]] = Counter()
        for line in text.splitlines():
            count, kind, message = line.split("\t")
            counts[kind, message] += int(count)
        return Report(Finding(*key, count) for key, count in sorted(counts.items()))


def parse_launchers(text: str) -> dict[str, tuple[Parameter, ...]]:
    """Parameters of every launcher that a header declares, ``stream`` left out."""
    launchers = {}
    for name, parameters in re.findall(r"MG2L_API int (\w+)\(([^)]*)\);", text):
        launchers[name] = tuple(_parse_parameters(name, parameters))
    return launchers


def _parse_parameters(function: str, text: str) -> Iterator[Parameter]:
    for declaration in text.split(","):
        match = re.fullmatch(r"\s*(const\s+)?(\w+)(\*?)\s+(optional_)?(\w+)\s*", declaration)
        if not match:
            raise ValueError(f"{function}: cannot read the parameter {declaration.strip()!r}")
        const, type_name, star, optional, name = match.groups()
        if name != "stream":
            yield Parameter(name, type_name, bool(star), bool(const), bool(optional))


def _check_names(
    function: str, parameters: tuple[Parameter, ...], arguments: Collection[str]
) -> None:
    known = {parameter.name for parameter in parameters}
    needed = {parameter.name for parameter in parameters if not parameter.is_optional}
    if unknown := set(arguments) - known:
        raise TypeError(f"{function} has no parameters {sorted(unknown)}")
    if missing := needed - set(arguments):
        raise TypeError(f"{function} needs {sorted(missing)}")


def _as_type(parameter: Parameter, array: object) -> NDArray[np.generic]:
    if isinstance(array, np.ndarray) and array.dtype == np.bool_ and parameter.type == "uint8_t":
        array = array.view(np.uint8)
    fits = isinstance(array, np.ndarray) and array.dtype == DTYPES[parameter.type]
    if not isinstance(array, np.ndarray) or not fits or not array.flags.c_contiguous:
        raise TypeError(f"{parameter.name} must be a contiguous array of {parameter.type}")
    return array


class _Memory:
    """Copies of arrays far from each other, so that to leave one is never to enter another."""

    def __init__(self) -> None:
        self._outputs: list[tuple[NDArray[np.generic], NDArray[np.generic]]] = []
        self._arenas: list[NDArray[np.uint8]] = []

    def place(self, array: NDArray[np.generic], *, is_output: bool) -> NDArray[np.generic]:
        margin = -(-array.nbytes // ALIGNMENT) * ALIGNMENT + 16 * ALIGNMENT
        arena = np.full(array.nbytes + 2 * margin + ALIGNMENT, UNDEFINED, np.uint8)
        start = margin + -(arena.ctypes.data + margin) % ALIGNMENT
        copy = arena[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        self._arenas.append(arena)
        if is_output:
            self._outputs.append((array, copy))
        return copy

    def copy_outputs_back(self) -> None:
        for array, copy in self._outputs:
            array[...] = copy
