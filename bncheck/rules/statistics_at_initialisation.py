"""BN201: running moments that were never learned."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.remedies import RECALIBRATE
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict

_EXACT = "Running mean is exactly 0 and variance exactly 1 on every channel, "


def check(checkpoint: Checkpoint, layers: tuple[NormLayer, ...], limits: Limits) -> Iterable[tuple[NormLayer, Verdict]]:
    """Tell layers that were trained without learning moments from untrained, unused and folded ones."""
    fresh = [layer for layer in layers if layer.statistics_at_initialisation]
    if not fresh:
        return
    trained = _network_is_trained(checkpoint, layers)
    for layer in fresh:
        yield layer, _verdict(layer, trained)


def _network_is_trained(checkpoint: Checkpoint, layers: tuple[NormLayer, ...]) -> bool:
    if (checkpoint.training.optimizer_steps or 0) > 0:
        return True
    return any(not layer.statistics_at_initialisation or _was_trained(layer) for layer in layers)


def _was_trained(layer: NormLayer) -> bool:
    return not layer.affine_at_initialisation or (layer.num_batches_tracked or 0) > 0


def _verdict(layer: NormLayer, network_is_trained: bool) -> Verdict:
    updates = layer.num_batches_tracked
    numbers = {"num_batches_tracked": updates}
    if updates is not None and updates > 0:
        return Evidence(
            _EXACT + "though the layer saw batches: its momentum was 0, or the moments were reset or averaged away.",
            numbers,
            badness=updates,
        )
    if not layer.affine_at_initialisation:
        return Evidence(_EXACT + "though its scale and shift were trained: the moments were never updated.", numbers)
    if layer.follows_bias:
        return None  # identity after a layer with a bias: folded, then built anew
    if not network_is_trained:
        return Evidence(
            _EXACT + "and so is everything else that can be told from here: the network is untrained.",
            numbers,
            severity=Severity.NOTICE,
        )
    if updates == 0:
        return Undecided("the layer never ran: an unused head looks like this, and so does a forgotten layer")
    return Evidence(
        _EXACT + "while the rest of the network is trained: an unused head, or moments that were lost.",
        numbers,
        severity=Severity.WARNING,
    )


RULE = Rule(
    id="BN201",
    name="statistics-at-initialisation",
    family=Family.UPDATES,
    severity=Severity.ERROR,
    needs=("running_mean", "running_var"),
    rationale=(
        "In eval mode such a layer does not normalise at all: activations keep the scale of the convolution before "
        "it, and a network that scores well in training predicts at chance level."
    ),
    formula="running_mean == 0 and running_var == 1, exactly, on every channel of a layer",
    limit=(
        "error where scale, shift or num_batches_tracked show that the layer was trained; a warning where only the "
        "rest of the network was and the file holds no counter; one notice for an untrained network"
    ),
    false_alarms=(
        "FrozenBatchNorm at variance 1 − eps",
        "an identity layer (0, 1, γ = 1, β = 0) after a convolution with a bias: folded, then built anew",
        "an unused auxiliary head, never run (not checked)",
    ),
    remedy=RECALIBRATE + "  # and train with a momentum above 0",
    reference="https://arxiv.org/abs/1502.03167 (Ioffe and Szegedy 2015, algorithm 2: inference needs the moments)",
    check_model=check,
)
