"""Workflow commands, which GitHub Actions turns into annotations.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands; escaped as in
https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bncheck.core.rule import Rule
from bncheck.report.document import Document
from bncheck.report.document_types import (
    AuditDocument,
    FindingEntry,
    audit_document,
)
from bncheck.report.evidence import numbers
from bncheck.report.locations import location
from bncheck.report.printable import counted, printable, shortened
from bncheck.report.shortfalls import shortfalls
from bncheck.report.verdict import verdict

_LEVELS = ("error", "warning", "notice")
_MOST_OF_A_LEVEL = 10
"""GitHub shows no more for each step: https://github.com/actions/toolkit/blob/main/docs/problem-matchers.md#limitations."""


@dataclass(frozen=True, slots=True)
class _Annotation:
    """What is shown beside a file, in lines."""

    level: str
    path: str
    title: str
    lines: tuple[str, ...]


def to_github(document: Document, rules: Sequence[Rule]) -> str:
    """The verdict on a line of its own, then at most ten annotations of each level, worse before milder ones.

    What could not be audited comes first. Findings that are excused have no annotation; the step summary tells them,
    and all that is beyond the ten.

    Args:
        document: the canonical document.
        rules: those that were applied; the findings say all that an annotation has room for.
    """
    audit = audit_document(document)
    said = verdict(audit)
    every = [*_broken(audit), *_findings(audit)]
    lines = [f"bncheck {said.word}: {said.text}"]
    shown: Counter[str] = Counter()
    for level in _LEVELS:
        for annotation in (entry for entry in every if entry.level == level):
            shown[level] += 1
            if shown[level] <= _MOST_OF_A_LEVEL:
                lines.append(_command(annotation))
    left_out = sum(max(0, count - _MOST_OF_A_LEVEL) for count in shown.values())
    if left_out:
        lines.append(f"{counted(left_out, 'further annotation')} left out: GitHub shows ten of each level for a step.")
    return "\n".join(lines)


def _broken(audit: AuditDocument) -> Iterator[_Annotation]:
    for error in audit["errors"]:
        yield _Annotation("error", error["path"], f"not audited: {error['kind']}", (error["message"],))
    for subject in audit["subjects"]:
        for shortfall in shortfalls(subject):
            yield _Annotation("error", subject["path"], f"incomplete: {shortfall.kind}", (shortfall.text,))


def _findings(audit: AuditDocument) -> Iterator[_Annotation]:
    for subject in audit["subjects"]:
        for finding in subject["findings"]:
            title = f"{finding['rule']} {finding['name']}"
            yield _Annotation(finding["severity"], subject["path"], title, tuple(_told(finding)))


def _told(finding: FindingEntry) -> Iterator[str]:
    yield finding["message"]
    if finding["layers"]:
        yield f"Layers: {shortened(tuple(finding['layers']))}"
    if finding["evidence"]:
        yield f"Numbers: {numbers(finding['evidence'])}"
    yield "Fix:"
    yield from finding["remedy"].splitlines()


def _command(annotation: _Annotation) -> str:
    place = location(annotation.path)
    text = "\n".join(printable(line) for line in annotation.lines)
    # A file elsewhere is no part of the repository: its path is told in the text.
    if not place.inside:
        text = f"{place.path}: {text}"
    properties = {"file": place.path} if place.inside else {}
    properties["title"] = printable(annotation.title)
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{annotation.level} {told}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
