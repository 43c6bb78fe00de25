"""How one number of each format is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How one element is stored: bytes, and numpy's name where numpy has the format."""

    width: int
    numpy_kind: str | None = None


DTYPES: Mapping[str, NumberFormat] = {
    "float64": NumberFormat(8, "f8"),
    "float32": NumberFormat(4, "f4"),
    "float16": NumberFormat(2, "f2"),
    "bfloat16": NumberFormat(2, "u2"),
    "int64": NumberFormat(8, "i8"),
    "int32": NumberFormat(4, "i4"),
    "int16": NumberFormat(2, "i2"),
    "int8": NumberFormat(1, "i1"),
    "uint64": NumberFormat(8, "u8"),
    "uint32": NumberFormat(4, "u4"),
    "uint16": NumberFormat(2, "u2"),
    "uint8": NumberFormat(1, "u1"),
    "bool": NumberFormat(1, "u1"),
    "complex64": NumberFormat(8),
    "complex128": NumberFormat(16),
    "float8_e4m3fn": NumberFormat(1),
    "float8_e4m3fnuz": NumberFormat(1),
    "float8_e5m2": NumberFormat(1),
    "float8_e5m2fnuz": NumberFormat(1),
    "float8_e8m0fnu": NumberFormat(1),
    "quint8": NumberFormat(1),
    "qint8": NumberFormat(1),
    "qint32": NumberFormat(4),
}
