"""BN501: a momentum that never updates anything."""

from __future__ import annotations

from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of momentum 0: an error where there is nothing worth keeping."""
    if not layer.keeps_running_statistics or layer.momentum != 0:
        return None
    if layer.statistics_at_initialisation:
        return Evidence("Momentum is 0 and the running moments are still 0 and 1: training cannot have updated them.")
    return Evidence(
        "Momentum is 0: the running moments are frozen, which is fine if it is meant.", severity=Severity.NOTICE
    )


RULE = Rule(
    id="BN501",
    name="zero-momentum",
    family=Family.MOMENTUM,
    severity=Severity.ERROR,
    needs=("momentum",),
    rationale="Momentum is the weight of the new batch in PyTorch: at 0 the running moments stay what they were.",
    formula="momentum == 0",
    limit="error where the moments are at initialisation, else a notice (frozen on purpose)",
    false_alarms=("frozen layers with learned moments are a notice",),
    remedy="layer.momentum = 0.1  # PyTorch's default; then train, or run data through it in train()",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (momentum)",
    check_layer=check,
)
