"""The batch size a network was trained with, told from the variances it stored: pure numbers, no torch.

A batch of b images of P positions each lacks the variance of its own mean. With the population variance T of a channel
and the variance B of its per-image means, the (unbiased) variance of such batches, which the moving average collects,
is on average

    v = bP / (bP − 1) · (T − B / b),

linear in x = 1/b: T − v = x · (B − v / P). Each channel gives an x; how much it tells is its leverage (B − v / P) / T,
which is 0 where positions vary as much inside an image as between images, and always where P = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bncheck.core.layers import Float64Array
from bncheck.core.limits import Limits
from bncheck.core.moments import PopulationMoments


@dataclass(frozen=True, slots=True, eq=False)
class StoredMoments:
    """What a layer stored beside what the data brings to it.

    Attributes:
        data: moments of the input over the data.
        mean, var: the stored ones, of shape ``(channels,)``.
        momentum: weight of a new batch in the moving average.
    """

    data: PopulationMoments
    mean: Float64Array
    var: Float64Array
    momentum: float


@dataclass(frozen=True, slots=True)
class TrainingBatchSize:
    """An estimate of the reciprocal batch size x = 1/b.

    Attributes:
        reciprocal: x; below 0 where stored variances are larger than any batch size explains.
        error: standard error.
        layers: how many had a say.
        widths: standard errors that an interval reaches to each side.
    """

    reciprocal: float
    error: float
    layers: int
    widths: float

    @property
    def images(self) -> float:
        """The estimate b, from 1 to infinity."""
        return _images(self.reciprocal)

    @property
    def fewest(self) -> float:
        """Lower end of the interval of b."""
        return _images(self.reciprocal + self.widths * self.error)

    @property
    def most(self) -> float:
        """Upper end of the interval of b."""
        return _images(self.reciprocal - self.widths * self.error)


def _images(reciprocal: float) -> float:
    return math.inf if reciprocal <= 0 else 1 / min(1.0, reciprocal)


def training_batch_size(layers: Iterable[StoredMoments], limits: Limits) -> TrainingBatchSize | None:
    """Estimate the batch size from all layers together.

    A layer's estimate is the median over channels weighted by leverage. Layers are averaged by their precision. Chance
    (few images, and the moving average over batches) shrinks with the number of layers; what is systematic (weights
    that moved after the moments, data of another kind, other inputs in training mode than in eval mode) does not.

    Args:
        layers: layers that normalised with moments learned from batches.
        limits: thresholds.

    Returns:
        The estimate; None where no layer has several values per image.
    """
    found = [layer for each in layers if (layer := _layer_estimate(each, limits)) is not None]
    if not found:
        return None
    estimate, _ = _pooled(found, 0.0)
    # What this leaves unexplained, in layers that hardly depend on the batch above all, is no batch's doing: an input
    # of another contrast changes every variance.
    left = float(np.median([abs(layer.shortfall - estimate * layer.leverage) for layer in found]))
    estimate, error = _pooled(found, left)
    return TrainingBatchSize(estimate, error, len(found), limits.tiny_batch_errors)


@dataclass(frozen=True, slots=True)
class _LayerEstimate:
    """One layer's x, its errors by chance and systematic, and medians over channels of (T − v) / T and of leverage.

    ``pull`` is the root mean square of leverage: what divides an error in the variance to make it one in x.
    """

    reciprocal: float
    chance: float
    systematic: float
    shortfall: float
    leverage: float
    pull: float


def _pooled(layers: list[_LayerEstimate], left: float) -> tuple[float, float]:
    """The estimate of x and its error, where a share ``left`` of the variance is wrong everywhere."""
    chance = np.array([layer.chance for layer in layers])
    systematic = np.array([math.hypot(layer.systematic, left / layer.pull) for layer in layers])
    weights = 1 / (chance**2 + systematic**2)
    weights /= weights.sum()
    error = math.hypot(float(np.sqrt(np.sum((weights * chance) ** 2))), float(np.sum(weights * systematic)))
    return float(np.sum(weights * np.array([layer.reciprocal for layer in layers]))), error


def _layer_estimate(layer: StoredMoments, limits: Limits) -> _LayerEstimate | None:
    data = layer.data
    positions = data.positions / max(1, data.images)
    if data.images < 2 or positions <= 1:
        return None
    live = data.var > limits.dead_below_median * np.median(data.var)
    if not live.any():
        return None
    total, between = data.var[live], data.mean_error[live] ** 2 * data.images
    leverage = (between - layer.var[live] / positions) / total
    shortfall = 1 - layer.var[live] / total
    telling = leverage != 0
    if not telling.any():
        return None
    # A fault that inflates stored variances must not make them more telling.
    pulls = np.abs(between - np.minimum(layer.var[live], total) / positions) / total
    pull = math.sqrt(float(np.mean(pulls**2)))
    if pull == 0:
        return None
    estimate = _weighted_median(shortfall[telling] / leverage[telling], pulls[telling])
    # Images that the estimate and the stored moments stand on: of the data, and in the moving average's window.
    fewness = 1 / data.images + layer.momentum / (2 - layer.momentum) * min(1.0, max(0.0, estimate))
    scatter = data.var_error[live] ** 2 * data.images / total**2
    chance = limits.channel_independence * math.sqrt(float(np.median(scatter)) * fewness) / pull
    # A mean further off than chance brings it was left behind or comes from other data, and so was the variance.
    away = float(np.mean((data.mean[live] - layer.mean[live]) ** 2 / total))
    expected = float(np.mean(between / total)) * fewness
    stale = max(0.0, away - limits.mean_scatter * expected)
    systematic = math.sqrt(stale + limits.variance_mismatch**2) / pull
    # Beyond 0 and 1 lies what no batch size explains.
    misfit = max(0.0, -estimate, estimate - 1) - math.hypot(chance, systematic)
    return _LayerEstimate(
        reciprocal=estimate,
        chance=chance,
        systematic=math.hypot(systematic, limits.batch_size_misfit * max(0.0, misfit)),
        shortfall=float(np.median(shortfall)),
        leverage=float(np.median(leverage)),
        pull=pull,
    )


def _weighted_median(values: Float64Array, weights: Float64Array) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])
