"""BN409: running moments in 16 bits."""

from __future__ import annotations

from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of moments stored as float16 or bfloat16."""
    if layer.dtype not in ("float16", "bfloat16"):
        return None
    return Evidence(f"Running moments are stored as {layer.dtype}.")


RULE = Rule(
    id="BN409",
    name="half-precision-statistics",
    family=Family.STATISTICS,
    severity=Severity.NOTICE,
    needs=("dtype",),
    rationale=(
        "float16 holds no variance below 6e-8 or above 65504 and bfloat16 two to three digits; a moving average with "
        "momentum 0.01 stops moving once its updates fall below the rounding."
    ),
    formula="the dtype of running_mean or running_var is float16 or bfloat16",
    limit="none",
    false_alarms=("a half-precision network whose batch norms were kept in float32",),
    remedy=(
        "for m in model.modules():  # starting from the float32 checkpoint\n"
        "    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):\n"
        "        m.float()"
    ),
    reference="https://docs.pytorch.org/docs/stable/amp.html (batch_norm keeps float32 under autocast)",
    check_layer=check,
)
