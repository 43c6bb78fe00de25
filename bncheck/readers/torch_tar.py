"""``torch.save`` before 0.1.10: a tar archive of four members.

``sys_info`` holds facts of the machine; ``storages`` a count, then for each storage a pickled (key, location, class),
an int64 with the number of elements, and the elements, and at last a list of views; ``tensors`` a count, then for each
tensor a pickled (key, storage key, class) and its sizes in binary; ``pickle`` the object, whose persistent ids are
these keys. A persistent id that is a tuple (class, source file, source) stands for a module's class.

Layout: ``legacy_load`` in ``_legacy_load``, https://github.com/pytorch/pytorch/blob/v2.13.0/torch/serialization.py
Writer: ``_save``, https://github.com/pytorch/pytorch/blob/v0.1.9/torch/serialization.py
"""

from __future__ import annotations

import struct

from bncheck.core.checkpoint import Checkpoint, FileFormat
from bncheck.core.errors import UnreadableFile, UnsafeFile
from bncheck.core.limits import Limits
from bncheck.readers.pickle_calls import torch_trust
from bncheck.readers.pickle_machine import interpret
from bncheck.readers.pickle_records import GlobalRef, PickledStorage, PickledTensor
from bncheck.readers.pickled import PickledContainer, checkpoint_of
from bncheck.readers.source import Source
from bncheck.readers.tar_directory import TarDirectory
from bncheck.readers.tensor_records import storage_of, strided_view
from bncheck.readers.tensors import ArrayReader
from bncheck.readers.torch_legacy import (
    PlacedStorage,
    PlacedStorages,
    StorageView,
    check_machine_facts,
    element_width,
    plain_value,
)

_MEMBERS = frozenset({"sys_info", "pickle", "tensors", "storages"})
# A pickled key, location and class take some 100 bytes.
_ENTRY_WINDOW = 1024
_LONGEST_KEY = 20  # digits of an address of 64 bits


def read_torch_tar(source: Source, path: str, limits: Limits, vouched: frozenset[str]) -> Checkpoint:
    """Read a file that ``torch.save`` wrote as a tar archive.

    Args:
        source: the file.
        path: as the user gave it, for the report.
        limits: bounds.
        vouched: callables the user allows whole-module pickles to name.

    Raises:
        UnreadableFile: the file is damaged or cut short.
        UnsafeFile: loading it would run code, or it was built to deceive readers.
        NoModel: it holds no network.
    """
    directory = TarDirectory(source, _MEMBERS, limits)
    facts = _Cursor(directory.member("sys_info"), limits)
    check_machine_facts(facts.value())
    facts.finish("sys_info")
    contents = _Contents(limits)
    storages = contents.read_storages(directory.member("storages"))
    contents.read_tensors(directory.member("tensors"))
    pickled = directory.member("pickle")
    if pickled.size > limits.pickle_bytes:
        raise UnreadableFile(f"its pickle has {pickled.size} bytes, more than any model's")
    trust = torch_trust(limits, vouched)
    root = interpret(pickled.read_at(0, pickled.size), trust, contents.persistent_load, limits)
    container = PickledContainer(
        path, FileFormat.TORCH_TAR, storages.reference, ArrayReader(storages.read_range, storages.place, limits)
    )
    return checkpoint_of(root, container, limits)


class _Cursor:
    """Reads a member from its beginning to its end."""

    def __init__(self, member: Source, limits: Limits) -> None:
        self._member = member
        self._limits = limits
        self.position = 0

    def value(self, window: int = _ENTRY_WINDOW) -> object:
        """The next pickle, of plain values, within ``window`` bytes."""
        left = self._member.size - self.position
        value, length = plain_value(self._member.read_at(self.position, min(left, window)), self._limits)
        self.position += length
        return value

    def count(self, most: int) -> int:
        """The next pickle, a number of things to follow."""
        value = self.value()
        if type(value) is not int or not 0 <= value <= most:
            raise UnreadableFile("it does not say how many storages or tensors it has, or says too many")
        return value

    def numbers(self, layout: str) -> tuple[int, ...]:
        """The next binary numbers, little-endian."""
        form = struct.Struct(f"<{layout}")
        raw = self._member.read_at(self.position, form.size)
        self.position += form.size
        return form.unpack(raw)

    def skip(self, length: int) -> None:
        """Pass over bytes that must be there."""
        if length > self._member.size - self.position:
            raise UnreadableFile(
                f"a storage takes {length} bytes, more than there are: the file was cut short or forged"
            )
        self.position += length

    def finish(self, name: str) -> None:
        """Refuse bytes behind the last thing read."""
        if self.position != self._member.size:
            raise UnsafeFile(f"{self._member.size - self.position} bytes at the end of {name} belong to nothing")


class _Contents:
    """Storages and tensors by their keys, which were their addresses in the writer's memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._found: dict[int, PickledStorage | PickledTensor] = {}

    def read_storages(self, member: Source) -> PlacedStorages:
        """Find the storages in their member."""
        cursor = _Cursor(member, self._limits)
        roots: dict[str, PlacedStorage] = {}
        for _ in range(cursor.count(self._limits.legacy_storages)):
            entry = cursor.value()
            match entry:
                case list():
                    pass  # a sequence pattern would take it for a tuple
                case (int(key), str(), GlobalRef() as kind):
                    (numel,) = cursor.numbers("q")
                    storage = storage_of(kind, str(key), numel)
                    self._add(key, storage)
                    size = numel * element_width(storage)
                    roots[storage.key] = PlacedStorage(storage, cursor.position, size)
                    cursor.skip(size)
                    continue
            raise UnreadableFile("a storage is not described as torch does it")
        views = self._read_views(cursor)
        cursor.finish("storages")
        return PlacedStorages(member, roots, views)

    def read_tensors(self, member: Source) -> None:
        """Read the tensors' sizes; the member holds no elements."""
        cursor = _Cursor(member, self._limits)
        for _ in range(cursor.count(self._limits.tensors)):
            entry = cursor.value()
            match entry:
                case list():
                    pass
                case (int(key), int(storage_key), GlobalRef()):
                    self._add(key, self._read_tensor(cursor, self._found.get(storage_key)))
                    continue
            raise UnreadableFile("a tensor is not described as torch does it")
        cursor.finish("tensors")

    def persistent_load(self, persistent_id: object) -> object:
        """The record of a persistent id.

        Raises:
            UnreadableFile: torch writes no such id, or it names nothing in the file.
        """
        match persistent_id:
            case list():
                pass
            case (GlobalRef() as name, str() | None, str() | None):
                return name
            case str(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= _LONGEST_KEY:
                found = self._found.get(int(digits))
                if found is not None:
                    return found
        raise UnreadableFile("a persistent id names neither a storage, a tensor nor a module's class")

    def _read_views(self, cursor: _Cursor) -> dict[str, StorageView]:
        views: dict[str, StorageView] = {}
        told = cursor.value(self._limits.pickle_bytes)
        if type(told) is not list or len(told) > self._limits.legacy_storages:
            raise UnreadableFile("its storages are not followed by a list of views, or it is too long")
        for entry in told:
            match entry:
                case list():
                    pass
                case (int(key), int(root_key), int(offset), int(numel)):
                    root = self._found.get(root_key)
                    if isinstance(root, PickledStorage) and min(offset, numel) >= 0 and offset + numel <= root.numel:
                        # A view of a view reaches its root through the one before it in the list.
                        behind = views.get(root.key, StorageView(root.key, 0, root.numel))
                        views[str(key)] = StorageView(behind.root, behind.offset + offset, numel)
                        self._add(key, PickledStorage(str(key), root.dtype, numel))
                        continue
            raise UnreadableFile("a view of a storage does not lie in it, or is not described as torch does it")
        return views

    def _read_tensor(self, cursor: _Cursor, storage: PickledStorage | PickledTensor | None) -> PickledTensor:
        if not isinstance(storage, PickledStorage) or storage.dtype is None:
            raise UnreadableFile("a tensor's storage is not in the file")
        dimensions, _ = cursor.numbers("ii")  # an int was written as if it had 8 bytes: the rest is chance
        if not 0 <= dimensions <= self._limits.tensor_dimensions:
            raise UnreadableFile(f"a tensor has {dimensions} dimensions")
        shape = cursor.numbers(f"{dimensions}q")
        strides = cursor.numbers(f"{dimensions}q")
        (offset,) = cursor.numbers("q")
        if not dimensions and not storage.numel:
            shape, strides = (0,), (1,)  # before 0.4 no dimensions meant no elements
        return strided_view(storage, storage.dtype, offset, shape, strides, self._limits)

    def _add(self, key: int, found: PickledStorage | PickledTensor) -> None:
        if key in self._found:
            raise UnsafeFile(f"two storages or tensors have the key {str(key)[:40]}")
        self._found[key] = found
