"""The directory of a tar archive, read as if its writer were hostile.

Python's ``tarfile`` is lenient by design: it needs no magic number, follows links, lets the last of several members of
a name win, and ignores what lies behind the end. Here an archive is taken only as Python's ``tarfile`` itself writes it
in PAX format: regular members, each perhaps behind an extended header for what the plain one cannot hold.
Layout: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header",
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
Writer: https://github.com/python/cpython/blob/v3.13.0/Lib/tarfile.py
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass

from bncheck.core.errors import UnreadableFile, UnsafeFile
from bncheck.core.limits import Limits
from bncheck.readers.source import SliceSource, Source

BLOCK = 512
_RECORD = 20 * BLOCK  # the whole is padded to a multiple of it (tarfile.RECORDSIZE)
_END = 2 * BLOCK

_CHECKSUM = slice(148, 156)
_REGULAR, _EXTENDED = b"0", b"x"
_EXTENDED_NAME = "././@PaxHeader"
# What tarfile writes of a file whose name is plain: times are fractions, ids may be large, user names foreign.
_KEYWORDS = frozenset({"mtime", "uid", "gid", "size", "uname", "gname"})
_OCTAL = re.compile(rb"([0-7]+)[ \0]+")
_RECORD_LENGTH = re.compile(rb"([1-9]\d{0,3}) ")
_DECIMAL = re.compile(r"\d{1,18}")


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size: int
    kind: bytes


class TarDirectory:
    """The members of an archive; nothing is ever extracted to disk.

    Args:
        source: the archive.
        names: what members may be called.
        limits: bounds.

    Raises:
        UnreadableFile: the archive is cut short or damaged.
        UnsafeFile: it holds what the writer of such an archive never puts into it.
    """

    def __init__(self, source: Source, names: Container[str], limits: Limits) -> None:
        self._source = source
        self._names = names
        self._limits = limits
        self._members: dict[str, tuple[int, int]] = {}
        position = 0
        for header, start, size in self._headers():
            if header.name in self._members:
                raise UnsafeFile(f"two members are called {header.name!r}")
            self._members[header.name] = (start, size)
            position = start + _padded(size)
        self._check_end(position)

    def member(self, name: str) -> SliceSource:
        """A member's bytes.

        Raises:
            UnreadableFile: there is no such member.
        """
        try:
            return SliceSource(self._source, *self._members[name])
        except KeyError:
            raise UnreadableFile(f"the archive has no member {name!r}: it was cut short or forged") from None

    def _headers(self) -> Iterator[tuple[_Header, int, int]]:
        """Each member's header, where its bytes begin, and how many there are."""
        position = 0
        extended: dict[str, str] | None = None
        while (block := self._source.read_at(position, BLOCK)) != bytes(BLOCK):
            header = _parse(block)
            position += BLOCK
            size = header.size
            if header.kind == _EXTENDED and extended is None:
                extended = self._extended(header, position)
            elif header.kind == _REGULAR and header.name in self._names:
                size = _size(header, extended or {})
                self._check_extent(header.name, position, size)
                yield header, position, size
                extended = None
            else:
                raise UnsafeFile(f"member {header.name[:80]!r} of type {header.kind!r} is none torch writes")
            position += _padded(size)
        if extended is not None:
            raise UnsafeFile("an extended header is followed by no member")

    def _extended(self, header: _Header, position: int) -> dict[str, str]:
        if header.name != _EXTENDED_NAME or header.size > self._limits.tar_extended_bytes:
            raise UnsafeFile(f"an extended header is called {header.name[:80]!r} and has {header.size} bytes")
        self._check_extent(header.name, position, header.size)
        return _records(self._source.read_at(position, header.size))

    def _check_extent(self, name: str, start: int, size: int) -> None:
        end = start + size
        if start + _padded(size) > self._source.size:
            raise UnreadableFile(f"member {name!r} ends at {end} of {self._source.size} bytes: the file was cut short")
        if self._source.read_at(end, _padded(size) - size).strip(b"\0"):
            raise UnsafeFile(f"something is hidden behind member {name!r}")

    def _check_end(self, position: int) -> None:
        rest = self._source.size - position
        if rest < _END:
            raise UnreadableFile("the archive has no end: the file was cut short")
        if rest >= _END + _RECORD or self._source.read_at(position, rest).strip(b"\0"):
            raise UnsafeFile(f"{rest} bytes behind the last member are no padding")


def is_header(block: bytes) -> bool:
    """Whether Python's ``tarfile`` would take a block for the header of a member, with or without a magic number."""
    if len(block) < BLOCK:
        return False
    try:
        told = _lenient_number(block[_CHECKSUM])
    except ValueError:
        return False
    plain = block[:148] + b" " * 8 + block[156:BLOCK]
    negative = sum(256 for byte in plain if byte > 127)
    return told in (sum(plain), sum(plain) - negative)


def _lenient_number(field: bytes) -> int:
    """A number as ``tarfile.nti`` reads it: octal text as ``int()`` takes it, or binary behind a marker."""
    if field[0] in (0o200, 0o377):
        number = int.from_bytes(field[1:], "big")
        return number - 256 ** (len(field) - 1) if field[0] == 0o377 else number
    return int(field.partition(b"\0")[0].decode("ascii").strip() or "0", 8)


def _parse(block: bytes) -> _Header:
    if _number(block[_CHECKSUM]) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        raise UnreadableFile("a tar header disagrees with its checksum")
    if block[257:265] != b"ustar\x0000":
        raise UnsafeFile("a tar header is of another kind than torch's")
    name, link, prefix = _text(block[:100]), _text(block[157:257]), _text(block[345:500])
    if link or prefix or block[500:].strip(b"\0"):
        raise UnsafeFile(f"the tar header of {name[:80]!r} holds a link, a folder, or hidden bytes")
    return _Header(name, _number(block[124:136]), block[156:157])


def _text(field: bytes) -> str:
    text, _, rest = field.partition(b"\0")
    if rest.strip(b"\0") or not text.isascii():
        raise UnsafeFile(f"a tar header holds the odd name {field[:80]!r}")
    return text.decode("ascii")


def _number(field: bytes) -> int:
    octal = _OCTAL.fullmatch(field)
    if octal is None:
        raise UnsafeFile(f"a tar header holds the odd number {field!r}")
    return int(octal[1], 8)


def _records(data: bytes) -> dict[str, str]:
    """The ``length keyword=value`` lines of an extended header; the length counts the whole line."""
    found: dict[str, str] = {}
    position = 0
    while position < len(data):
        length = _RECORD_LENGTH.match(data, position)
        line = data[position : position + int(length[1])] if length is not None else b""
        if length is None or not line.endswith(b"\n") or len(line) != int(length[1]):
            raise UnsafeFile("an extended header of the tar archive is malformed")
        keyword, equals, text = line[length.end() - position : -1].decode("utf-8", "replace").partition("=")
        if not equals or keyword not in _KEYWORDS or keyword in found:
            raise UnsafeFile(f"an extended header of the tar archive sets {keyword[:80]!r}, which torch never does")
        found[keyword] = text
        position += len(line)
    return found


def _size(header: _Header, extended: dict[str, str]) -> int:
    """A member's size; one of 8 GiB or more does not fit the header, which then says 0."""
    told = extended.get("size")
    if told is None:
        return header.size
    if header.size or not _DECIMAL.fullmatch(told):
        raise UnsafeFile(f"member {header.name!r} has two sizes, {header.size} and {told[:40]!r}")
    return int(told)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
