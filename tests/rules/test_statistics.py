"""BN401 to BN405 and BN409, against moments that torch itself computed where that matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bncheck.core.finding import Finding, NotChecked, Severity
from bncheck.core.layers import Averaging, NormLayer
from bncheck.core.rule import Rule
from bncheck.rules import (
    dead_channels,
    extreme_gain,
    half_precision_statistics,
    initial_value_residue,
    negative_variance,
    non_finite_statistics,
)
from tests.rules.layers import bare, judge, layer


def _only(rule: Rule, *layers: NormLayer) -> Finding:
    outcome = judge(rule, *layers)
    assert isinstance(outcome, tuple), outcome
    (finding,) = outcome
    return finding


def _trained(updates: int, momentum: float | None, dead: int = 0, dtype: torch.dtype = torch.float32) -> NormLayer:
    """A layer whose moments torch's own batch norm computed; the first ``dead`` channels are constant."""
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.BatchNorm1d(8, momentum=momentum, dtype=dtype)
    for _ in range(updates):
        batch = torch.randn(32, 8, generator=generator, dtype=dtype) * torch.linspace(0.01, 3, 8, dtype=dtype)
        batch[:, :dead] = 0.7
        norm(batch)
    return layer(
        momentum=Averaging.CUMULATIVE if momentum is None else momentum,
        num_batches_tracked=updates,
        num_features=8,
        running_mean=norm.running_mean.double().numpy(),
        running_var=norm.running_var.double().numpy(),
        weight=None,
        bias=None,
        dtype=str(dtype).removeprefix("torch."),
    )


@pytest.mark.parametrize(
    ("mean", "variance", "cause"),
    [
        ([0.0, 1.0], [math.nan, 1.0], "one value per channel"),
        ([math.inf, 1.0], [math.nan, 1.0], "overflow"),
        ([1.0, 1.0], [math.inf, 1.0], "overflow"),
        ([math.nan, 1.0], [math.nan, 1.0], "NaN reached the layer"),
    ],
)
def test_pattern_of_non_finite_moments_names_the_cause(mean: list[float], variance: list[float], cause: str) -> None:
    finding = _only(non_finite_statistics.RULE, layer(running_mean=mean, running_var=variance))
    assert cause in finding.message
    assert finding.severity is Severity.ERROR
    assert finding.evidence["channels not finite"] == 1


@pytest.mark.parametrize(
    ("least", "eps", "severity"),
    [
        (-1e-4, 1e-5, Severity.ERROR),
        (-1e-5, 1e-5, Severity.ERROR),
        (-9.9e-6, 1e-5, Severity.NOTICE),
        (-9.9e-4, 1e-3, Severity.NOTICE),
        (-1e-2, None, Severity.ERROR),
        (-1e-4, None, Severity.WARNING),
    ],
)
def test_negative_variance(least: float, eps: float | None, severity: Severity) -> None:
    finding = _only(negative_variance.RULE, layer(running_var=[1, 1, least, 1], eps=eps))
    assert finding.severity is severity
    assert finding.evidence["least variance"] == least


def test_zero_variance_is_not_negative() -> None:
    assert judge(negative_variance.RULE, layer(running_var=[0, 1, 1, 1])) is None


@pytest.mark.parametrize("updates", [1, 3, 50, 400, 900])
@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5])
def test_dead_channels_of_torchs_own_moments_are_counted(updates: int, momentum: float) -> None:
    finding = _only(dead_channels.RULE, _trained(updates, momentum, dead=2))
    assert finding.evidence["dead channels"] == 2
    assert finding.severity is Severity.NOTICE
    assert judge(dead_channels.RULE, _trained(updates, momentum)) is None


def test_mostly_dead_layer_is_a_warning() -> None:
    assert _only(dead_channels.RULE, _trained(100, 0.1, dead=5)).severity is Severity.WARNING
    assert _only(dead_channels.RULE, _trained(100, 0.1, dead=4)).severity is Severity.NOTICE


def test_dead_channels_under_a_cumulative_average() -> None:
    assert _only(dead_channels.RULE, _trained(100, None, dead=3)).evidence["dead channels"] == 3


def test_dead_channels_are_seen_without_momentum_where_they_are_alike() -> None:
    dead = _trained(100, 0.1, dead=3)
    unknown = bare(running_mean=dead.running_mean, running_var=dead.running_var)
    assert _only(dead_channels.RULE, unknown).evidence["dead channels"] == 3


@pytest.mark.parametrize("variance", [1.9e-14, 1e-30])
def test_tiny_but_live_variance_is_healthy(variance: float) -> None:
    live = {"running_mean": [variance**0.5, 0.1, 0.2, 0.3], "running_var": [variance, 1, 1, 1]}
    assert judge(dead_channels.RULE, layer(**live)) is None
    assert judge(dead_channels.RULE, bare(**live)) is None


def test_variance_that_float32_finds_in_a_constant_is_dead() -> None:
    """A batch of 0.7 has variance 1.5e-14 in torch's kernel; the same variance about a mean of 0 is alive."""
    norm = torch.nn.BatchNorm1d(4, momentum=None)
    norm(torch.full((32, 4), 0.7))
    assert norm.running_var.min() > 0
    constant = layer(
        momentum=Averaging.CUMULATIVE,
        running_mean=norm.running_mean.double().numpy(),
        running_var=norm.running_var.double().numpy(),
    )
    assert _only(dead_channels.RULE, constant).evidence["dead channels"] == 4
    assert judge(dead_channels.RULE, layer(running_mean=[0] * 4, running_var=constant.running_var)) is None


def test_frozen_and_fresh_layers_are_not_dead() -> None:
    assert judge(dead_channels.RULE, bare(running_var=[1 - 1e-5] * 4)) is None
    assert judge(dead_channels.RULE, layer(running_mean=[0] * 4, running_var=[1] * 4, num_batches_tracked=0)) is None


def test_equal_variances_in_half_precision_prove_nothing() -> None:
    assert judge(dead_channels.RULE, bare(running_var=[1e-4, 1e-4, 1, 1], dtype="float16")) is None


@pytest.mark.parametrize(
    ("variance", "scale", "eps", "severity"),
    [
        (1e-12, 1.0, 1e-12, Severity.ERROR),
        (1e-8, 1.0, 1e-10, Severity.WARNING),
        (0.0, -4.0, 1e-5, Severity.WARNING),
        (0.0, 40.0, None, Severity.WARNING),
    ],
)
def test_extreme_gain(variance: float, scale: float, eps: float | None, severity: Severity) -> None:
    finding = _only(extreme_gain.RULE, layer(running_var=[1, variance, 1, 1], weight=[1, scale, 1, 1], eps=eps))
    expected = abs(scale) / math.sqrt(variance + (1e-3 if eps is None else eps))
    assert finding.severity is severity
    assert finding.evidence["largest gain"] == pytest.approx(expected, rel=1e-12)
    assert finding.evidence["channel"] == 1


def test_dead_channel_under_the_usual_eps_is_no_extreme_gain() -> None:
    assert judge(extreme_gain.RULE, layer(running_var=[0, 1, 1, 1], weight=[1, 1, 1, 1])) is None


def test_zero_gamma_is_healthy() -> None:
    assert judge(extreme_gain.RULE, layer(running_var=[1e-14, 1, 1, 1], weight=[0, 1, 1, 1])) is None


def test_gain_that_hangs_on_an_unknown_eps_is_not_checked() -> None:
    outcome = judge(extreme_gain.RULE, bare(running_var=[1.9e-14, 1, 1, 1]))
    assert isinstance(outcome, NotChecked)
    assert "eps is not in the file" in outcome.reason
    assert judge(extreme_gain.RULE, bare(running_var=[1e-4, 1, 1, 1])) is None


@pytest.mark.parametrize(
    ("updates", "momentum", "severity"),
    [(5, 0.1, Severity.ERROR), (21, 0.1, Severity.ERROR), (22, 0.1, Severity.WARNING), (43, 0.1, Severity.WARNING),
     (100, 0.01, Severity.ERROR), (400, 0.01, Severity.WARNING)],
)  # fmt: skip
def test_residue_of_torchs_own_moments(updates: int, momentum: float, severity: Severity) -> None:
    finding = _only(initial_value_residue.RULE, _trained(updates, momentum))
    assert finding.severity is severity
    assert finding.evidence["share of initial values"] == pytest.approx((1 - momentum) ** updates)


@pytest.mark.parametrize(("updates", "momentum"), [(44, 0.1), (459, 0.01), (1, None), (3, None)])
def test_residue_has_decayed(updates: int, momentum: float | None) -> None:
    assert judge(initial_value_residue.RULE, _trained(updates, momentum)) is None


def test_variances_disprove_a_counter_that_was_reset() -> None:
    converted = layer(running_var=[0.02, 0.5, 1, 2], num_batches_tracked=5)
    outcome = judge(initial_value_residue.RULE, converted)
    assert isinstance(outcome, NotChecked)
    assert "contradicts" in outcome.reason


def test_small_variance_rules_residue_out_without_momentum() -> None:
    assert judge(initial_value_residue.RULE, bare(running_var=[0.009, 1, 1, 1])) is None
    assert isinstance(judge(initial_value_residue.RULE, bare(running_var=[0.5, 1, 1, 1])), NotChecked)


def test_residue_of_moments_at_initialisation_is_another_rules_matter() -> None:
    fresh = layer(running_mean=np.zeros(4), running_var=np.ones(4), num_batches_tracked=0)
    assert judge(initial_value_residue.RULE, fresh) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_moments(dtype: str) -> None:
    finding = _only(half_precision_statistics.RULE, bare(dtype=dtype))
    assert finding.severity is Severity.NOTICE
    assert dtype in finding.message


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_full_precision_moments(dtype: str) -> None:
    assert judge(half_precision_statistics.RULE, bare(dtype=dtype)) is None


def test_residue_of_an_average_whose_moments_were_taken_anew_is_not_checked() -> None:
    """torch.optim.swa_utils.update_bn averages plainly and puts the old momentum back."""
    norm = torch.nn.BatchNorm2d(4)
    loader = [torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(index)) for index in range(30)]
    torch.optim.swa_utils.update_bn(loader, norm)
    fields = {
        "running_mean": norm.running_mean.tolist(),
        "running_var": norm.running_var.tolist(),
        "num_batches_tracked": int(norm.num_batches_tracked),
        "momentum": norm.momentum,
    }
    assert isinstance(judge(initial_value_residue.RULE, layer(group="averaged", **fields)), NotChecked)
    assert not isinstance(judge(initial_value_residue.RULE, layer(**fields)), NotChecked)
