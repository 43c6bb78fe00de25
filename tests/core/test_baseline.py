"""When what is seen is worse than what is known."""

from __future__ import annotations

import math

import pytest

from bncheck.core.baseline import Baseline, Key, Known, known
from bncheck.core.finding import Finding, Hit, Severity

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("before", "now", "margin", "worsened"),
    [
        (1.0, 1.0, 0.1, False),
        (1.0, 1.1, 0.1, False),
        (1.0, 1.11, 0.1, True),
        (1.0, 0.1, 0.1, False),
        (-1.0, -0.95, 0.1, False),
        (-1.0, -0.8, 0.1, True),
        (-1.0, -2.0, 0.1, False),
        (0.0, 0.0, 0.1, False),
        (0.0, 0.001, 0.1, True),
        (1.0, 2.0, 1.0, False),
        (0.0123, 0.01234, 0.0, True),
        (NAN, NAN, 0.1, False),
        (NAN, 5.0, 0.1, False),
        (NAN, INF, 0.1, False),
        (5.0, NAN, 0.1, True),
        (INF, NAN, 0.1, True),
        (INF, INF, 0.1, False),
        (INF, 5.0, 0.1, False),
        (5.0, INF, 0.1, True),
        (-INF, -INF, 0.1, False),
        (-INF, 0.0, 0.1, True),
    ],
)
def test_worsened(before: float, now: float, margin: float, worsened: bool) -> None:
    assert Known(Severity.ERROR, before).worsened(Severity.ERROR, now, margin) is worsened


def test_a_severity_that_rose_is_worse_and_one_that_fell_is_not() -> None:
    entry = Known(Severity.WARNING, 1.0)
    assert entry.worsened(Severity.ERROR, 0.1, 0.1)
    assert not entry.worsened(Severity.NOTICE, 1.0, 0.1)


def _finding(*hits: tuple[str | None, float], severity: Severity = Severity.ERROR, rule: str = "BN405") -> Finding:
    seen = tuple(Hit(layer, {}, badness, "") for layer, badness in hits)
    return Finding(rule, "x", severity, "", (), {}, "", "", seen)


@pytest.mark.parametrize("badness", [1 / 3, 0.0123456789, 1e-9 / 7, 12345.678, 1e20 / 3, -2 / 3])
def test_what_has_just_been_known_is_not_worse_even_with_no_margin(badness: float) -> None:
    """Rounding what is written down makes nothing worse."""
    (entry,) = known("a.pt", [_finding(("bn", badness))]).values()
    assert not entry.worsened(Severity.ERROR, badness, 0.0)
    assert not entry.worsened(Severity.ERROR, badness * (1 + 1e-7), 0.0)


def test_it_is_known_by_model_rule_and_layer() -> None:
    findings = [_finding(("a", 1.0), ("b", 2.0)), _finding((None, 3.0), rule="BN407", severity=Severity.WARNING)]
    assert known("m/a.pt", findings) == {
        Key("m/a.pt", "BN405", "a"): Known(Severity.ERROR, 1.0),
        Key("m/a.pt", "BN405", "b"): Known(Severity.ERROR, 2.0),
        Key("m/a.pt", "BN407", None): Known(Severity.WARNING, 3.0),
    }
    assert not Baseline().entries


@pytest.mark.parametrize("values", [(1.0, 2.0), (2.0, 1.0), (NAN, 1.0), (1.0, NAN), (INF, NAN), (NAN, INF)])
def test_of_two_things_said_of_one_layer_the_worse_is_known(values: tuple[float, float]) -> None:
    one, other = values
    twice = [_finding(("a", one), severity=Severity.WARNING), _finding(("a", other), severity=Severity.NOTICE)]
    (entry,) = known("a.pt", twice).values()
    assert entry.severity is Severity.WARNING
    worse = max(values) if not any(map(math.isnan, values)) else NAN
    assert entry.badness == worse or (math.isnan(entry.badness) and math.isnan(worse))
