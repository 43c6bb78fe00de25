"""BN303: the moments were learned from batches of very few images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layers import Averaging, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import LayerMeasurement, Measurements
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict
from bncheck.core.training_batch_size import StoredMoments, TrainingBatchSize, training_batch_size

# PyTorch's default, where the file does not say.
_MOMENTUM = 0.1


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Infer the size of the training batches, and complain where the whole interval is tiny."""
    found = training_batch_size(_learned(checkpoint, measured), limits)
    if found is None:
        yield None, Undecided("no layer that learned its moments sees several values of a channel in an image")
    elif found.most < limits.tiny_batch_warning:
        single = found.most < limits.single_image_batch
        severity = Severity.ERROR if single else Severity.WARNING
        yield None, Evidence(_SINGLE if single else _FEW, _numbers(found, limits), severity=severity)
    elif found.fewest < limits.tiny_batch_warning:
        yield None, Undecided(f"{_range(found)} images in a batch fit the stored variances: it may be tiny or not")


def _learned(checkpoint: Checkpoint, measured: Measurements) -> Iterator[StoredMoments]:
    for layer in checkpoint.layers:
        seen = (measured.layers or {}).get(layer.name)
        if layer.group == measured.group and seen is not None and not layer.statistics_at_initialisation:
            stored = _stored(layer, seen)
            if stored is not None:
                yield stored


def _stored(layer: NormLayer, seen: LayerMeasurement) -> StoredMoments | None:
    data, mean, var = seen.moments, seen.stored_mean, seen.stored_var
    # A layer that runs twice in a pass averages over inputs of two kinds.
    if seen.order is None or seen.calls > 1 or data is None or mean is None or var is None:
        return None
    if mean.shape != data.mean.shape or not bool(np.isfinite(mean).all() and np.isfinite(var).all()):
        return None
    momentum = layer.momentum
    if isinstance(momentum, Averaging) or momentum is None or not 0.0 < momentum <= 1.0:
        momentum = _MOMENTUM
    return StoredMoments(data, mean, var, momentum)


def _numbers(found: TrainingBatchSize, limits: Limits) -> dict[str, Number]:
    return {
        "images in a batch, inferred": found.images,
        "interval": _range(found),
        "limit": limits.tiny_batch_warning,
        "layers": found.layers,
    }


def _range(found: TrainingBatchSize) -> str:
    if math.isinf(found.most):
        return f"{found.fewest:.1f} or more"
    return f"{found.fewest:.1f} to {found.most:.1f}"


_SINGLE = "The stored variances are those of batches of a single image."
_FEW = "The stored variances are those of batches of very few images."

RULE = Rule(
    id="BN303",
    name="trained-on-tiny-batches",
    family=Family.BATCH,
    severity=Severity.WARNING,
    needs=("layers",),
    rationale=(
        "Moments of two or three images are noise. The network learned to live with that noise, and in eval mode it "
        "gets none; what varies from image to image is missing from the stored variance."
    ),
    formula=(
        "v = bP/(bP − 1) · (T − B/b) solved for b: v is the stored variance, T the data's, B that of the means of "
        "single images, P positions in an image; median over channels weighted by how much b moves v, layers weighted "
        "by their precision"
    ),
    limit="the interval of b, two standard errors to each side, lies below 4 images; an error where it lies below 2",
    false_alarms=(
        "moments that were left behind or data of another domain: the mean's drift widens the interval",
        "layers whose variance hardly depends on the batch (vectors, early layers): not checked",
        "gradient accumulation does not help: the moments are those of the small batches",
    ),
    remedy=(
        "# larger batches per device, torch.nn.SyncBatchNorm.convert_sync_batchnorm(model), or GroupNorm\n"
        "# momentum=0.01 averages over more batches and cures the noise of the stored moments alone"
    ),
    reference="https://arxiv.org/abs/1803.08494",
    check_measured=check,
)
