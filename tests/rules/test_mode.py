"""BN101, BN102, BN103, BN107."""

from __future__ import annotations

from bncheck.core.checkpoint import Packaging, Stage
from bncheck.core.finding import NotChecked, Severity
from bncheck.core.layers import NormKind
from bncheck.rules import (
    batch_statistics_at_inference,
    saved_in_training_mode,
    tracked_instance_norm,
    training_mode_baked_in,
)
from tests.rules.layers import bare, judge, layer

MODE = saved_in_training_mode.RULE
TRACKING = batch_statistics_at_inference.RULE
INSTANCE = tracked_instance_norm.RULE
BAKED = training_mode_baked_in.RULE


def test_layers_in_training_mode_are_one_finding() -> None:
    findings = judge(MODE, layer("a", training=True), layer("b", training=True))
    assert isinstance(findings, tuple)
    (finding,) = findings
    assert finding.layers == ("a", "b")
    assert finding.severity is Severity.WARNING
    assert "beside others" not in finding.message


def test_mixed_modes_are_told_as_such() -> None:
    findings = judge(MODE, layer("backbone"), layer("head", training=True))
    assert isinstance(findings, tuple)
    assert findings[0].layers == ("head",)
    assert "beside others in eval mode" in findings[0].message
    assert findings[0].evidence["layers in eval mode"] == 1


def test_training_checkpoint_may_be_in_training_mode() -> None:
    assert judge(MODE, layer(training=True), layer("frozen"), stage=Stage.TRAINING) is None


def test_mode_of_a_layer_that_ignores_it_does_not_matter() -> None:
    frozen = layer(training=True, kind=NormKind.FROZEN_BATCH)
    untracked = layer(training=True, track_running_stats=False, running_mean=None, running_var=None)
    instance = layer(training=True, kind=NormKind.INSTANCE)
    assert judge(MODE, frozen, untracked, instance) is None


def test_state_dict_says_nothing_of_modes() -> None:
    outcome = judge(MODE, bare())
    assert isinstance(outcome, NotChecked)
    assert outcome.reason == "training is not in the file"


def test_batch_norm_without_running_moments() -> None:
    findings = judge(TRACKING, layer(track_running_stats=False, running_mean=None, running_var=None))
    assert isinstance(findings, tuple)
    assert findings[0].severity is Severity.WARNING


def test_instance_norm_without_running_moments_is_healthy() -> None:
    untracked = layer(kind=NormKind.INSTANCE, track_running_stats=False, running_mean=None, running_var=None)
    assert judge(TRACKING, untracked) is None
    assert judge(INSTANCE, untracked) is None


def test_state_dict_cannot_tell_batch_from_instance_norm() -> None:
    unclear = bare(kind=NormKind.BATCH_OR_INSTANCE, track_running_stats=None, running_mean=None, running_var=None)
    assert isinstance(judge(TRACKING, unclear), NotChecked)


def test_tracked_instance_norm() -> None:
    findings = judge(INSTANCE, layer(kind=NormKind.INSTANCE))
    assert isinstance(findings, tuple)
    assert findings[0].severity is Severity.WARNING


def test_scripted_code_in_training_mode_is_an_error_that_can_be_mended_in_place() -> None:
    scripted = layer(training=True, execution_order=0)
    findings = judge(MODE, scripted, packaging=Packaging.TORCHSCRIPT)
    assert isinstance(findings, tuple)
    assert findings[0].severity is Severity.ERROR
    assert 'torch.jit.load("model.pt").eval()' in findings[0].remedy


def test_flag_of_a_layer_whose_graph_does_not_ask_for_it_is_no_finding() -> None:
    traced = layer(training=True, baked_training=False, execution_order=0)
    assert judge(MODE, traced, packaging=Packaging.TORCHSCRIPT) is None


def test_training_mode_baked_in_whatever_the_flag_says() -> None:
    layers = [
        layer("a", baked_training=True, execution_order=0, training=False),
        layer("b", baked_training=False, execution_order=1, training=True),
    ]
    for packaging in (Packaging.TORCHSCRIPT, Packaging.EXPORTED_PROGRAM):
        findings = judge(BAKED, *layers, packaging=packaging)
        assert isinstance(findings, tuple)
        (finding,) = findings
        assert finding.layers == ("a",)
        assert finding.severity is Severity.ERROR
        assert finding.evidence == {"layers baked in training mode": 1, "other layers": 1}


def test_calls_that_follow_the_flag_bake_nothing_in() -> None:
    assert judge(BAKED, layer(execution_order=0, training=True), packaging=Packaging.TORCHSCRIPT) is None


def test_without_a_graph_or_a_call_nothing_is_known_of_the_baked_mode() -> None:
    entry = judge(BAKED, layer())
    assert isinstance(entry, NotChecked)
    assert "no graph" in entry.reason
    entry = judge(BAKED, layer(), packaging=Packaging.EXPORTED_PROGRAM)
    assert isinstance(entry, NotChecked)
    assert entry.reason == "the graph never calls it"


def test_baked_mode_of_layers_that_have_no_other_is_no_finding() -> None:
    untracked = layer(
        baked_training=True, execution_order=0, track_running_stats=False, running_mean=None, running_var=None
    )
    instance = layer(baked_training=True, execution_order=1, kind=NormKind.INSTANCE)
    assert judge(BAKED, untracked, instance, packaging=Packaging.TORCHSCRIPT) is None
    assert judge(INSTANCE, instance, packaging=Packaging.TORCHSCRIPT) is None
