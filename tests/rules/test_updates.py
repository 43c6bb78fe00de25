"""BN201 and BN203."""

from __future__ import annotations

from bncheck.core.finding import NotChecked, Severity
from bncheck.core.layers import NormKind, NormLayer
from bncheck.rules import statistics_at_initialisation, statistics_missing
from tests.rules.layers import bare, judge, layer

FRESH = statistics_at_initialisation.RULE
MISSING = statistics_missing.RULE

_AT_INIT = {"running_mean": [0, 0, 0, 0], "running_var": [1, 1, 1, 1]}
_IDENTITY = {**_AT_INIT, "weight": [1, 1, 1, 1], "bias": [0, 0, 0, 0]}


def _severities(*layers: NormLayer, steps: int | None = None) -> list[tuple[Severity, tuple[str, ...]]]:
    outcome = judge(FRESH, *layers, steps=steps)
    assert isinstance(outcome, tuple), outcome
    return [(finding.severity, finding.layers) for finding in outcome]


def test_trained_scale_and_shift_beside_initial_moments_is_an_error() -> None:
    layers = [layer(f"bn{i}", **_AT_INIT, num_batches_tracked=0) for i in range(3)]
    assert _severities(*layers) == [(Severity.ERROR, ("bn0", "bn1", "bn2"))]


def test_counted_batches_beside_initial_moments_is_an_error_even_without_affine() -> None:
    assert _severities(layer(**_AT_INIT, weight=None, bias=None, num_batches_tracked=7)) == [(Severity.ERROR, ("bn",))]


def test_one_channel_off_is_not_initial() -> None:
    assert judge(FRESH, layer(running_mean=[0, 0, 0, 0], running_var=[1, 1, 1, 1 - 2**-24])) is None
    assert judge(FRESH, layer(running_mean=[0, 0, 1e-30, 0], running_var=[1, 1, 1, 1])) is None


def test_untrained_network_is_one_notice() -> None:
    layers = [layer(f"bn{i}", **_IDENTITY, num_batches_tracked=0) for i in range(3)]
    assert _severities(*layers) == [(Severity.NOTICE, ("bn0", "bn1", "bn2"))]


def test_optimizer_steps_show_that_a_network_was_trained() -> None:
    layers = [layer(**_IDENTITY, num_batches_tracked=None)]
    assert _severities(*layers, steps=100)[0][0] is Severity.WARNING


def test_unused_head_is_not_checked() -> None:
    outcome = judge(FRESH, layer("a"), layer("aux", **_IDENTITY, num_batches_tracked=0))
    assert isinstance(outcome, NotChecked)
    assert outcome.layers == ("aux",)
    assert "never ran" in outcome.reason


def test_single_initial_layer_without_counter_is_a_warning() -> None:
    layers = layer("a"), layer("aux", **_IDENTITY, num_batches_tracked=None)
    assert _severities(*layers) == [(Severity.WARNING, ("aux",))]


def test_frozen_batch_norm_at_one_minus_eps_is_healthy() -> None:
    frozen = layer(
        kind=NormKind.FROZEN_BATCH,
        running_mean=[0, 0, 0, 0],
        running_var=[1 - 1e-5] * 4,
        num_batches_tracked=None,
        momentum=None,
    )
    assert judge(FRESH, frozen) is None


def test_folded_identity_after_a_bias_is_healthy() -> None:
    folded = [layer(f"bn{i}", **_IDENTITY, num_batches_tracked=0, follows_bias=True) for i in range(3)]
    assert judge(FRESH, *folded) is None


def test_a_bias_before_it_does_not_excuse_a_trained_layer() -> None:
    assert _severities(layer(**_AT_INIT, follows_bias=True))[0][0] is Severity.ERROR


def test_copies_are_judged_by_themselves() -> None:
    trained, copy = layer("bn"), layer("bn", **_AT_INIT, group="ema")
    assert _severities(trained, copy) == [(Severity.ERROR, ("ema:bn",))]


def _stripped(name: str, **fields: object) -> NormLayer:
    return bare(
        name,
        kind=NormKind.BATCH_OR_INSTANCE,
        track_running_stats=None,
        running_mean=None,
        running_var=None,
        num_batches_tracked=None,
        **fields,
    )


def test_sibling_without_moments() -> None:
    outcome = judge(MISSING, bare("layer1.0.bn1"), _stripped("layer2.1.bn1"), _stripped("layer2.1.bn2"))
    assert isinstance(outcome, tuple)
    assert [finding.layers for finding in outcome] == [("layer2.1.bn1",)]
    assert outcome[0].severity is Severity.ERROR


def test_number_that_names_the_layer_is_no_family() -> None:
    assert judge(MISSING, bare("features.1"), _stripped("features.4")) is None


def test_module_that_should_track_and_has_nothing() -> None:
    outcome = judge(MISSING, layer(running_mean=None, running_var=None))
    assert isinstance(outcome, tuple)
    assert outcome[0].severity is Severity.ERROR


def test_one_moment_without_the_other() -> None:
    assert isinstance(judge(MISSING, bare(running_var=None)), tuple)


def test_untracked_layer_misses_nothing() -> None:
    assert judge(MISSING, layer(track_running_stats=False, running_mean=None, running_var=None)) is None


def test_lazy_layer_before_its_first_batch_is_not_checked() -> None:
    lazy = layer(class_path="torch.nn.modules.batchnorm.LazyBatchNorm2d", running_mean=None, running_var=None)
    assert isinstance(judge(MISSING, lazy), NotChecked)
