"""Reads the machine code of a kernel out of a cubin; sm_75 and later, 16 bytes an instruction."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# The lowest 9 bits of an instruction; the next 3 say where its operands come from.
NAMES = {0x020: "FMUL", 0x021: "FADD", 0x023: "FFMA", 0x147: "BRA", 0x184: "LDS"}
ALWAYS = 7  # the predicate that is always true


class Instruction(NamedTuple):
    """The parts of an instruction that are needed here."""

    name: str
    """One of ``NAMES``, else empty."""

    predicated: bool


def instructions(cubin: Path, kernel: str) -> list[Instruction]:
    """The code of the one kernel whose mangled name contains ``kernel``.

    Raises:
        ValueError: No kernel or several have such a name.
    """
    found = [code for name, code in _sections(cubin.read_bytes()) if _is_code_of(name, kernel)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} kernels of {cubin.name} are called {kernel!r}")
    words = (word for word, _ in struct.iter_unpack("<QQ", found[0]))
    return [Instruction(NAMES.get(w & 0x1FF, ""), (w >> 12 & 0xF) != ALWAYS) for w in words]


def straight_runs(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """The code between branches; a loop without branches inside is one run."""
    run: list[Instruction] = []
    for instruction in code:
        if instruction.name == "BRA":
            yield run
            run = []
        else:
            run.append(instruction)
    yield run


def _is_code_of(section: str, kernel: str) -> bool:
    return section.startswith(".text.") and kernel in section


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    (start,) = struct.unpack_from("<Q", elf, 40)
    entry_bytes, count, names_at = struct.unpack_from("<HHH", elf, 58)
    headers = [
        struct.unpack_from("<IIQQQQ", elf, start + entry_bytes * index) for index in range(count)
    ]
    names = headers[names_at][4]
    for name, _, _, _, offset, size in headers:
        text = elf[names + name : elf.index(b"\0", names + name)].decode()
        yield text, elf[offset : offset + size]
