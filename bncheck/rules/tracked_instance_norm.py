"""BN107: an instance norm that turns into something else in eval mode."""

from __future__ import annotations

from bncheck.core.finding import Severity
from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(layer: NormLayer, limits: Limits) -> Verdict:
    """Complain of an instance norm with running moments."""
    if layer.kind is not NormKind.INSTANCE or not layer.has_running_statistics or layer.baked_training:
        return None
    return Evidence("An instance norm with running moments: in eval mode it uses them for every sample alike.")


RULE = Rule(
    id="BN107",
    name="tracked-instance-norm",
    family=Family.MODE,
    severity=Severity.WARNING,
    needs=("class_path",),
    rationale=(
        "In training each sample is normalised by its own moments; in eval mode torch uses the stored ones, so that "
        "contrast and style are no longer removed and the network sees inputs it was never trained on."
    ),
    formula="the class is an instance norm and both running buffers are in the file",
    limit="none",
    false_alarms=(
        "an instance norm without running moments, torch's default",
        "one that a graph calls in training mode as a constant: it goes on using each sample's own moments",
    ),
    remedy=(
        "layer = torch.nn.InstanceNorm2d(channels, affine=True)  # track_running_stats=False\n"
        'model.load_state_dict({k: v for k, v in state.items() if "running_" not in k})'
    ),
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.InstanceNorm2d.html",
    check_layer=check,
)
