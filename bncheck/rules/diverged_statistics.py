"""BN407: the stored moments have nothing to do with the data."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layer_drift import drifts, overflowing, unjudged
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.remedies import RECALIBRATE
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of layers whose input is grossly elsewhere, or not finite."""
    for found in drifts(checkpoint, measured, limits):
        if found.is_diverged(limits):
            yield found.layer, Evidence(_MESSAGE, found.numbers(limits), badness=found.badness(limits))
    for layer, order, channels in overflowing(checkpoint, measured):
        numbers: dict[str, Number] = {"channels that are not finite": channels, "precision": measured.precision}
        yield layer, Evidence(_OVERFLOW, numbers, badness=-order, remedy=_OVERFLOW_REMEDY)
    yield from ((layer, Undecided(reason)) for layer, reason in unjudged(checkpoint, measured))


_MESSAGE = "The stored moments are grossly different from those of the data: in eval mode the layer does not normalise."
_OVERFLOW = "What reaches this layer is infinite or NaN, though its stored moments are finite: activations overflow."
_OVERFLOW_REMEDY = (
    "bncheck audit {path} --model SPEC --data SPEC --precision fp32  # if it is clean there, predict in fp32 or bf16"
)

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
    limit="root mean square δ above 1, a median |ln ρ²| above ln 4, or an input that is not finite",
    false_alarms=("inputs that are preprocessed in another way than in training: that is a fault, of the data",),
    remedy=(
        "# check the preprocessing first: scale, order of channels, normalisation of the inputs\n"
        "bncheck audit {path} --model SPEC --data TRAINING_DATA\n" + RECALIBRATE
    ),
    reference="https://arxiv.org/abs/2006.16971",
    check_measured=check,
)
