"""The verdict of a run, from its document."""

from __future__ import annotations

from bncheck.core.finding import ExitCode, Severity
from bncheck.report.document_types import AuditDocument, SubjectEntry
from bncheck.report.shortfalls import NOT_CHECKED, shortfalls
from bncheck.report.verdict_words import Numbers, Verdict, told


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
