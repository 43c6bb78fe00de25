"""float64 → the bytes of a file's own number format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bncheck.core.errors import CannotPatch
from bncheck.core.layers import Float64Array
from bncheck.core.number_formats import DTYPES

Bytes = NDArray[np.uint8]


def stored_floats(values: Float64Array, dtype: str, big_endian: bool, what: str) -> Bytes:
    """Numbers as a file stores them, of shape ``(values.size, bytes of an element)``.

    They are rounded as torch rounds when it copies float64 into a tensor: to the nearest, ties to even, and to the
    formats of 16 bits by way of float32. A variance below the smallest number of a format becomes 0.
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/headeronly/util/BFloat16.h

    Raises:
        CannotPatch: a number does not fit the format, or the format is none of floats.
    """
    with np.errstate(over="ignore", under="ignore"):
        match dtype:
            case "float64":
                rounded: NDArray[np.generic] = values
            case "float32":
                rounded = values.astype(np.float32)
            case "float16":
                rounded = values.astype(np.float32).astype(np.float16)
            case "bfloat16":
                rounded = _upper_halves(values.astype(np.float32))
            case _:
                raise CannotPatch(f"{what} is stored as {dtype}, in which no moments can be written")
    widened = (rounded.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else rounded
    if not np.isfinite(widened).all():
        largest = values.flat[np.abs(values).argmax()]
        raise CannotPatch(f"{what} would become {largest:g}, which does not fit {dtype}; save the model in float32")
    return _laid_out(rounded, DTYPES[dtype].numpy_kind or "", big_endian)


def stored_count(count: int, dtype: str, big_endian: bool, what: str) -> Bytes:
    """A count as a file stores it, of shape ``(1, bytes of the element)``; some files count in floats.

    Raises:
        CannotPatch: it does not fit the format.
    """
    known = DTYPES.get(dtype)
    if dtype in ("float64", "float32", "float16", "bfloat16"):
        return stored_floats(np.array([count], dtype=np.float64), dtype, big_endian, what)
    if known is None or known.numpy_kind is None or known.numpy_kind[0] not in "iu" or dtype == "bool":
        raise CannotPatch(f"{what} is stored as {dtype}, which holds no count")
    if count > np.iinfo(np.dtype(known.numpy_kind)).max:
        raise CannotPatch(f"{what} would become {count}, which does not fit {dtype}")
    return _laid_out(np.array([count]), known.numpy_kind, big_endian)


def _upper_halves(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """bfloat16, the upper half of a float32, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _laid_out(numbers: NDArray[np.generic], kind: str, big_endian: bool) -> Bytes:
    ordered = np.ascontiguousarray(
        numbers.reshape(-1, 1).astype(np.dtype(kind).newbyteorder(">" if big_endian else "<"))
    )
    return ordered.view(np.uint8)
