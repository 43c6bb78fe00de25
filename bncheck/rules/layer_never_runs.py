"""BN209: the data never reaches a layer."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Tell layers of the running model that no forward pass came to."""
    layers = measured.layers or {}
    for layer in checkpoint.layers:
        seen = layers.get(layer.name)
        if layer.group == measured.group and seen is not None and seen.order is None and layer.has_running_statistics:
            yield layer, Evidence("No forward pass over the data came to this layer.", {"samples": measured.samples})


RULE = Rule(
    id="BN209",
    name="layer-never-runs",
    family=Family.UPDATES,
    severity=Severity.NOTICE,
    needs=("layers",),
    rationale=(
        "A layer that predictions never pass is dead weight, or the sign of a branch that was meant to be taken. Its "
        "moments were not judged."
    ),
    formula="calls of the layer in all forward passes over the data: none",
    limit="none",
    false_alarms=("auxiliary heads, which run in training alone: that is why this is a notice",),
    remedy="# leave the layer out of the release, or see why the data does not reach it",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html",
    check_measured=check,
)
