"""BN203: layers whose running moments are not in the file while their siblings' are, or the model wants them."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Severity
from bncheck.core.layers import NormKind, NormLayer, family_of
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Evidence, Family, Rule, Undecided, Verdict


def check(checkpoint: Checkpoint, layers: tuple[NormLayer, ...], limits: Limits) -> Iterable[tuple[NormLayer, Verdict]]:
    """Complain of layers that lack moments which their own flags or their family say they need."""
    families = {family_of(layer.name) for layer in layers if layer.has_running_statistics}
    for layer in layers:
        yield layer, _verdict(layer, families)


def _verdict(layer: NormLayer, families: set[str]) -> Verdict:
    if (layer.running_mean is None) != (layer.running_var is None):
        return Evidence("One of the two running moments is in the file and the other is not.")
    if layer.has_running_statistics:
        return None
    if layer.kind is NormKind.BATCH_OR_INSTANCE:
        if family_of(layer.name) not in families:
            return None
        return Evidence(
            "Has scale and shift but no running moments, while layers of the same name elsewhere have both."
        )
    if not layer.kind.is_batch_norm or not layer.track_running_stats:
        return None
    if layer.class_path is not None and ".LazyBatchNorm" in layer.class_path:
        return Undecided("the layer is lazy and has seen no batch yet")
    return Evidence("Is meant to keep running moments and has none.")


def check_against_model(
    checkpoint: Checkpoint, measured: Measurements, limits: Limits
) -> Iterable[tuple[NormLayer | None, Verdict]]:
    """Complain of layers whose running moments only the file, or only the model that it was loaded into, has."""
    known = {layer.name: layer for layer in checkpoint.layers if layer.group == measured.group}
    told = {layer.name for layer, verdict in check(checkpoint, tuple(known.values()), limits) if verdict is not None}
    for names, message in ((measured.missing_statistics, _MISSING), (measured.spare_statistics, _SPARE)):
        for name in names:
            if name not in told:
                layer = known.get(name, NormLayer(name, NormKind.BATCH, group=measured.group))
                yield layer, Evidence(message, {"layers": len(names)})


_MISSING = "The model keeps running moments here, and the file has none for it: loaded loosely, it would use 0 and 1."
_SPARE = "The file has running moments here, and the model keeps none: loaded loosely, they would be dropped."

RULE = Rule(
    id="BN203",
    name="statistics-missing",
    family=Family.UPDATES,
    severity=Severity.ERROR,
    needs=(),
    rationale=(
        "Saving or copying parameters() leaves buffers behind. Loaded with strict=False the layers keep 0 and 1, and "
        "the network predicts badly without a word."
    ),
    formula=(
        "weight and bias only, where a layer of the same naming family (block numbers blanked) has moments; with "
        "--model, running moments that only one of file and model has"
    ),
    limit="none",
    false_alarms=(
        "LayerNorm and GroupNorm beside batch norm: of version 1 in a state dict, of another naming family, or in a "
        "block built otherwise",
        "instance norm without running moments",
    ),
    remedy='torch.save(model.state_dict(), "{path}")  # not parameters(): buffers count too',
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.state_dict",
    check_model=check,
    check_measured=check_against_model,
)
