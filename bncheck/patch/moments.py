"""New running moments → the bytes of a file that change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from bncheck.core.checkpoint import Checkpoint, StoredMoments, TensorRef, Unwritable
from bncheck.core.errors import CannotPatch
from bncheck.core.layers import Float64Array
from bncheck.core.number_formats import DTYPES
from bncheck.core.places import StoragePlace
from bncheck.patch.changes import Change
from bncheck.patch.stored_numbers import Bytes, stored_count, stored_floats

Positions = NDArray[np.int64]

# A tensor with more elements is compared by its first and last alone, which may tell of a shared element too many.
_LISTED_ELEMENTS = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class NewMoments:
    """What a layer's running moments are to be.

    Attributes:
        mean: float64 of shape ``(num_features,)``.
        var: likewise; the biased population variance, or whatever the caller holds to be right.
        num_batches_tracked: None to leave the count as it is. A file that keeps none gets none.
    """

    mean: Float64Array
    var: Float64Array
    num_batches_tracked: int | None = None


def stored_moments(checkpoint: Checkpoint, layers: Iterable[str]) -> dict[str, StoredMoments]:
    """Where the file keeps the moments of these layers.

    Args:
        checkpoint: the file.
        layers: full names.

    Raises:
        CannotPatch: there is no such layer, or its moments cannot be written.
    """
    known: dict[str, int] = {}
    for layer in checkpoint.layers:
        known[layer.full_name] = known.get(layer.full_name, 0) + 1
    found: dict[str, StoredMoments] = {}
    for name in layers:
        if known.get(name, 0) != 1:
            raise CannotPatch(f"it has {'two layers' if name in known else 'no layer'} called {name}")
        match checkpoint.moments.get(name):
            case StoredMoments() as stored:
                found[name] = stored
            case Unwritable(reason=reason):
                raise CannotPatch(f"{name}: {reason}")
            case None:
                raise CannotPatch(f"{name} keeps no running moments in it")
    if not found:
        raise CannotPatch("there is no layer whose moments are to be written")
    return found


def without_count(stored: StoredMoments) -> StoredMoments:
    """The same, where the count of batches is to stay."""
    tensors = {leaf: tensor for leaf, tensor in stored.tensors.items() if leaf != "num_batches_tracked"}
    used = {tensor.storage for tensor in tensors.values()}
    return StoredMoments(tensors, {key: place for key, place in stored.places.items() if key in used})


def changes_of(name: str, new: NewMoments, stored: StoredMoments) -> Iterator[Change]:
    """The bytes that a layer's moments become.

    Raises:
        CannotPatch: they are no moments, are of another shape than the file's, or do not fit its number format.
    """
    for leaf, values in (("running_mean", new.mean), ("running_var", new.var)):
        tensor = stored.tensors[leaf]
        what = f"{leaf} of {name}"
        if values.dtype != np.float64 or values.shape != (prod(tensor.shape),):
            raise CannotPatch(f"{what} has the shape {tensor.shape}, and {values.dtype} of {values.shape} is given")
        if not np.isfinite(values).all():
            raise CannotPatch(f"{what} would hold {np.count_nonzero(~np.isfinite(values))} numbers that are not finite")
        if leaf == "running_var" and (values < 0).any():
            raise CannotPatch(f"{what} would hold negative variances, down to {values.min():g}")
        yield from _written(tensor, stored, stored_floats(values, tensor.dtype, tensor.big_endian, what), what)
    count, tensor_of_count = new.num_batches_tracked, stored.tensors.get("num_batches_tracked")
    if count is not None and tensor_of_count is not None:
        what = f"num_batches_tracked of {name}"
        if count < 0 or prod(tensor_of_count.shape) != 1:
            raise CannotPatch(f"{what} cannot become {count}: it is one number, and no count is negative")
        data = stored_count(count, tensor_of_count.dtype, tensor_of_count.big_endian, what)
        yield from _written(tensor_of_count, stored, data, what)


def _written(tensor: TensorRef, stored: StoredMoments, data: Bytes, what: str) -> Iterator[Change]:
    """A tensor's new elements, those that lie side by side as one change."""
    if not data.size:
        return
    width = DTYPES[tensor.dtype].width
    place = stored.places[tensor.storage]
    positions = element_positions(tensor)
    _check_inside(positions, width, place, what)
    order = np.argsort(positions, kind="stable")
    positions, data = positions[order], data[order]
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    for first, last in zip((0, *breaks), (*breaks, positions.size), strict=True):
        yield Change(place.start + int(positions[first]) * width, data[first:last].tobytes(), what)


def _check_inside(positions: Positions, width: int, place: StoragePlace, what: str) -> None:
    if (int(positions.max()) + 1) * width > place.size:
        raise CannotPatch(f"{what} reaches beyond its storage of {place.size} bytes")


def element_positions(tensor: TensorRef) -> Positions:
    """Where a tensor's elements lie, in elements from the start of its storage, in the tensor's own order."""
    positions = np.array([tensor.storage_offset], dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        positions = (positions[:, np.newaxis] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    return positions


def tensors_written(checkpoint: Checkpoint, moments: Mapping[str, StoredMoments]) -> tuple[str, ...]:
    """Every name under which the file knows the tensors that are written, in its own order.

    One memory may have several names: a layer that is used twice, or a copy of the network that was saved with the
    network's own tensors. As in torch, who writes one writes all of them.

    Raises:
        CannotPatch: a tensor of another kind uses some of the same memory.
    """
    written = [tensor for stored in moments.values() for tensor in stored.tensors.values() if all(tensor.shape)]
    memory: dict[str, _Memory] = {}
    for tensor in written:
        memory.setdefault(tensor.storage, _Memory()).add(tensor)
    names = []
    for name, tensor in checkpoint.tensors.items():
        held = memory.get(tensor.storage)
        if held is not None and all(tensor.shape) and held.holds(tensor, name):
            names.append(name)
    return tuple(names)


class _Memory:
    """The elements of one storage that are written."""

    def __init__(self) -> None:
        self._views: dict[tuple[str, int, int], list[Positions]] = {}
        self._starts = np.zeros(0, dtype=np.int64)
        self._ends = np.zeros(0, dtype=np.int64)

    def add(self, tensor: TensorRef) -> None:
        """Note a tensor's elements."""
        positions, width = element_positions(tensor), DTYPES[tensor.dtype].width
        self._views.setdefault(_key(tensor), []).append(positions)
        self._starts = np.concatenate((self._starts, positions * width))
        self._ends = np.concatenate((self._ends, (positions + 1) * width))

    def holds(self, tensor: TensorRef, name: str) -> bool:
        """Whether a tensor is one of those noted.

        Raises:
            CannotPatch: it is not, and shares an element with one.
        """
        known = DTYPES.get(tensor.dtype)
        if known is None:
            raise CannotPatch(f"{name}, of the format {tensor.dtype}, may share memory with running moments")
        listed = prod(tensor.shape) <= _LISTED_ELEMENTS
        positions = element_positions(tensor) if listed else _span(tensor)
        if listed and any(np.array_equal(positions, view) for view in self._views.get(_key(tensor), ())):
            return True
        near = (self._starts < (positions.max() + 1) * known.width) & (self._ends > positions.min() * known.width)
        if near.any() and (not listed or self._any_shared(positions, known.width)):
            raise CannotPatch(
                f"{name} shares memory with running moments and would change with them; save the model with "
                "tensors of their own ({name: tensor.clone() for name, tensor in state_dict.items()})"
            )
        return False

    def _any_shared(self, positions: Positions, width: int) -> bool:
        """Whether any element of ``width`` bytes overlaps one of those noted."""
        starts = np.sort(positions) * width
        first = np.searchsorted(starts, self._starts - width, side="right")  # the first that ends behind each start
        inside = first < starts.size
        return bool((starts[first[inside]] < self._ends[inside]).any())


def _key(tensor: TensorRef) -> tuple[str, int, int]:
    return tensor.dtype, tensor.storage_offset, prod(tensor.shape)


def _span(tensor: TensorRef) -> Positions:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    return np.array([tensor.storage_offset, tensor.storage_offset + last], dtype=np.int64)
