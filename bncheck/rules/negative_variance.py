"""BN402: a variance below zero."""

from __future__ import annotations

import numpy as np

from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.remedies import RECALIBRATE
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of negative variances; an error where the square root fails."""
    assert layer.running_var is not None
    negative = layer.running_var < 0
    if not negative.any():
        return None
    least = float(layer.running_var[negative].min())
    numbers = {
        "least variance": least,
        "eps": layer.eps,
        "negative channels": int(np.count_nonzero(negative)),
        "channels": layer.running_var.size,
    }
    eps = limits.eps_largest_in_use if layer.eps is None else layer.eps
    if least + eps <= 0:
        return Evidence(
            "A running variance is negative and eps does not lift it above 0: the output is NaN.", numbers, -least
        )
    if layer.eps is None:
        message = (
            "A running variance is negative: the output is NaN unless eps, which is not in the file, lifts it above 0."
        )
        return Evidence(message, numbers, -least, Severity.WARNING)
    return Evidence("A running variance is negative, though eps lifts it above 0.", numbers, -least, Severity.NOTICE)


RULE = Rule(
    id="BN402",
    name="negative-variance",
    family=Family.STATISTICS,
    severity=Severity.ERROR,
    needs=("running_var",),
    rationale=(
        "A variance below zero was not computed by batch norm: an optimizer, an extrapolation between models or a "
        "converter wrote the buffer."
    ),
    formula="running_var < 0; an error where running_var + eps ≤ 0",
    limit="0; where eps is not in the file, 1e-3 stands for the largest in use",
    false_alarms=("a converter's eps shift of −1e-3 to −1e-5 that eps outweighs is a notice",),
    remedy=RECALIBRATE + "  # and average weights, never buffers",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.swa_utils.update_bn.html",
    check_layer=check,
)
