"""What running a model showed: plain numbers, which rules judge. A static audit has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bncheck.core.layers import Float64Array
from bncheck.core.moments import PopulationMoments


@dataclass(frozen=True, slots=True, eq=False)
class LayerMeasurement:
    """One normalisation layer in eval mode, over the calibration data.

    Attributes:
        order: position of its first call in a forward pass, from 0; None where the data never reached it.
        calls: calls in one forward pass, the most seen.
        uses_batch_moments: whether it normalised with the moments of the batch it was given.
        moments: of its input; None where it was not reached.
        stored_mean, stored_var: the moments it normalised with, of shape ``(channels,)``.
        eps: as it was passed to the operator.
    """

    order: int | None = None
    calls: int = 0
    uses_batch_moments: bool = False
    moments: PopulationMoments | None = None
    stored_mean: Float64Array | None = None
    stored_var: Float64Array | None = None
    eps: float | None = None


@dataclass(frozen=True, slots=True)
class Companions:
    """Whether a sample's prediction depends on the other samples of its batch.

    Changes are the largest absolute difference over the largest absolute output.

    Attributes:
        samples: how many were tried.
        noise: change between two runs of one and the same batch.
        change: largest change between a sample alone, duplicated, and in two different batches.
        flips: samples whose top class changed; None where the output is no row of scores.
        fails_alone: what the model raised for a batch of one; None where it predicted.
        by_batch_norm: whether a batch-norm call used the moments of the batch.
    """

    samples: int
    noise: float
    change: float
    flips: int | None
    by_batch_norm: bool
    fails_alone: str | None = None


@dataclass(frozen=True, slots=True)
class TrainEvalGap:
    """Predictions with stored moments beside those with each batch's own.

    Attributes:
        samples: how many.
        batch_size: samples in the batches whose moments were used, the fewest.
        output_change: root mean square difference over the root mean square output with batch moments.
        disagreement: share of samples whose top class differs; None where the output is no row of scores.
        accuracy_stored, accuracy_batch: shares of labels hit; None without labels.
        loss_stored, loss_batch: mean cross-entropies in nats; likewise.
    """

    samples: int
    batch_size: int
    output_change: float
    disagreement: float | None = None
    accuracy_stored: float | None = None
    accuracy_batch: float | None = None
    loss_stored: float | None = None
    loss_batch: float | None = None


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """A probe that came to nothing, and why.

    Attributes:
        what: the field of ``Measurements`` it should have filled, or what it needed.
        reason: why it did not.
        detail: frames of the user's own code, where that failed.
        failed: whether something broke, which makes the audit incomplete; else there was merely nothing to measure.
    """

    what: str
    reason: str
    failed: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """Everything measured on one model.

    Attributes:
        device, precision: where and how the model ran.
        samples: size of the calibration data.
        layers: by full layer name.
        mutated: running buffers that prediction changed, by layer name; None where it was not looked at.
        companions, gap: None where not measured.
        not_measured: probes that failed.
    """

    device: str
    precision: str
    samples: int
    layers: Mapping[str, LayerMeasurement] | None = None
    mutated: tuple[str, ...] | None = None
    companions: Companions | None = None
    gap: TrainEvalGap | None = None
    not_measured: tuple[NotMeasured, ...] = ()
