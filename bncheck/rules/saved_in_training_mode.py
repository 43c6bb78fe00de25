"""BN101: the file's layers are in training mode."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint, Packaging, Stage
from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(checkpoint: Checkpoint, layers: tuple[NormLayer, ...], limits: Limits) -> Iterable[tuple[NormLayer, Verdict]]:
    """Complain of layers in training mode, except in a file that goes on training."""
    judged = [layer for layer in layers if _mode_matters(layer) and _runs(checkpoint, layer)]
    training = [layer for layer in judged if layer.training]
    if checkpoint.stage is Stage.TRAINING or not training:
        return
    mixed = len(training) < len(judged)
    message = "Saved in training mode" + (", beside others in eval mode" if mixed else "")
    message += ": until eval() is called it normalises with the batch it is given, and overwrites its running moments."
    numbers = {"layers in training mode": len(training), "layers in eval mode": len(judged) - len(training)}
    for layer in training:
        if checkpoint.packaging is Packaging.TORCHSCRIPT:
            # A scripted archive is shipped as it is, and is run by programs that never call eval().
            yield layer, Evidence(message, numbers, severity=Severity.ERROR, remedy=_SCRIPT_REMEDY)
        else:
            yield layer, Evidence(message, numbers)


_SCRIPT_REMEDY = 'model = torch.jit.load("{path}").eval()\nmodel.save("{path}")'


def _runs(checkpoint: Checkpoint, layer: NormLayer) -> bool:
    """Whether anything is known to call the layer: where there is a graph, it says so."""
    return layer.execution_order is not None or not checkpoint.packaging.has_graph


def _mode_matters(layer: NormLayer) -> bool:
    """A traced graph does not look at the flag."""
    follows_flag = layer.baked_training is None
    return follows_flag and layer.depends_on_mode


RULE = Rule(
    id="BN101",
    name="saved-in-training-mode",
    family=Family.MODE,
    severity=Severity.WARNING,
    needs=("training",),
    rationale=(
        "A module loads in the mode it was saved in. Whoever forgets eval() gets predictions that depend on the other "
        "samples in the batch, and running moments that drift with every prediction."
    ),
    formula="the layer's `training` flag in the file is true",
    limit=(
        "none: warning for a module, error for scripted TorchScript, which runs as it was saved; a file that carries "
        "optimizer state goes on training and is left alone (--stage overrides)"
    ),
    false_alarms=(
        "a training checkpoint, with a frozen backbone or a teacher in whatever mode",
        "traced graphs, which do not look at the flag: that is BN102",
        "FrozenBatchNorm, and layers without running moments, whose mode changes nothing",
        "networks meant to predict in training mode (pix2pix, test-time adaptation): ignore the rule for them",
    ),
    remedy=('model.eval()  # before saving, and again after loading\ntorch.save(model, "{path}")'),
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.eval",
    check_model=check,
)
