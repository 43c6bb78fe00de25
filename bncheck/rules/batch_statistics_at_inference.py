"""BN103: a batch norm that keeps no running moments."""

from __future__ import annotations

from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of a batch norm that was told not to track running statistics."""
    if not layer.kind.is_batch_norm or layer.track_running_stats or layer.running_mean is not None:
        return None
    return Evidence("Keeps no running moments: it normalises with the batch it is given, even in eval mode.")


RULE = Rule(
    id="BN103",
    name="batch-statistics-at-inference",
    family=Family.MODE,
    severity=Severity.WARNING,
    needs=("track_running_stats",),
    rationale=(
        "With track_running_stats=False a prediction depends on which samples share its batch; a batch of one is "
        "normalised by its own pixels, and a single vector to nothing at all."
    ),
    formula="track_running_stats is false and there are no running buffers",
    limit="none",
    false_alarms=(
        "instance norm, which normalises each sample by itself",
        "a state dict: it does not tell a batch norm without buffers from an instance norm (not checked)",
    ),
    remedy=(
        "layer = torch.nn.BatchNorm2d(channels)  # track_running_stats=True, then train again\n"
        "# or a norm that never looks at the batch: torch.nn.GroupNorm(groups, channels)"
    ),
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
    check_layer=check,
)
