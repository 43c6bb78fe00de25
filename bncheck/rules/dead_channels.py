"""BN403: channels that were constant all through training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bncheck.core.finding import Severity
from bncheck.core.layers import Float64Array, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
# Half precision: unit roundoff, and half the smallest subnormal. bfloat16 has float32's exponents.
_STORED_ROUNDING = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 0.0)}
_ROUNDING = 2.0**-24  # unit roundoff of float32, in which torch updates the moments


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of channels whose variance is only what the initial 1 has decayed to."""
    assert layer.running_var is not None
    if not layer.running_var.size:
        return None
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
    residue = layer.initial_weight
    if layer.statistics_at_initialisation or residue == 1.0:
        return dead
    stored = _STORED_ROUNDING.get(layer.dtype or "")
    if stored is not None and (residue is None or residue > limits.dead_below_median * np.median(variance)):
        return dead  # among live channels, half precision is too coarse to tell one number from another
    if residue is None:
        return dead | (variance <= _rounding_noise(layer, 0.0, limits)) | _alike(variance, limits)
    # Each of the n updates multiplies by a rounded 1 - m and rounds the product; saving may round once more.
    relative, absolute = stored or (0.0, 0.0)
    tolerance = residue * ((2.0 * float(layer.num_batches_tracked or 0) + 2.0) * _ROUNDING + relative) + absolute
    return dead | (np.abs(variance - residue) <= tolerance + _rounding_noise(layer, residue, limits))


def _rounding_noise(layer: NormLayer, residue: float, limits: Limits) -> Float64Array:
    """The most variance that float32 arithmetic finds in a constant, from the constant each mean stands for."""
    if layer.running_mean is None:
        return np.zeros_like(layer.running_var)
    constant = np.nan_to_num(np.abs(layer.running_mean)) / (1.0 - residue)
    with np.errstate(over="ignore"):
        return np.asarray((limits.dead_spacings * 2.0 * _ROUNDING * constant) ** 2, dtype=np.float64)


def _alike(variance: Float64Array, limits: Limits) -> NDArray[np.bool_]:
    """Channels that share the least variance to the last bit, far below the others: they decayed together from 1."""
    least = variance.min()
    alike: NDArray[np.bool_] = variance == least
    if np.count_nonzero(alike) > 1 and least <= limits.dead_below_median * np.median(variance):
        return alike
    return np.zeros_like(alike)


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
    formula=(
        "running_var == (1 − m)^n up to float32's rounding of a constant (σ ≤ 32 spacings of the mean), or 0, or below "
        "the smallest normal number"
    ),
    limit="a notice; a warning where more than half of a layer's channels are dead",
    false_alarms=("a tiny but live variance: a well-known pretrained Inception v3 ships 1.9e-14",),
    remedy="# prune the channels, or look for a ReLU that is never active, or constant inputs",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (running estimates)",
    check_layer=check,
)
