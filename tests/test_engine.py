"""Three outcomes, grouping, and what a broken rule does to a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bncheck.catalogue import RULES
from bncheck.core.checkpoint import Packaging, Unread
from bncheck.core.finding import ExitCode, Failure, Finding, NotChecked, Passed, Report, Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.core.rule import Evidence, Rule, Undecided, Verdict
from bncheck.engine import examine
from bncheck.rules import zero_momentum
from tests.rules.layers import bare, checkpoint, layer


def _rule(verdicts: dict[str, Verdict], **changes: object) -> Rule:
    def check(judged: NormLayer, limits: Limits) -> Verdict:
        return verdicts.get(judged.name)

    return replace(zero_momentum.RULE, needs=(), check_layer=check, **changes)  # type: ignore[arg-type]


def test_layers_with_one_fault_are_one_finding_with_the_worst_ones_numbers() -> None:
    verdicts: dict[str, Verdict] = {
        "a": Evidence("bad", {"size": 1}, badness=1),
        "b": Evidence("bad", {"size": 9}, badness=9),
        "c": Evidence("bad", {"size": 3}, badness=3, severity=Severity.NOTICE),
        "d": Evidence("worse", {"size": 2}),
    }
    subject = examine(checkpoint([layer(name) for name in "abcde"]), [_rule(verdicts)], DEFAULT_LIMITS)
    found = {(finding.severity, finding.message): finding for finding in subject.findings}
    assert found[Severity.ERROR, "bad"].layers == ("a", "b")
    assert found[Severity.ERROR, "bad"].evidence == {"size": 9, "worst layer": "b"}
    assert found[Severity.NOTICE, "bad"].layers == ("c",)
    assert found[Severity.ERROR, "worse"].layers == ("d",)
    assert subject.findings[-1].severity is Severity.NOTICE


def test_a_rule_may_find_here_and_not_be_able_to_tell_there() -> None:
    verdicts: dict[str, Verdict] = {"a": Evidence("bad"), "b": Undecided("unclear")}
    subject = examine(checkpoint([layer("a"), layer("b"), layer("c")]), [_rule(verdicts)], DEFAULT_LIMITS)
    assert [type(outcome) for outcome in subject.outcomes] == [Finding, NotChecked]
    assert subject.not_checked[0].layers == ("b",)
    assert subject.passed == ()


def test_missing_needs_are_named() -> None:
    rule = replace(zero_momentum.RULE, needs=("momentum", "eps", "training"))
    subject = examine(checkpoint([bare("a"), bare("b", eps=1e-5)]), [rule], DEFAULT_LIMITS)
    assert {entry.reason: entry.layers for entry in subject.not_checked} == {
        "momentum, eps and training are not in the file": ("a",),
        "momentum and training are not in the file": ("b",),
    }


def test_a_crashing_rule_is_never_a_pass() -> None:
    def crash(judged: NormLayer, limits: Limits) -> Verdict:
        raise KeyError("gone")

    subject = examine(checkpoint([layer()]), [replace(zero_momentum.RULE, check_layer=crash)], DEFAULT_LIMITS)
    (entry,) = subject.not_checked
    assert entry.crashed
    assert not subject.complete
    assert Report((subject,)).exit_code is ExitCode.NOT_AUDITED


def test_unread_parts_make_the_audit_incomplete() -> None:
    partly = replace(checkpoint([layer()]), unread=(Unread("bn.running_var", "sparse"),))
    assert Report((examine(partly, RULES, DEFAULT_LIMITS),)).exit_code is ExitCode.NOT_AUDITED


def test_what_could_not_be_audited_outranks_findings() -> None:
    subject = examine(checkpoint([layer(momentum=1.0)]), RULES, DEFAULT_LIMITS)
    assert Report((subject,)).exit_code is ExitCode.FINDINGS
    assert Report((subject,), (Failure("x", "unreadable-file", "gone"),)).exit_code is ExitCode.NOT_AUDITED


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [
        (Severity.ERROR, ExitCode.CLEAN),
        (Severity.WARNING, ExitCode.FINDINGS),
        (Severity.NOTICE, ExitCode.FINDINGS),
        (None, ExitCode.CLEAN),
    ],
)
def test_fail_on(fail_on: Severity | None, code: ExitCode) -> None:
    subject = examine(checkpoint([layer(momentum=0.9)]), RULES, DEFAULT_LIMITS)
    assert Report((subject,), fail_on=fail_on).exit_code is code


def test_healthy_layers_pass_every_rule() -> None:
    called = [layer(name, baked_training=False, execution_order=index) for index, name in enumerate("ab")]
    static = [rule for rule in RULES if rule.check_measured is None]
    subject = examine(checkpoint(called, packaging=Packaging.TORCHSCRIPT), static, DEFAULT_LIMITS)
    assert subject.outcomes == tuple(Passed(rule.id) for rule in static)


@pytest.mark.parametrize(
    "changes", [{"gain_warning": 0.0}, {"residue_error": float("nan")}, {"gain_warning": 1e6}, {"residue_warning": 0.5}]
)
def test_limits_are_validated(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"limit|must not exceed"):
        Limits(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"id": "BN7"}, {"id": "BN201"}, {"name": "Zero"}, {"check_layer": None}])
def test_rules_are_validated(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="BN"):
        replace(zero_momentum.RULE, **changes)  # type: ignore[arg-type]
