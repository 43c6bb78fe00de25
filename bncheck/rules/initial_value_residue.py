"""BN405: running moments that are partly still 0 and 1."""

from __future__ import annotations

import numpy as np

from bncheck.core.finding import Severity
from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.remedies import RECALIBRATE
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict

# Copies whose moments torch.optim.swa_utils.update_bn takes anew, with momentum None for the time being.
_PLAINLY_AVERAGED = frozenset({"swa", "averaged"})


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of a large (1 − m)^n, unless the variances themselves rule it out.

    The running variance is r · 1 + Σ wᵢ sᵢ² with r = (1 − m)^n, so no channel can lie below r: the smallest variance
    bounds the residue without momentum or counter, and disproves a counter that was reset after a conversion.
    """
    assert layer.running_var is not None
    if layer.statistics_at_initialisation or not _averages(layer):
        return None
    finite = layer.running_var[np.isfinite(layer.running_var)]
    bound = float(finite.min()) if finite.size else np.inf
    if bound <= limits.residue_warning:
        return None
    if layer.num_batches_tracked == 0:
        return Undecided("num_batches_tracked is 0 beside learned moments: it was lost in a conversion")
    residue = layer.initial_weight
    if residue is None:
        absent = [name for name in ("momentum", "num_batches_tracked") if getattr(layer, name) is None]
        return Undecided(
            f"{' and '.join(absent) or 'a usable momentum'} {'are' if absent[1:] else 'is'} not in the file"
        )
    if residue <= limits.residue_warning:
        return None
    if layer.group in _PLAINLY_AVERAGED:
        return Undecided("update_bn averages plainly and leaves the momentum as it was, which then says nothing")
    if bound < residue * (1.0 - 1e-3):
        return Undecided("the counter contradicts the variances: it was reset after the moments were learned")
    severe = residue > limits.residue_error
    numbers = {
        "share of initial values": residue,
        "limit": limits.residue_error if severe else limits.residue_warning,
        "num_batches_tracked": layer.num_batches_tracked,
        "momentum": layer.momentum if isinstance(layer.momentum, float) else None,
    }
    message = (
        "The running moments still hold a share of their initial values, 0 and 1: too few updates for the momentum."
    )
    return Evidence(message, numbers, residue, Severity.ERROR if severe else Severity.WARNING)


def _averages(layer: NormLayer) -> bool:
    """Whether batches were averaged in and counted; torch never counts those of an instance norm."""
    return layer.keeps_running_statistics and layer.kind is not NormKind.INSTANCE and layer.momentum != 0


RULE = Rule(
    id="BN405",
    name="initial-value-residue",
    family=Family.STATISTICS,
    severity=Severity.WARNING,
    needs=("running_var",),
    rationale=(
        "A moving average starts at mean 0 and variance 1 and forgets them at its own pace. After a short training, a "
        "late unfreezing or with a small momentum, eval mode still normalises partly by numbers no data produced."
    ),
    formula="(1 − m)^n, m the momentum in PyTorch's sense, n the number of updates",
    limit="warning above 1 %, error above 10 % (TensorFlow's zero_debias exists for the same reason)",
    false_alarms=(
        "a counter at 0 beside learned moments (conversion): the variances disprove the residue",
        "momentum None: the first batch replaces the initial values",
        "averaged weights (SWA) whose moments update_bn took anew: not checked, for the momentum is not theirs",
    ),
    remedy=RECALIBRATE + "  # or train on",
    reference="https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/ExponentialMovingAverage (zero_debias)",
    check_layer=check,
)
