"""The directory of a zip archive, read as if its writer were hostile.

Python's ``zipfile`` is lenient by design: it accepts data before the archive, lets entries overlap, and trusts the
central directory alone. Two readers that disagree on what an archive holds are how scanners are bypassed, so every
ambiguity is refused here. Layout: PKWARE APPNOTE 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import stat
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bncheck.core.errors import UnreadableFile, UnsafeFile
from bncheck.core.limits import Limits
from bncheck.core.places import StoragePlace, ZipArchive, ZipMember, ZipPlace
from bncheck.readers.source import WORTH_A_REQUEST, SliceSource, Source

_END = struct.Struct("<4s4H2LH")  # 4.3.16 end of central directory record
_END_64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14 zip64 end of central directory record
_LOCATOR_64 = struct.Struct("<4sLQL")  # 4.3.15 zip64 end of central directory locator
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12 central directory header
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7 local file header

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _DESCRIPTOR, _PATCHED, _STRONG, _MASKED = 0x1, 0x8, 0x20, 0x40, 0x2000
_LONGEST_DESCRIPTOR = 24  # 4.3.9: a signature, a CRC and two zip64 sizes
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
# The end records and, of a few hundred members, the whole directory; also the longest comment an archive can end with.
_TAIL = _END.size + _MAX_16


class ZipDirectory:
    """The members of an archive and their bytes; nothing is ever extracted to disk.

    Raises:
        UnreadableFile: the archive is cut short or damaged.
        UnsafeFile: its records contradict each other, or hold what no model archive holds.
    """

    def __init__(self, source: Source, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._data_offsets: dict[str, int] = {}
        self._inflate_left = limits.zip_inflated_bytes
        self._inflated: tuple[str, bytes] = ("", b"")
        self.members: dict[str, ZipMember] = {member.name: member for member in _members(source, limits)}
        self._archive = ZipArchive(source.start, self.members, self._data_offsets)
        self.damaged: list[str] = []
        """Members whose bytes disagree with their CRC-32; torch reads them all the same."""

    def read(self, name: str) -> bytes:
        """All bytes of a member, unpacked.

        Raises:
            UnreadableFile: there is no such member, or its bytes do not unpack to the size declared.
            UnsafeFile: its local header contradicts the directory.
        """
        member = self._member(name)
        packed = self._source.read_at(self._data_offset(member), member.packed_size)
        data = packed if member.method == _STORED else self._inflate(member, packed)
        # torch writes a CRC of 0 for every member when torch.serialization.set_crc32_options(False) was called.
        if member.crc and zlib.crc32(data) != member.crc and name not in self.damaged:
            self.damaged.append(name)
        return data

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes of a member from ``start``; of a stored member no more than these are read."""
        member = self._member(name)
        if start < 0 or length < 0 or start + length > member.size:
            raise UnreadableFile(f"{name} has {member.size} bytes and {start + length} are needed")
        if member.method == _DEFLATED or length == member.size:
            return self.read(name)[start : start + length]
        return self._source.read_at(self._data_offset(member) + start, length)

    def member_source(self, name: str) -> Source:
        """A stored member as a source of its own: an archive inside the archive.

        Raises:
            UnreadableFile: there is no such member, or it is deflated.
            UnsafeFile: its local header contradicts the directory.
        """
        member = self._member(name)
        if member.method != _STORED:
            raise UnreadableFile(f"{name} is deflated, and holds an archive: torch only stores these")
        return SliceSource(self._source, self._data_offset(member), member.size)

    def place(self, name: str) -> StoragePlace:
        """Where a member's bytes lie in the file.

        Raises:
            UnreadableFile: there is no such member.
            UnsafeFile: its local header contradicts the directory.
        """
        member = self._member(name)
        start = self._source.start + self._data_offset(member)
        return StoragePlace(start, member.size, (ZipPlace(self._archive, name),))

    def announce(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Tell which bytes of which members will be read, as (name, first byte, length), so that they come together.

        What is wrong with a range is left for reading it to say.
        """
        if not self._source.small_reads_are_cheap:
            self._source.prefetch([part for name, start, length in ranges for part in self._parts(name, start, length)])

    def remarks(self) -> tuple[str, ...]:
        """What to say of the members read so far, and of those that were not compared."""
        damaged = [
            f"{name} is damaged: its bytes disagree with their checksum (torch.load does not notice)"
            for name in self.damaged
        ]
        unseen = len(self.members) - len(self._data_offsets)
        if unseen:
            damaged.append(
                f"{unseen} of {len(self.members)} members were not needed: their local headers were not fetched, nor"
                " compared with the archive's directory; audit a downloaded copy to have all compared"
            )
        return tuple(damaged)

    def verify(self) -> None:
        """Check every member's local header, and that nothing lies between the members.

        Where each header would cost a request, those of members that are read are checked when they are, and of the
        others only what the directory tells: that no more lies between two members than a header can take.

        Raises:
            UnsafeFile: a header contradicts the directory, or bytes that no member owns could be another archive's.
        """
        for member in self.members.values():
            if self._source.small_reads_are_cheap:
                self._data_offset(member)
            elif _room(member) > _MAX_16 + _LONGEST_DESCRIPTOR:
                raise UnsafeFile(f"more bytes around {member.name!r} belong to no member than a header can take")

    def _parts(self, name: str, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Where a member's local header and a range of its data lie, as (offset, length) in the archive."""
        member = self.members.get(name)
        if member is None or start < 0 or length < 0 or start + length > member.size:
            return
        whole = member.end - member.header_offset
        if member.method == _DEFLATED or whole <= WORTH_A_REQUEST:
            yield member.header_offset, whole
        else:
            # Where the data begin is known when the header is read: it ends in a field whose length only it tells.
            header, room = _least_header(member), _room(member)
            yield member.header_offset, header + room
            yield member.header_offset + header + start, length + room

    def _member(self, name: str) -> ZipMember:
        try:
            return self.members[name]
        except KeyError:
            raise UnreadableFile(f"the archive has no member {name!r}: it was cut short or forged") from None

    def _inflate(self, member: ZipMember, packed: bytes) -> bytes:
        if member.name == self._inflated[0]:
            return self._inflated[1]
        self._inflate_left -= member.size
        if self._inflate_left < 0:
            raise UnsafeFile(f"its members unpack to more than {self._limits.zip_inflated_bytes} bytes")
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = engine.decompress(packed, member.size + 1)
        except zlib.error as error:
            raise UnreadableFile(f"{member.name!r} does not unpack: {error}") from None
        if len(data) != member.size or not engine.eof:
            raise UnsafeFile(f"{member.name!r} does not unpack to the {member.size} bytes it declares")
        self._inflated = (member.name, data)
        return data

    def _data_offset(self, member: ZipMember) -> int:
        known = self._data_offsets.get(member.name)
        if known is None:
            known = self._data_offsets[member.name] = self._check_local_header(member)
        return known

    def _check_local_header(self, member: ZipMember) -> int:
        expected = member.name.encode()
        header = self._source.read_at(member.header_offset, _LOCAL.size + len(expected))
        magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack_from(header)
        if magic != b"PK\x03\x04":
            raise UnsafeFile(f"{member.name!r}: there is no local header where the directory says")
        name = header[_LOCAL.size :]
        if name_length != len(expected) or name != expected:
            raise UnsafeFile(f"{member.name!r} is called {name[:80]!r} or longer in its local header")
        if flags != member.flags or method != member.method:
            raise UnsafeFile(f"{member.name!r}: local header and directory disagree on how it is packed")
        # Bit 3: the true values follow the data, and the local ones may be 0. A zip64 writer puts the maximum.
        deferred = (0,) if flags & _DESCRIPTOR else ()
        for local, allowed in (
            (crc, (member.crc, *deferred)),
            (packed, (member.packed_size, _MAX_32, *deferred)),
            (size, (member.size, _MAX_32, *deferred)),
        ):
            if local not in allowed:
                raise UnsafeFile(f"{member.name!r}: local header and directory disagree on its size or checksum")
        if _MAX_32 in (packed, size):
            extra = self._source.read_at(member.header_offset + _LOCAL.size + name_length, extra_length)
            if _widen(extra, size, packed, 0)[:2] != (member.size, member.packed_size):
                raise UnsafeFile(f"{member.name!r}: local header and directory disagree on its size")
        start: int = member.header_offset + _LOCAL.size + name_length + extra_length
        gap = member.end - start - member.packed_size
        if gap < 0:
            raise UnsafeFile(f"{member.name!r} reaches into what follows it")
        if gap > (_LONGEST_DESCRIPTOR if flags & _DESCRIPTOR else 0):
            raise UnsafeFile(f"{gap} bytes behind {member.name!r} belong to no member")
        return start


def _least_header(member: ZipMember) -> int:
    """Bytes of a member's local header without the field whose length the directory does not tell."""
    return _LOCAL.size + len(member.name.encode())


def _room(member: ZipMember) -> int:
    """Bytes between a member's header and the next member's that its data do not take: that field, a descriptor."""
    return member.end - member.header_offset - _least_header(member) - member.packed_size


@dataclass(frozen=True, slots=True)
class _End:
    """Where the central directory lies, by the record at the end of the archive."""

    count: int
    size: int
    offset: int
    position: int
    """Of the first end record: the directory must reach exactly to it."""


def _members(source: Source, limits: Limits) -> list[ZipMember]:
    end = _find_end(source)
    if end.count > limits.zip_members or end.size > limits.zip_directory_bytes:
        raise UnsafeFile(f"the archive claims {end.count} members and a directory of {end.size} bytes")
    if end.offset + end.size != end.position:
        raise UnsafeFile("the archive's directory is not where its end record says: data before, between or behind it")
    found = list(_entries(source.read_at(end.offset, end.size), end))
    _refuse_collisions(found)
    found.sort(key=lambda entry: entry.header_offset)
    if found and found[0].header_offset != 0:
        raise UnsafeFile("there is data before the archive's first member")
    return [
        _bounded(entry, found[index + 1].header_offset if index + 1 < len(found) else end.offset)
        for index, entry in enumerate(found)
    ]


def _bounded(entry: ZipMember, end: int) -> ZipMember:
    member = replace(entry, end=end)
    if _room(member) < 0:
        raise UnsafeFile(f"{entry.name!r} overlaps what follows it")
    return member


def _find_end(source: Source) -> _End:
    source.prefetch([(max(0, source.size - _TAIL), min(source.size, _TAIL))])
    position = source.size - _END.size
    record = source.read_at(position, _END.size) if position >= 0 else b""
    if not record.startswith(b"PK\x05\x06"):
        tail = source.read_at(max(0, source.size - _TAIL), min(source.size, _TAIL))
        if b"PK\x05\x06" in tail:
            raise UnsafeFile("there is data behind the end of the archive")
        raise UnreadableFile("the zip archive has no end record: the file was cut short, copy or save it again")
    _, disk, start_disk, disk_count, count, size, offset, comment = _END.unpack(record)
    if disk not in (0, _MAX_16) or start_disk not in (0, _MAX_16) or disk_count != count or comment:
        raise UnsafeFile("the archive's end record describes a split or commented archive, which torch never writes")
    if position >= _LOCATOR_64.size:
        locator = source.read_at(position - _LOCATOR_64.size, _LOCATOR_64.size)
        if locator.startswith(b"PK\x06\x07"):
            return _find_end_64(source, locator, position - _LOCATOR_64.size, (count, size, offset))
    if count == _MAX_16 or _MAX_32 in (size, offset):
        raise UnsafeFile("the archive's end record refers to a zip64 record that is not there")
    return _End(count, size, offset, position)


def _find_end_64(source: Source, locator: bytes, position: int, short: tuple[int, int, int]) -> _End:
    _, disk, where, disks = _LOCATOR_64.unpack(locator)
    if disk != 0 or disks != 1 or where != position - _END_64.size:
        raise UnsafeFile("the archive's zip64 record is not where its locator says")
    magic, length, _, _, disk, start_disk, disk_count, count, size, offset = _END_64.unpack(
        source.read_at(where, _END_64.size)
    )
    if magic != b"PK\x06\x06" or length != _END_64.size - 12 or disk or start_disk or disk_count != count:
        raise UnsafeFile("the archive's zip64 record is malformed")
    for value, brief, absent in zip((count, size, offset), short, (_MAX_16, _MAX_32, _MAX_32), strict=True):
        if brief not in (absent, value):
            raise UnsafeFile("the archive's two end records contradict each other")
    return _End(count, size, offset, where)


def _entries(directory: bytes, end: _End) -> Iterator[ZipMember]:
    position = 0
    for _ in range(end.count):
        entry = end.offset + position
        if position + _CENTRAL.size > len(directory):
            raise UnreadableFile("the archive's directory is shorter than its member count")
        fields = _CENTRAL.unpack_from(directory, position)
        magic, _, _, flags, method, _, _, crc, packed, size = fields[:10]
        name_length, extra_length, comment_length, disk, _, mode, offset = fields[10:]
        position += _CENTRAL.size
        name = directory[position : position + name_length]
        extra = directory[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length + comment_length
        if magic != b"PK\x01\x02" or position > len(directory):
            raise UnreadableFile("the archive's directory is damaged")
        size, packed, offset = _widen(extra, size, packed, offset)
        yield _checked(name, mode >> 16, disk, ZipMember("", offset, packed, size, method, flags, crc, entry, 0))
    if position != len(directory):
        raise UnsafeFile("the archive's directory holds more than its member count")


def _widen(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Replace values of 2**32 - 1 by those of the zip64 extra field (4.5.3), which lists only these, in this order."""
    wanted = [value == _MAX_32 for value in (size, packed, offset)]
    if not any(wanted):
        return size, packed, offset
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if tag == 1 and len(body) >= 8 * sum(wanted):
            numbers = iter(struct.unpack_from(f"<{sum(wanted)}Q", body))
            size, packed, offset = (
                next(numbers) if want else value for want, value in zip(wanted, (size, packed, offset), strict=True)
            )
            return size, packed, offset
    raise UnsafeFile("a member needs a zip64 field that is not there")


def _checked(raw_name: bytes, unix_mode: int, disk: int, entry: ZipMember) -> ZipMember:
    try:
        name = raw_name.decode()
    except UnicodeDecodeError:
        raise UnsafeFile(f"a member's name is not UTF-8: {raw_name[:80]!r}") from None
    parts = name.rstrip("/").split("/")
    if not name or name.startswith("/") or "\\" in name or ".." in parts or "" in parts:
        raise UnsafeFile(f"a member's name leaves the archive: {name[:80]!r}")
    if not name.isprintable():
        raise UnsafeFile(f"a member's name holds control characters: {name[:80]!r}")
    if entry.flags & (_ENCRYPTED | _PATCHED | _STRONG | _MASKED):
        raise UnsafeFile(f"{name!r} is encrypted or patched (flags {entry.flags:#06x})")
    if stat.S_IFMT(unix_mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeFile(f"{name!r} is a link or a device")
    if entry.method not in (_STORED, _DEFLATED):
        raise UnsafeFile(f"{name!r} is packed by method {entry.method}, which torch never uses")
    if entry.method == _STORED and entry.size != entry.packed_size:
        raise UnsafeFile(f"{name!r} is stored and has two sizes, {entry.packed_size} and {entry.size}")
    if disk:
        raise UnsafeFile(f"{name!r} lies on another disk")
    return replace(entry, name=name)


def _refuse_collisions(entries: list[ZipMember]) -> None:
    seen: set[str] = set()
    for entry in entries:
        key = entry.name.lower() if entry.name.isascii() else unicodedata.normalize("NFKC", entry.name).casefold()
        if key in seen:
            raise UnsafeFile(f"two members are called {entry.name!r}, or alike")
        seen.add(key)
