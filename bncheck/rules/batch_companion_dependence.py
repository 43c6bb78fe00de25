"""BN104: a sample's prediction depends on the other samples of its batch."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of predictions that change with the company, and say whether batch norm is to blame."""
    found = measured.companions
    if found is None:
        return
    if not math.isfinite(found.noise):
        yield None, Undecided("the predictions are not finite")
        return
    if not found.noise < limits.companion_noise:
        yield (
            None,
            Undecided(f"the same batch gives outputs that differ by {found.noise:.2g}: something draws at random"),
        )
        return
    if found.change <= limits.companion_change and not found.flips:
        if found.fails_alone is not None:
            yield None, Undecided(f"a batch of one cannot be predicted: {found.fails_alone}")
        return
    numbers: dict[str, Number] = {
        "largest change of an output": found.change,
        "limit": limits.companion_change,
        "between two equal runs": found.noise,
    }
    if found.flips is not None:
        numbers["samples whose class changed"] = f"{found.flips} of {found.samples}"
    if found.fails_alone is not None:
        numbers["a batch of one"] = "raises an error"
    if not found.by_batch_norm:
        yield None, Evidence(_ELSEWHERE, numbers, severity=Severity.NOTICE, remedy=_ELSEWHERE_REMEDY)
        return
    blamed = [layer for layer in checkpoint.layers if _uses_batch(measured, layer)]
    evidence = Evidence(_BATCH_NORM, numbers)
    yield from ((layer, evidence) for layer in blamed) if blamed else [(None, evidence)]


def _uses_batch(measured: Measurements, layer: NormLayer) -> bool:
    """Whether it was seen to, or has no running moments and so cannot do otherwise."""
    if layer.group != measured.group:
        return False
    seen = (measured.layers or {}).get(layer.name)
    return layer.kind.is_batch_norm and (not layer.has_running_statistics if seen is None else seen.uses_batch_moments)


_BATCH_NORM = (
    "A sample's prediction changes with the other samples of its batch: batch norm uses the moments of the batch when "
    "it predicts."
)
_ELSEWHERE = (
    "A sample's prediction changes with the other samples of its batch, and no batch norm does it: look for a softmax "
    "over the batch, a minibatch statistic or padding."
)
_ELSEWHERE_REMEDY = "for d in range(output.ndim): ...  # find the operation that mixes along dimension 0"

RULE = Rule(
    id="BN104",
    name="batch-companion-dependence",
    family=Family.MODE,
    severity=Severity.ERROR,
    needs=("companions",),
    rationale=(
        "In production a sample's company is whatever else was asked at that moment. A prediction that depends on it "
        "cannot be reproduced, and a batch of one gets another answer than the test set did."
    ),
    formula=(
        "largest change of an output, relative to the largest output, between a sample alone, duplicated, and in two "
        "different batches"
    ),
    limit="0.001 or a changed top class; a notice where no batch norm used the batch's moments",
    false_alarms=(
        "float32 arithmetic and the choice of kernels, which change outputs by less than 2e-5",
        "models that draw at random: not checked",
        "networks meant to predict from a batch (pix2pix, few-shot learning): ignore the rule for them",
    ),
    remedy="model.eval()  # in the function that predicts; of a traced or exported file, export again after eval()",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
    check_measured=check,
)
