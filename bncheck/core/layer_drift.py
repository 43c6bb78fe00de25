"""A layer's drift beside what chance would give: shared by the rules that judge it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.layers import Averaging, NormKind, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import LayerMeasurement, Measurements, TrainEvalGap
from bncheck.core.moments import Drift, PopulationMoments, drift

# PyTorch's default, where the file does not say.
_MOMENTUM = 0.1


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """One layer's drift.

    Attributes:
        layer: as the file describes it.
        order: position of its first call.
        delta: root mean square δ over channels, freed of what chance adds.
        log_ratio: median |ln ρ²|.
        delta_noise: what chance would make of ``delta``: standard errors and the moving average's scatter.
        log_ratio_noise: likewise.
        channels: per channel.
    """

    layer: NormLayer
    order: int
    delta: float
    log_ratio: float
    delta_noise: float
    log_ratio_noise: float
    channels: Drift

    def is_drifted(self, limits: Limits) -> bool:
        """Whether either measure is above its warning limit, and chance does not explain it."""
        return self._exceeds(limits.drift_delta_warning, limits.drift_log_ratio_warning, limits)

    def is_diverged(self, limits: Limits) -> bool:
        """Whether either measure is above its error limit."""
        return self._exceeds(limits.drift_delta_error, limits.drift_log_ratio_error, limits)

    def badness(self, limits: Limits) -> float:
        """The larger of the two in units of its warning limit."""
        return max(self.delta / limits.drift_delta_warning, self.log_ratio / limits.drift_log_ratio_warning)

    def numbers(self, limits: Limits) -> dict[str, float]:
        """Evidence."""
        return {
            "rms δ": self.delta,
            "limit of δ": limits.drift_delta_error if self.is_diverged(limits) else limits.drift_delta_warning,
            "median |ln ρ²|": self.log_ratio,
            "limit of |ln ρ²|": (
                limits.drift_log_ratio_error if self.is_diverged(limits) else limits.drift_log_ratio_warning
            ),
            "by chance": self.delta_noise,
        }

    def _exceeds(self, delta: float, log_ratio: float, limits: Limits) -> bool:
        far = self.delta > max(delta, limits.drift_significance * self.delta_noise)
        wide = self.log_ratio > max(log_ratio, limits.drift_significance * self.log_ratio_noise)
        return far or wide


def drifts(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterator[LayerDrift]:
    """The drift of every layer that was reached and normalises with learned moments, in the file's order."""
    for layer in checkpoint.layers:
        seen = (measured.layers or {}).get(layer.name)
        if layer.group != measured.group or seen is None or layer.statistics_at_initialisation:
            continue
        found = _drift(layer, seen, limits)
        if found is not None:
            yield found


def does_no_harm(gap: TrainEvalGap | None, limits: Limits) -> bool:
    """Whether labels show that the network loses nothing by its stored moments, whatever its layers' drift.

    Moments of training images that were changed at random are right for the network and not those of plain images.
    It must work with them, and chance must not hide a rise of the loss.
    """
    if gap is None or gap.loss_stored is None or gap.loss_rise is None or gap.loss_error is None or not gap.classes:
        return False
    most = gap.loss_rise + limits.drift_significance * gap.loss_error
    return most <= limits.loss_rise_warning and gap.loss_stored <= limits.working_loss * math.log(gap.classes)


def unjudged(checkpoint: Checkpoint, measured: Measurements) -> Iterator[tuple[NormLayer, str]]:
    """Layers whose drift would be judged and could not be measured, and why, in the file's order."""
    for layer in checkpoint.layers:
        learned = layer.has_running_statistics and not layer.statistics_at_initialisation
        if layer.group == measured.group and learned and layer.kind is not NormKind.INSTANCE:
            reason = _hindrance((measured.layers or {}).get(layer.name))
            if reason is not None:
                yield layer, reason


def _hindrance(seen: LayerMeasurement | None) -> str | None:
    if seen is None:
        return "the model that ran has no layer of this name"
    if seen.order is None:
        return None  # BN209
    if seen.unknown is not None:
        return seen.unknown
    if seen.moments is None or seen.stored_mean is None:
        return "its input has no channels"
    if seen.moments.images < _FEWEST_IMAGES:
        return "a single sample tells nothing of the data's moments"
    if seen.stored_mean.shape != seen.moments.mean.shape:
        return f"its input has {seen.moments.mean.size} channels and its moments have {seen.stored_mean.size}"
    return None


_FEWEST_IMAGES = 2


def overflowing(checkpoint: Checkpoint, measured: Measurements) -> Iterator[tuple[NormLayer, int, int]]:
    """Layers whose input is not finite though their stored moments are, in the file's order.

    Yields:
        The layer, the position of its first call, and how many channels of its input are not finite.
    """
    for layer in checkpoint.layers:
        seen = (measured.layers or {}).get(layer.name)
        if layer.group != measured.group or seen is None or seen.order is None or seen.moments is None:
            continue
        broken = ~(np.isfinite(seen.moments.mean) & np.isfinite(seen.moments.var))
        stored = [moments for moments in (layer.running_mean, layer.running_var) if moments is not None]
        if broken.any() and all(np.isfinite(moments).all() for moments in stored):
            yield layer, seen.order, int(broken.sum())


def _drift(layer: NormLayer, seen: LayerMeasurement, limits: Limits) -> LayerDrift | None:
    moments, mean, var, eps = seen.moments, seen.stored_mean, seen.stored_var, seen.eps
    if seen.order is None or moments is None or mean is None or var is None or eps is None or moments.images < 2:
        return None
    if mean.shape != moments.mean.shape or not bool((var + eps > 0).all() and np.isfinite(mean).all()):
        return None  # not finite or negative: BN401 and BN402
    if not bool(np.isfinite(moments.mean).all() and np.isfinite(moments.var).all()):
        return None  # BN407 says so
    # An eps that is larger than the variances, such as another framework's, would hide any drift behind it.
    largest = float(np.mean(var))
    channels = drift(moments, mean, var, min(eps, largest) if largest > 0 and bool((var >= 0).all()) else eps)
    chance = channels.delta_error**2 + _averaging_scatter(layer, moments, channels, limits)
    return LayerDrift(
        layer=layer,
        order=seen.order,
        delta=math.sqrt(max(0.0, float(np.mean(channels.delta**2 - chance)))),
        log_ratio=channels.median_log_ratio,
        delta_noise=math.sqrt(float(np.mean(chance))),
        log_ratio_noise=float(np.median(channels.log_ratio_error)),
        channels=channels,
    )


def _averaging_scatter(
    layer: NormLayer, moments: PopulationMoments, channels: Drift, limits: Limits
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Variance of the stored mean itself, in units of δ².

    A moving average of weight m over independent batch means has m/(2 − m) of their variance, which is that of the
    image means over the images in a batch.
    """
    momentum = layer.momentum
    if isinstance(momentum, Averaging) or momentum is None or not 0.0 < momentum <= 1.0:
        momentum = _MOMENTUM
    image_variance: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = moments.images * channels.delta_error**2
    return momentum / (2 - momentum) * image_variance / limits.assumed_batch_size
