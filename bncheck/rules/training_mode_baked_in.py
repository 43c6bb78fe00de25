"""BN102: the graph calls batch norm in training mode, as a constant."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict


def check(checkpoint: Checkpoint, layers: tuple[NormLayer, ...], limits: Limits) -> Iterable[tuple[NormLayer, Verdict]]:
    """Complain of layers that the file's own graph calls in training mode, whatever their flag says."""
    if not checkpoint.packaging.has_graph:
        yield from ((layer, Undecided("the file holds no graph; audit the exported model as well")) for layer in layers)
        return
    judged = [layer for layer in layers if layer.depends_on_mode]
    baked = [layer for layer in judged if layer.baked_training]
    numbers = {"layers baked in training mode": len(baked), "other layers": len(judged) - len(baked)}
    for layer in judged:
        if layer.execution_order is None:
            yield layer, Undecided("the graph never calls it")
        elif layer.baked_training:
            yield layer, Evidence(_MESSAGE, numbers)


_MESSAGE = (
    "The graph was made in training mode, which is now a constant in it: predictions depend on the other samples of "
    "the batch, the running moments are never used, and eval() changes nothing."
)


RULE = Rule(
    id="BN102",
    name="training-mode-baked-in",
    family=Family.MODE,
    severity=Severity.ERROR,
    needs=(),
    rationale=(
        "Tracing and exporting write the mode of that moment into the graph. The flag of the loaded model can be "
        "changed, and reads as eval, but the graph does not look at it. Only a new export helps."
    ),
    formula="the constant that the graph passes as `training` to its batch-norm operator is true",
    limit="none: a constant is true or false",
    false_alarms=(
        "graphs exported in order to go on training: ignore the rule for them",
        "scripted code, which looks at the flag when it runs: that is BN101",
        "layers without running moments, for which there is no other mode: that is BN103",
    ),
    remedy=(
        "model.eval()  # before tracing or exporting; afterwards it is too late\n"
        "torch.jit.trace(model, example).save(path)             # TorchScript\n"
        "torch.export.save(torch.export.export(model, (example,)), path)  # or .pt2"
    ),
    reference="https://docs.pytorch.org/docs/stable/generated/torch.jit.trace.html",
    check_model=check,
)
