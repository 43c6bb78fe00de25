"""Storages and tensors as pickles describe them, checked before anything is read.

Rebuild functions: ``torch/_utils.py``, https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_utils.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits
from bncheck.core.number_formats import DTYPES
from bncheck.readers.pickle_records import GlobalRef, Inert, PickledStorage, PickledTensor

# torch.<X>Storage → number format (torch/storage.py, _dtype_to_storage_type_map).
_STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
_LARGEST = 2**60


def persistent_storage(persistent_id: object) -> PickledStorage:
    """The storage named by ``("storage", StorageType, key, location, numel)``.

    Raises:
        UnreadableFile: the id has another shape; torch writes no other.
    """
    match persistent_id:
        case list():
            pass  # a sequence pattern would take it for a tuple
        case ("storage", GlobalRef() as kind, str(key), str(), int(numel)):
            return storage_of(kind, key, numel)
    raise UnreadableFile("a persistent id does not describe a storage")


def storage_of(kind: GlobalRef, key: str, numel: int) -> PickledStorage:
    """A storage by its class, as torch names it in pickles.

    Args:
        kind: ``torch.FloatStorage`` and the like, or ``torch.storage.UntypedStorage``.
        key: what the file calls it.
        numel: its elements; bytes where it is untyped.

    Raises:
        UnreadableFile: there is no such class, or its size is negative or huge.
    """
    if not 0 <= numel < _LARGEST:
        raise UnreadableFile("a storage has a negative or huge size")
    if kind.module in ("torch", "torch.cuda") and kind.name in _STORAGE_DTYPES:
        return PickledStorage(key, _STORAGE_DTYPES[kind.name], numel)
    if kind.path == "torch.storage.UntypedStorage":
        return PickledStorage(key, None, numel)
    raise UnreadableFile(f"a storage is of the unknown type {kind.path}"[:200])


def rebuild_tensor(limits: Limits, args: tuple[object, ...]) -> object:
    """``_rebuild_tensor(_v2)``: storage, offset, shape, strides, then what matters to autograd alone.

    Raises:
        UnreadableFile: the view does not fit its storage, or torch writes no such arguments.
    """
    match args:
        case (_, _, _, _, _, _, dict() as flags) if flags:
            # {"neg": True} or {"conj": True}: the stored numbers are not yet the tensor's.
            return Inert(GlobalRef("torch._utils", "_rebuild_tensor_v2"), args)
        case (PickledStorage() as storage, int(offset), tuple() as shape, tuple() as strides, *_):
            return strided_view(storage, storage.dtype or "uint8", offset, shape, strides, limits)
    raise UnreadableFile("a tensor is rebuilt from arguments torch never writes")


def rebuild_tensor_v3(limits: Limits, args: tuple[object, ...]) -> object:
    """``_rebuild_tensor_v3``: as before, of an untyped storage, with the number format beside it.

    Raises:
        UnreadableFile: the view does not fit its storage, or torch writes no such arguments.
    """
    match args:
        case (
            PickledStorage() as storage,
            int(offset),
            tuple() as shape,
            tuple() as strides,
            _,
            _,
            GlobalRef(module="torch", name=dtype),
            *_,
        ):
            return strided_view(storage, dtype, offset, shape, strides, limits)
    raise UnreadableFile("a tensor is rebuilt from arguments torch never writes")


def strided_view(
    storage: PickledStorage,
    dtype: str,
    offset: int,
    shape: tuple[object, ...],
    strides: tuple[object, ...],
    limits: Limits,
) -> PickledTensor:
    """A tensor as a view of its storage; offset and strides in elements.

    Raises:
        UnreadableFile: it does not fit its storage.
    """
    if not (_sizes(shape) and _sizes(strides)) or len(shape) != len(strides) or not 0 <= offset < _LARGEST:
        raise UnreadableFile("a tensor has a negative, huge or missing size, stride or offset")
    if len(shape) > limits.tensor_dimensions:
        raise UnreadableFile(f"a tensor has {len(shape)} dimensions")
    numel = storage.numel
    if storage.dtype is None:
        known = DTYPES.get(dtype)
        numel = storage.numel // known.width if known is not None else storage.numel
    if all(shape):
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if last >= numel:
            raise UnreadableFile(f"a tensor reaches to element {last} of a storage of {numel}")
    return PickledTensor(PickledStorage(storage.key, storage.dtype, numel), dtype, shape, strides, offset)


def _sizes(values: tuple[object, ...]) -> TypeGuard[tuple[int, ...]]:
    return all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST for value in values)
