"""The benchmark of planted faults in its short form: every fault is seen, and nothing is said of healthy networks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.faults import Audited, Clean, Grade, Part, part_rows
from tests.benchmarks.planted_faults import Fault
from tests.process import ROOT

FAULT = Fault("a fault", ("BN406",), lambda healthy, folder: None)


def audited(loss: float | None, won_back: float | None, *, always: bool = False, fired: str = "BN406") -> Audited:
    """One audit that took no time."""
    fault = replace(FAULT, always=always)
    return Audited(fault, "cnn-0", Part.HELD_OUT, loss, won_back, frozenset({fired}), frozenset(), True, (), 0.0)


@pytest.mark.parametrize(
    ("loss", "won_back", "always", "grade", "in_all"),
    [
        (0.30, 0.29, False, Grade.GROSS, Grade.GROSS),
        (0.30, 0.02, False, Grade.MILD, Grade.GROSS),
        (0.30, 0.00, False, Grade.ELSEWHERE, Grade.GROSS),
        (0.02, 0.00, False, Grade.ELSEWHERE, Grade.MILD),
        (0.00, 0.02, False, Grade.MILD, Grade.HARMLESS),
        (0.00, -0.02, False, Grade.HARMLESS, Grade.HARMLESS),
        (0.00, 0.00, True, Grade.GROSS, Grade.GROSS),
        (None, None, True, Grade.GROSS, Grade.GROSS),
        (None, None, False, Grade.HARMLESS, Grade.HARMLESS),
    ],
)
def test_a_fault_is_graded_by_what_right_moments_win_back(
    loss: float | None, won_back: float | None, always: bool, grade: Grade, in_all: Grade
) -> None:
    found = audited(loss, won_back, always=always)
    assert (found.grade, found.grade_in_all) == (grade, in_all)


def test_an_alarm_is_false_unless_recalibration_bears_it_out() -> None:
    healthy = Clean("cnn-6", Part.AUGMENTED, "module", 0.99, 0.0, ("BN406 warning",), frozenset(), (), 0.0)
    assert healthy.false_alarms == ("BN406 warning",)
    assert replace(healthy, won_back=0.02).false_alarms == ()


def test_both_recalls_are_told() -> None:
    audits = [audited(0.02, 0.02), audited(0.02, 0.02, fired="BN303"), audited(0.02, 0.0), audited(0.0, 0.0)]
    *_, own, everything = part_rows(audits, [])
    for row in (own, everything):
        assert row.split()[-7:-3] == ["1/2", "1/1", "1/1", "2/3"]


def test_short_form(tmp_path: Path) -> None:
    figures, cache = tmp_path / "figures.json", tmp_path / "cache"
    script = ROOT / "tests" / "benchmarks" / "faults.py"
    options = ("--short", "--no-cost", "--cache", str(cache), "--json", str(figures))
    finished = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stderr
    told = json.loads(figures.read_text(encoding="utf-8"))
    assert told["networks"] == ["cnn-0", "mlp-0"]
    assert told["false_alarms"] == []
    assert told["missed"] == []
    assert told["incomplete"] == []
    (gross, planted), (mild, milds) = told["gross"], told["mild"]
    assert gross == planted > 25
    assert mild == milds > 0
    # Faults that cost nothing through batch norm are counted by themselves, and so are those that cost elsewhere.
    assert told["harmless"][1] > 0
    assert not told["elsewhere"][1]
    for title in ("fault ", "rule ", "rms δ", "median |ln ρ²|", "networks ", "limits chosen on "):
        assert f"\n{title}" in finished.stdout
    assert sorted(path.name for path in cache.iterdir()) == ["cnn-0.pt", "mlp-0.pt"]
