"""The numbers of a finding on one line."""

from __future__ import annotations

from collections.abc import Mapping

from bncheck.report.printable import number


def numbers(evidence: Mapping[str, float | int | str | None]) -> str:
    """``measured 0.3, limit 0.1``."""
    return ", ".join(f"{name} {number(value)}" for name, value in evidence.items())
