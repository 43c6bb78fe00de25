"""What makes the audit of a file incomplete, from its document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bncheck.report.document_types import SubjectEntry


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Something that was to be seen and was not.

    Attributes:
        kind: stable name: ``unread``, ``not-measured``, ``rule-crashed`` or ``not-checked``.
        what: the part of the file, the measurement, or the rule's code.
        reason: why.
        rule: the rule's code; None where it is no rule.
    """

    kind: str
    what: str
    reason: str
    rule: str | None = None

    @property
    def text(self) -> str:
        """On one line."""
        return f"{self.what} {_SAID[self.kind]}: {self.reason}"


NOT_CHECKED = "not-checked"

_SAID = {
    "unread": "was not read",
    "not-measured": "was not measured",
    "rule-crashed": "crashed",
    NOT_CHECKED: "had to be checked, and was not",
}


def shortfalls(subject: SubjectEntry) -> Iterator[Shortfall]:
    """Everything of a file that makes the exit code 2, as ``Report.exit_code`` has it."""
    for part in subject["unread"]:
        yield Shortfall("unread", part["what"], part["reason"])
    measured = subject["measurements"]
    for probe in () if measured is None else measured["not_measured"]:
        if probe["failed"]:
            yield Shortfall("not-measured", probe["what"], probe["reason"])
    for entry in subject["not_checked"]:
        if entry["crashed"]:
            yield Shortfall("rule-crashed", entry["rule"], entry["reason"], entry["rule"])
        elif entry["must_be_checked"]:
            yield Shortfall(NOT_CHECKED, entry["rule"], entry["reason"], entry["rule"])
