"""BN506: moments averaged over all of training alike."""

from __future__ import annotations

from bncheck.core.finding import Severity
from bncheck.core.layers import Averaging, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.remedies import RECALIBRATE
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Remark on momentum None."""
    if not layer.keeps_running_statistics or layer.momentum is not Averaging.CUMULATIVE:
        return None
    return Evidence("Momentum is None: batches from the start and the end of training count alike.")


RULE = Rule(
    id="BN506",
    name="cumulative-average",
    family=Family.MOMENTUM,
    severity=Severity.NOTICE,
    needs=("momentum",),
    rationale=(
        "A plain average is right while the weights stand still, as in a recalibration. Over a whole training it "
        "describes activations of networks that no longer exist."
    ),
    formula="momentum is None",
    limit="none",
    false_alarms=("right after torch.optim.swa_utils.update_bn, which averages over one pass with fixed weights",),
    remedy=RECALIBRATE + "  # one average, with the final weights",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (momentum=None)",
    check_layer=check,
)
