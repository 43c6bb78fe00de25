"""BN505: layers of one network that average at different speeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layers import Averaging, Momentum, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.remedies import EVERY_BATCH_NORM
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(checkpoint: Checkpoint, layers: tuple[NormLayer, ...], limits: Limits) -> Iterable[tuple[NormLayer, Verdict]]:
    """Name the layers whose momentum is not the network's most common one."""
    averaging = [layer for layer in layers if layer.keeps_running_statistics]
    counts = Counter(layer.momentum for layer in averaging if layer.momentum is not None)
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    message = f"Momentum differs from the {_spelt(usual)} of most layers."
    for layer in averaging:
        if layer.momentum is not None and layer.momentum != usual:
            yield layer, Evidence(message, {"momentum": _spelt(layer.momentum), "most layers": _spelt(usual)})


def _spelt(momentum: Momentum) -> str:
    return "cumulative average" if isinstance(momentum, Averaging) else f"{momentum:g}"


RULE = Rule(
    id="BN505",
    name="momentum-inconsistent",
    family=Family.MOMENTUM,
    severity=Severity.NOTICE,
    needs=("momentum",),
    rationale=(
        "Layers that average over different windows describe different stretches of training. It is usually a block "
        "copied from elsewhere with its own default."
    ),
    formula="the momentum of a layer is not the one most layers of its network have",
    limit="none",
    false_alarms=("copies of a network (ema, teacher) are each judged by themselves",),
    remedy=(EVERY_BATCH_NORM + "        m.momentum = 0.1"),
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (momentum)",
    check_model=check,
)
