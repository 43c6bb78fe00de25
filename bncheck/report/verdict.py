"""The verdict of a run, in the words all formats use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bncheck.core.finding import ExitCode, Severity
from bncheck.report.document_types import AuditDocument, SubjectEntry
from bncheck.report.printable import counted
from bncheck.report.shortfalls import NOT_CHECKED, shortfalls


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


def verdict(document: AuditDocument) -> Verdict:
    """What the run came to; it agrees with the exit code."""
    summary, subjects = document["summary"], document["subjects"]
    missed = [list(shortfalls(subject)) for subject in subjects]
    return told(
        Numbers(
            exit_code=ExitCode(summary["exit_code"]),
            findings={"error": summary["error"], "warning": summary["warning"], "notice": summary["notice"]},
            excused=summary["excused"],
            files=len(subjects),
            layers=sum(len(subject["layers"]) for subject in subjects),
            broken=len(document["errors"]) + sum(any(part.kind != NOT_CHECKED for part in parts) for parts in missed),
            unchecked=len({part.rule for parts in missed for part in parts if part.kind == NOT_CHECKED}),
        )
    )


def is_complete(subject: SubjectEntry) -> bool:
    """Whether everything that had to be seen of a file was."""
    return next(shortfalls(subject), None) is None


def fails_the_run(severity: str, fail_on: str | None) -> bool:
    """Whether a finding of this severity makes the exit code 1."""
    return fail_on is not None and Severity[severity.upper()] >= Severity[fail_on.upper()]
