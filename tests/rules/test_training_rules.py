"""BN207, BN208, BN301, BN302 and BN305, on measurements made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from bncheck.core.finding import Finding, Severity, Subject
from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.core.measurement import (
    BatchValues,
    LayerStep,
    Measurements,
    NotMeasured,
    TrainingBatch,
    TrainingData,
    TrainingStep,
)
from bncheck.core.rule import Rule
from bncheck.engine import examine
from bncheck.rules import (
    degenerate_last_batch,
    few_values_per_channel,
    one_value_per_channel,
    training_step_does_not_update,
    updated_more_than_once,
)
from tests.rules.layers import checkpoint, layer

ONCE = LayerStep(
    calls=1, most_in_a_pass=1, updates=1, changed=True, uses_batch_moments=True, training=True, momentum=0.1, values=64
)
STEP = TrainingStep(True, 64, 1, True, 12, {"bn": ONCE})
LOADER = TrainingData(1437, 64, False, 29, sources={"samples": "len(RandomSampler)", "batch_size": "DataLoader"})
BATCH = TrainingBatch(64, 64, "--train-data", {"bn": BatchValues(64.0)})


def measurements(**fields: object) -> Measurements:
    """Of sound training, with the given fields changed."""
    given: dict[str, object] = {"training_data": LOADER, "training_batch": BATCH, "training_step": STEP, **fields}
    return Measurements("cpu", "fp32", 0, **given)  # type: ignore[arg-type]


def judged(rule: Rule, measured: Measurements | None, *layers: NormLayer) -> Subject:
    """One rule on one model."""
    return examine(checkpoint(layers or [layer("bn")]), [rule], DEFAULT_LIMITS, measured)


def only(subject: Subject) -> Finding:
    """The one finding there is."""
    (finding,) = subject.findings
    return finding


def reason(subject: Subject) -> str:
    """Why nothing could be said."""
    assert not subject.findings
    (entry,) = subject.not_checked
    assert not entry.crashed, entry.reason
    return entry.reason


MODULES = (
    training_step_does_not_update,
    updated_more_than_once,
    one_value_per_channel,
    degenerate_last_batch,
    few_values_per_channel,
)
RULES = [module.RULE for module in MODULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_sound_training_passes(rule: Rule) -> None:
    assert judged(rule, measurements()).passed == (rule.id,)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_without_training_data_nothing_is_checked(rule: Rule) -> None:
    nothing = Measurements("cpu", "fp32", 400)
    for measured in (None, nothing):
        assert reason(judged(rule, measured)).startswith("needs --train-data")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
@pytest.mark.parametrize(
    ("what", "said"), [("training", "training data could not be had"), ("model", "could not be run")]
)
def test_what_could_not_be_had_is_the_reason(rule: Rule, what: str, said: str) -> None:
    failed = Measurements("cpu", "fp32", 0, not_measured=(NotMeasured(what, "gone", failed=True),))
    subject = judged(rule, failed)
    assert said in reason(subject)
    assert not subject.complete


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_copy_that_did_not_run_is_not_judged(rule: Rule) -> None:
    values = 64.0 if rule is degenerate_last_batch.RULE else 1.0 if rule is one_value_per_channel.RULE else 2.0
    bad = measurements(
        training_data=replace(LOADER, last_batch=1),
        training_batch=replace(BATCH, layers={"bn": BatchValues(values)}),
        training_step=_step(updates=2, most_in_a_pass=2, changed=False),
    )
    average = layer("bn", group="ema")
    assert not any(finding.layers for finding in judged(rule, bad, average).findings)
    assert only(judged(rule, replace(bad, group="ema"), average)).layers == (average.full_name,)


def _step(
    *, by_user: bool = True, parameters_changed: int | None = 12, stays: bool = True, **fields: object
) -> TrainingStep:
    return TrainingStep(by_user, 64, 1, stays, parameters_changed, {"bn": replace(ONCE, **fields)})  # type: ignore[arg-type]


# --- BN207 -------------------------------------------------------------------------------------------------


def _updates(step: TrainingStep, *layers: NormLayer) -> Subject:
    return judged(training_step_does_not_update.RULE, measurements(training_step=step), *layers)


def test_moments_that_stay_while_weights_move_are_an_error() -> None:
    finding = only(_updates(_step(changed=False)))
    assert finding.severity is Severity.ERROR
    assert finding.layers == ("bn",)
    assert finding.evidence == {"runs in the step": 1, "parameters changed": 12, "updates": 1}
    assert "functional_call" in finding.remedy


def test_eval_mode_with_the_rest_of_the_model_is_named() -> None:
    finding = only(_updates(_step(changed=False, updates=0, uses_batch_moments=False, training=False, stays=False)))
    assert "in eval mode, with the rest of the model" in finding.message
    assert finding.remedy.startswith("model.train()")


def test_momentum_zero_is_an_error_at_initialisation_and_else_a_warning() -> None:
    step = _step(changed=False, momentum=0.0)
    untouched = layer("bn", running_mean=[0] * 4, running_var=[1] * 4)
    assert only(_updates(step, untouched)).severity is Severity.ERROR
    learned = only(_updates(step))
    assert learned.severity is Severity.WARNING
    assert "momentum is 0" in learned.message


def test_a_forward_pass_suffices() -> None:
    finding = only(_updates(_step(changed=False, by_user=False, parameters_changed=None)))
    assert finding.evidence == {"runs in the step": 1, "updates": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"frozen": True, "uses_batch_moments": False},
        {"calls": 0},
    ],
    ids=["frozen", "not reached"],
)
def test_layers_that_are_not_to_update_are_passed_over(fields: Mapping[str, object]) -> None:
    subject = _updates(_step(changed=False, updates=0, **fields))
    assert subject.passed == ("BN207",)


@pytest.mark.parametrize("kind", [NormKind.FROZEN_BATCH, NormKind.INSTANCE])
def test_other_norms_are_passed_over(kind: NormKind) -> None:
    assert _updates(_step(changed=False), layer("bn", kind=kind)).passed == ("BN207",)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (_step(changed=False, parameters_changed=0), "changed no weight"),
        (_step(changed=False, uses_batch_moments=None), "normalises by hand"),
        (_step(changed=False, uses_batch_moments=False, by_user=False, stays=False), "--forward puts the model"),
    ],
)
def test_what_cannot_be_told_is_not_checked(step: TrainingStep, said: str) -> None:
    assert said in reason(_updates(step))


def test_moments_that_are_nan_stay_nan_and_are_not_this_rules() -> None:
    broken = layer("bn", running_var=[float("nan")] * 4)
    assert "BN401" in reason(_updates(_step(changed=False), broken))


# --- BN208 -------------------------------------------------------------------------------------------------


def _counted(*layers: NormLayer, **fields: object) -> Subject:
    return judged(updated_more_than_once.RULE, measurements(training_step=_step(**fields)), *layers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"updates": 2, "recomputed": 1, "recomputed_updates": 1}, "gradient checkpointing"),
        ({"updates": 3, "calls": 3, "most_in_a_pass": 3}, "runs the layer several times"),
        ({"updates": 2, "calls": 2, "repeated_updates": 1}, "runs the model again"),
        ({"updates": 2}, "counter grows by more than one"),
    ],
)
def test_the_cause_of_further_updates_is_named(fields: Mapping[str, object], said: str) -> None:
    finding = only(_counted(**fields))
    assert finding.severity is Severity.WARNING
    assert said in finding.message
    assert finding.evidence["updates in one step"] == fields["updates"]


def test_passes_over_other_data_are_silent() -> None:
    """Gradient accumulation, two views, real and generated images."""
    assert _counted(updates=4, calls=4).passed == ("BN208",)


def test_frozen_layers_in_a_checkpointed_segment_are_silent() -> None:
    assert _counted(updates=0, recomputed=1, frozen=True, changed=False).passed == ("BN208",)


# --- BN301 and BN305 ---------------------------------------------------------------------------------------


def _batch(values: float, **fields: object) -> TrainingBatch:
    return replace(BATCH, layers={"bn": BatchValues(values, **fields)})  # type: ignore[arg-type]


def _fired(batch: TrainingBatch, *layers: NormLayer, data: TrainingData | None = LOADER) -> list[str]:
    measured = measurements(training_batch=batch, training_data=data)
    rules = (one_value_per_channel.RULE, few_values_per_channel.RULE)
    return [finding.rule for rule in rules for finding in judged(rule, measured, *layers).findings]


@pytest.mark.parametrize(
    ("values", "fired"),
    [
        (1.0, ["BN301"]),
        (1.5, ["BN305"]),
        (2.0, ["BN305"]),
        (15.0, ["BN305"]),
        (15.9, ["BN305"]),
        (16.0, []),
        (17.0, []),
    ],
)
def test_values_per_channel_are_held_against_the_limits(values: float, fired: Sequence[str]) -> None:
    assert _fired(_batch(values)) == fired


def test_one_value_is_an_error_and_few_are_a_warning() -> None:
    one = only(judged(one_value_per_channel.RULE, measurements(training_batch=_batch(1.0))))
    few = only(judged(few_values_per_channel.RULE, measurements(training_batch=_batch(8.0))))
    assert (one.severity, few.severity) == (Severity.ERROR, Severity.WARNING)
    assert few.evidence == {
        "values per channel": 8.0,
        "limit": 16.0,
        "samples per batch": 64,
        "batch from": "--train-data",
    }


def test_the_layer_with_the_fewest_values_is_the_worst() -> None:
    layers = {"a": BatchValues(12.0), "b": BatchValues(3.0)}
    measured = measurements(training_batch=replace(BATCH, layers=layers))
    finding = only(judged(few_values_per_channel.RULE, measured, layer("a"), layer("b")))
    assert finding.evidence["worst layer"] == "b"
    assert finding.layers == ("a", "b")


@pytest.mark.parametrize("kind", [NormKind.FROZEN_BATCH, NormKind.INSTANCE, NormKind.BATCH_OR_INSTANCE])
def test_norms_that_take_no_moments_of_a_batch_are_silent(kind: NormKind) -> None:
    assert _fired(_batch(1.0), layer("bn", kind=kind)) == []


def test_layers_that_stay_in_eval_mode_are_silent() -> None:
    assert _fired(_batch(1.0, uses_batch_moments=False)) == []


def test_layers_that_pool_processes_count_all_of_them() -> None:
    pooled = _batch(4.0, pooled=True)
    assert _fired(pooled, data=replace(LOADER, replicas=4)) == []
    assert _fired(pooled, data=replace(LOADER, replicas=2)) == ["BN305"]
    for data in (LOADER, None):
        measured = measurements(training_batch=pooled, training_data=data)
        assert "SyncBatchNorm" in reason(judged(few_values_per_channel.RULE, measured))


# --- BN302 -------------------------------------------------------------------------------------------------


def _last(data: TrainingData, batch: TrainingBatch | None = BATCH, *layers: NormLayer) -> Subject:
    return judged(degenerate_last_batch.RULE, measurements(training_data=data, training_batch=batch), *layers)


ONE_LEFT = replace(LOADER, samples=1025, last_batch=1)


def test_a_last_batch_that_a_layer_refuses_is_an_error() -> None:
    finding = only(_last(ONE_LEFT))
    assert finding.severity is Severity.ERROR
    assert finding.layers == ("bn",)
    assert finding.evidence == {
        "samples": 1025,
        "batch size": 64,
        "samples in the last batch": 1,
        "read from": "len(RandomSampler), DataLoader",
    }


def test_one_sample_with_positions_is_a_warning_of_the_loader() -> None:
    for batch in (_batch(64 * 49.0), None):
        finding = only(_last(ONE_LEFT, batch))
        assert (finding.severity, finding.layers) == (Severity.WARNING, ())


def test_layers_that_get_a_value_for_several_samples_refuse_more() -> None:
    """One value for each pair of images: two are too few."""
    finding = only(_last(replace(ONE_LEFT, last_batch=2), _batch(32.0)))
    assert finding.severity is Severity.ERROR


def test_views_of_the_last_sample_are_counted() -> None:
    """Two crops of each picture: the last batch gives the layer two values."""
    finding = only(_last(ONE_LEFT, replace(_batch(128.0), samples=128)))
    assert (finding.severity, finding.layers) == (Severity.WARNING, ())


def test_an_epoch_of_less_than_a_batch_is_silent() -> None:
    assert _last(TrainingData(5, 64, False, 5), replace(_batch(5.0), samples=5)).passed == ("BN302",)


@pytest.mark.parametrize("last", [2, 29, 64])
def test_other_last_batches_are_silent(last: int) -> None:
    assert _last(replace(LOADER, last_batch=last)).passed == ("BN302",)


def test_batches_of_one_throughout_are_not_this_rules() -> None:
    one = TrainingData(10, 1, False, 1)
    assert _last(one, replace(BATCH, samples=1, layers={"bn": BatchValues(1.0)})).passed == ("BN302",)


def test_dropped_batches_are_silent() -> None:
    assert _last(replace(LOADER, samples=1025, drop_last=True, last_batch=64)).passed == ("BN302",)


def test_a_network_of_frozen_layers_is_silent() -> None:
    assert _last(ONE_LEFT, _batch(64.0, uses_batch_moments=False)).passed == ("BN302",)


def test_what_the_loader_does_not_say_is_not_checked() -> None:
    unknown = TrainingData(batch_size=64, unknown="the data set is iterable")
    assert reason(_last(unknown)) == "the data set is iterable"
