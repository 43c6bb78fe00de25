"""BN301: a training batch gives a layer a single value per channel."""

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
    """Complain of layers whose input is one value per channel."""
    batch = measured.training_batch
    if batch is None:
        return
    for layer in checkpoint.layers:
        values = values_in_training(layer, measured)
        if isinstance(values, Undecided):
            yield layer, values
        elif values is not None and values <= 1:
            numbers = {"values per channel": values, "limit": 2, "samples per batch": batch.samples}
            yield layer, Evidence(_MESSAGE, {**numbers, "batch from": batch.source})


_MESSAGE = (
    "A training batch gives the layer one value per channel: its variance is 0, and its output is its bias whatever "
    "the input."
)

RULE = Rule(
    id="BN301",
    name="one-value-per-channel",
    family=Family.BATCH,
    severity=Severity.ERROR,
    needs=("training_batch",),
    rationale=(
        "The moments of one value are that value and 0. PyTorch refuses to train on it; code that calls the kernel "
        "itself, and other frameworks, go on, and what they learn behind such a layer is a constant."
    ),
    formula="values per channel = N · height · width of the layer's input in one training batch",
    limit="more than 1; torch.nn.functional.batch_norm raises at 1",
    false_alarms=(
        "layers that stay in eval mode in training, whose batch does not matter",
        "SyncBatchNorm, which pools all processes: judged where the sampler tells how many there are",
    ),
    remedy=(
        "DataLoader(..., batch_size=2)  # or more\n"
        "nn.GroupNorm(groups, channels)  # or nn.Identity(), for a layer behind global pooling"
    ),
    reference="https://github.com/pytorch/pytorch/blob/v2.13.0/torch/nn/functional.py",
    check_measured=check,
)
