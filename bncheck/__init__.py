"""Audits batch normalisation in trained models.

    >>> import bncheck
    >>> report = bncheck.audit("model.pt")
    >>> report.exit_code

Importing the package imports neither torch nor numpy: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bncheck.version import __version__

if TYPE_CHECKING:
    from bncheck.api import audit
    from bncheck.core.errors import BncheckError
    from bncheck.core.finding import ExitCode, Finding, NotChecked, Report, Severity, Subject
    from bncheck.core.run_options import RunOptions
    from bncheck.recalibrating import Recalibration, recalibrate

__all__ = [
    "BncheckError",
    "ExitCode",
    "Finding",
    "NotChecked",
    "Recalibration",
    "Report",
    "RunOptions",
    "Severity",
    "Subject",
    "__version__",
    "audit",
    "recalibrate",
]

_HOMES = {
    "audit": "bncheck.api",
    "BncheckError": "bncheck.core.errors",
    "Recalibration": "bncheck.recalibrating",
    "RunOptions": "bncheck.core.run_options",
    "recalibrate": "bncheck.recalibrating",
    **dict.fromkeys(("ExitCode", "Finding", "NotChecked", "Report", "Severity", "Subject"), "bncheck.core.finding"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bncheck' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
