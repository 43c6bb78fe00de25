"""``bncheck rules`` and ``bncheck explain``."""

from __future__ import annotations

import json

import pytest

from bncheck.catalogue import RULES
from bncheck.core.rule import Rule
from tests.process import bncheck


def test_rules_lists_all_of_them() -> None:
    shown = bncheck("rules").stdout
    for rule in RULES:
        assert rule.id in shown
        assert rule.name in shown
    assert [entry["id"] for entry in json.loads(bncheck("rules", "--format", "json").stdout)] == [
        rule.id for rule in RULES
    ]


@pytest.mark.parametrize("rule", [RULES[0], RULES[-1]], ids=lambda rule: rule.id)
def test_explain_gives_the_whole_argument(rule: Rule) -> None:
    shown = " ".join(bncheck("explain", rule.id.lower(), COLUMNS="100").stdout.split())
    for text in (rule.rationale, rule.formula, rule.limit, rule.reference, *rule.false_alarms):
        assert text in shown
    assert bncheck("explain", rule.name).stdout == bncheck("explain", rule.id).stdout


def test_explain_suggests_the_nearest_rule() -> None:
    finished = bncheck("explain", "zero-momentom")
    assert finished.returncode == 2
    assert finished.stderr == "bncheck: no rule is called 'zero-momentom'; did you mean zero-momentum?\n"


def test_version_and_help() -> None:
    assert bncheck("--version").stdout.startswith("bncheck ")
    for command in ("audit", "inspect", "rules", "explain"):
        assert command in bncheck("--help").stdout
        assert bncheck(command, "--help").returncode == 0
