"""BN106: predictions with stored moments and with batch moments disagree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements, TrainEvalGap
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Judge by labels where there are any, by the top class where there are scores, else by the output."""
    gap = measured.gap
    if gap is None:
        return
    layers = [layer for layer in checkpoint.layers if layer.group == measured.group and layer.has_running_statistics]
    if layers and all(layer.statistics_at_initialisation for layer in layers):
        yield None, Undecided("every layer's moments are at 0 and 1, which is BN201; the gap adds nothing")
        return
    if math.isnan(gap.output_change):
        yield None, Undecided("the predictions are not finite, or all 0")
    elif gap.accuracy_stored is not None and gap.accuracy_batch is not None:
        yield None, _by_accuracy(gap, gap.accuracy_batch - gap.accuracy_stored, limits) or _by_loss(gap, limits)
    elif gap.disagreement is not None:
        numbers = {"samples whose top class differs": gap.disagreement, "samples": gap.samples}
        bounds = (limits.disagreement_warning, limits.disagreement_error)
        yield None, _judged(gap.disagreement, bounds, _DISAGREE, numbers)
    else:
        numbers = {"relative change of the output": gap.output_change, "samples": gap.samples}
        bounds = (limits.output_change_warning, limits.output_change_error)
        yield None, _judged(gap.output_change, bounds, _DIFFER, numbers)


def _by_accuracy(gap: TrainEvalGap, drop: float, limits: Limits) -> Verdict:
    # Of n paired predictions a share q differs; their difference has a standard deviation of at most √(q/n).
    chance = limits.drift_significance * math.sqrt((gap.disagreement or 0.0) / gap.samples)
    if drop <= chance:
        return None
    numbers: dict[str, Number] = {
        "accuracy with stored moments": gap.accuracy_stored,
        "accuracy with batch moments": gap.accuracy_batch,
        "samples": gap.samples,
    }
    return _judged(drop, (limits.accuracy_drop_warning, limits.accuracy_drop_error), _LESS_ACCURATE, numbers)


def _by_loss(gap: TrainEvalGap, limits: Limits) -> Verdict:
    """Scores tell sooner than the classes they name."""
    rise = gap.loss_rise
    if rise is None or not rise > max(limits.loss_rise_warning, limits.drift_significance * (gap.loss_error or 0.0)):
        return None
    numbers: dict[str, Number] = {
        "cross-entropy with stored moments": gap.loss_stored,
        "cross-entropy with batch moments": gap.loss_batch,
        "standard error of the difference": gap.loss_error,
        "samples": gap.samples,
        "limit of the difference": limits.loss_rise_warning,
    }
    return Evidence(_LESS_SURE, numbers)


def _judged(value: float, bounds: tuple[float, float], message: str, numbers: Mapping[str, Number]) -> Verdict:
    warning, error = bounds
    if not value > warning:
        return None
    severity = Severity.ERROR if value > error else Severity.WARNING
    return Evidence(message, {**numbers, "limit": error if severity is Severity.ERROR else warning}, severity=severity)


_LESS_ACCURATE = "The model predicts worse with its stored moments than with those of the batch it is given."
_LESS_SURE = "With its stored moments the model gives the right classes less than with those of the batch it is given."
_DISAGREE = "Predictions with stored moments and with those of the batch name different classes."
_DIFFER = "The output with stored moments is far from the one with the batch's."

RULE = Rule(
    id="BN106",
    name="train-eval-gap",
    family=Family.MODE,
    severity=Severity.WARNING,
    needs=("gap",),
    rationale=(
        "In training the network saw itself through batch moments. Where the stored ones lead to other predictions, "
        "they are not the moments it was trained with, and the score it had in training is lost in eval mode."
    ),
    formula=(
        "with labels: accuracy with batch moments minus accuracy with stored ones, and the rise of the cross-entropy "
        "the other way round; with scores: share of samples whose top class differs; else the relative change of the "
        "output"
    ),
    limit=(
        "accuracy 2 points (error 20) or cross-entropy 0.01 nats, and three standard errors; top class 10 % (error "
        "40 %); output 0.5 (error 1): a batch's moments scatter, so that a healthy network differs a little"
    ),
    false_alarms=(
        "batches of a few samples, whose moments are noise: batches below eight are left out",
        "data sorted by class: shuffle the loader",
        "an untrained network: not checked",
    ),
    remedy="bncheck audit {path} --model SPEC --data SPEC --show-passed  # BN406 tells which layers departed",
    reference="https://arxiv.org/abs/2105.07576",
    check_measured=check,
)
