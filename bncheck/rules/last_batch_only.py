"""BN502: a momentum that forgets everything but the last batch."""

from __future__ import annotations

from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.remedies import RECALIBRATE
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of momentum 1."""
    if not layer.keeps_running_statistics or layer.momentum != 1:
        return None
    return Evidence("Momentum is 1: the running moments are those of the last training batch alone.")


RULE = Rule(
    id="BN502",
    name="last-batch-only",
    family=Family.MOMENTUM,
    severity=Severity.ERROR,
    needs=("momentum",),
    rationale=(
        "Predictions then depend on which samples happened to come last in training, often a short last batch of a few."
    ),
    formula="momentum == 1",
    limit="none",
    false_alarms=(),
    remedy=(RECALIBRATE + "\nlayer.momentum = 0.1  # PyTorch's default, before training goes on"),
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (momentum)",
    check_layer=check,
)
