"""Mutations of the formats torch wrote before zip archives: several pickles in a row, and tar archives of such."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tests.fuzzing.pickles import opcodes
from tests.fuzzing.pieces import INTEGERS, Whole, change_bytes, joined

_BLOCK = 512
_WORD = 8


def stream_pieces(stream: bytes) -> list[bytes]:
    """The opcodes of every pickle at the stream's beginning; what follows in words of eight bytes."""
    pieces: list[bytes] = []
    while stream:
        try:
            taken = opcodes(stream)
        except (ValueError, IndexError, UnicodeDecodeError, KeyError):
            break
        stream = b"" if taken[-1] == b"." else taken.pop()
        pieces += taken
    return pieces + [stream[start : start + _WORD] for start in range(0, len(stream), _WORD)]


def stream_wholes(stream: bytes) -> list[Whole]:
    """The stream as one whole."""
    return [Whole(tuple(stream_pieces(stream)), joined)]


# --- tar ---------------------------------------------------------------------------------------------------


def _members(archive: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return [(entry.name, opened.extractfile(entry).read()) for entry in opened]  # type: ignore[union-attr]


def _packed(members: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class _Around:
    members: tuple[tuple[str, bytes], ...]
    place: int

    def __call__(self, pieces: Sequence[bytes]) -> bytes:
        members = list(self.members)
        members[self.place] = (members[self.place][0], b"".join(pieces))
        return _packed(members)


def tar_wholes(archive: bytes) -> list[Whole]:
    """A whole for each member: ``tensors`` and ``storages`` alternate between pickles and binary numbers."""
    members = tuple(_members(archive))
    return [
        Whole(tuple(opcodes(data) if name == "pickle" else _records(data)), _Around(members, place))
        for place, (name, data) in enumerate(members)
    ]


def _records(data: bytes) -> list[bytes]:
    """The first pickle's opcodes, then at each later pickle's start its opcodes again."""
    pieces: list[bytes] = []
    while data:
        start = data.find(b"\x80\x02")
        if start < 0:
            break
        pieces += [data[place : min(place + _WORD, start)] for place in range(0, start, _WORD)]
        try:
            taken = opcodes(data[start:])
        except (ValueError, IndexError, UnicodeDecodeError, KeyError):
            data = data[start:]
            break
        data = b"" if taken[-1] == b"." else taken.pop()
        pieces += taken
    return pieces + [data[place : place + _WORD] for place in range(0, len(data), _WORD)]


# Fields of a header block: first byte, last byte + 1.
_FIELDS = (
    (0, 100),
    (100, 108),
    (124, 136),
    (124, 136),
    (124, 136),
    (136, 148),
    (156, 157),
    (156, 157),
    (157, 257),
    (257, 263),
    (263, 265),
    (265, 297),
    (345, 500),
)
_CHECKSUM = slice(148, 156)
_TYPES = (b"0", b"\0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", b"7")
_NAMES = (
    b"pickle",
    b"tensors",
    b"storages",
    b"sys_info",
    b"../pickle",
    b"/etc/passwd",
    b"././@PaxHeader",
    b"",
    b"Pickle",
)


@dataclass(frozen=True, slots=True)
class TarMaker:
    """Inputs that are archives with fields of headers changed, most with a true checksum, or blocks moved about."""

    archives: Sequence[bytes]

    def __call__(self, random: Random) -> bytes:
        """One input."""
        members = _members(random.choice(self.archives))
        if random.random() < 0.3:
            place = random.randrange(len(members))
            members.insert(random.randrange(4), (random.choice(_NAMES).decode() or "x", members[place][1]))
        made = bytearray(_packed(members))
        for _ in range(random.choice((1, 1, 2, 3))):
            headers = [place for place in range(0, len(made), _BLOCK) if made[place + 257 : place + 262] == b"ustar"]
            if not headers:
                break
            start = random.choice(headers)
            if random.random() < 0.15:
                self._move_block(random, made, start)
            else:
                self._forge_field(random, made, start)
        return bytes(made) if random.random() < 0.9 else bytes(made[: random.randrange(len(made))])

    def _move_block(self, random: Random, made: bytearray, start: int) -> None:
        block = made[start : start + _BLOCK]
        if random.random() < 0.5:
            del made[start : start + _BLOCK]
        place = _BLOCK * random.randrange(len(made) // _BLOCK + 1)
        made[place:place] = block

    def _forge_field(self, random: Random, made: bytearray, start: int) -> None:
        begin, end = random.choice(_FIELDS)
        width = end - begin
        number = random.choice((*INTEGERS, _BLOCK, 20 * _BLOCK))
        match begin:
            case 156:
                told = random.choice(_TYPES)
            case 0 | 157 | 345:
                told = random.choice(_NAMES)
            case _ if random.random() < 0.3:
                told = b"\x80" + (number % 256 ** (width - 1)).to_bytes(width - 1, "big") if width > 1 else b"0"
            case _ if random.random() < 0.3:
                told = change_bytes(random, bytes(made[start + begin : start + end]))
            case _:
                told = b"%o" % abs(number)
        made[start + begin : start + end] = told[:width].ljust(width, b"\0")
        if random.random() < 0.85:
            made[start + _CHECKSUM.start : start + _CHECKSUM.stop] = b" " * 8
            total = sum(made[start : start + _BLOCK])
            made[start + _CHECKSUM.start : start + _CHECKSUM.stop] = b"%06o\0 " % total
