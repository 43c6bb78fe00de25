"""The catalogue is complete, sorted, and every rule is shown to fire and to stay silent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import bncheck
from bncheck.catalogue import RULES
from bncheck.core.layers import NormLayer
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Rule
from bncheck.core.run_options import RunOptions
from tests.process import FIXTURES, ROOT
from tests.test_fixtures import run_of

EXPECTED = {path.parent.name: json.loads(path.read_text()) for path in sorted(FIXTURES.glob("*/expected.json"))}


def test_codes_are_unique_and_sorted() -> None:
    codes = [rule.id for rule in RULES]
    assert codes == sorted(set(codes))
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_every_file_in_rules_is_in_the_catalogue() -> None:
    files = {path.stem for path in (ROOT / "bncheck" / "rules").glob("*.py")} - {"__init__"}
    assert files == {rule.name.replace("-", "_") for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_makes_its_argument(rule: Rule) -> None:
    for text in (rule.rationale, rule.formula, rule.limit, rule.remedy, rule.reference):
        assert text.strip() == text != ""
    assert re.search(r"https?://|IEEE", rule.reference)
    described = NormLayer if rule.reads_the_file else Measurements
    assert set(rule.needs) <= {field.name for field in fields(described)}


def _declared(expected: dict[str, Any]) -> Iterator[dict[str, object]]:
    """Findings a case is to give, read and run."""
    for findings in expected["files"].values():
        yield from findings
    yield from expected.get("run", {}).get("findings", ())


def _run(rule: Rule, case: Path) -> RunOptions | None:
    return None if rule.reads_the_file else run_of(case)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_fires_on_a_fixture_and_not_on_its_healthy_twin(rule: Rule) -> None:
    firing = {
        name: expected
        for name, expected in EXPECTED.items()
        if any(finding["rule"] == rule.id for finding in _declared(expected))
    }
    assert firing, f"no fixture fires {rule.id}"
    twins = {expected["twin"] for name, expected in firing.items() if name.startswith(rule.id.lower())}
    assert twins, f"no fixture is named after {rule.id}"
    for twin in twins:
        assert not list(_declared(EXPECTED[twin])), f"{twin} is not healthy"
        report = bncheck.audit(FIXTURES / twin, run=_run(rule, FIXTURES / twin))
        assert all(finding.rule != rule.id for subject in report.subjects for finding in subject.findings)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_twin_is_judged_and_not_merely_skipped(rule: Rule) -> None:
    """A twin on which the rule could not be checked would prove nothing."""
    passed = {
        code
        for name, expected in EXPECTED.items()
        if name.startswith("healthy") and (rule.reads_the_file or "run" in expected)
        for subject in bncheck.audit(FIXTURES / name, run=_run(rule, FIXTURES / name)).subjects
        for code in subject.passed
    }
    assert rule.id in passed
