"""Calls the launchers of a built library with NumPy arrays."""

from __future__ import annotations

import ctypes
import re
import subprocess
import weakref
from collections import Counter
from collections.abc import Collection, Mapping
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
    "Bf16": np.uint16,
}
SCALARS = {
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
    "float": ctypes.c_float,
    "bool": ctypes.c_bool,
}
ALIGNMENT = 256  # what cudaMalloc promises
MAX_SHARED = 64 * 1024  # bytes a block can have on the smallest GPU, 7.5
UNDEFINED = 0xFF  # every byte of uninitialised memory: NaN as a floating-point number


@dataclass(frozen=True)
class Schedule:
    """How the threads of a block take turns."""

    seed: int = 0
    """0: in the order of their index, each until it waits. Else every choice is drawn."""

    preempt: int = 0
    """Switch threads at about one in so many accesses to memory as well; 0: never."""

    check: bool = True
    """Watch every access. Without, only what shows from the outside is reported."""


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


class Field(NamedTuple):
    """A number or pointer in the struct that a launcher takes."""

    name: str
    type: str
    is_pointer: bool
    is_const: bool
    is_optional: bool
    length: int
    """Length of an array of such numbers or pointers; 0 for a single one."""


class Launcher(NamedTuple):
    """What a launcher takes: one struct."""

    struct: type[ctypes.Structure]
    fields: tuple[Field, ...]
    """Those of structs inside it too, in order; no two have one name."""


class Launch(NamedTuple):
    """Sizes of a launch: x, y, z."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]


class Library:
    """A kernel file that runs on the CPU.

    Its launchers are the functions that ``launchers.h`` declares with ``MG2L_API int``; a field of
    their struct that points to const is an input, any other pointer an output, and one with
    "or null" in its comment may be left out.
    """

    def __init__(self, path: Path, launchers: str) -> None:
        self.path = path
        self.launchers = parse_launchers(launchers)
        self._dll = ctypes.CDLL(str(path))
        self._dll.cuda_host_report.restype = ctypes.c_char_p
        self._dll.cuda_host_switches.restype = ctypes.c_uint64
        self._dll.cuda_host_accesses.restype = ctypes.c_uint64
        weakref.finalize(self, self._dll.cuda_host_release)
        for kernel, size in _static_shared(path, self._dll).items():
            self._dll.cuda_host_set_static_shared(ctypes.c_void_p(kernel), ctypes.c_size_t(size))

    def call(
        self,
        function: str,
        arguments: Mapping[str, Any],
        *,
        schedule: Schedule = IN_ORDER,
        in_out: Collection[str] = (),
        max_shared: int = MAX_SHARED,
    ) -> Report:
        """Run a launcher.

        Every array is copied to memory of its own, with forbidden memory as large as itself on both
        sides. What outputs hold counts as undefined, and is, unless ``in_out`` names them.

        Args:
            function: Name of the launcher.
            arguments: Value or array of every field, by name. bool arrays count as uint8.
            schedule: How threads take turns.
            in_out: Outputs that are read as well.
            max_shared: Bytes of shared memory that a block can have on the GPU.

        Returns:
            What was found.

        Raises:
            TypeError: An argument is missing, unknown, or of the wrong type.
        """
        launcher = self.launchers[function]
        _check_names(function, launcher.fields, arguments)
        options = (schedule.seed, schedule.preempt, int(schedule.check))
        self._dll.cuda_host_begin(*options, ctypes.c_uint64(max_shared))
        memory = _Memory()
        values: dict[str, Any] = {}
        for field in launcher.fields:
            given = arguments.get(field.name)
            if not field.is_pointer:
                values[field.name] = tuple(given or ()) if field.length else given
            elif field.length:
                values[field.name] = tuple(
                    None if one is None else self._place(memory, field, one, in_out)
                    for one in given or ()
                )
            elif given is not None or not field.is_optional:
                values[field.name] = self._place(memory, field, given, in_out)
        struct = launcher.struct()
        _fill(struct, values)
        status = getattr(self._dll, function)(ctypes.byref(struct), None)
        memory.copy_outputs_back()
        report = self._report()
        if status and not report:
            return Report([Finding("launch", f"{function} returned status {status}", 1)])
        return report

    def _place(self, memory: _Memory, field: Field, given: Any, in_out: Collection[str]) -> int:
        """Address of a copy of an array."""
        defined = field.is_const or field.name in in_out
        copy = memory.place(_as_type(field, given), is_output=not field.is_const)
        if not defined:
            copy.view(np.uint8).fill(UNDEFINED)
        self._dll.cuda_host_add_buffer(
            field.name.encode(),
            ctypes.c_void_p(copy.ctypes.data),
            ctypes.c_size_t(copy.nbytes),
            ctypes.c_size_t(copy.itemsize),
            int(not field.is_const),
            int(defined),
        )
        return int(copy.ctypes.data)

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
            # "gae.cuh:81 (discriminator 2)": the discriminator distinguishes instances of a line.
            places = dict(zip(addresses, (line.split(" ")[0] for line in lines), strict=True))
            text = re.sub(r"\+0x[0-9a-f]+", lambda match: places[match.group()], text)
        counts: Counter[tuple[str, str]] = Counter()
        for line in text.splitlines():
            count, kind, message = line.split("\t")
            counts[kind, message] += int(count)
        return Report(Finding(*key, count) for key, count in sorted(counts.items()))


STRUCT = re.compile(r"(?:template <([^>]*)>\s*)?struct (\w+) {\n(.*?)\n};", re.DOTALL)
FIELD = re.compile(r"\s*(const )?(\w+)(?:<([^>]*)>)?(\*?) (\w+)(?:\[(\w+)\])?;\s*(//.*)?")
CONSTANT = re.compile(r"constexpr int (\w+) = (\d+);")
LAUNCHER = re.compile(r"MG2L_API int (\w+)\(const (\w+)(?:<([^>]*)>)?\* args,\s*void\* stream\);")


def parse_launchers(text: str) -> dict[str, Launcher]:
    """Every launcher that a header declares.

    Raises:
        ValueError: a launcher takes anything but one struct and a stream, or a field of the struct
            cannot be read.
    """
    structs = {
        name: (re.findall(r"typename (\w+)", parameters), body)
        for parameters, name, body in STRUCT.findall(text)
    }
    constants = {name: int(value) for name, value in CONSTANT.findall(text)}
    launchers = {
        function: Launcher(*_read_struct(structs, constants, name, _words(types)))
        for function, name, types in LAUNCHER.findall(text)
    }
    for function in re.findall(r"MG2L_API int (\w+)\(", text):
        if function not in launchers:
            raise ValueError(f"{function} must take a pointer to one struct, and a stream")
    return launchers


def _words(types: str) -> list[str]:
    return [word.strip() for word in types.split(",")] if types else []


def _read_struct(
    structs: Mapping[str, tuple[list[str], str]],
    constants: Mapping[str, int],
    name: str,
    types: list[str],
) -> tuple[type[ctypes.Structure], tuple[Field, ...]]:
    """A struct for ctypes, and its fields with those of structs inside it."""
    parameters, body = structs[name]
    known = dict(zip(parameters, types, strict=True))
    members: list[tuple[str, Any]] = []
    fields: list[Field] = []
    for line in body.splitlines():
        match = FIELD.fullmatch(line)
        if not match or (match.group(6) and match.group(6) not in constants):
            raise ValueError(f"{name}: cannot read the field {line.strip()!r}")
        const, type_name, inner, star, field, count, comment = match.groups()
        type_name = known.get(type_name, type_name)
        if type_name in structs and not star:
            nested, its_fields = _read_struct(
                structs, constants, type_name, [known[word] for word in _words(inner)]
            )
            members.append((field, nested))
            fields += its_fields
            continue
        length = constants[count] if count else 0
        one: Any = ctypes.c_void_p if star else SCALARS[type_name]
        members.append((field, one * length if length else one))
        optional = "or null" in (comment or "")
        fields.append(Field(field, type_name, bool(star), bool(const), optional, length))
    return type(name, (ctypes.Structure,), {"_fields_": members}), tuple(fields)


def _fill(struct: ctypes.Structure, values: Mapping[str, Any]) -> None:
    for name, *_ in struct._fields_:
        member = getattr(struct, name)
        if isinstance(member, ctypes.Structure):
            _fill(member, values)
        elif name in values:
            setattr(struct, name, values[name])


def _check_names(function: str, fields: tuple[Field, ...], arguments: Collection[str]) -> None:
    known = {field.name for field in fields}
    needed = {field.name for field in fields if not field.is_optional}
    if unknown := set(arguments) - known:
        raise TypeError(f"{function} has no fields {sorted(unknown)}")
    if missing := needed - set(arguments):
        raise TypeError(f"{function} needs {sorted(missing)}")


def _as_type(field: Field, array: object) -> NDArray[np.generic]:
    if isinstance(array, np.ndarray) and array.dtype == np.bool_ and field.type == "uint8_t":
        array = array.view(np.uint8)
    fits = isinstance(array, np.ndarray) and array.dtype == DTYPES[field.type]
    if not isinstance(array, np.ndarray) or not fits or not array.flags.c_contiguous:
        raise TypeError(f"{field.name} must be a contiguous array of {field.type}")
    return array


def _static_shared(path: Path, dll: ctypes.CDLL) -> dict[int, int]:
    """Bytes of static shared memory by the address of the kernel that declares it.

    ``__shared__`` variables are thread-local here, and the name of a local variable begins with
    that of its function: ``_Z<function>`` declares ``_ZZ<function>E<variable>``.
    """
    table = subprocess.run(
        ["readelf", "--symbols", "--wide", str(path)], text=True, capture_output=True, check=True
    ).stdout
    symbols = [line.split() for line in table.splitlines() if len(line.split()) == 8]
    functions = {row[7]: int(row[1], 16) for row in symbols if row[3] == "FUNC"}
    anchor = "cuda_host_report"
    address = ctypes.cast(getattr(dll, anchor), ctypes.c_void_p).value
    assert address is not None
    base = address - functions[anchor]
    sizes: Counter[int] = Counter()
    for row in symbols:
        if row[3] == "TLS" and row[7].startswith("_ZZ"):
            kernel = max(
                (name for name in functions if row[7].startswith(f"_ZZ{name[2:]}E")), key=len
            )
            sizes[base + functions[kernel]] += int(row[2], 0)
    return dict(sizes)


class _Memory:
    """Copies of arrays far from each other, so that leaving one never enters another."""

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
