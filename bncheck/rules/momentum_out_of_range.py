"""BN504: a momentum that averages nothing."""

from __future__ import annotations

from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of a momentum below 0, above 1 or NaN."""
    momentum = layer.momentum
    if not layer.keeps_running_statistics or not isinstance(momentum, float) or 0.0 <= momentum <= 1.0:
        return None
    return Evidence(
        f"Momentum is {momentum:g}: the update is no average, and the running moments may diverge.",
        {"momentum": momentum, "least": 0.0, "most": 1.0},
        abs(momentum),
    )


RULE = Rule(
    id="BN504",
    name="momentum-out-of-range",
    family=Family.MOMENTUM,
    severity=Severity.ERROR,
    needs=("momentum",),
    rationale="Outside 0 to 1 the new moments are extrapolated: variances turn negative or grow without bound.",
    formula="momentum < 0, momentum > 1 or NaN",
    limit="0 and 1",
    false_alarms=(),
    remedy=(
        "layer.momentum = 0.1  # PyTorch's default\n"
        "layer.reset_running_stats()  # then train, or run data through it in train()"
    ),
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (momentum)",
    check_layer=check,
)
