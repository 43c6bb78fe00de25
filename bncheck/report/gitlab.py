"""GitLab's code quality report: https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bncheck.core.rule import Rule
from bncheck.report.document import Document
from bncheck.report.document_types import AuditDocument, FindingEntry, audit_document
from bncheck.report.evidence import numbers
from bncheck.report.json import to_json
from bncheck.report.locations import fingerprinted, location
from bncheck.report.printable import printable, shortened
from bncheck.report.shortfalls import shortfalls

_SEVERITIES = {"error": "critical", "warning": "major", "notice": "info"}


def to_gitlab(document: Document, rules: Sequence[Rule]) -> str:
    """A JSON array with an entry for each finding that counts, and a blocker for whatever could not be audited.

    The format has no place for excused findings, nor for what was not checked.

    Args:
        document: the canonical document.
        rules: those that were applied; the findings say all that the format asks for.
    """
    audit = audit_document(document)
    found = fingerprinted(_broken(audit))
    entries = [_entry(*entry, severity="blocker") for entry in found]
    counting = fingerprinted(
        (subject["path"], finding) for subject in audit["subjects"] for finding in subject["findings"]
    )
    entries += [_entry(*entry, severity=_SEVERITIES[entry[1]["severity"]]) for entry in counting]
    return to_json(entries)


def _broken(audit: AuditDocument) -> Iterator[tuple[str, FindingEntry]]:
    """What could not be audited, in the form of findings."""
    for error in audit["errors"]:
        yield error["path"], _failed(error["kind"], error["message"])
    for subject in audit["subjects"]:
        for shortfall in shortfalls(subject):
            yield subject["path"], _failed(shortfall.kind, shortfall.text)


def _failed(kind: str, message: str) -> FindingEntry:
    return {
        "rule": kind,
        "name": "",
        "severity": "error",
        "message": message,
        "layers": [],
        "evidence": {},
        "rationale": "",
        "remedy": "",
    }


def _entry(path: str, finding: FindingEntry, fingerprint: str, *, severity: str) -> Document:
    return {
        "description": _description(finding),
        "check_name": f"{finding['rule']} {finding['name']}".rstrip(),
        "fingerprint": fingerprint,
        "severity": severity,
        "location": {"path": location(path).path, "lines": {"begin": 1}},
    }


def _description(finding: FindingEntry) -> str:
    """On one line: the widget of a merge request shows no more."""
    parts = [printable(finding["message"])]
    if finding["layers"]:
        parts.append(f"Layers: {shortened(tuple(finding['layers']))}.")
    if finding["evidence"]:
        parts.append(f"Numbers: {numbers(finding['evidence'])}.")
    return " ".join(parts)
