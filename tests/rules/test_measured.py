"""BN104 to BN106, BN209 and BN406 to BN408, on measurements made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bncheck.core.finding import Finding, NotChecked, Severity, Subject
from bncheck.core.layers import NormLayer
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.core.measurement import Companions, LayerMeasurement, Measurements, NotMeasured, TrainEvalGap
from bncheck.core.moments import PopulationMoments
from bncheck.core.rule import Rule
from bncheck.engine import examine
from bncheck.rules import (
    batch_companion_dependence,
    diverged_statistics,
    drift_grows_with_depth,
    inference_mutates_statistics,
    layer_never_runs,
    stale_statistics,
    train_eval_gap,
)
from tests.rules.layers import checkpoint, layer

CHANNELS = 64
QUIET = Companions(samples=8, noise=0.0, change=1e-7, flips=0, by_batch_norm=False)
EVEN = TrainEvalGap(samples=400, batch_size=50, output_change=0.05, disagreement=0.01)


def measurements(**fields: object) -> Measurements:
    """Of a healthy model, with the given fields changed."""
    given: dict[str, object] = {"layers": {}, "mutated": (), "companions": QUIET, "gap": EVEN, **fields}
    return Measurements("cpu", "fp32", 400, **given)  # type: ignore[arg-type]


def judged(rule: Rule, measured: Measurements | None, layers: Sequence[NormLayer] = ()) -> Subject:
    """One rule on one model."""
    return examine(checkpoint(layers or [layer("bn")]), [rule], DEFAULT_LIMITS, measured)


def only(subject: Subject) -> Finding:
    """The one finding there is."""
    (finding,) = subject.findings
    return finding


def reason(subject: Subject) -> str:
    """Why nothing could be said."""
    (entry,) = subject.not_checked
    assert isinstance(entry, NotChecked)
    assert not entry.crashed, entry.reason
    return entry.reason


def drifted(delta: float = 0.0, ratio: float = 1.0, order: int = 0, error: float = 0.01) -> LayerMeasurement:
    """A layer whose data lies ``delta`` stored deviations off, with ``ratio`` times the variance."""
    mean, var = np.linspace(-1, 1, CHANNELS), np.linspace(0.5, 2, CHANNELS)
    moments = PopulationMoments(
        images=400,
        positions=400.0,
        mean=mean + delta * np.sqrt(var),
        var=var * ratio,
        mean_error=error * np.sqrt(var),
        var_error=error * var * ratio,
    )
    return LayerMeasurement(order, 1, False, moments, mean, var, 0.0)


MEASURED = (
    batch_companion_dependence,
    inference_mutates_statistics,
    train_eval_gap,
    layer_never_runs,
    stale_statistics,
    diverged_statistics,
    drift_grows_with_depth,
)


@pytest.mark.parametrize("module", MEASURED, ids=lambda module: module.RULE.id)
def test_without_data_nothing_is_checked(module: object) -> None:
    assert reason(judged(module.RULE, None)) == "needs --data"  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", MEASURED, ids=lambda module: module.RULE.id)
def test_a_healthy_model_passes(module: object) -> None:
    rule = module.RULE  # type: ignore[attr-defined]
    subject = judged(rule, measurements(layers={"bn": drifted(0.05, 1.05)}))
    assert subject.passed == (rule.id,)


@pytest.mark.parametrize("module", MEASURED, ids=lambda module: module.RULE.id)
def test_a_probe_that_failed_is_the_reason(module: object) -> None:
    rule = module.RULE  # type: ignore[attr-defined]
    failed = Measurements("cpu", "fp32", 0, not_measured=(NotMeasured("model", "no such class", failed=True),))
    subject = judged(rule, failed)
    assert reason(subject) == "the model could not be run"
    assert not subject.complete


# --- BN104 -------------------------------------------------------------------------------------------------


def test_companions_through_batch_norm_are_an_error_of_the_layers_that_do_it() -> None:
    seen = {"a": replace(drifted(), uses_batch_moments=True), "b": drifted(order=1)}
    told = replace(QUIET, change=0.3, flips=2, by_batch_norm=True)
    finding = only(
        judged(batch_companion_dependence.RULE, measurements(companions=told, layers=seen), [layer("a"), layer("b")])
    )
    assert finding.severity is Severity.ERROR
    assert finding.layers == ("a",)
    assert finding.evidence["samples whose class changed"] == "2 of 8"


def test_companions_through_something_else_are_a_notice_of_the_model() -> None:
    finding = only(judged(batch_companion_dependence.RULE, measurements(companions=replace(QUIET, change=0.3))))
    assert finding.severity is Severity.NOTICE
    assert finding.layers == ()
    assert "no batch norm does it" in finding.message


@pytest.mark.parametrize("change", [1.5e-5, 9e-4])
def test_arithmetic_is_no_companion(change: float) -> None:
    subject = judged(batch_companion_dependence.RULE, measurements(companions=replace(QUIET, change=change)))
    assert subject.passed == ("BN104",)


def test_a_flip_counts_however_small_the_change() -> None:
    assert only(judged(batch_companion_dependence.RULE, measurements(companions=replace(QUIET, flips=1))))


@pytest.mark.parametrize(("noise", "why"), [(0.5, "at random"), (float("nan"), "not finite"), (np.inf, "not finite")])
def test_outputs_that_differ_by_themselves_are_not_checked(noise: float, why: str) -> None:
    told = replace(QUIET, noise=noise, change=0.6)
    assert why in reason(judged(batch_companion_dependence.RULE, measurements(companions=told)))


def test_a_batch_of_one_that_fails_for_other_reasons_is_not_checked() -> None:
    told = replace(QUIET, fails_alone="squeeze")
    assert "a batch of one" in reason(judged(batch_companion_dependence.RULE, measurements(companions=told)))


# --- BN105, BN209 ------------------------------------------------------------------------------------------


def test_mutated_layers_are_named() -> None:
    finding = only(judged(inference_mutates_statistics.RULE, measurements(mutated=("b",)), [layer("a"), layer("b")]))
    assert finding.layers == ("b",)


def test_a_mutated_layer_that_the_file_does_not_list_is_told_too() -> None:
    assert (
        "elsewhere.bn"
        in only(judged(inference_mutates_statistics.RULE, measurements(mutated=("elsewhere.bn",)))).message
    )


def test_a_layer_that_never_runs_is_a_notice() -> None:
    seen = {"a": drifted(), "b": LayerMeasurement()}
    finding = only(judged(layer_never_runs.RULE, measurements(layers=seen), [layer("a"), layer("b")]))
    assert finding.layers == ("b",)
    assert finding.severity is Severity.NOTICE


# --- BN106 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "batch", "severity"),
    [(0.99, 0.985, None), (0.90, 0.95, Severity.WARNING), (0.10, 0.95, Severity.ERROR), (0.95, 0.10, None)],
)
def test_gap_by_accuracy(stored: float, batch: float, severity: Severity | None) -> None:
    gap = replace(EVEN, accuracy_stored=stored, accuracy_batch=batch, disagreement=abs(stored - batch))
    subject = judged(train_eval_gap.RULE, measurements(gap=gap))
    assert [finding.severity for finding in subject.findings] == ([] if severity is None else [severity])


def test_gap_within_chance_is_none() -> None:
    """Three of 30 samples more: 3 √(0.2 / 30) = 0.24 is chance."""
    gap = replace(EVEN, samples=30, accuracy_stored=0.8, accuracy_batch=0.9, disagreement=0.2)
    assert judged(train_eval_gap.RULE, measurements(gap=gap)).passed == ("BN106",)


LABELLED = replace(
    EVEN, accuracy_stored=0.97, accuracy_batch=0.97, loss_stored=0.1, loss_batch=0.1, loss_error=0.002, classes=10
)


@pytest.mark.parametrize(
    ("stored", "batch", "error", "fires"),
    [
        (0.130, 0.1, 0.002, True),
        (0.108, 0.1, 0.002, False),
        (0.130, 0.1, 0.012, False),
        (0.1, 0.4, 0.002, False),
        (float("nan"), 0.1, 0.002, False),
    ],
)
def test_gap_by_the_loss_where_accuracy_tells_nothing(stored: float, batch: float, error: float, fires: bool) -> None:
    gap = replace(LABELLED, loss_stored=stored, loss_batch=batch, loss_error=error)
    subject = judged(train_eval_gap.RULE, measurements(gap=gap))
    assert [finding.severity for finding in subject.findings] == ([Severity.WARNING] if fires else [])


def test_gap_by_accuracy_comes_before_the_loss() -> None:
    gap = replace(LABELLED, accuracy_stored=0.5, disagreement=0.5, loss_stored=3.0)
    assert only(judged(train_eval_gap.RULE, measurements(gap=gap))).severity is Severity.ERROR


@pytest.mark.parametrize(
    ("disagreement", "change", "severity"),
    [(0.05, 0.9, None), (0.2, 0.0, Severity.WARNING), (0.6, 0.0, Severity.ERROR), (None, 0.4, None),
     (None, 0.7, Severity.WARNING), (None, 2.0, Severity.ERROR)],
)  # fmt: skip
def test_gap_without_labels(disagreement: float | None, change: float, severity: Severity | None) -> None:
    gap = replace(EVEN, disagreement=disagreement, output_change=change)
    subject = judged(train_eval_gap.RULE, measurements(gap=gap))
    assert [finding.severity for finding in subject.findings] == ([] if severity is None else [severity])


def test_gap_of_predictions_that_are_not_finite_is_not_checked() -> None:
    gap = replace(EVEN, output_change=float("nan"), accuracy_stored=0.1, accuracy_batch=0.1)
    assert "not finite" in reason(judged(train_eval_gap.RULE, measurements(gap=gap)))


def test_gap_of_an_untrained_model_is_not_checked() -> None:
    untrained = layer("bn", running_mean=[0.0] * 4, running_var=[1.0] * 4)
    gap = replace(EVEN, disagreement=0.9)
    assert "BN201" in reason(judged(train_eval_gap.RULE, measurements(gap=gap), [untrained]))


# --- BN406 to BN408 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "ratio", "rule"),
    [
        (0.1, 1.2, None),
        (0.2, 1.0, "BN406"),
        (0.0, 1.4, "BN406"),
        (0.0, 1 / 1.4, "BN406"),
        (1.1, 1.0, "BN407"),
        (0.0, 5.0, "BN407"),
    ],
)
def test_drift_is_stale_or_diverged(delta: float, ratio: float, rule: str | None) -> None:
    measured = measurements(layers={"bn": drifted(delta, ratio)})
    fired = [
        module.RULE.id for module in (stale_statistics, diverged_statistics) if judged(module.RULE, measured).findings
    ]
    assert fired == ([] if rule is None else [rule])


def test_an_eps_above_the_variances_hides_no_drift() -> None:
    """As another framework's eps does after a conversion: every variance looks like eps, the data's and the stored."""
    measured = measurements(layers={"bn": replace(drifted(ratio=0.1), eps=100.0)})
    assert only(judged(stale_statistics.RULE, measured)).evidence["median |ln ρ²|"] > 0.4


def test_drift_within_chance_is_none() -> None:
    measured = measurements(layers={"bn": drifted(0.4, error=0.2)})
    assert judged(stale_statistics.RULE, measured).passed == ("BN406",)


@pytest.mark.parametrize(
    ("changed", "harmless"),
    [
        ({}, True),
        ({"loss_stored": 0.07}, True),
        ({"loss_stored": 0.108}, False),
        ({"loss_error": 0.0035}, False),
        ({"loss_stored": 0.7, "loss_batch": 0.8}, False),
        ({"loss_stored": 0.7, "loss_batch": 0.8, "classes": 1000}, True),
        ({"loss_stored": None, "loss_batch": None, "loss_error": None}, False),
        ({"loss_stored": float("nan")}, False),
    ],
)
def test_drift_that_labels_show_to_do_no_harm_is_none(changed: dict[str, float | None], harmless: bool) -> None:
    """As where training images were changed at random, and the audit's are not."""
    gap = replace(LABELLED, **changed)  # type: ignore[arg-type]
    names = [f"bn{index}" for index in range(5)]
    seen = {name: drifted(0.15 * index, order=index) for index, name in enumerate(names)}
    layers = [layer(name) for name in names]
    measured = measurements(layers=seen, gap=gap)
    for rule in (stale_statistics.RULE, drift_grows_with_depth.RULE):
        assert bool(judged(rule, measured, layers).findings) is not harmless
    diverged = measurements(layers={**seen, "bn4": drifted(1.5, order=4)}, gap=gap)
    for rule in (stale_statistics.RULE, drift_grows_with_depth.RULE, diverged_statistics.RULE):
        assert judged(rule, diverged, layers).findings


def test_statistics_at_initialisation_are_left_to_their_own_rule() -> None:
    untrained = layer("bn", running_mean=[0.0] * 4, running_var=[1.0] * 4)
    measured = measurements(layers={"bn": drifted(3.0)})
    assert judged(diverged_statistics.RULE, measured, [untrained]).passed == ("BN407",)


def test_moments_that_other_rules_judge_are_no_crash() -> None:
    broken = drifted(3.0)
    assert broken.stored_var is not None
    for var in (np.full(CHANNELS, np.nan), -broken.stored_var - 1):
        measured = measurements(layers={"bn": replace(broken, stored_var=var)})
        assert judged(diverged_statistics.RULE, measured).passed == ("BN407",)


@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
def test_activations_that_overflow_are_an_error_of_the_layers_they_reach(broken: float) -> None:
    first, then = drifted(order=0), drifted(order=1)
    assert then.moments is not None
    for field in ("mean", "var"):
        values = getattr(then.moments, field).copy()
        values[3] = broken
        seen = {"a": first, "b": replace(then, moments=replace(then.moments, **{field: values}))}
        measured = measurements(layers=seen)
        layers = [layer("a"), layer("b")]
        finding = only(judged(diverged_statistics.RULE, measured, layers))
        assert (finding.severity, finding.layers) == (Severity.ERROR, ("b",))
        assert "overflow" in finding.message
        assert finding.evidence["channels that are not finite"] == 1
        assert judged(stale_statistics.RULE, measured, layers).passed == ("BN406",)


def test_overflow_behind_stored_moments_that_are_broken_is_left_to_their_rule() -> None:
    seen = drifted()
    assert seen.moments is not None
    measured = measurements(
        layers={"bn": replace(seen, moments=replace(seen.moments, mean=seen.moments.mean * np.nan))}
    )
    broken = layer("bn", running_var=[np.inf] * 4)
    assert not judged(diverged_statistics.RULE, measured, [broken]).findings


def test_growing_drift_names_where_it_begins() -> None:
    names = [f"bn{index}" for index in range(6)]
    seen = {name: drifted(0.08 * index**2, order=index) for index, name in enumerate(names)}
    finding = only(judged(drift_grows_with_depth.RULE, measurements(layers=seen), [layer(name) for name in names]))
    assert finding.layers == ("bn2",)
    assert finding.evidence["first layer that departs"] == "3 of 6"


@pytest.mark.parametrize("deltas", [(0.6, 0.1, 0.5, 0.2, 0.4), (0.1, 0.4, 0.6), (0.01, 0.02, 0.03, 0.04, 0.05)])
def test_drift_that_does_not_grow_or_is_small_or_short_is_none(deltas: tuple[float, ...]) -> None:
    seen = {f"bn{index}": drifted(delta, order=index) for index, delta in enumerate(deltas)}
    subject = judged(drift_grows_with_depth.RULE, measurements(layers=seen), [layer(name) for name in seen])
    assert subject.passed == ("BN408",)
