"""The verdict of a run, in the words that all formats use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bncheck.core.finding import ExitCode
from bncheck.report.printable import counted


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word and what it rests on; as the view for people has them."""

    word: str
    text: str


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a verdict rests on.

    Attributes:
        exit_code: of the run.
        findings: label of a severity → how many count, the worst first.
        excused: findings that do not count.
        files, layers: that were read.
        broken: paths of which something that is there was not seen.
        unchecked: rules that had to be checked and could not be.
    """

    exit_code: ExitCode
    findings: Mapping[str, int]
    excused: int
    files: int
    layers: int
    broken: int
    unchecked: int


def told(numbers: Numbers) -> Verdict:
    """The verdict in words."""
    found = ", ".join(counted(count, label) for label, count in numbers.findings.items() if count) or "no findings"
    found += f", {numbers.excused} excused" if numbers.excused else ""
    files = counted(numbers.files, "file")
    match numbers.exit_code:
        case ExitCode.NOT_AUDITED:
            broken = f"{counted(numbers.broken, 'path')} could not be audited"
            unchecked = f"{counted(numbers.unchecked, 'rule')} that had to be checked could not be"
            what = " and ".join(([broken] if numbers.broken else []) + ([unchecked] if numbers.unchecked else []))
            return Verdict("INCOMPLETE", f"{what}; {found} in {files} read")
        case ExitCode.NOTHING_TO_AUDIT:
            return Verdict("NOTHING TO AUDIT", f"no batch-norm or tracked instance-norm layer in {files}")
        case ExitCode.FINDINGS:
            return Verdict("FAIL", f"{found} in {files}")
        case ExitCode.CLEAN:
            return Verdict("PASS", f"{found} in {counted(numbers.layers, 'layer')} of {files}")
