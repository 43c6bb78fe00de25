"""BN503: a decay of another framework used as PyTorch's momentum."""

from __future__ import annotations

from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of a momentum that averages over two batches or fewer."""
    momentum = layer.momentum
    if not layer.keeps_running_statistics or not isinstance(momentum, float):
        return None
    if not limits.decay_momentum <= momentum < 1.0:
        return None
    instead = round(1.0 - momentum, 12)
    return Evidence(
        f"Momentum is {momentum:g}, the weight of the newest batch: it looks like another framework's decay, which is "
        f"{instead:g} in PyTorch.",
        {"momentum": momentum, "limit": limits.decay_momentum, "batches averaged over": 1.0 / momentum},
        momentum,
    )


RULE = Rule(
    id="BN503",
    name="decay-convention",
    family=Family.MOMENTUM,
    severity=Severity.WARNING,
    needs=("momentum",),
    rationale=(
        "TensorFlow, Keras, JAX, MindSpore and Paddle call the weight of the old value momentum: their 0.99 is "
        "PyTorch's 0.01. Copied as it is, the running moments are little more than the last batch's."
    ),
    formula="momentum in PyTorch's sense, the weight of the new batch; 1 / momentum batches are averaged over",
    limit="0.5, a window of two batches; 0.9, 0.99, 0.997, 0.999 are the usual ports",
    false_alarms=("None, 0.001, 0.01, 0.03 and 0.1 are legitimate in PyTorch",),
    remedy="layer.momentum = 1 - layer.momentum  # then run data through it in train()",
    reference=(
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (note on momentum); "
        "https://keras.io/api/layers/normalization_layers/batch_normalization/"
    ),
    check_layer=check,
)
