"""Mutations of zip archives: of a member inside a truthful archive, and of the archive's own records."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from random import Random

from tests.fuzzing.pieces import INTEGERS, Whole, change_bytes, how_many
from tests.readers.hostile import Entry, Zip64, encoded_name, pack


def entries_of(archive: bytes) -> list[Entry]:
    """The members of a seed."""
    with zipfile.ZipFile(BytesIO(archive)) as opened:
        return [Entry(info.filename, opened.read(info)) for info in opened.infolist()]


def member_wholes(
    archive: bytes, wanted: Callable[[str], bool], split: Callable[[bytes], Sequence[bytes]]
) -> list[Whole]:
    """A whole for each member of a seed whose name is wanted: the member as pieces, the archive around it as it was."""
    entries = entries_of(archive)
    return [
        Whole(tuple(split(entry.data)), _Around(tuple(entries), place))
        for place, entry in enumerate(entries)
        if wanted(encoded_name(entry))
    ]


@dataclass(frozen=True, slots=True)
class _Around:
    entries: tuple[Entry, ...]
    place: int

    def __call__(self, pieces: Sequence[bytes]) -> bytes:
        entries = list(self.entries)
        entries[self.place] = replace(entries[self.place], data=b"".join(pieces))
        return pack(entries)


# --- the archive's records ---------------------------------------------------------------------------------

_NUMBERS = ("method", "flags", "mode", "disk", "crc", "size", "packed", "offset")
_LOCAL_NUMBERS = ("local_method", "local_flags", "local_crc", "local_size", "local_packed")
_BYTES = ("extra", "local_extra", "local_magic")
_FLAGS = (0, 1, 2, 8, 0x20, 0x40, 0x800, 0x808, 0x2000, 0xFFFF)
_METHODS = (0, 8, 8, 8, 1, 9, 12, 14, 99, 0xFFFF)
_MODES = (0, 0o100644, 0o120777, 0o040755, 0o020644, 0o777)


@dataclass(frozen=True, slots=True)
class ArchiveMaker:
    """Inputs that are archives with fields, members or bytes changed."""

    archives: Sequence[Sequence[Entry]]

    def __call__(self, random: Random) -> bytes:
        """One input."""
        entries = [replace(entry) for entry in random.choice(self.archives)]
        told: dict[str, object] = {}
        for _ in range(how_many(random)):
            random.choice(_CHANGES)(random, entries, self.archives)
            if random.random() < 0.15:
                told |= _framing(random, entries)
        try:
            made = pack(entries, **told)  # type: ignore[arg-type]
        except (struct.error, OverflowError):
            made = pack([replace(entry) for entry in random.choice(self.archives)])
        if random.random() < 0.35:
            return _change_records(random, made)
        return made


def _number(random: Random, field: str) -> int:
    known = {"flags": _FLAGS, "method": _METHODS, "mode": _MODES}.get(field.removeprefix("local_"))
    if known is not None and random.random() < 0.9:
        return random.choice(known)
    return random.choice((*INTEGERS, 30, 46, 100)) % (0xFFFF if known is not None or field == "disk" else 0xFFFFFFFF)


def _forge_number(random: Random, entries: list[Entry], _: object) -> None:
    if entries:
        field = random.choice((*_NUMBERS, *_LOCAL_NUMBERS))
        setattr(random.choice(entries), field, _number(random, field))


def _off_by(random: Random, entries: list[Entry], _: object) -> None:
    """A size or an offset near the true one, in both headers or in one."""
    if not entries:
        return
    entry = random.choice(entries)
    field = random.choice(("size", "packed", "local_size", "local_packed", "offset"))
    true = 64 * random.randrange(20) if field == "offset" else len(entry.data)
    setattr(entry, field, max(0, true + random.choice((-64, -1, 1, 4, 64, 16_384))))


def _forge_bytes(random: Random, entries: list[Entry], _: object) -> None:
    if not entries:
        return
    field = random.choice(_BYTES)
    if field == "local_magic":
        told = random.choice((b"PK\x01\x02", b"PK\x05\x06", b"PK\x07\x08", b"\0\0\0\0"))
    else:
        sizes = struct.pack("<3Q", *(random.choice(INTEGERS) % 2**64 for _ in range(3)))
        told = struct.pack("<HH", random.choice((1, 1, 0x7075, 0x9901)), random.choice((8, 16, 24, 0, 65_535))) + sizes
        told = told[: random.choice((28, 12, 20, 3))]
    setattr(random.choice(entries), field, told)


def _deflate_truly(random: Random, entries: list[Entry], _: object) -> None:
    if entries:
        random.choice(entries).method = 8


def _rename(random: Random, entries: list[Entry], _: object) -> None:
    if not entries:
        return
    entry, other = random.choice(entries), random.choice(entries)
    name = encoded_name(entry)
    told = random.choice(
        (
            encoded_name(other),
            name.upper(),
            name.rpartition("/")[2],
            f"../{name}",
            f"/{name}",
            f"{name}/",
            name.replace("/", "\\"),
            f"x/{name}",
            name + "\x00",
            name + "\u200b",
            "",
            b"\xff\xfe",
            "archive/data.pkl",
            "archive/constants.pkl",
            "archive/version",
            "archive/data/0",
            "archive/byteorder",
            "archive/code/__torch__.py",
            "archive/models/model.json",
        )
    )
    if random.random() < 0.6:
        entry.name = told
    else:
        entry.local_name = told


def _drop(random: Random, entries: list[Entry], _: object) -> None:
    if entries:
        del entries[random.randrange(len(entries))]


def _repeat(random: Random, entries: list[Entry], _: object) -> None:
    if entries:
        entries.insert(random.randrange(len(entries) + 1), replace(random.choice(entries)))


def _swap(random: Random, entries: list[Entry], _: object) -> None:
    if len(entries) > 1:
        first, second = random.sample(range(len(entries)), 2)
        entries[first], entries[second] = entries[second], entries[first]


def _exchange_data(random: Random, entries: list[Entry], archives: Sequence[Sequence[Entry]]) -> None:
    if entries:
        random.choice(entries).data = random.choice(random.choice(archives)).data


def _splice(random: Random, entries: list[Entry], archives: Sequence[Sequence[Entry]]) -> None:
    donor = random.choice(random.choice(archives))
    entries.insert(random.randrange(len(entries) + 1), replace(donor))


def _change_data(random: Random, entries: list[Entry], _: object) -> None:
    if not entries:
        return
    entry = random.choice(entries)
    match random.randrange(6):
        case 0:
            entry.data = entry.data[: random.randrange(len(entry.data) + 1)]
        case 1:
            entry.data += random.randbytes(random.choice((1, 4, 64)))
        case 2:
            entry.data = pack([entry])
        case 3:
            entry.data = random.choice((b"", b"big", b"little", b"middle", b"\x80\x02N."))
        case 4 if random.random() < 0.05:
            entry.data, entry.method = bytes(random.choice((2**20, 2**23))), 8
        case _:
            entry.data = change_bytes(random, entry.data)


def _hide(random: Random, entries: list[Entry], _: object) -> None:
    if entries:
        entry = random.choice(entries)
        if random.random() < 0.5:
            entry.listed = False
        else:
            entry.written = False


_CHANGES = (
    *(_forge_number, _forge_number, _forge_number, _off_by, _off_by, _forge_bytes, _deflate_truly, _rename, _rename),
    *(_drop, _repeat, _swap, _exchange_data, _splice, _change_data, _change_data, _change_data, _hide),
)


def _framing(random: Random, entries: Sequence[Entry]) -> dict[str, object]:
    """Something of the archive as a whole, told wrongly."""
    match random.randrange(6):
        case 0:
            field = random.choice(("count", "size", "offset"))
            limit = 0xFFFF if field == "count" else 0xFFFFFFFF
            return {field: random.choice((*INTEGERS, len(entries) + 1, len(entries) - 1)) % (limit + 1)}
        case 1:
            where = random.choice(("before", "between", "behind", "comment"))
            return {where: random.choice((b"\0", b"PK\x05\x06" + bytes(18), b"PK\x03\x04", random.randbytes(40)))}
        case 2:
            return {"comment": pack(entries[:1]) if entries else b""}
        case 3:
            return {"before": pack(entries[:1]) if entries else b""}
        case _:
            lies = {
                field: random.choice(INTEGERS) % 2**32
                for field in ("count", "size", "offset", "length", "locator", "disk", "disks")
                if random.random() < 0.25
            }
            forged = random.choice(({}, {}, {"count": 0xFFFF}, {"size": 0xFFFFFFFF}, {"offset": 0xFFFFFFFF}))
            return {"zip64": Zip64(**lies), **forged}


def _change_records(random: Random, archive: bytes) -> bytes:
    """Bytes of one record changed: the local header, the directory or the end."""
    magic = random.choice((b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"))
    places = [place for place in range(len(archive)) if archive.startswith(magic, place)]
    if not places or random.random() < 0.2:
        return change_bytes(random, archive)
    start = random.choice(places)
    return archive[:start] + change_bytes(random, archive[start : start + 80]) + archive[start + 80 :]
