"""What a recalibration came to: plain numbers, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bncheck.core.estimation_method import Method
from bncheck.core.layers import Float64Array
from bncheck.core.moments import Drift, PopulationMoments, drift


@dataclass(frozen=True, slots=True)
class LayerEstimate:
    """One layer, before and after; arrays are float64 of shape ``(channels,)``.

    Attributes:
        order: position of its first call, from 0.
        before_mean, before_var: as they were stored.
        after_mean, after_var: as they are to be stored: the variance is the biased one plus SE(μ)², blended with
            what was stored where a prior was asked for.
        data: moments of the layer's input, with standard errors.
        eps: added to the variance.
        prior_share: weight that the stored moments were given, 0 to 1.
    """

    order: int
    before_mean: Float64Array
    before_var: Float64Array
    after_mean: Float64Array
    after_var: Float64Array
    data: PopulationMoments
    eps: float
    prior_share: float = 0.0


def moved_by(layer: LayerEstimate) -> Drift:
    """Distance of the new moments from the old, in units of the old; an old variance that is none counts as 0."""
    after = replace(layer.data, mean=layer.after_mean, var=layer.after_var)
    before_var = np.where(layer.before_var > 0, layer.before_var, np.finfo(np.float64).tiny)
    return drift(after, layer.before_mean, before_var, layer.eps)


@dataclass(frozen=True, slots=True)
class Settling:
    """Whether enough samples were seen.

    Attributes:
        share: of all channels whose standard errors are within the limits.
        unsettled: layer → how many of its channels are not.
        samples_wanted: an estimate of how many samples would do; the errors fall as 1/√N.
    """

    share: float
    unsettled: Mapping[str, int]
    samples_wanted: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Population statistics of a model's layers.

    Attributes:
        method: how they were found.
        samples: size of the calibration set.
        layers: by name, in the order of execution.
        unreached: layers the data never came to; theirs are as they were.
        left_alone: layers that were not to be changed.
        sweeps: times the calibration set went through the model.
        waves: parts it went through in.
        residual: largest distance of what is stored from the moments of the layer's input, in σ for means and as a
            share for variances; None where it was not measured.
        residual_in_errors: root mean square over channels of the same distance of means, in standard errors.
        why_inexact: why the residual is not below the limit; None where it is, or was not asked for.
        settling: against the stop rule.
        batch_scatter: variance between the means of batches over what shuffled data would give, about 1; None with
            fewer than two batches.
        stride_cost: median over channels of SE(μ) over what it would be from all positions of an image; None where all
            were looked at.
        not_estimated: layers that were reached and are as they were → why.
    """

    method: Method
    samples: int
    layers: Mapping[str, LayerEstimate]
    unreached: tuple[str, ...]
    left_alone: tuple[str, ...]
    sweeps: int
    waves: int
    residual: float | None
    residual_in_errors: float | None
    why_inexact: str | None
    settling: Settling
    batch_scatter: float | None
    stride_cost: float | None = None
    not_estimated: Mapping[str, str] = field(default_factory=dict)
