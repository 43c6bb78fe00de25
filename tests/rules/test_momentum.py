"""BN501 to BN506."""

from __future__ import annotations

import math

import pytest

from bncheck.core.finding import NotChecked, Severity
from bncheck.core.layers import Averaging, NormKind
from bncheck.core.rule import Rule
from bncheck.rules import (
    cumulative_average,
    decay_convention,
    last_batch_only,
    momentum_inconsistent,
    momentum_out_of_range,
    zero_momentum,
)
from tests.rules.layers import bare, judge, layer

ALL = [
    module.RULE
    for module in (
        cumulative_average,
        decay_convention,
        last_batch_only,
        momentum_inconsistent,
        momentum_out_of_range,
        zero_momentum,
    )
]


def _fired(momentum: object) -> dict[str, Severity]:
    fired: dict[str, Severity] = {}
    for rule in ALL:
        outcome = judge(rule, layer(momentum=momentum))
        if outcome is not None:
            assert isinstance(outcome, tuple)
            fired[rule.id] = outcome[0].severity
    return fired


@pytest.mark.parametrize("momentum", [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.49])
def test_legitimate_momentum(momentum: float) -> None:
    assert _fired(momentum) == {}


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.95, 0.99, 0.997, 0.999, 0.9997])
def test_port_of_a_decay(momentum: float) -> None:
    assert _fired(momentum) == {"BN503": Severity.WARNING}


def test_port_of_a_decay_says_what_to_write() -> None:
    outcome = judge(decay_convention.RULE, layer(momentum=0.997))
    assert isinstance(outcome, tuple)
    assert "which is 0.003 in PyTorch" in outcome[0].message


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan, math.inf])
def test_out_of_range(momentum: float) -> None:
    assert _fired(momentum) == {"BN504": Severity.ERROR}


def test_last_batch_only() -> None:
    assert _fired(1.0) == {"BN502": Severity.ERROR}


def test_cumulative() -> None:
    assert _fired(Averaging.CUMULATIVE) == {"BN506": Severity.NOTICE}


def test_zero_is_a_notice_where_there_is_something_to_keep() -> None:
    assert _fired(0.0) == {"BN501": Severity.NOTICE}
    outcome = judge(zero_momentum.RULE, layer(momentum=0.0, running_mean=[0] * 4, running_var=[1] * 4))
    assert isinstance(outcome, tuple)
    assert outcome[0].severity is Severity.ERROR


def test_layers_that_differ_are_named() -> None:
    layers = [layer("a"), layer("b", momentum=0.01), layer("c"), layer("d", momentum=Averaging.CUMULATIVE)]
    outcome = judge(momentum_inconsistent.RULE, *layers)
    assert isinstance(outcome, tuple)
    assert [finding.layers for finding in outcome] == [("b", "d")]


def test_copies_may_differ() -> None:
    assert judge(momentum_inconsistent.RULE, layer("a"), layer("a", momentum=0.01, group="ema")) is None


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.id)
def test_momentum_of_layers_that_do_not_average_is_ignored(rule: Rule) -> None:
    frozen = layer("a", kind=NormKind.FROZEN_BATCH, momentum=0.0)
    untracked = layer("b", track_running_stats=False, running_mean=None, running_var=None, momentum=1.0)
    assert judge(rule, frozen, untracked) is None


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.id)
def test_state_dict_holds_no_momentum(rule: Rule) -> None:
    assert isinstance(judge(rule, bare()), NotChecked)
