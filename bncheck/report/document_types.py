"""The canonical document's types, for formats that read it key by key."""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

from bncheck.report.document import Document, Json


class ExcuseEntry(TypedDict):
    """Why a finding does not count; ``until`` is a date, null where it holds for good."""

    by: str
    reason: str
    until: str | None


class FindingEntry(TypedDict):
    """A complaint; ``excuse`` is there on those that do not count."""

    rule: str
    name: str
    severity: str
    message: str
    layers: list[str]
    evidence: dict[str, float | int | str | None]
    rationale: str
    remedy: str
    excuse: NotRequired[ExcuseEntry]


class NotCheckedEntry(TypedDict):
    """What a rule could not judge; no layers where it could judge none.

    ``must_be_checked`` where that makes the run incomplete.
    """

    rule: str
    reason: str
    layers: list[str]
    crashed: bool
    must_be_checked: bool


class UnreadEntry(TypedDict):
    """A part of a file that was not read."""

    what: str
    reason: str


class NotMeasuredEntry(TypedDict):
    """A measurement that is missing; ``failed`` where it was asked for."""

    what: str
    reason: str
    failed: bool


class MeasurementsEntry(TypedDict):
    """Of what running the model showed, what reports for machines tell."""

    not_measured: list[NotMeasuredEntry]


class SubjectEntry(TypedDict):
    """One audited file."""

    path: str
    format: str
    packaging: str
    stage: str
    layers: list[dict[str, Json]]
    findings: list[FindingEntry]
    excused: list[FindingEntry]
    passed: list[str]
    not_checked: list[NotCheckedEntry]
    measurements: MeasurementsEntry | None
    unread: list[UnreadEntry]
    remarks: list[str]


class ErrorEntry(TypedDict):
    """A path that could not be audited."""

    path: str
    kind: str
    message: str


class SummaryEntry(TypedDict):
    """The run in numbers; ``fail_on`` is null where no finding fails it."""

    error: int
    warning: int
    notice: int
    files: int
    skipped: int
    excused: int
    fail_on: str | None
    exit_code: int


class AuditDocument(TypedDict):
    """The whole run."""

    schema_version: int
    bncheck_version: str
    subjects: list[SubjectEntry]
    errors: list[ErrorEntry]
    remarks: list[str]
    summary: SummaryEntry


def audit_document(document: Document) -> AuditDocument:
    """The same document, typed."""
    return cast(AuditDocument, document)
