"""How much the stored moments count beside those of the data.

Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020,
https://arxiv.org/abs/2006.16971, equation 2: N pseudo-samples of the stored moments beside n samples of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bncheck.runtime.input_moments import InputMoments


@dataclass(frozen=True, slots=True)
class PseudoSamples:
    """Stored moments count as so many samples; 0 forgets them."""

    count: float = 0.0


@dataclass(frozen=True, slots=True)
class ByEvidence:
    """Stored moments count as far as chance explains the distance of the data from them, layer by layer."""


Prior = PseudoSamples | ByEvidence


def share_of_stored(prior: Prior, data: InputMoments, mean: Tensor, var: Tensor, eps: float) -> Tensor | float:
    """Weight of the stored moments, from 0 to 1.

    By evidence it is the part of the divergence that the standard errors alone would give,

        Σ (½ SE(μ)²/s + ¼ (SE(σ²)/s)²)  over  Σ (½ (μ − μ₀)²/s + ¼ ((σ² − σ₀²)/s)²),  s = σ₀² + eps,

    the second-order expansion of the normal's KL summed over channels: James and Stein's shrinkage with the layer's
    channels as the ensemble. Stays on the device.

    Args:
        prior: how they count.
        data: moments of the layer's input.
        mean: what was stored, ``(C,)`` in float64.
        var: likewise.
        eps: added to the variance.
    """
    match prior:
        case PseudoSamples(count=count):
            return count / (count + data.images) if count else 0.0
        case ByEvidence():
            return _explained_by_chance(data, mean, var, eps)


def _explained_by_chance(data: InputMoments, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    found_mean, found_var = data.mean_and_variance()
    mean_scatter, var_scatter = data.squared_errors()
    scale = var + eps
    chance = 0.5 * mean_scatter / scale + 0.25 * var_scatter / scale**2
    distance = 0.5 * (found_mean - mean) ** 2 / scale + 0.25 * ((found_var - var) / scale) ** 2
    # Channels whose stored moments are none say nothing.
    sound = mean.isfinite() & var.isfinite() & (scale > 0)
    chance, distance = (torch.where(sound, value, torch.zeros_like(value)).sum() for value in (chance, distance))
    share = (chance / distance.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
    return torch.nan_to_num(share, nan=1.0)  # one image has no errors: it says nothing
