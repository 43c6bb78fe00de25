"""BN207: a training step changes weights and leaves a layer's running moments alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import LayerStep, Measurements, TrainingStep
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of layers that ran, are not frozen, and kept the moments they had."""
    step = measured.training_step
    if step is None:
        return
    for layer in checkpoint.layers:
        seen = step.layers.get(layer.name)
        if seen is None or layer.group != measured.group or not layer.kind.is_batch_norm:
            continue
        if layer.kind is NormKind.FROZEN_BATCH or not seen.ran or seen.frozen or seen.changed:
            continue
        yield layer, _judged(layer, seen, step)


def _judged(layer: NormLayer, seen: LayerStep, step: TrainingStep) -> Verdict:
    if step.parameters_changed == 0:
        return Undecided("the training step changed no weight, so that nothing tells what it does to running moments")
    if not _is_finite(layer):
        return Undecided("the layer's moments are not finite, which is BN401: no update changes that")
    if seen.uses_batch_moments is None:
        return Undecided("the layer normalises by hand, so that nothing tells whether it is meant to stay as it is")
    if not step.by_user and not step.stayed_in_training:
        return Undecided("--forward puts the model in eval mode; name how it is trained: --train-step")
    numbers: dict[str, Number] = {"runs in the step": seen.calls + seen.recomputed}
    if step.parameters_changed is not None:
        numbers["parameters changed"] = step.parameters_changed
    if not seen.uses_batch_moments:
        return Evidence(_IN_EVAL_MODE, numbers, remedy=_TRAIN_FIRST)
    if seen.momentum == 0:
        severity = Severity.ERROR if layer.statistics_at_initialisation else Severity.WARNING
        return Evidence(_ZERO_MOMENTUM, {**numbers, "momentum": 0.0}, severity=severity, remedy=_GIVE_MOMENTUM)
    return Evidence(_ELSEWHERE, {**numbers, "updates": seen.updates})


def _is_finite(layer: NormLayer) -> bool:
    return all(
        bool(np.isfinite(moments).all()) for moments in (layer.running_mean, layer.running_var) if moments is not None
    )


_IN_EVAL_MODE = (
    "The training step runs the layer in eval mode, with the rest of the model: it learns weights against moments that "
    "stay as they were."
)
_ZERO_MOMENTUM = (
    "The layer normalises with each batch's moments and takes none of them over: its momentum is 0, and in eval mode "
    "it is another layer."
)
_ELSEWHERE = (
    "The layer normalises with each batch's moments, and its running moments stay as they were: the update goes to a "
    "copy of them, or nowhere."
)
_TRAIN_FIRST = "model.train()  # before each training step, and after each evaluation"
_GIVE_MOMENTUM = """\
for m in model.modules():
    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
        m.momentum = 0.1"""

RULE = Rule(
    id="BN207",
    name="training-step-does-not-update",
    family=Family.UPDATES,
    severity=Severity.ERROR,
    needs=("training_step",),
    rationale=(
        "Predictions use the running moments, and training is what they are learned in. Where a step moves the weights "
        "and not the moments, the two describe different networks a little more after every step."
    ),
    formula=(
        "weights and running buffers compared bit for bit before and after one training step (--train-step), or "
        "running buffers around one forward pass in training mode; layers are seen to run"
    ),
    limit="none: no difference in a layer that ran; a warning where momentum 0 keeps moments that were once learned",
    false_alarms=(
        "frozen layers: alone in eval mode (an overridden train() too), without a parameter that learns, or of a class "
        "that always uses stored moments",
        "a step that changes no weight, as the first of a warm-up from learning rate 0 does: not checked",
        "a network trained in eval mode on purpose: ignore the rule for it",
    ),
    remedy=(
        "torch.func.functional_call(model, dict(model.named_parameters()), (x,))  # without copies of the buffers\n"
        "# in a batch norm of your own: self.running_mean.lerp_(mean.detach(), self.momentum)"
    ),
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
    check_measured=check,
)
