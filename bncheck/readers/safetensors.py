"""safetensors: a JSON header of names, shapes and byte ranges, then the bytes.

Format: https://github.com/huggingface/safetensors/blob/v0.8.0/README.md#format
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging, Stage, TensorRef
from bncheck.core.errors import UnreadableFile, UnsafeFile
from bncheck.core.limits import Limits
from bncheck.core.places import StoragePlace
from bncheck.readers.source import Source
from bncheck.readers.statements import NamedTensors, layers_of
from bncheck.readers.strict_json import json_object
from bncheck.readers.tensors import ArrayReader

# safetensors/src/tensor.rs, enum Dtype → this project's name and the bits of an element.
_DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1fn", 4),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "C64": ("complex64", 64),
    "F64": ("float64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}


def read_safetensors(source: Source, path: str, limits: Limits) -> Checkpoint:
    """Read a ``.safetensors`` file.

    Raises:
        UnreadableFile: the header is malformed or the file is cut short.
        UnsafeFile: tensors overlap, or bytes lie where no tensor claims them.
    """
    tensors, arrays = stored_tensors(source, limits)
    read = layers_of([NamedTensors((), tensors, in_order=False)], arrays)
    return Checkpoint(
        path=path,
        format=FileFormat.SAFETENSORS,
        packaging=Packaging.STATE_DICT,
        stage=Stage.RELEASE,
        layers=read.layers,
        tensors=tensors,
        moments=read.moments,
        networks=read.networks,
        unread=read.unread,
        remarks=read.remarks,
    )


def stored_tensors(source: Source, limits: Limits) -> tuple[dict[str, TensorRef], ArrayReader]:
    """The tensors of a file by name, and what reads their values.

    Raises:
        UnreadableFile, UnsafeFile: as ``read_safetensors``.
    """
    start, header = _header(source, limits)
    tensors = {
        name: _reference(name, entry, source.size - start) for name, entry in header.items() if name != "__metadata__"
    }
    _refuse_gaps(tensors, source.size - start)
    offsets = {name: begin for name, (begin, _, _) in tensors.items()}
    sizes = {name: end - begin for name, (begin, end, _) in tensors.items()}
    arrays = ArrayReader(
        lambda key, first, length: source.read_at(start + offsets[key] + first, length),
        lambda key: StoragePlace(source.start + start + offsets[key], sizes[key]),
        limits,
        lambda ranges: source.prefetch([(start + offsets[key] + first, length) for key, first, length in ranges]),
    )
    # safetensors sorts by size and name, so that a model's order is lost; the names' own order is nearest to it.
    return {name: tensors[name][2] for name in sorted(tensors, key=natural_order)}, arrays


def _header(source: Source, limits: Limits) -> tuple[int, dict[str, object]]:
    length = int.from_bytes(source.read_at(0, 8), "little")
    if length > source.size - 8:
        raise UnreadableFile(f"its header claims {length} bytes of {source.size - 8}: the file was cut short")
    if length > limits.safetensors_header_bytes:
        raise UnreadableFile(f"its header has {length} bytes, more than any model's")
    header = json_object(source.read_at(8, length), "its header", limits)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnreadableFile("its __metadata__ is no map of text to text")
    return 8 + length, header


def _reference(name: str, entry: object, size: int) -> tuple[int, int, TensorRef]:
    """First byte, last byte + 1 and description of a tensor; offsets count from the end of the header."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)], **rest} if not rest:
            pass
        case _:
            raise UnreadableFile(f"tensor {name[:200]!r} is not described by dtype, shape and data_offsets")
    dimensions = tuple(n for n in shape if isinstance(n, int) and not isinstance(n, bool) and n >= 0)
    if len(dimensions) != len(shape) or len(shape) > 64:
        raise UnreadableFile(f"tensor {name[:200]!r} has no valid shape")
    # A number format nobody here knows hinders only the layers that use it.
    known, bits = _DTYPES.get(dtype, (dtype[:40], None))
    fits = bits is None or 8 * (end - begin) == prod(dimensions) * bits
    if not (0 <= begin <= end <= size and fits):
        raise UnreadableFile(f"tensor {name[:200]!r}: its bytes {begin} to {end} do not fit its shape and the file")
    strides = tuple(prod(dimensions[axis + 1 :]) for axis in range(len(dimensions)))
    return begin, end, TensorRef(name, known, dimensions, strides, name, 0, prod(dimensions))


def _refuse_gaps(tensors: Mapping[str, tuple[int, int, TensorRef]], size: int) -> None:
    position = 0
    for begin, end, tensor in sorted(tensors.values(), key=lambda entry: entry[:2]):
        if begin != position:
            raise UnsafeFile(f"tensor {tensor.name[:200]!r} overlaps another or leaves bytes unclaimed before it")
        position = end
    if position != size:
        raise UnsafeFile(f"{size - position} bytes behind the last tensor belong to none")


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key of dotted names in which ``layer.10`` comes after ``layer.9``."""
    return [(0, int(part), "") if part.isdecimal() and len(part) < 19 else (1, 0, part) for part in name.split(".")]
