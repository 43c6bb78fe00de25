"""HTML: a report as one file with pictures, for a person to read; it needs the extra ``html``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bncheck.report.document import Document

if TYPE_CHECKING:
    from bncheck.core.rule import Rule


def to_html(document: Document, rules: Sequence[Rule]) -> str:
    """The whole run as one page that asks for nothing from anywhere; the same document gives the same page.

    Args:
        document: made with ``channels=True``, or there is little to draw.
        rules: those that were applied.

    Raises:
        MissingExtra: jinja2 or plotly is not installed.
    """
    from bncheck.report.html.audit import audit_page  # noqa: PLC0415 - brings numpy's arrays of every channel
    from bncheck.report.html.page import render  # noqa: PLC0415 - only who asks for HTML pays for its libraries

    return render(audit_page(document, rules))


def recalibration_to_html(document: Document) -> str:
    """A recalibration as one page: what moved, layer by layer, from before to after.

    Args:
        document: as ``recalibration_document`` makes it.

    Raises:
        MissingExtra: jinja2 or plotly is not installed.
    """
    from bncheck.report.html.page import render  # noqa: PLC0415 - as above
    from bncheck.report.html.recalibration import recalibration_page  # noqa: PLC0415 - as above

    return render(recalibration_page(document))
