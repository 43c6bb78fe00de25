"""BN401: NaN or infinity in the running moments."""

from __future__ import annotations

import numpy as np

from bncheck.core.finding import Severity
from bncheck.core.layers import Float64Array, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of any channel whose mean or variance is not finite."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    bad = int(np.count_nonzero(~(np.isfinite(layer.running_mean) & np.isfinite(layer.running_var))))
    if not bad:
        return None
    numbers = {"channels not finite": bad, "channels": layer.running_var.size}
    return Evidence(f"Running moments are not finite: {_cause(layer.running_mean, layer.running_var)}.", numbers, bad)


def _cause(mean: Float64Array, variance: Float64Array) -> str:
    """What usually leaves this pattern, judged on the whole layer."""
    if np.isinf(mean).any() or np.isinf(variance).any():
        return "an infinite value, as when activations overflow in half precision"
    if np.isnan(mean).any():
        return "mean and variance are both NaN, as when a NaN reached the layer"
    return "the mean is finite and the variance NaN, as when a batch had one value per channel"


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
    remedy=(
        "[m.reset_running_stats() for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]; "
        "model.train(); [model(x) for x, _ in loader]  # in float32, under torch.no_grad()"
    ),
    reference="https://docs.pytorch.org/docs/stable/notes/amp_examples.html (GradScaler skips steps, not buffers)",
    check_layer=check,
)
