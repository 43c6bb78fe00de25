"""Checksums of zip archives, kept right while the bytes under them change.

Each member has a CRC-32: in its entry of the directory, and in its local header or in a descriptor behind its data
(PKWARE APPNOTE 6.3.10, 4.3.7 to 4.3.12, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT). PyTorch adds a
record of its own, made of the names and checksums of all others.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bncheck.core.errors import CannotPatch
from bncheck.core.places import StoragePlace, ZipArchive, ZipMember
from bncheck.patch.changes import Change, Changes
from bncheck.patch.original import Original

_STORED = 0
_DESCRIPTOR = 0x8
_LOCAL_CRC, _ENTRY_CRC = 14, 16
_SIGNATURE = b"PK\x07\x08"
_CRC = struct.Struct("<I")

_SERIALIZATION_ID = ".data/serialization_id"
_TWENTY_DIGITS_TWICE = re.compile(rb"\d{40}")
_64_BITS = 2**64 - 1


def with_checksums(original: Original, places: Iterable[StoragePlace], changes: Changes) -> Changes:
    """The changes, and those they bring about in the archives around them.

    Args:
        original: the file.
        places: where the storages lie that are written to.
        changes: new bytes of these.

    Raises:
        CannotPatch: a member is packed, or damaged already.
    """
    for touched in _innermost_first(places):
        crcs: dict[str, int] = {}
        found = [_crc_changes(original, touched.archive, name, changes, crcs) for name in touched.members]
        changes = changes.with_more(change for of_member in found for change in of_member)
        identity = _new_serialization_id(original, touched, crcs)
        if identity is not None:
            changes = changes.with_more([identity])
            changes = changes.with_more(_crc_changes(original, touched.archive, touched.identity, changes, crcs))
    return changes


@dataclass(slots=True)
class _Touched:
    """An archive and those of its members in which something is written."""

    archive: ZipArchive
    depth: int
    members: dict[str, None] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What the member with the archive's serialization id is called, if there is one."""
        return f"{next(iter(self.archive.members)).partition('/')[0]}/{_SERIALIZATION_ID}"


def _innermost_first(places: Iterable[StoragePlace]) -> list[_Touched]:
    found: dict[tuple[int, int], _Touched] = {}
    for place in places:
        for depth, inside in enumerate(reversed(place.inside)):
            touched = found.setdefault((depth, inside.archive.start), _Touched(inside.archive, depth))
            touched.members[inside.member] = None
    return sorted(found.values(), key=lambda touched: -touched.depth)


def _crc_changes(
    original: Original, archive: ZipArchive, name: str, changes: Changes, crcs: dict[str, int]
) -> list[Change]:
    """The new CRC-32 of a member in all its places; it is put into ``crcs``."""
    member = archive.members[name]
    if member.method != _STORED:
        raise CannotPatch(
            f"{name} is compressed: other numbers would take other room; load the model and save it again"
        )
    start = archive.start + archive.data_offsets[name]
    before = after = 0
    for position, data in original.pieces(start, member.size):
        before = zlib.crc32(data, before)
        after = zlib.crc32(changes.over(position, data), after)
    if member.crc == 0 != before:
        return []  # switched off, by torch.serialization.set_crc32_options(False)
    if member.crc != before:
        raise CannotPatch(f"{name} is damaged: its bytes disagree with their checksum; save the model again")
    crcs[name] = after
    return [Change(at, _CRC.pack(after), name) for at in _crc_places(original, archive, member, start)]


def _crc_places(original: Original, archive: ZipArchive, member: ZipMember, start: int) -> Iterator[int]:
    told = _CRC.pack(member.crc)
    yield archive.start + member.entry_offset + _ENTRY_CRC
    local = archive.start + member.header_offset + _LOCAL_CRC
    deferred = bool(member.flags & _DESCRIPTOR)
    if not deferred or (member.crc and original.read(local, 4) == told):
        yield local
    behind, end = start + member.size, archive.start + member.end
    if deferred and behind < end:
        descriptor = original.read(behind, min(8, end - behind))
        at = 4 if descriptor == _SIGNATURE + told else 0
        if descriptor[at : at + 4] != told:
            raise CannotPatch(f"{member.name} is damaged: its two checksums differ; save the model again")
        yield behind + at


def _new_serialization_id(original: Original, touched: _Touched, crcs: dict[str, int]) -> Change | None:
    """The archive's new id; None where it has none, or not the one its members make.

    The second half is a hash over the CRC-32 of all members in the order they were written, as their descriptors have
    it; empty ones get none. An id that another tool left behind is nothing to keep right.
    ``ostream_write_func`` and ``writeSerializationId`` in
    https://github.com/pytorch/pytorch/blob/v2.13.0/caffe2/serialize/inline_container.cc
    """
    archive = touched.archive
    record = archive.members.get(touched.identity)
    if record is None or not crcs or record.method != _STORED:
        return None
    start = archive.start + archive.data_offsets[record.name]
    told = original.read(start, record.size) if record.size == 40 else b""
    others = [member for member in archive.members.values() if member is not record and member.size]
    if not _TWENTY_DIGITS_TWICE.fullmatch(told) or int(told[20:]) != _combined(member.crc for member in others):
        return None
    new = _combined(crcs.get(member.name, member.crc) for member in others)
    return Change(start + 20, b"%020d" % new, record.name)


def _combined(crcs: Iterable[int]) -> int:
    """``c10::hash_combine`` of one after the other."""
    seed = 0
    for crc in crcs:
        seed ^= (crc + 0x9E3779B9 + (seed << 6) + (seed >> 2)) & _64_BITS
    return seed
