"""The zip archive that PyTorch's file writer makes: one folder of pickles, with the storages beside them.

Layout: https://github.com/pytorch/pytorch/blob/v2.13.0/caffe2/serialize/inline_container.h
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bncheck.core.checkpoint import TensorRef
from bncheck.core.errors import UnreadableFile, UnsafeFile
from bncheck.core.limits import Limits
from bncheck.core.number_formats import DTYPES
from bncheck.core.places import StoragePlace
from bncheck.readers.pickle_machine import Trust, interpret
from bncheck.readers.pickle_records import PickledTensor
from bncheck.readers.tensor_records import persistent_storage
from bncheck.readers.tensors import ArrayReader, StorageRange
from bncheck.readers.zip_directory import ZipDirectory


def pickle_prefix(archive: ZipDirectory) -> str | None:
    """The folder that holds ``data.pkl``, with its slash, named after the file; None where there is no such pickle.

    Raises:
        UnsafeFile: there are several, or it lies where torch would not look for it.
    """
    pickles = [name for name in archive.members if name.rpartition("/")[2].lower() == "data.pkl"]
    if len(pickles) > 1:
        raise UnsafeFile("the archive holds two pickles called data.pkl")
    if not pickles or not pickles[0].endswith("data.pkl"):
        return None
    prefix = pickles[0].removesuffix("data.pkl")
    first = next(iter(archive.members)).partition("/")[0] + "/"
    if prefix.count("/") > 1 or (prefix and prefix != first):
        raise UnsafeFile("data.pkl does not lie in the archive's own folder, where torch looks for it")
    return prefix


class TorchArchive:
    """Pickles and storages of an archive.

    Args:
        archive: the zip archive.
        prefix: the folder they lie in, with its slash.
        limits: bounds.

    Raises:
        UnreadableFile: it names a byte order that is none.
    """

    def __init__(self, archive: ZipDirectory, prefix: str, limits: Limits) -> None:
        self._zip = archive
        self._prefix = prefix
        self._limits = limits
        self._announce_whole("data.pkl", "byteorder")
        self._big_endian = self._is_big_endian()
        self.arrays = ArrayReader(self._read_storage, self.place, limits, self._announce_storages)

    def unpickle(self, name: str, trust: Trust) -> object:
        """The records of the pickle ``name``.

        Raises:
            UnreadableFile: it is missing, damaged or exceeds a bound.
            UnsafeFile: loading it would call something that is not trusted.
        """
        member = self._zip.members.get(f"{self._prefix}{name}")
        if member is not None and member.size > self._limits.pickle_bytes:
            raise UnreadableFile(f"its pickle has {member.size} bytes, more than any model's")
        return interpret(self._zip.read(f"{self._prefix}{name}"), trust, persistent_storage, self._limits)

    def reference_in(self, folder: str) -> Callable[[str, PickledTensor], TensorRef]:
        """How tensors of a pickle become references, where their storages lie in ``folder``: ``data`` for data.pkl."""
        return lambda name, tensor: self._reference(f"{folder}/{tensor.storage.key}", name, tensor)

    def place(self, storage: str) -> StoragePlace:
        """Where a storage lies, by the key that references have.

        Raises:
            UnreadableFile: it is not in the archive.
        """
        return self._zip.place(f"{self._prefix}{storage}")

    def _is_big_endian(self) -> bool:
        name = f"{self._prefix}byteorder"
        order = self._zip.read(name) if name in self._zip.members and self._zip.members[name].size < 16 else b"little"
        if order not in (b"little", b"big"):
            raise UnreadableFile(f"its byte order is given as {order!r}; little or big is expected")
        return order == b"big"

    def _announce_whole(self, *names: str) -> None:
        members = [self._zip.members[full] for name in names if (full := f"{self._prefix}{name}") in self._zip.members]
        self._zip.announce((member.name, 0, member.size) for member in members)

    def _announce_storages(self, ranges: Sequence[StorageRange]) -> None:
        self._zip.announce((f"{self._prefix}{storage}", start, length) for storage, start, length in ranges)

    def _read_storage(self, storage: str, start: int, length: int) -> bytes:
        return self._zip.read_range(f"{self._prefix}{storage}", start, length)

    def _reference(self, storage: str, name: str, tensor: PickledTensor) -> TensorRef:
        member = self._zip.members.get(f"{self._prefix}{storage}")
        known = DTYPES.get(tensor.dtype)
        # torch sizes the storage by the member and the view by the pickle: where they disagree, CVE-2026-24747 began.
        if member is not None and known is not None:
            declared = tensor.storage.numel * known.width
            spare = member.size - declared
            if spare < 0 or (spare > 0 and tensor.storage.dtype is not None):
                raise UnreadableFile(
                    f"{name[:200]}: its storage has {member.size} bytes and the pickle declares {declared}"
                )
        return TensorRef(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            strides=tensor.strides,
            storage=storage,
            storage_offset=tensor.offset,
            storage_numel=tensor.storage.numel,
            big_endian=self._big_endian,
        )
