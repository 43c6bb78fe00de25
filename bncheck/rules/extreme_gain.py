"""BN404: a layer that multiplies a channel by thousands."""

from __future__ import annotations

import numpy as np

from bncheck.core.finding import Severity
from bncheck.core.layers import Float64Array, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of gains above the limits; where eps is unknown, only if no eps in use would help."""
    least_eps, most_eps = (0.0, limits.eps_largest_in_use) if layer.eps is None else (layer.eps, layer.eps)
    surely, at_most = _gains(layer, most_eps), _gains(layer, least_eps)
    if not surely.size or at_most.max() <= limits.gain_warning:
        return None
    gain = float(surely.max())
    if gain <= limits.gain_warning:
        return Undecided(f"eps is not in the file, and the gain lies between {gain:.3g} and {at_most.max():.3g}")
    limit = limits.gain_error if gain > limits.gain_error else limits.gain_warning
    numbers = {
        "largest gain": gain,
        "limit": limit,
        "channel": int(surely.argmax()),
        "channels above": int(np.count_nonzero(surely > limits.gain_warning)),
    }
    if gain > limits.gain_error:
        return Evidence("Multiplies a channel by more than float16 can hold.", numbers, gain, Severity.ERROR)
    return Evidence("Multiplies a channel by more than a thousand.", numbers, gain)


def _gains(layer: NormLayer, eps: float) -> Float64Array:
    """|γ| / √(var + eps) of every channel; 0 where the root does not exist, which is another rule's matter."""
    assert layer.running_var is not None
    scale = np.ones_like(layer.running_var) if layer.weight is None else np.abs(layer.weight)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gains = scale / np.sqrt(layer.running_var + eps)
    return np.where(np.isnan(gains), 0.0, gains)


RULE = Rule(
    id="BN404",
    name="extreme-gain",
    family=Family.STATISTICS,
    severity=Severity.WARNING,
    needs=("running_var",),
    rationale=(
        "A gain of a thousand turns the 1e-7 noise of float32 into 1e-4 of the output, and the same layer folded, "
        "quantised or run in half precision saturates."
    ),
    formula="max |γ| / √(running_var + eps)",
    limit="warning above 1e3, error above 65504, the largest float16",
    false_alarms=(
        "a dead channel under the usual eps of 1e-5 has a gain of 316",
        "a file without eps where the verdict depends on it (not checked)",
    ),
    remedy="layer.eps = 1e-5  # then re-estimate the moments, or prune the channel",
    reference="IEEE 754 binary16; https://arxiv.org/abs/1712.05877 (folding batch norm for quantised inference)",
    check_layer=check,
)
