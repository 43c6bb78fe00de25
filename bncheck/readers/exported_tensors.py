"""Tensors as exported programs describe them: a member of the archive, and how the tensor lies in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bncheck.core.checkpoint import TensorRef
from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits
from bncheck.core.number_formats import DTYPES
from bncheck.readers.exported_json import entries, items, number, variant
from bncheck.readers.pickle_records import PickledStorage
from bncheck.readers.strict_json import JsonObject
from bncheck.readers.tensor_records import strided_view

# ScalarType of torch/_export/serde/schema.py, https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_export/serde/schema.py
SCALAR_TYPES: Mapping[int, str] = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
_STRIDED = 7  # Layout, in the same file
UNKNOWN_NUMEL = 2**60
"""Elements of a storage whose bytes do not tell."""


def stored_tensor(name: str, member: str, size: int, meta: JsonObject, limits: Limits) -> TensorRef | str:
    """A tensor by its ``TensorMeta``; in words, what would make it where its numbers are not stored as they are.

    Args:
        name: its dotted name.
        member: the archive's member that holds its storage, byte for byte.
        size: the member's bytes.
        meta: number format, sizes, strides and offset.
        limits: bounds.

    Raises:
        UnreadableFile: the description is malformed, or the tensor does not fit its storage.
    """
    if number(meta, "layout") != _STRIDED:
        return "a layout that is not strided"
    scalar = number(meta, "dtype")
    dtype = SCALAR_TYPES.get(scalar, f"number format {scalar}"[:40])
    known = DTYPES.get(dtype)
    shape, strides = tuple(_sizes(meta, "sizes")), tuple(_sizes(meta, "strides"))
    offset = _size(entries(meta, "storage_offset"))
    # Tensors exported without numbers (fake ones) have no bytes: that is said when one of them is loaded.
    numel = size // known.width if known is not None and size else UNKNOWN_NUMEL
    try:
        view = strided_view(PickledStorage(member, dtype, numel), dtype, offset, shape, strides, limits)
    except UnreadableFile as error:
        raise UnreadableFile(f"{name[:200]!r}: {error}") from None
    return TensorRef(name, dtype, view.shape, view.strides, member, offset, numel)


def _sizes(meta: JsonObject, key: str) -> Iterator[int]:
    for size in items(meta, key):
        yield _size(size)


def _size(value: object) -> int:
    tag, size = variant(value, "a size")
    if tag == "as_int" and isinstance(size, int) and not isinstance(size, bool):
        return size
    raise UnreadableFile("the exported program is malformed: a stored tensor has a size that is not a whole number")
