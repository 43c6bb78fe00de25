"""``torch.save`` from 0.1.10 to 1.5: five pickles in a row, then the storages one behind another.

The pickles are a magic number, a protocol version, facts of the machine, the object, and the list of storage keys. In
the order of that list follow the storages: an int64 with the number of elements, and the elements. The file does not
say how long its pickles are. All numbers are little-endian, whatever the facts of the machine say.

Layout: ``_legacy_save`` and ``_legacy_load``,
https://github.com/pytorch/pytorch/blob/v2.13.0/torch/serialization.py; storages:
https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/serialization.cpp
"""

from __future__ import annotations

from dataclasses import dataclass

from bncheck.core.checkpoint import Checkpoint, FileFormat, TensorRef
from bncheck.core.errors import UnreadableFile, UnsafeFile, UnsupportedFile
from bncheck.core.limits import Limits
from bncheck.core.number_formats import DTYPES
from bncheck.core.places import StoragePlace
from bncheck.readers.pickle_calls import PLAIN_TRUST, torch_trust
from bncheck.readers.pickle_machine import interpret_first
from bncheck.readers.pickle_records import GlobalRef, PickledStorage, PickledTensor
from bncheck.readers.pickled import PickledContainer, checkpoint_of
from bncheck.readers.source import Source
from bncheck.readers.tensor_records import storage_of
from bncheck.readers.tensors import ArrayReader

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

# The object's pickle is read in windows that grow until it fits: most fit the first, and none is read more than thrice.
_FIRST_WINDOW = 2 * 2**20
_GROWTH = 8
# A key in a list takes its text, of up to six bytes a letter in protocol 0, and a few opcodes.
_KEY_LETTER, _KEY_OPCODES, _LIST_OPCODES = 6, 32, 64

_ODD_FACTS = "its facts of the writing machine are not the numbers torch writes"

_SIZE = 8  # bytes of the number of elements before a storage


def read_torch_legacy(source: Source, path: str, limits: Limits, vouched: frozenset[str]) -> Checkpoint:
    """Read a file that ``torch.save`` wrote before it wrote zip archives.

    Args:
        source: the file.
        path: as the user gave it, for the report.
        limits: bounds.
        vouched: callables the user allows whole-module pickles to name.

    Raises:
        UnreadableFile: the file is damaged or cut short.
        UnsafeFile: loading it would run code, or it was built to deceive readers.
        UnsupportedFile: it is a stream of another version.
        NoModel: it holds no network.
    """
    start = _read_header(source, limits)
    root, named, end = _read_object(source, start, limits, vouched)
    keys, end = _read_keys(source, end, named, limits)
    storages = named.placed(source, keys, end)
    container = PickledContainer(
        path, FileFormat.TORCH_LEGACY, storages.reference, ArrayReader(storages.read_range, storages.place, limits)
    )
    return checkpoint_of(root, container, limits)


def plain_value(data: bytes, limits: Limits) -> tuple[object, int]:
    """The value that a pickle at the start of ``data`` writes without calling anything; also where it ends.

    Raises:
        UnreadableFile: the pickle is damaged.
        UnsafeFile: loading it would call something.
    """
    return interpret_first(data, PLAIN_TRUST, _no_persistent_id, limits)


def check_machine_facts(facts: object) -> None:
    """Refuse facts of the writing machine that are no plain values; what they say changes nothing in the file.

    Raises:
        UnreadableFile: they are no dict of numbers.
    """
    flat = _entries(facts)
    numbers = [number for fact in flat for number in (_entries(fact) if isinstance(fact, dict) else [fact])]
    if not all(type(number) in (int, bool) for number in numbers):
        raise UnreadableFile(_ODD_FACTS)


@dataclass(frozen=True, slots=True)
class StorageView:
    """A storage that is a part of another, as torch had them before 0.4; in elements."""

    root: str
    offset: int
    numel: int


@dataclass(frozen=True, slots=True)
class PlacedStorage:
    """Where a storage's elements lie in the file: first byte and number of bytes."""

    storage: PickledStorage
    start: int
    size: int


class PlacedStorages:
    """The storages of a file that keeps them one behind another, by key.

    Args:
        source: what holds them.
        roots: the storages.
        views: parts of them that have a key of their own.
    """

    def __init__(self, source: Source, roots: dict[str, PlacedStorage], views: dict[str, StorageView]) -> None:
        self._source = source
        self._roots = roots
        self._views = views

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """``length`` bytes of a storage from ``start``.

        Raises:
            UnreadableFile: the storage has no such bytes.
        """
        placed = self._root(key)
        if start < 0 or length < 0 or start + length > placed.size:
            raise UnreadableFile(f"storage {key[:80]!r} has {placed.size} bytes and {start + length} are needed")
        return self._source.read_at(placed.start + start, length)

    def place(self, key: str) -> StoragePlace:
        """Where a storage lies.

        Raises:
            UnreadableFile: it is not in the file.
        """
        placed = self._root(key)
        return StoragePlace(self._source.start + placed.start, placed.size)

    def reference(self, name: str, tensor: PickledTensor) -> TensorRef:
        """Where a tensor's bytes lie; a tensor of a view is told as one of the storage behind it.

        Raises:
            UnreadableFile: its storage is not there, or is of another number format.
        """
        view = self._views.get(tensor.storage.key, StorageView(tensor.storage.key, 0, tensor.storage.numel))
        root = self._root(view.root).storage
        if tensor.storage.dtype not in (None, tensor.dtype):
            raise UnreadableFile(f"{name[:200]}: is {tensor.dtype} in a storage of {tensor.storage.dtype}")
        return TensorRef(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            strides=tensor.strides,
            storage=view.root,
            storage_offset=view.offset + tensor.offset,
            storage_numel=tensor.storage.numel if root.dtype is None else root.numel,
        )

    def _root(self, key: str) -> PlacedStorage:
        try:
            return self._roots[key]
        except KeyError:
            raise UnreadableFile(f"storage {key[:80]!r} is not in the file") from None


def element_width(storage: PickledStorage) -> int:
    """Bytes of an element by ``torch._utils._element_size``: 1 where it is untyped, or of fewer bits than a byte."""
    known = DTYPES.get(storage.dtype or "uint8")
    return 1 if known is None else known.width


class _NamedStorages:
    """The storages and views that the object's pickle names, in its order."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.roots: dict[str, PickledStorage] = {}
        self._views: dict[str, StorageView] = {}

    def load(self, persistent_id: object) -> object:
        """The record of a persistent id: ``("storage", …)`` or ``("module", class, source file, source)``.

        Raises:
            UnreadableFile: torch writes no such id.
            UnsafeFile: it contradicts another one, or there are too many.
        """
        match persistent_id:
            case list():
                pass  # a sequence pattern would take it for a tuple
            case ("module", GlobalRef() as name, str() | None, str() | None):
                return name
            case ("storage", GlobalRef() as kind, str(key), str(), int(numel), view):
                return self._part(self._named(storage_of(kind, key, numel)), view)
        raise UnreadableFile("a persistent id describes neither a storage nor a module's class")

    def placed(self, source: Source, keys: list[str], start: int) -> PlacedStorages:
        """The same storages, found in the file from ``start`` on in the order of ``keys``.

        Raises:
            UnreadableFile: the file is cut short, or a storage has another size than the object says.
            UnsafeFile: something lies behind the last of them.
        """
        roots: dict[str, PlacedStorage] = {}
        for key in keys:
            storage = self.roots[key]
            size = storage.numel * element_width(storage)
            roots[key] = PlacedStorage(storage, start + _SIZE, size)
            start += _SIZE + size
        if start > source.size:
            raise UnreadableFile(f"its storages take {start} bytes of {source.size}: the file was cut short or forged")
        if start < source.size:
            raise UnsafeFile(f"{source.size - start} bytes behind its last storage belong to none")
        source.prefetch([(placed.start - _SIZE, _SIZE) for placed in roots.values()])
        for key, placed in roots.items():
            numel = int.from_bytes(source.read_at(placed.start - _SIZE, _SIZE), "little", signed=True)
            if numel != placed.storage.numel:
                raise UnreadableFile(
                    f"storage {key[:80]!r} has {numel} elements where it lies and {placed.storage.numel} in the object"
                )
        return PlacedStorages(source, roots, self._views)

    def check_views(self) -> None:
        """Refuse a key that means both a storage and a part of one.

        Raises:
            UnsafeFile: there is one.
        """
        if not self._views.keys().isdisjoint(self.roots):
            raise UnsafeFile("a key names both a storage and a part of one")

    def _named(self, storage: PickledStorage) -> PickledStorage:
        known = self.roots.setdefault(storage.key, storage)
        same = (known.dtype, known.numel) == (storage.dtype, storage.numel)
        # Only of an empty storage does torch write views of several number formats.
        if not same and (known.numel or storage.numel):
            raise UnsafeFile(f"storage {storage.key[:80]!r} is described in two ways")
        if len(self.roots) > self._limits.legacy_storages:
            raise UnsafeFile(f"it names more than {self._limits.legacy_storages} storages")
        return storage

    def _part(self, root: PickledStorage, view: object) -> PickledStorage:
        match view:
            case None:
                return root
            case list():
                pass
            case (str(key), int(offset), int(numel)) if root.dtype is not None:
                part = StorageView(root.key, offset, numel)
                if offset < 0 or numel < 0 or offset + numel > root.numel:
                    raise UnreadableFile(f"view {key[:80]!r} does not lie in its storage of {root.numel} elements")
                if self._views.setdefault(key, part) != part:
                    raise UnsafeFile(f"view {key[:80]!r} is described in two ways")
                return PickledStorage(key, root.dtype, numel)
        raise UnreadableFile("a persistent id describes a view torch never writes")


def _read_header(source: Source, limits: Limits) -> int:
    """Check the three pickles before the object; returns where it begins."""
    head = source.read_at(0, min(source.size, limits.legacy_header_bytes))
    position = 0
    values: list[object] = []
    for _ in range(3):
        value, length = plain_value(head[position:], limits)
        values.append(value)
        position += length
    magic, version, facts = values
    if type(magic) is not int or magic != MAGIC_NUMBER:
        raise UnsupportedFile("does not begin with torch's magic number")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise UnsupportedFile(f"is a stream of another version than {PROTOCOL_VERSION}, the only one torch wrote")
    check_machine_facts(facts)
    return position


def _read_object(
    source: Source, start: int, limits: Limits, vouched: frozenset[str]
) -> tuple[object, _NamedStorages, int]:
    """The records of the object, the storages it names, and where its pickle ends."""
    longest = min(source.size - start, limits.pickle_bytes)
    window = min(longest, _FIRST_WINDOW)
    while True:
        named = _NamedStorages(limits)
        try:
            root, length = interpret_first(
                source.read_at(start, window), torch_trust(limits, vouched), named.load, limits
            )
        except UnreadableFile:
            if window == longest:
                raise
            window = min(longest, window * _GROWTH)
        else:
            named.check_views()
            return root, named, start + length


def _read_keys(source: Source, start: int, named: _NamedStorages, limits: Limits) -> tuple[list[str], int]:
    """The storages' keys in the order of their bytes, and where their list ends."""
    room = _LIST_OPCODES + sum(_KEY_LETTER * len(key) + _KEY_OPCODES for key in named.roots)
    value, length = plain_value(source.read_at(start, min(source.size - start, room)), limits)
    if type(value) is not list:
        raise UnreadableFile("the object is not followed by a list of its storages")
    keys = [key for key in value if isinstance(key, str)]
    if len(keys) != len(value) or len(set(keys)) != len(keys):
        raise UnsafeFile("its list of storages names one twice, or by something that is no text")
    listed = set(keys)
    for key in named.roots:
        if key not in listed:
            raise UnreadableFile(f"storage {key[:80]!r} is not in its list of storages: its tensors have no values")
    if len(listed) != len(named.roots):
        raise UnsafeFile("its list of storages names some that the object does not use")
    return keys, start + length


def _no_persistent_id(persistent_id: object) -> object:
    raise UnreadableFile("a persistent id stands where torch writes plain values")


def _entries(facts: object) -> list[object]:
    if type(facts) is not dict or not all(isinstance(key, str) for key in facts):
        raise UnreadableFile(_ODD_FACTS)
    return list(facts.values())
