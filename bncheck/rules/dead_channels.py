"""BN403: channels that were constant all through training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
_ROUNDING = 2.0**-24  # unit roundoff of float32, in which torch updates the moments


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of channels whose variance is only what the initial 1 has decayed to."""
    assert layer.running_var is not None
    dead = _dead(layer, limits)
    count = int(np.count_nonzero(dead))
    if not count:
        return None
    share = count / layer.running_var.size
    numbers = {"dead channels": count, "channels": layer.running_var.size}
    if share > limits.dead_share_warning:
        return Evidence("Most channels were constant all through training.", numbers, share, Severity.WARNING)
    return Evidence("Some channels were constant all through training.", numbers, share)


def _dead(layer: NormLayer, limits: Limits) -> NDArray[np.bool_]:
    variance = layer.running_var
    assert variance is not None
    dead: NDArray[np.bool_] = (variance >= 0) & (variance < _SMALLEST_NORMAL)
    if layer.dtype not in ("float32", "float64") or layer.statistics_at_initialisation:
        return dead  # half precision is too coarse to tell one small number from another
    residue = layer.initial_weight
    if residue is not None:
        if 0.0 < residue < 1.0:
            # Each of the n updates multiplies by a rounded 1 - m and rounds the product.
            tolerance = (2.0 * float(layer.num_batches_tracked or 0) + 2.0) * _ROUNDING
            dead = dead | (np.abs(variance - residue) <= tolerance * residue)
        return dead
    # Without momentum or count: dead channels share one value to the last bit, far below the others.
    least = variance.min()
    alike = variance == least
    if np.count_nonzero(alike) > 1 and least <= limits.dead_below_median * np.median(variance):
        dead = dead | alike
    return dead


RULE = Rule(
    id="BN403",
    name="dead-channels",
    family=Family.STATISTICS,
    severity=Severity.NOTICE,
    needs=("running_var",),
    rationale=(
        "A dead channel carries nothing, and in eval mode it multiplies the smallest deviation by up to 1 / √eps: a "
        "domain shift or another number format that wakes it swamps its neighbours."
    ),
    formula="running_var == (1 − m)^n within rounding, or 0, or below float32's smallest normal number",
    limit="a notice; a warning where more than half of a layer's channels are dead",
    false_alarms=("a tiny but live variance: a well-known pretrained Inception v3 ships 1.9e-14",),
    remedy="prune the channels, or look for a ReLU that is never active and inputs that are constant",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (running estimates)",
    check_layer=check,
)
