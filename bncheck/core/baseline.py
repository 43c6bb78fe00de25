"""Findings that were there when a gate was put up: they pass, new and worsened ones fail."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bncheck.core.finding import Finding, Severity

DEFAULT_MARGIN = 0.1
"""Share of its stored value by which a finding may grow: measured drifts of one model differ by a few percent from one
calibration set to the next (their standard errors at 2048 samples)."""


class Key(NamedTuple):
    """What a known finding is found again by."""

    model: str
    """Path relative to the baseline's folder, with forward slashes."""
    rule: str
    layer: str | None
    """Full name; None: the whole model."""


@dataclass(frozen=True, slots=True)
class Known:
    """How bad it was.

    Attributes:
        severity: what it counted as.
        badness: as in ``Hit``.
    """

    severity: Severity
    badness: float

    def worsened(self, severity: Severity, badness: float, margin: float) -> bool:
        """Whether what is seen now is worse than what is known.

        Args:
            severity: what it counts as now.
            badness: how bad it is now.
            margin: growth allowed, as a share of the known value.
        """
        if severity > self.severity:
            return True
        badness = _rounded(badness)  # as what is known was
        if math.isnan(badness) or math.isnan(self.badness):
            return math.isnan(badness) and not math.isnan(self.badness)
        if math.isinf(self.badness):
            return badness > self.badness
        return badness > self.badness + margin * abs(self.badness)


@dataclass(frozen=True, slots=True)
class Baseline:
    """Known findings.

    Attributes:
        entries: what is known.
        margin: growth allowed before a known finding fails again, as a share of its value.
    """

    entries: Mapping[Key, Known] = field(default_factory=dict)
    margin: float = DEFAULT_MARGIN


def known(model: str, findings: Iterable[Finding]) -> dict[Key, Known]:
    """Entries for the findings of one model.

    Args:
        model: path relative to the baseline's folder.
        findings: those to know from now on.
    """
    entries: dict[Key, Known] = {}
    for finding in findings:
        for hit in finding.hits:
            key = Key(model, finding.rule, hit.layer)
            entries[key] = _worse(entries.get(key), Known(finding.severity, _rounded(hit.badness)))
    return entries


def _worse(one: Known | None, other: Known) -> Known:
    """A rule may say two things of one layer."""
    if one is None:
        return other
    worse = one.badness if math.isnan(one.badness) else max(other.badness, one.badness)  # either's NaN
    return Known(max(one.severity, other.severity), worse)


def _rounded(badness: float) -> float:
    """Four digits tell the same story on every machine."""
    return float(f"{badness:.4g}")
