"""Audits batch normalisation in trained models.

    >>> import bncheck
    >>> report = bncheck.audit("model.pt")
    >>> for subject in report.subjects:
    ...     for finding in subject.findings:
    ...         print(finding.rule, finding.severity.label, finding.layers, finding.remedy)
    >>> report.raise_for_findings()

Importing the package imports neither torch nor numpy: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bncheck.version import __version__

if TYPE_CHECKING:
    from bncheck.api import audit
    from bncheck.core.checkpoint import Stage
    from bncheck.core.errors import BncheckError, FindingsFound
    from bncheck.core.finding import Excused, ExitCode, Finding, NotChecked, Report, Severity, Subject
    from bncheck.core.limits import Limits
    from bncheck.core.run_options import RunOptions
    from bncheck.recalibrating import Recalibration, recalibrate

__all__ = [
    "BncheckError",
    "Excused",
    "ExitCode",
    "Finding",
    "FindingsFound",
    "Limits",
    "NotChecked",
    "Recalibration",
    "Report",
    "RunOptions",
    "Severity",
    "Stage",
    "Subject",
    "__version__",
    "audit",
    "recalibrate",
]

_HOMES = {
    "audit": "bncheck.api",
    "BncheckError": "bncheck.core.errors",
    "FindingsFound": "bncheck.core.errors",
    "Limits": "bncheck.core.limits",
    "Recalibration": "bncheck.recalibrating",
    "RunOptions": "bncheck.core.run_options",
    "Stage": "bncheck.core.checkpoint",
    "recalibrate": "bncheck.recalibrating",
    **dict.fromkeys(
        ("Excused", "ExitCode", "Finding", "NotChecked", "Report", "Severity", "Subject"), "bncheck.core.finding"
    ),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bncheck' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
