"""BN302: the last batch of an epoch holds a single sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements, TrainingData
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict
from bncheck.core.training_values import values_in_training


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Blame the layers that refuse the last batch; else the loader, where one sample weighs as much as a batch."""
    data = measured.training_data
    if data is None:
        return
    if data.last_batch is None:
        yield None, Undecided(data.unknown or "the size of the last batch is not known")
        return
    if data.last_batch == data.batch_size:
        return
    refusing = list(_refusing(checkpoint, measured, data))
    if refusing:
        yield from ((layer, Evidence(_REFUSED, _numbers(data), severity=Severity.ERROR)) for layer in refusing)
    elif data.last_batch == 1 and _uses_batches(checkpoint, measured):
        yield None, Evidence(_ONE_SAMPLE, _numbers(data))


def _refusing(checkpoint: Checkpoint, measured: Measurements, data: TrainingData) -> Iterator[NormLayer]:
    """Layers that the last batch would leave one value per channel, and the others more."""
    if data.last_batch is None or data.batch_size is None or data.samples is None:
        return
    # By the loader's own count of samples: to a layer, the parts or views of one may be several.
    share = data.last_batch / min(data.batch_size, data.samples)
    for layer in checkpoint.layers:
        values = values_in_training(layer, measured)
        if isinstance(values, float) and round(values * share) <= 1 < values:
            yield layer


def _uses_batches(checkpoint: Checkpoint, measured: Measurements) -> bool:
    """Whether some layer takes the batch's moments; where that was not looked at, it is taken that one does."""
    if measured.training_batch is None:
        return True
    return any(values_in_training(layer, measured) is not None for layer in checkpoint.layers)


def _numbers(data: TrainingData) -> dict[str, Number]:
    return {
        "samples": data.samples,
        "batch size": data.batch_size,
        "samples in the last batch": data.last_batch,
        "read from": ", ".join(dict.fromkeys(data.sources.values())),
    }


_REFUSED = (
    "The last batch of each epoch holds so few samples that the layer gets one value per channel: PyTorch raises "
    "there, at the end of the first epoch."
)
_ONE_SAMPLE = (
    "The last batch of each epoch holds one sample, whose moments weigh as much as those of a full batch, and come "
    "last."
)

RULE = Rule(
    id="BN302",
    name="degenerate-last-batch",
    family=Family.BATCH,
    severity=Severity.WARNING,
    needs=("training_data",),
    rationale=(
        "What an epoch leaves over is a batch of its own. With one sample in it, layers behind global pooling have "
        "nothing to take a variance of, and the others end every epoch on the moments of one sample."
    ),
    formula="samples modulo batch size, read from the loader's sampler; times the values per channel of one sample",
    limit="1 sample; an error where a layer gets one value per channel, at which torch.nn.functional.batch_norm raises",
    false_alarms=(
        "drop_last=True, and batches of one throughout, which are BN301's",
        "distributed samplers, which pad: the length of one process is what counts",
        "iterable data sets and batch samplers of unknown sizes: not checked",
        "networks whose batch norms are all frozen",
    ),
    remedy="DataLoader(..., drop_last=True)",
    reference="https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader",
    check_measured=check,
)
