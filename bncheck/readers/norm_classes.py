"""Class names → what a normalisation layer computes."""

from __future__ import annotations

from collections.abc import Mapping

from bncheck.core.layers import NormKind

_TORCH: Mapping[str, NormKind] = {
    **{f"torch.nn.modules.batchnorm.BatchNorm{n}d": NormKind.BATCH for n in (1, 2, 3)},
    **{f"torch.nn.modules.batchnorm.LazyBatchNorm{n}d": NormKind.BATCH for n in (1, 2, 3)},
    "torch.nn.modules.batchnorm.SyncBatchNorm": NormKind.SYNC_BATCH,
    **{f"torch.nn.modules.instancenorm.InstanceNorm{n}d": NormKind.INSTANCE for n in (1, 2, 3)},
    **{f"torch.nn.modules.instancenorm.LazyInstanceNorm{n}d": NormKind.INSTANCE for n in (1, 2, 3)},
}

# Words in the name of a class nobody here knows → kind; the first that occurs decides.
_WORDS: tuple[tuple[str, NormKind], ...] = (
    ("frozen", NormKind.FROZEN_BATCH),
    ("sync", NormKind.SYNC_BATCH),
    ("instance", NormKind.INSTANCE),
    ("batch", NormKind.BATCH),
    ("bn", NormKind.BATCH),
)


def is_of_torch(class_path: str) -> bool:
    """Whether a layer is of one of torch's own normalisation classes that can keep running statistics."""
    return class_path in _TORCH


def kind_of(class_path: str, *, holds_statistics: bool) -> NormKind:
    """What a layer with buffers named ``running_mean`` and ``running_var`` computes.

    A class that is not torch's is judged by its name. Where that says nothing, running statistics make it a batch
    norm; without them it may as well be an instance norm.
    """
    known = _TORCH.get(class_path)
    if known is not None:
        return known
    name = class_path.rpartition(".")[2].lower()
    for word, kind in _WORDS:
        if word in name:
            return kind
    return NormKind.BATCH if holds_statistics else NormKind.BATCH_OR_INSTANCE
