"""A fixture for test suites: ``assert_healthy(model, data=loader)`` fails a test with the audit's own words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, Unpack

import pytest

if TYPE_CHECKING:
    from torch import nn  # noqa: TID251 - a type alone: nothing is imported

    from bncheck.api import AuditOptions
    from bncheck.core.finding import Report

_WIDTH = 100


class AssertHealthy(Protocol):
    """What the fixture gives."""

    def __call__(self, *subjects: str | os.PathLike[str] | nn.Module, **options: Unpack[AuditOptions]) -> Report:
        """Audit files, or a module in memory, and fail the test where that is not clean.

        Args:
            subjects: as for ``bncheck.audit``.
            options: likewise.

        Returns:
            The report, which is clean as far as ``fail_on`` asks.
        """
        ...


@pytest.fixture
def assert_healthy() -> AssertHealthy:
    """Fails a test where an audit has findings, could not see everything, or found nothing to audit."""

    def check(*subjects: str | os.PathLike[str] | nn.Module, **options: Unpack[AuditOptions]) -> Report:
        __tracebackhide__ = True
        # Imported here: whoever runs pytest with the plugin installed pays for it only in tests that use it.
        from bncheck.api import audit  # noqa: PLC0415
        from bncheck.core.finding import ExitCode  # noqa: PLC0415
        from bncheck.report.text import plain, report_lines  # noqa: PLC0415

        report = audit(*subjects, **options)
        if report.exit_code is not ExitCode.CLEAN:
            pytest.fail("\n" + plain(report_lines(report, _WIDTH, show_passed=False)), pytrace=False)
        return report

    return check
