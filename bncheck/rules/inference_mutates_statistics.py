"""BN105: prediction overwrites the running moments."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Evidence, Family, Rule, Verdict


def check(checkpoint: Checkpoint, measured: Measurements, limits: Limits) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of layers whose running buffers differ after predicting."""
    changed = set(measured.mutated or ())
    known = {layer.name: layer for layer in checkpoint.layers if layer.group == measured.group}
    for name in sorted(changed - known.keys()):
        yield None, Evidence(f"{_MESSAGE} It is {name}, which the file does not list as a layer.")
    for name, layer in known.items():
        if name in changed:
            yield layer, Evidence(_MESSAGE, {"layers changed": len(changed), "samples": measured.samples})


_MESSAGE = "Predicting changes the running moments: every request leaves the model a little different."

RULE = Rule(
    id="BN105",
    name="inference-mutates-statistics",
    family=Family.MODE,
    severity=Severity.ERROR,
    needs=("mutated",),
    rationale=(
        "A layer in training mode takes each batch it predicts into its moving average. The model drifts with the "
        "traffic, and two servers that started alike answer differently."
    ),
    formula="running buffers compared bit for bit before and after predicting",
    limit="none: any difference",
    false_alarms=("test-time adaptation, which means to do so: ignore the rule for it",),
    remedy="model.eval()  # in the function that predicts; of a traced or exported file, export again after eval()",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.eval",
    check_measured=check,
)
