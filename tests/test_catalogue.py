"""The catalogue is complete, sorted, and every rule is shown to fire and to stay silent."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest

import bncheck
from bncheck.catalogue import RULES
from bncheck.core.layers import NormLayer
from bncheck.core.rule import Rule
from tests.process import FIXTURES, ROOT

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
    assert set(rule.needs) <= {field.name for field in fields(NormLayer)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_fires_on_a_fixture_and_not_on_its_healthy_twin(rule: Rule) -> None:
    firing = {
        name: expected
        for name, expected in EXPECTED.items()
        if any(finding["rule"] == rule.id for findings in expected["files"].values() for finding in findings)
    }
    assert firing, f"no fixture fires {rule.id}"
    twins = {expected["twin"] for name, expected in firing.items() if name.startswith(rule.id.lower())}
    assert twins, f"no fixture is named after {rule.id}"
    for twin in twins:
        assert not any(EXPECTED[twin]["files"].values()), f"{twin} is not healthy"
        report = bncheck.audit(FIXTURES / twin)
        assert all(finding.rule != rule.id for subject in report.subjects for finding in subject.findings)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_twin_is_judged_and_not_merely_skipped(rule: Rule) -> None:
    """A twin on which the rule could not be checked would prove nothing."""
    passed = {
        code
        for name, expected in EXPECTED.items()
        if name.startswith("healthy")
        for subject in bncheck.audit(FIXTURES / name).subjects
        for code in subject.passed
    }
    assert rule.id in passed
