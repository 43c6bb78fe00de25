"""What running a model showed: plain numbers, which rules judge. A static audit has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
        unknown: why its input could not be held against its stored moments, though it was reached; None where it could.
    """

    order: int | None = None
    calls: int = 0
    uses_batch_moments: bool = False
    moments: PopulationMoments | None = None
    stored_mean: Float64Array | None = None
    stored_var: Float64Array | None = None
    eps: float | None = None
    unknown: str | None = None


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
        loss_error: standard error of their difference, sample by sample; likewise.
        classes: how many scores a sample gets; None where the output is no row of scores.
    """

    samples: int
    batch_size: int
    output_change: float
    disagreement: float | None = None
    accuracy_stored: float | None = None
    accuracy_batch: float | None = None
    loss_stored: float | None = None
    loss_batch: float | None = None
    loss_error: float | None = None
    classes: int | None = None

    @property
    def loss_rise(self) -> float | None:
        """Cross-entropy with stored moments minus that with batch moments, in nats; None without labels."""
        return None if self.loss_stored is None or self.loss_batch is None else self.loss_stored - self.loss_batch


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What the training loader says of an epoch, read from it without drawing a batch; None where it does not say.

    Attributes:
        samples: in one epoch, for one process.
        batch_size: samples in a full batch of one process.
        drop_last: whether a last batch that is not full is left out.
        last_batch: samples in the last batch of an epoch.
        replicas: processes that share an epoch.
        sources: name of a field above → where its number was found.
        unknown: why the last batch is not known.
    """

    samples: int | None = None
    batch_size: int | None = None
    drop_last: bool | None = None
    last_batch: int | None = None
    replicas: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)
    unknown: str | None = None


@dataclass(frozen=True, slots=True)
class BatchValues:
    """What one layer takes its moments over in one training batch.

    Attributes:
        values: N · spatial positions of its input, the fewest of its calls.
        uses_batch_moments: whether it normalises with them in training; a frozen layer does not.
        pooled: whether it pools the batches of all processes, as ``SyncBatchNorm`` does.
    """

    values: float
    uses_batch_moments: bool = True
    pooled: bool = False


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Values per channel in one training batch.

    Attributes:
        samples: N of a full batch.
        seen: N of the batch that was drawn; values are scaled from it to ``samples``.
        source: the option that it came from.
        layers: by full layer name, those the batch reached.
    """

    samples: int
    seen: int
    source: str
    layers: Mapping[str, BatchValues]


@dataclass(frozen=True, slots=True)
class LayerStep:
    """What one training step does to one layer's running moments.

    Attributes:
        calls: runs in forward passes.
        recomputed: runs during the backward pass.
        most_in_a_pass: the most runs in one forward pass of the model.
        updates: times that its running moments were written, also where the weight of the new batch is 0.
        recomputed_updates: those of them during the backward pass.
        repeated_updates: those by a pass over a batch already taken in this step, or by one that nothing is learned
            from while another pass is.
        changed: whether its running moments have other values afterwards.
        uses_batch_moments: whether it normalised with the moments of its batch; None where no operator shows it.
        training: its mode flag when it ran; None where it has none.
        frozen: whether it is meant to stay: in eval mode inside a model in training mode, of a class that uses its
            stored moments in training mode too, or without a parameter that learns.
        momentum: weight of the new batch; None where the layer has no such number.
        values: per channel of its input, the fewest of the runs that took moments of it; None where there was none.
    """

    calls: int = 0
    recomputed: int = 0
    most_in_a_pass: int = 0
    updates: int = 0
    recomputed_updates: int = 0
    repeated_updates: int = 0
    changed: bool = False
    uses_batch_moments: bool | None = None
    training: bool | None = None
    frozen: bool = False
    momentum: float | None = None
    values: int | None = None

    @property
    def ran(self) -> bool:
        """Whether the step came to it."""
        return self.calls + self.recomputed > 0


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One training step of the user's, or one forward pass in training mode.

    Attributes:
        by_user: whether it was the user's step.
        samples: in the batch, where that could be told.
        passes: forward passes of the whole model.
        stayed_in_training: whether the model was still in training mode when its last layer ran.
        parameters_changed: how many of the model's parameters have other values afterwards; None for a forward pass.
        layers: by full layer name, all that keep running moments.
    """

    by_user: bool
    samples: int | None
    passes: int
    stayed_in_training: bool
    parameters_changed: int | None
    layers: Mapping[str, LayerStep]


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
        training_data, training_batch, training_step: what training would do; likewise.
        group: the copy of the network that ran.
        missing_statistics: layers for which the model wants running moments that the file lacks; it could not be run.
        spare_statistics: layers of which the file has running moments and the model keeps none; likewise.
        not_measured: probes that failed.
    """

    device: str
    precision: str
    samples: int
    layers: Mapping[str, LayerMeasurement] | None = None
    mutated: tuple[str, ...] | None = None
    companions: Companions | None = None
    gap: TrainEvalGap | None = None
    training_data: TrainingData | None = None
    training_batch: TrainingBatch | None = None
    training_step: TrainingStep | None = None
    group: str = "model"
    missing_statistics: tuple[str, ...] = ()
    spare_statistics: tuple[str, ...] = ()
    not_measured: tuple[NotMeasured, ...] = ()
