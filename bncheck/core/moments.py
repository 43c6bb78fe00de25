"""Population moments of a layer's input with image-level standard errors: pure numbers, no torch.

Positions inside one image are correlated, so the image is the sampling unit. With wᵢ positions in image i, mᵢ and vᵢ
its own mean and (biased) variance per channel, and uᵢ = vᵢ + (mᵢ − μ)²:

    μ  = Σ wᵢ mᵢ / Σ wᵢ        SE(μ)²  = n/(n−1) · Σ wᵢ² (mᵢ − μ)² / (Σ wᵢ)²
    σ² = Σ wᵢ uᵢ / Σ wᵢ        SE(σ²)² = n/(n−1) · Σ wᵢ² (uᵢ − σ²)² / (Σ wᵢ)²

the ratio estimator of cluster sampling (Cochran, Sampling Techniques, 3rd ed., section 9A.1), which for images of one
size is sd(image means)/√n. All sums are taken about a reference near the mean, so that nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bncheck.core.layers import Float64Array


@dataclass(frozen=True, slots=True)
class ImageSums:
    """What a layer saw, as sums over images about a reference; each array has shape ``(channels,)``.

    With aᵢ = mᵢ − reference and bᵢ = vᵢ + aᵢ²; a suffix w means that each term is weighted by wᵢ, ww by wᵢ².

    Attributes:
        images: n.
        positions: Σ wᵢ.
        squared_positions: Σ wᵢ².
        reference: what the means are taken about.
        w_a, w_b, ww_a, ww_aa, ww_b, ww_ab, ww_bb: the sums.
    """

    images: int
    positions: float
    squared_positions: float
    reference: Float64Array
    w_a: Float64Array
    w_b: Float64Array
    ww_a: Float64Array
    ww_aa: Float64Array
    ww_b: Float64Array
    ww_ab: Float64Array
    ww_bb: Float64Array


@dataclass(frozen=True, slots=True)
class PopulationMoments:
    """Moments of a layer's input over the data; arrays have shape ``(channels,)``.

    Attributes:
        images: sampling units.
        positions: values per channel.
        mean, var: population mean and biased variance.
        mean_error, var_error: their standard errors; NaN with fewer than two images.
    """

    images: int
    positions: float
    mean: Float64Array
    var: Float64Array
    mean_error: Float64Array
    var_error: Float64Array


def population_moments(sums: ImageSums) -> PopulationMoments:
    """Moments and standard errors.

    Raises:
        ValueError: there is no image.
    """
    if sums.images < 1:
        raise ValueError("moments of no image")
    shift = sums.w_a / sums.positions
    var = np.maximum(sums.w_b / sums.positions - shift**2, 0.0)
    # uᵢ = bᵢ − 2 d aᵢ + d² with d = μ − reference; expanded so that one pass over the data suffices.
    rest = shift**2 - var
    mean_scatter = sums.ww_aa - 2 * shift * sums.ww_a + shift**2 * sums.squared_positions
    var_scatter = (
        sums.ww_bb
        + 4 * shift**2 * sums.ww_aa
        + rest**2 * sums.squared_positions
        - 4 * shift * sums.ww_ab
        + 2 * rest * sums.ww_b
        - 4 * shift * rest * sums.ww_a
    )
    correction = sums.images / (sums.images - 1) if sums.images > 1 else float("nan")
    return PopulationMoments(
        images=sums.images,
        positions=sums.positions,
        mean=sums.reference + shift,
        var=var,
        mean_error=np.sqrt(np.maximum(mean_scatter, 0.0) * correction) / sums.positions,
        var_error=np.sqrt(np.maximum(var_scatter, 0.0) * correction) / sums.positions,
    )


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the data's moments are from the stored ones; arrays have shape ``(channels,)``.

    Attributes:
        delta: δ = (μ_data − μ_stored) / √(σ²_stored + eps).
        log_ratio: ln ρ², with ρ² = (σ²_data + eps) / (σ²_stored + eps).
        kl: ½ (ρ² + δ² − 1 − ln ρ²), the divergence of the data's normal from the stored one, in nats.
        delta_error, log_ratio_error: standard errors of the first two.
    """

    delta: Float64Array
    log_ratio: Float64Array
    kl: Float64Array
    delta_error: Float64Array
    log_ratio_error: Float64Array

    @property
    def rms_delta(self) -> float:
        """Root mean square of δ over channels."""
        return float(np.sqrt(np.mean(self.delta**2)))

    @property
    def median_log_ratio(self) -> float:
        """Median over channels of the absolute ln ρ²."""
        return float(np.median(np.abs(self.log_ratio)))


def drift(data: PopulationMoments, mean: Float64Array, var: Float64Array, eps: float) -> Drift:
    """Compare data with stored moments of shape ``(channels,)``.

    Raises:
        ValueError: shapes differ, or σ² + eps is not positive.
    """
    if not (data.mean.shape == mean.shape == var.shape):
        raise ValueError(f"moments of {data.mean.shape}, {mean.shape} and {var.shape} cannot be compared")
    scale = var + eps
    if not (scale > 0).all():
        raise ValueError("stored variance + eps is not positive")
    delta = (data.mean - mean) / np.sqrt(scale)
    ratio = np.maximum(data.var + eps, np.finfo(np.float64).tiny) / scale
    log_ratio = np.log(ratio)
    return Drift(
        delta=delta,
        log_ratio=log_ratio,
        kl=0.5 * (ratio + delta**2 - 1 - log_ratio),
        delta_error=data.mean_error / np.sqrt(scale),
        log_ratio_error=data.var_error / np.maximum(data.var + eps, np.finfo(np.float64).tiny),
    )
