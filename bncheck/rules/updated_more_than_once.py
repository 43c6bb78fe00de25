"""BN208: one training step updates a layer's running moments several times."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import LayerStep, Measurements, TrainingStep
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of further updates, and name what makes them where that shows."""
    step = measured.training_step
    if step is None:
        return
    for layer in checkpoint.layers:
        seen = step.layers.get(layer.name)
        if seen is not None and layer.group == measured.group and layer.kind.is_batch_norm and seen.updates > 1:
            yield layer, _judged(seen, step)


def _judged(seen: LayerStep, step: TrainingStep) -> Verdict:
    numbers: dict[str, Number] = {"updates in one step": seen.updates, "limit": 1}
    if seen.recomputed_updates:
        numbers["of them during the backward pass"] = seen.recomputed_updates
        return Evidence(_RECOMPUTED, numbers, badness=seen.updates, remedy=_MOMENTUM_TO_THE_HALF)
    if seen.most_in_a_pass > 1:
        numbers["runs in one forward pass"] = seen.most_in_a_pass
        return Evidence(_REUSED, numbers, badness=seen.updates, remedy=_ONE_NORM_EACH)
    if seen.repeated_updates:
        numbers["forward passes"] = step.passes
        return Evidence(_REPEATED, numbers, badness=seen.updates)
    if seen.updates > seen.calls + seen.recomputed:
        return Evidence(_UNSEEN, numbers, badness=seen.updates)
    return None


_RECOMPUTED = (
    "The backward pass runs the layer again (gradient checkpointing), and the same batch is taken into its moments "
    "twice."
)
_REUSED = (
    "One forward pass runs the layer several times, and each run is taken into the same moments: they are no single "
    "input's, and the last weighs most."
)
_REPEATED = (
    "The step runs the model again over a batch that it has taken already, or one that nothing is learned from, and "
    "takes that into its moments too."
)
_UNSEEN = "Its counter grows by more than one in a single step."

_MOMENTUM_TO_THE_HALF = "m.momentum = 1 - (1 - m.momentum) ** 0.5  # for each batch norm m in a checkpointed segment"
_ONE_NORM_EACH = "norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(uses))  # one for each use"

RULE = Rule(
    id="BN208",
    name="updated-more-than-once",
    family=Family.UPDATES,
    severity=Severity.WARNING,
    needs=("training_step",),
    rationale=(
        "k updates in a step make momentum m into 1 − (1 − m)^k: the window of the moving average is k times shorter, "
        "its noise larger, and a count of updates no longer a count of steps."
    ),
    formula=(
        "writes of the running buffers during one training step, seen at the operator and around hand-written layers; "
        "the growth of num_batches_tracked where that is more"
    ),
    limit="1, where the further updates take the same data, data that nothing is learned from, or another input",
    false_alarms=(
        "gradient accumulation, two views of a batch, and real and generated images in turn: each pass takes other "
        "data and is learned from",
        "checkpointed layers in eval mode, which update nothing",
    ),
    remedy=(
        "model.eval()  # around passes that only look: summaries, metrics, a teacher's targets\n"
        "model.train()  # after them"
    ),
    reference="https://docs.pytorch.org/docs/stable/checkpoint.html",
    check_measured=check,
)
