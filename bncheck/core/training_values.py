"""How many values per channel a layer takes its moments over in training: three rules hold that against a limit."""

from __future__ import annotations

from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.measurement import Measurements
from bncheck.core.rule import Undecided


def values_in_training(layer: NormLayer, measured: Measurements) -> float | Undecided | None:
    """Values per channel in one full training batch, of all processes for a layer that pools them.

    Returns:
        The number; why it is not known; or None where the layer takes no moments of the batch in training, was not
        reached, or nothing was measured.
    """
    batch = measured.training_batch
    if batch is None or layer.group != measured.group:
        return None
    if not layer.kind.is_batch_norm or layer.kind is NormKind.FROZEN_BATCH:
        return None
    seen = batch.layers.get(layer.name)
    if seen is None or not seen.uses_batch_moments:
        return None
    if not seen.pooled:
        return float(seen.values)
    replicas = 1 if measured.training_data is None else measured.training_data.replicas
    if replicas == 1:
        return Undecided("SyncBatchNorm pools all processes, and nothing says how many there are")
    return float(seen.values * replicas)
