"""Faults that must be found: what was run, what was expected, and whether it came out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cuda_host.cases import Case, largest_errors
from cuda_host.library import Finding, Library, Report, Schedule
from cuda_host.mutation import Mutation

WRONG = "wrong values"


class Outcome(NamedTuple):
    """What a kernel did in all its cases."""

    report: Report
    values_are_right: bool


class Fault(NamedTuple):
    """A mutation and what must be found."""

    mutation: Mutation
    kind: str
    """Kind of the finding, or ``wrong values`` if the values alone give it away."""

    at_line: bool = True
    """Whether a finding must name the line that changed."""


def run_cases(library: Library, cases: Iterable[Case]) -> Outcome:
    """Every case, one after the other."""
    right = True
    findings: list[Finding] = []
    for case in cases:
        findings += library.call(case.function, case.arguments)
        case.finish()
        right &= all(error <= allowed for error, allowed in largest_errors(case).values())
    return Outcome(Report(findings), right)


def check_case(library: Library, case: Case, schedule: Schedule) -> None:
    """Nothing is found, and every output is what it must be."""
    report = library.call(case.function, case.arguments, schedule=schedule)
    assert not report
    case.finish()
    for name, (error, allowed) in largest_errors(case).items():
        assert error <= allowed, name


def names(faults: list[Fault]) -> list[str]:
    return [fault.mutation.name for fault in faults]


def check_is_found(fault: Fault, outcome: Outcome, file: str) -> None:
    if fault.kind == WRONG:
        assert not outcome.values_are_right
        return
    found = [finding for finding in outcome.report if finding.kind == fault.kind]
    assert found, f"expected {fault.kind}, got:\n{outcome.report}"
    line = f"{file}:{fault.mutation.line}" if fault.at_line else file
    assert any(line in finding.message for finding in found), outcome.report
