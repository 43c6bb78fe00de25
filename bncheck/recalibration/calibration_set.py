"""The samples to estimate from: taken from the data batch by batch, and held on the host for further sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_leaves, tree_map, tree_structure, tree_unflatten

from bncheck.runtime.batches import Batch


def size_in_bytes(batch: Batch) -> int:
    """Bytes of a batch's tensors."""
    return sum(value.numel() * value.element_size() for value in tree_iter(batch.inputs) if isinstance(value, Tensor))


def regrouped(batches: Iterator[Batch], samples: int) -> Iterator[Batch]:
    """Neighbouring batches put together, as long as they are of one form and make no more than so many samples.

    In eval mode a sample's way through the network does not depend on its company, and small batches pay the cost of
    a pass over and over. Batches of other forms, among them those with anything but tensors of one entry per sample,
    stay as they are.
    """
    held: list[Batch] = []
    for batch in batches:
        if held and not (_alike(held[0], batch) and sum(one.size for one in held) + batch.size <= samples):
            yield _joined(held)
            held = []
        held.append(batch)
    if held:
        yield _joined(held)


def _alike(first: Batch, second: Batch) -> bool:
    forms = [_form(batch) for batch in (first, second)]
    return forms[0] is not None and forms[0] == forms[1]


def _form(batch: Batch) -> object:
    """What two batches must share to be put together; None where one cannot be."""
    items = batch.inputs.items() if isinstance(batch.inputs, Mapping) else enumerate(batch.inputs)
    form: list[object] = []
    for key, value in items:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != batch.size:
            return None
        form.append((key, value.dtype, value.device, tuple(value.shape[1:])))
    return tuple(form)


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    # The batches are of one form, so that their tensors stand in the same places.
    columns = zip(*(tree_leaves(batch.inputs) for batch in batches), strict=True)
    inputs = tree_unflatten([torch.cat(list(column)) for column in columns], tree_structure(batches[0].inputs))
    return Batch(inputs, None, sum(batch.size for batch in batches))


def placed(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; copies to a GPU run beside what it computes."""

    def put(value: object) -> object:
        if not isinstance(value, Tensor) or value.device == device:
            return value
        return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)

    inputs = tree_map(put, batch.inputs)
    return Batch(inputs, batch.labels, batch.size)
