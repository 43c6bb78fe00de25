"""Where in a file a storage's bytes lie, and which members of archives they are part of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine, and what tells whether it is still the same.

    Attributes:
        path: absolute.
        size: bytes.
        modified_ns: time of its last change.
        identity: device and number of the file on it.
    """

    path: str
    size: int
    modified_ns: int
    identity: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file of a zip archive, by the central directory; offsets count from the archive's first byte."""

    name: str
    header_offset: int
    packed_size: int
    size: int
    method: int
    flags: int
    crc: int
    entry_offset: int
    """Of its entry in the directory."""
    end: int
    """Where the next member or the directory begins: nothing of this one may lie behind it."""


@dataclass(frozen=True, slots=True, eq=False)
class ZipArchive:
    """A zip archive, which may be a member of another.

    Attributes:
        start: of its first byte in the file.
        members: by name, in the order of their bytes.
        data_offsets: where in the archive a member's bytes begin, behind its local header; of the members looked at.
    """

    start: int
    members: Mapping[str, ZipMember]
    data_offsets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ZipPlace:
    """A member of an archive."""

    archive: ZipArchive
    member: str


@dataclass(frozen=True, slots=True)
class StoragePlace:
    """Where a storage's bytes lie.

    Attributes:
        start: of its first byte in the file; of the packed bytes, where it is a packed member.
        size: bytes, unpacked.
        inside: the members that hold it, the innermost first; none where the file is no zip archive.
    """

    start: int
    size: int
    inside: tuple[ZipPlace, ...] = ()
