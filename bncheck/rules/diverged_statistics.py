"""BN407: the stored moments have nothing to do with the data."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layer_drift import drifts
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of layers whose input is grossly elsewhere."""
    for found in drifts(checkpoint, measured, limits):
        if found.is_diverged(limits):
            yield found.layer, Evidence(_MESSAGE, found.numbers(limits), badness=found.badness(limits))


_MESSAGE = "The stored moments are grossly different from those of the data: in eval mode the layer does not normalise."

RULE = Rule(
    id="BN407",
    name="diverged-statistics",
    family=Family.STATISTICS,
    severity=Severity.ERROR,
    needs=("layers",),
    rationale=(
        "A whole standard deviation, or a factor of four in variance, drives the activations behind into ranges that "
        "training never showed them. Scores collapse, though the weights are sound."
    ),
    formula="as for BN406",
    limit="root mean square δ above 1, or a median |ln ρ²| above ln 4",
    false_alarms=("inputs that are preprocessed in another way than in training: that is a fault, of the data",),
    remedy=(
        "# check the preprocessing first: scale, order of channels, normalisation of the inputs\n"
        "bncheck audit {path} --model SPEC --data TRAINING_DATA"
    ),
    reference="https://arxiv.org/abs/2006.16971",
    check_measured=check,
)
