"""BN408: drift rises along execution order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layer_drift import does_no_harm, drifts
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Evidence, Family, Rule, Verdict

_FEWEST_LAYERS = 4


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Name the first layer that departs, where later ones depart further."""
    found = sorted(drifts(checkpoint, measured, limits), key=lambda drift: drift.order)
    departed = [drift for drift in found if drift.is_drifted(limits)]
    if len(found) < _FEWEST_LAYERS or not departed:
        return
    if does_no_harm(measured.gap, limits) and not any(drift.is_diverged(limits) for drift in departed):
        return  # as BN406 has it
    ranks = np.argsort(np.argsort([drift.badness(limits) for drift in found]))
    correlation = float(np.corrcoef(np.arange(len(found)), ranks)[0, 1])
    if correlation < limits.drift_depth_correlation:
        return
    first = departed[0]
    numbers: dict[str, Number] = {
        "rank correlation with depth": correlation,
        "limit": limits.drift_depth_correlation,
        "first layer that departs": f"{first.order + 1} of {len(found)}",
    }
    yield first.layer, Evidence("Drift grows with depth, and this is the first layer that departs.", numbers)


RULE = Rule(
    id="BN408",
    name="drift-grows-with-depth",
    family=Family.STATISTICS,
    severity=Severity.NOTICE,
    needs=("layers",),
    rationale=(
        "Each layer's wrong moments change what the next one sees. The cause lies where the drift begins, not where "
        "it is largest."
    ),
    formula="Spearman's rank correlation of a layer's drift (BN406) with its place in the order of execution",
    limit="0.8, with four layers or more of which one has drifted",
    false_alarms=("networks of three layers or fewer, on which a rank says nothing",),
    remedy="# look at what comes before the layer named: preprocessing, or the part that was changed",
    reference="https://en.wikipedia.org/wiki/Spearman%27s_rank_correlation_coefficient",
    check_measured=check,
)
