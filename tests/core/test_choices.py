"""What one place says stands above what another says."""

from __future__ import annotations

import pytest

from bncheck.auditing import Settings
from bncheck.core.checkpoint import Stage
from bncheck.core.choices import Choices, FailOn, Precision, StageChoice
from bncheck.core.errors import BadConfig, BadUsage
from bncheck.core.finding import Severity


def test_what_is_said_above_wins_and_what_is_not_comes_from_below() -> None:
    above = Choices(samples=10, select=(), trust_pickle=False)
    below = Choices(samples=20, select=("BN2",), trust_pickle=True, device="cpu")
    merged = above.over(below)
    assert (merged.samples, merged.select, merged.trust_pickle, merged.device) == (10, (), False, "cpu")
    assert Choices().over(below) == below
    assert below.over(Choices()) == below


@pytest.mark.parametrize("name", ["severity", "limits", "model_arg"])
def test_mappings_are_merged_key_by_key(name: str) -> None:
    above, below = Choices(**{name: {"a": 1}}), Choices(**{name: {"a": 2, "b": 3}})
    assert getattr(above.over(below), name) == {"a": 1, "b": 3}


def test_what_is_run() -> None:
    choices = Choices(
        data="d.py:f", model="m.py:g", model_arg={"w": 1}, precision=Precision.BF16, samples=7, trust_pickle=True
    )
    run = choices.run()
    assert run is not None
    assert (run.data, run.model, run.model_arguments, run.precision) == ("d.py:f", "m.py:g", {"w": 1}, "bf16")
    assert (run.samples, run.trust_pickle) == (7, True)
    assert choices.without_run().run() is None
    assert Choices(samples=3).run() is None


@pytest.mark.parametrize("choices", [Choices(model="m.py:f"), Choices(train_step="m.py:f")])
def test_a_model_and_nothing_to_run_it_on(choices: Choices) -> None:
    with pytest.raises(BadUsage, match="is missing"):
        choices.run()


def test_settings_of_a_model() -> None:
    settings = Settings().with_choices(
        Choices(stage=StageChoice.RELEASE, select=("BN4",), ignore=("BN405",), limits={"gain_warning": 5.0},
                severity={"BN401": Severity.NOTICE}, allow_call=("a.b",))
    )  # fmt: skip
    assert settings.stage is Stage.RELEASE
    assert {rule.id[:3] for rule in settings.rules} == {"BN4"}
    assert "BN405" not in {rule.id for rule in settings.rules}
    assert settings.limits.gain_warning == 5.0
    assert settings.severities == {"BN401": Severity.NOTICE}
    assert settings.vouched == {"a.b"}
    assert Settings().with_choices(Choices(stage=StageChoice.AUTO)).stage is None


def test_limits_of_several_places_are_held_against_each_other() -> None:
    merged = Choices(limits={"gain_warning": 9.0}).over(Choices(limits={"gain_error": 8.0}))
    with pytest.raises(BadConfig, match="gain_warning must not exceed gain_error"):
        Settings().with_choices(merged)


def test_fail_on() -> None:
    assert [choice.severity for choice in FailOn] == [Severity.ERROR, Severity.WARNING, Severity.NOTICE, None]
