"""BN401: NaN or infinity in the running moments."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.remedies import RECALIBRATE
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(checkpoint: Checkpoint, layers: tuple[NormLayer, ...], limits: Limits) -> Iterable[tuple[NormLayer, Verdict]]:
    """Complain of layers with a mean or variance that is not finite, under one cause: a NaN spreads to what follows."""
    bad = {layer: count for layer in layers if (count := _channels_not_finite(layer))}
    if not bad:
        return
    message = f"Running moments are not finite: {_cause(list(bad))}."
    for layer, count in bad.items():
        channels = None if layer.running_var is None else layer.running_var.size
        yield layer, Evidence(message, {"channels not finite": count, "channels": channels}, count)


def _channels_not_finite(layer: NormLayer) -> int:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return int(np.count_nonzero(~(np.isfinite(layer.running_mean) & np.isfinite(layer.running_var))))


def _cause(layers: list[NormLayer]) -> str:
    """What usually leaves such a pattern; the rarest in any layer decides, since plain NaN is what it turns into."""
    mean = np.concatenate([layer.running_mean for layer in layers if layer.running_mean is not None])
    variance = np.concatenate([layer.running_var for layer in layers if layer.running_var is not None])
    if np.isinf(mean).any() or np.isinf(variance).any():
        return "an infinite value, as when activations overflow in half precision"
    if (np.isfinite(mean) & np.isnan(variance)).any():
        return "a mean is finite and its variance NaN, as when a batch had one value per channel"
    return "mean and variance are both NaN, as when a NaN reached the layer"


RULE = Rule(
    id="BN401",
    name="non-finite-statistics",
    family=Family.STATISTICS,
    severity=Severity.ERROR,
    needs=("running_mean", "running_var"),
    rationale=(
        "One bad batch is enough: the moving average never forgets a NaN. Training goes on undisturbed, since it uses "
        "the batch's own moments, and every prediction in eval mode is NaN."
    ),
    formula="a running mean or variance is NaN or ±Inf",
    limit="none",
    false_alarms=(),
    remedy=RECALIBRATE + "  # from finite data, in fp32",
    reference="https://docs.pytorch.org/docs/stable/notes/amp_examples.html (GradScaler skips steps, not buffers)",
    check_model=check,
)
