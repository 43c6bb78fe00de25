"""Bytes → float64 arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bncheck.core.checkpoint import TensorRef
from bncheck.core.errors import UnreadableFile
from bncheck.core.layers import Float64Array
from bncheck.core.limits import Limits
from bncheck.core.number_formats import DTYPES
from bncheck.core.places import StoragePlace

# A view that covers at least this share of its span is read in one piece; a short span always is.
_DENSE_ENOUGH = 8
_ALWAYS_AT_ONCE = 65_536

_FLOAT64 = 8

ReadRange = Callable[[str, int, int], bytes]
"""(storage key, first byte, length) → bytes."""
StorageRange = tuple[str, int, int]
"""(storage key, first byte, length)."""
Place = Callable[[str], StoragePlace]
"""Storage key → where its bytes lie."""
Announce = Callable[[Sequence[StorageRange]], None]
"""Told which ranges will be read."""


def _nobody_asks(ranges: Sequence[StorageRange]) -> None:
    """For storages that cannot be fetched together."""


class Arrays(Protocol):
    """What reads tensors' values; see ``ArrayReader``."""

    def load(self, tensor: TensorRef) -> Float64Array:
        """The tensor's values, of its own shape.

        Raises:
            UnreadableFile: they cannot be read.
        """
        ...

    def announce(self, tensors: Iterable[TensorRef]) -> None:
        """Tell which tensors will be loaded."""
        ...

    def place(self, tensor: TensorRef) -> StoragePlace:
        """Where the storage of a tensor that was loaded lies.

        Raises:
            UnreadableFile: that cannot be told.
        """
        ...


class ArrayReader:
    """Loads small tensors as float64, within the file's budget of statistics bytes.

    Args:
        read_range: reads bytes of a storage.
        place: tells where a storage lies.
        limits: bounds.
        announce: told beforehand which ranges will be read, so that they may be fetched together.
    """

    def __init__(self, read_range: ReadRange, place: Place, limits: Limits, announce: Announce = _nobody_asks) -> None:
        self._read_range = read_range
        self._place = place
        self._announce = announce
        self._limits = limits
        self._left = limits.statistics_bytes

    def announce(self, tensors: Iterable[TensorRef]) -> None:
        """Tell which tensors will be loaded; what is wrong with one is left for ``load`` to say."""
        self._announce([piece for tensor in tensors for piece in self._piece(tensor)])

    def load(self, tensor: TensorRef) -> Float64Array:
        """The tensor's values, of its own shape; an empty one has shape ``(0,)``.

        Raises:
            UnreadableFile: the bytes are missing, the number format cannot be read, or it is too large for a
                normalisation layer.
        """
        known = DTYPES.get(tensor.dtype)
        if known is None or known.numpy_kind is None:
            raise UnreadableFile(f"{tensor.name} is stored as {tensor.dtype}, which holds no statistics bncheck reads")
        if prod(tensor.shape) > self._limits.channels:
            raise UnreadableFile(f"{tensor.name} has {prod(tensor.shape)} elements, too many for a normalisation layer")
        self._left -= max(prod(tensor.shape), 1) * _FLOAT64
        if self._left < 0:
            raise UnreadableFile(f"its batch-norm tensors take more than {self._limits.statistics_bytes} bytes")
        with np.errstate(invalid="ignore"):
            return self._values(tensor, tensor.shape, tensor.strides, tensor.storage_offset).astype(np.float64)

    def place(self, tensor: TensorRef) -> StoragePlace:
        """Where the storage of a tensor that was loaded lies.

        Raises:
            UnreadableFile: it is not in the file.
        """
        return self._place(tensor.storage)

    def _piece(self, tensor: TensorRef) -> Iterator[StorageRange]:
        """The range that a tensor is read in, if it is one."""
        numel = prod(tensor.shape)
        if tensor.dtype in DTYPES and 0 < numel <= self._limits.channels:
            width, span = DTYPES[tensor.dtype].width, _span(tensor.shape, tensor.strides)
            if _is_dense(span, numel):
                yield tensor.storage, tensor.storage_offset * width, span * width

    def _values(
        self, tensor: TensorRef, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
    ) -> NDArray[np.generic]:
        """The elements of a (part of a) tensor in its own number format; float32 for bfloat16."""
        numel = prod(shape)
        if not numel:
            return np.zeros(0, dtype=np.float32)  # of any shape: the other dimensions may be forged
        span = _span(shape, strides)
        if not _is_dense(span, numel):
            if numel > self._limits.scattered_reads:
                raise UnreadableFile(f"{tensor.name} is scattered over {span} elements of its storage")
            parts = [
                self._values(tensor, shape[1:], strides[1:], offset + index * strides[0]) for index in range(shape[0])
            ]
            return np.stack(parts)
        kind, width = DTYPES[tensor.dtype].numpy_kind, DTYPES[tensor.dtype].width
        raw = self._read_range(tensor.storage, offset * width, span * width)
        flat = np.frombuffer(raw, dtype=np.dtype(kind).newbyteorder(">" if tensor.big_endian else "<"))
        steps = tuple(stride * width for stride in strides)
        view: NDArray[np.generic] = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        if tensor.dtype == "bfloat16":
            # The upper half of a float32: https://en.wikipedia.org/wiki/Bfloat16_floating-point_format
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a view that is not empty."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _is_dense(span: int, numel: int) -> bool:
    return span <= _DENSE_ENOUGH * numel + _ALWAYS_AT_ONCE
