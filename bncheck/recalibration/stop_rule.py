"""When enough samples were seen: standard errors over images against limits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bncheck.core.estimate import Settling
from bncheck.core.limits import Limits
from bncheck.core.moments import PopulationMoments


def settling(layers: Mapping[str, tuple[PopulationMoments, float]], limits: Limits) -> Settling:
    """Compare the standard errors with the limits.

    A channel has settled when SE(μ) ≤ ``settled_mean`` · √(σ² + eps) and SE(σ²) ≤ ``settled_variance`` · (σ² + eps):
    what moves the layer's output by no more than that. Channels without any variance have settled.

    Args:
        layers: name → moments of the layer's input, and eps.
        limits: of the two errors, and the share of channels that suffices.
    """
    excess = {name: _excess(moments, eps, limits) for name, (moments, eps) in layers.items()}
    everything = np.concatenate([*excess.values(), np.zeros(0)])
    if not everything.size:
        return Settling(1.0, {}, 0)
    images = max(moments.images for moments, _ in layers.values())
    # The share of channels to settle decides which one must still come within the limit; errors fall as 1/√N.
    deciding = float(np.quantile(everything, limits.settled_share, method="higher"))
    wanted = math.ceil(images * deciding**2) if math.isfinite(deciding) else 2 * images + 2
    return Settling(
        share=float(np.mean(everything <= 1.0)),
        unsettled={name: int(np.sum(found > 1.0)) for name, found in excess.items() if bool((found > 1.0).any())},
        samples_wanted=wanted,
    )


def _excess(
    moments: PopulationMoments, eps: float, limits: Limits
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The larger error of each channel in units of its limit; infinite where there is none yet."""
    scale = moments.var + eps
    mean = moments.mean_error / np.sqrt(scale) / limits.settled_mean
    variance = moments.var_error / scale / limits.settled_variance
    found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.maximum(mean, variance)
    return np.where(np.isnan(found), np.inf, found)
