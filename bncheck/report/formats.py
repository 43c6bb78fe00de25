"""The formats of a report, and what writes each."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import assert_never

from bncheck.core.errors import BadUsage
from bncheck.core.nearest import closest
from bncheck.core.rule import Rule
from bncheck.report.document import Document
from bncheck.report.json import to_json


class ReportFormat(enum.StrEnum):
    """Formats of an audit's report."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    JUNIT = "junit"
    GITHUB = "github"
    GITLAB = "gitlab"
    MARKDOWN = "markdown"
    HTML = "html"


FORMATS = ", ".join(known.value for known in ReportFormat)


def format_named(name: str) -> ReportFormat:
    """The format of this name.

    Raises:
        BadUsage: there is none; the message names the nearest.
    """
    names = [known.value for known in ReportFormat]
    if name in names:
        return ReportFormat(name)
    near = closest(name.lower(), names)
    hint = f"did you mean {near}?" if near is not None else f"there are {FORMATS}"
    raise BadUsage(f"no format is called {name!r}; {hint}")


def rendered(wanted: ReportFormat, document: Document, rules: Sequence[Rule]) -> str:
    """The report in one format; only the module that writes it is imported.

    Args:
        wanted: the format.
        document: the canonical document; HTML draws its numbers channel by channel.
        rules: those that were applied.

    Raises:
        ValueError: for text, which is a view of the report itself and not of its document.
    """
    match wanted:
        case ReportFormat.TEXT:
            raise ValueError("text is written from the report")
        case ReportFormat.JSON:
            return to_json(document)
        case ReportFormat.SARIF:
            from bncheck.report.sarif import to_sarif  # noqa: PLC0415 - an audit pays for no format it does not write

            return to_sarif(document, rules)
        case ReportFormat.JUNIT:
            from bncheck.report.junit import to_junit  # noqa: PLC0415

            return to_junit(document, rules)
        case ReportFormat.GITHUB:
            from bncheck.report.github import to_github  # noqa: PLC0415

            return to_github(document, rules)
        case ReportFormat.GITLAB:
            from bncheck.report.gitlab import to_gitlab  # noqa: PLC0415

            return to_gitlab(document, rules)
        case ReportFormat.MARKDOWN:
            from bncheck.report.markdown import to_markdown  # noqa: PLC0415

            return to_markdown(document, rules)
        case ReportFormat.HTML:
            from bncheck.report.html import to_html  # noqa: PLC0415

            return to_html(document, rules)
    assert_never(wanted)
