"""BN305: a training batch gives a layer only a few values per channel."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict
from bncheck.core.training_values import values_in_training


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of layers with fewer values per channel than the limit; a single one is BN301's."""
    batch = measured.training_batch
    if batch is None:
        return
    least = limits.values_per_channel
    for layer in checkpoint.layers:
        values = values_in_training(layer, measured)
        if isinstance(values, Undecided):
            yield layer, values
        elif values is not None and 1 < values < least:
            numbers = {"values per channel": values, "limit": least, "samples per batch": batch.samples}
            yield layer, Evidence(_MESSAGE, {**numbers, "batch from": batch.source}, badness=-values)


_MESSAGE = "A training batch gives the layer so few values per channel that its moments are mostly noise."

RULE = Rule(
    id="BN305",
    name="few-values-per-channel",
    family=Family.BATCH,
    severity=Severity.WARNING,
    needs=("training_batch",),
    rationale=(
        "A variance over n values has a relative standard error of √(2/(n − 1)): 60 % at six. Training then sees a "
        "normalisation that jumps from batch to batch, and prediction one that does not. Accumulating gradients over "
        "more batches does not help, for each is normalised by itself."
    ),
    formula="values per channel = N · height · width of the layer's input in one training batch",
    limit="16: YOLOv5s trains alike with batches of 16 to 128 images; Wu and He measure the loss below",
    false_alarms=(
        "small batches of large maps: the values of all positions count",
        "layers that stay in eval mode in training",
        "SyncBatchNorm, which pools all processes: judged where the sampler tells how many there are",
    ),
    remedy=(
        "DataLoader(..., batch_size=16)  # or more; per process\n"
        "nn.GroupNorm(32, channels)  # where memory allows no larger batch"
    ),
    reference="https://arxiv.org/abs/1803.08494",
    check_measured=check,
)
