"""BN406: the stored moments are not those of the data."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layer_drift import does_no_harm, drifts, unjudged
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.remedies import RECALIBRATE
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of layers whose input has drifted from the stored moments, short of those that BN407 takes.

    Not where labels show that it does no harm and no layer has diverged.
    """
    found_all = list(drifts(checkpoint, measured, limits))
    harmless = does_no_harm(measured.gap, limits) and not any(found.is_diverged(limits) for found in found_all)
    for found in found_all:
        if found.is_drifted(limits) and not found.is_diverged(limits) and not harmless:
            yield found.layer, Evidence(_MESSAGE, found.numbers(limits), badness=found.badness(limits))
    yield from ((layer, Undecided(reason)) for layer, reason in unjudged(checkpoint, measured))


_MESSAGE = (
    "What the data brings to this layer has other moments than those stored: they are stale, or the domain shifted."
)

RULE = Rule(
    id="BN406",
    name="stale-statistics",
    family=Family.STATISTICS,
    severity=Severity.WARNING,
    needs=("layers",),
    rationale=(
        "Every layer behind was trained on inputs of mean 0 and variance 1 before scale and shift. With stale moments "
        "it gets others, and the error is handed on from layer to layer."
    ),
    formula=(
        "δ = (μ_data − μ_stored) / √(σ²_stored + eps) and ρ² = (σ²_data + eps) / (σ²_stored + eps) per channel of the "
        "input in eval mode, with an eps of at most the mean σ²_stored; per layer the root mean square of δ, freed of "
        "what chance adds, and the median |ln ρ²|"
    ),
    limit=(
        "δ 0.15 or |ln ρ²| 0.3, and three standard errors over images plus the moving average's own noise "
        "√(m/(2 − m)); nothing is said where no layer has diverged (BN407) and labels show that it does no harm: "
        "cross-entropy at most a quarter of guessing's, and, with three standard errors, not 0.01 nats above that with "
        "batch moments"
    ),
    false_alarms=(
        "few samples: the standard errors grow with them",
        "data that is augmented in another way than in training, where there are no labels to tell: audit with what "
        "the model will see",
        "statistics at 0 and 1, which are BN201",
    ),
    remedy=(
        "bncheck audit {path} --model SPEC --data TRAINING_DATA  # if it is clean there, the domain shifted\n"
        + RECALIBRATE
    ),
    reference="https://arxiv.org/abs/2006.16971",
    check_measured=check,
)
