"""Hostile archives: files of ``torch.save`` rewritten by a writer that can lie in every field.

Unless a case says otherwise the model inside is healthy, so that a reader which trusts the first thing it finds calls
the file clean. Two readers that disagree on what an archive holds are how scanners are bypassed: ambiguity is refused.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from bncheck import readers
from bncheck.core.errors import UnreadableFile
from bncheck.readers.sniff import sniff as true_sniff
from tests.readers.hostile import (
    AUDITED,
    BROKEN,
    EITHER,
    POP,
    PROTO2,
    REFUSED,
    STOP,
    SYSTEM,
    TRACE,
    Case,
    Entry,
    Watched,
    Zip64,
    call,
    encoded_name,
    faulty,
    harmless,
    healthy_module,
    healthy_network,
    healthy_state_dict,
    judge,
    pack,
    saved,
    unread_member,
    variance_member,
    watch,
)

PAYLOAD = PROTO2 + SYSTEM + STOP
MAX_32 = 0xFFFFFFFF
UNSAFE = ("unsafe-file",)
FOREIGN = ("unsafe-file", "unreadable-file", "unsupported-file")


def members() -> list[Entry]:
    """The healthy file's members, the pickle first."""
    return healthy_state_dict().entries()


def altered(
    name: str,
    field: str,
    told: object,
    kinds: tuple[str, ...] = UNSAFE,
    which: Callable[[list[Entry]], Entry] = lambda entries: entries[0],
) -> Case:
    """One header field of one member forged."""

    def make() -> bytes:
        entries = members()
        setattr(which(entries), field, told)
        return pack(entries)

    return Case(name, make, kinds=kinds)


def added(name: str, *more: Entry, kinds: tuple[str, ...] = UNSAFE, first: bool = False, live: bool = False) -> Case:
    """Members beside the healthy ones."""
    return Case(name, lambda: pack([*more, *members()] if first else [*members(), *more]), kinds=kinds, live=live)


def framed(name: str, kinds: tuple[str, ...] = UNSAFE, **lies: object) -> Case:
    """The archive as a whole forged."""
    return Case(name, lambda: pack(members(), **lies), kinds=kinds)  # type: ignore[arg-type]


WHICH: dict[str, Callable[[list[Entry]], Entry]] = {
    "pickle": lambda entries: entries[0],
    "statistics": variance_member,
    "unread": unread_member,
}
FLAGS = [
    *(
        Case(
            f"flag-{flag:#x}-{which}",
            lambda flag=flag, which=which: both(WHICH[which], "flags", 0x800 | flag),  # type: ignore[misc]
            kinds=UNSAFE,
        )
        for flag in (0x1, 0x20, 0x40, 0x2000, 0x41)
        for which in WHICH
    ),
    *(altered(f"flags-differ-{which}", "local_flags", 0x801, which=WHICH[which]) for which in WHICH),
    *(altered(f"local-name-{which}", "local_name", "archive/another", which=WHICH[which]) for which in WHICH),
    altered("local-name-longer", "local_name", "archive/data.pkl\0x"),
    altered("local-name-shorter", "local_name", "archive/data.pk"),
    altered("local-method", "local_method", 8),
    altered("local-magic", "local_magic", b"PK\3\5", which=variance_member),
    altered("local-crc", "local_crc", 1),
    altered("local-size", "local_size", 1),
    altered("local-packed", "local_packed", 1),
    altered("method-unknown", "method", 12),
    altered("two-sizes", "packed", 10),
    altered("size-beyond-file", "size", 2**31, kinds=EITHER),
    altered("offset-beyond-file", "offset", 2**31, kinds=EITHER),
    altered("other-disk", "disk", 1),
    altered("symlink", "mode", 0o120777, which=variance_member),
    altered("device", "mode", 0o020666, which=unread_member),
    altered("pipe", "mode", 0o010666, which=unread_member),
    altered("socket", "mode", 0o140666, which=unread_member),
]


def both(which: Callable[[list[Entry]], Entry], field: str, told: object) -> bytes:
    """A field forged alike in both headers."""
    entries = members()
    setattr(which(entries), field, told)
    return pack(entries)


NAMES = [
    *(
        added(f"name-{kind}", Entry(name, b"x"))
        for kind, name in {
            "parent": "../x",
            "parent-inside": "archive/../../x",
            "parent-deep": "archive/data/../../../x",
            "absolute": "/etc/x",
            "backslash": "archive\\..\\x",
            "empty": "",
            "empty-part": "archive//x",
            "nul": "archive/x\0.pkl",
            "escape": "archive/\x1b[2J",
            "newline": "archive/a\n::error::b",
            "not-utf8": b"archive/\xff\xfe",
            "override": "archive/\u202elkp.atad",
        }.items()
    ),
    *(
        added(f"twin-{kind}", Entry(name, data), kinds=EITHER)
        for kind, (name, data) in {
            "pickle": ("archive/data.pkl", PAYLOAD),
            "pickle-case": ("archive/DATA.PKL", PAYLOAD),
            "pickle-folder-case": ("Archive/data.pkl", PAYLOAD),
            "pickle-elsewhere": ("other/data.pkl", PAYLOAD),
            "pickle-at-root": ("data.pkl", PAYLOAD),
            "pickle-deeper": ("archive/archive/data.pkl", PAYLOAD),
            "pickle-fullwidth": ("archive/\uff44ata.pkl", PAYLOAD),
            "pickle-ligature": ("archive/data.p\u212a\uff4c", PAYLOAD),
            "storage": ("archive/data/4", bytes(32)),
            "storage-case": ("archive/DATA/4", bytes(32)),
            "storage-superscript": ("archive/data/\u2074", bytes(32)),
            "byteorder": ("archive/byteorder", b"big"),
        }.items()
    ),
    added("twin-of-composed", Entry("archive/\u00e9"), Entry("archive/e\u0301")),
    # torch takes the folder of the first member for its own.
    added("first-member-elsewhere", Entry("other/version", b"3\n"), first=True, kinds=EITHER),
    added("payload-first", Entry("archive/data.pkl", PAYLOAD), first=True, kinds=EITHER, live=True),
]


def overlapping() -> bytes:
    """The statistics' directory entry points at the bytes of another member."""
    entries = members()
    taken = variance_member(entries)
    entries[-1].offset = 0
    entries[-1].name = taken.name
    taken.listed = False
    return pack(entries)


def quoted() -> bytes:
    """A member whose data is a whole other member that the directory also lists."""
    entries = members()
    inner = pack([Entry("archive/inner", b"x" * 40)])
    entries.insert(1, Entry("archive/outer", inner))
    before = len(pack(entries[:1])) - len(pack([])) - 46 - len("archive/data.pkl")
    entries.append(Entry("archive/inner", b"x" * 40, written=False, offset=before + 30 + len("archive/outer")))
    return pack(entries)


def kept_twice() -> bytes:
    """Two directory entries of one local header."""
    entries = members()
    entries.append(Entry("archive/again", entries[0].data, written=False, offset=0))
    return pack(entries)


def widened(central: int, local: int) -> bytes:
    """The pickle's size in zip64 fields, which differ between the two headers."""
    entries = members()
    first, length = entries[0], len(entries[0].data)
    first.size = first.packed = MAX_32
    first.extra = struct.pack("<2H2Q", 1, 16, length + central, length + central)
    first.local_size = first.local_packed = MAX_32
    first.local_extra = struct.pack("<2H2Q", 1, 16, length + local, length + local)
    return pack(entries)


def widened_without_need() -> bytes:
    """A zip64 field that contradicts sizes which are no maximum."""
    entries = members()
    entries[0].extra = struct.pack("<2H2Q", 1, 16, 1, 1)
    return pack(entries)


def field_missing() -> bytes:
    """A size that refers to a zip64 field which is not there."""
    entries = members()
    entries[0].size = entries[0].packed = MAX_32
    return pack(entries)


LAYOUT = [
    framed("data-before", before=b"#!/bin/sh\n", kinds=FOREIGN),
    framed("pickle-before", before=PAYLOAD, kinds=FOREIGN),
    framed("member-before", before=pack([Entry("archive/data.pkl", PAYLOAD)])),
    framed("offsets-of-data-before-untold", before=b"PK\3\4" + bytes(60)),
    # Of no consequence to torch, and a padded archive is conceivable; a hidden member is not.
    framed("data-between", between=b"x" * 10, kinds=(*UNSAFE, *AUDITED)),
    framed("member-between", between=pack([Entry("archive/data.pkl", PAYLOAD)])[: 30 + 16 + len(PAYLOAD)]),
    framed("data-behind", behind=b"x"),
    framed("pickle-behind", behind=PAYLOAD),
    framed("zip-behind", behind=pack([Entry("archive/data.pkl", PAYLOAD)]), kinds=EITHER),
    framed("comment", comment=b"hello"),
    framed("comment-with-end-record", comment=struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0), kinds=EITHER),
    framed("count-too-small", count=3),
    framed("count-too-large", count=300, kinds=EITHER),
    framed("count-zero", count=0, kinds=FOREIGN),
    framed("directory-size-zero", size=0, kinds=EITHER),
    framed("directory-elsewhere", offset=0, kinds=EITHER),
    framed("directory-beyond-file", offset=2**31, kinds=EITHER),
    framed("directory-of-4-GiB", size=MAX_32 - 1, kinds=EITHER),
    framed("million-claimed", kinds=EITHER, count=0xFFFF, zip64=Zip64(count=1_000_001)),
    framed("2**60-claimed", kinds=EITHER, count=0xFFFF, zip64=Zip64(count=2**60)),
    framed("zip64-without-record", count=0xFFFF),
    framed("zip64-offset-without-record", offset=MAX_32),
    framed("zip64-count-differs", zip64=Zip64(count=3)),
    framed("zip64-offset-differs", zip64=Zip64(offset=0)),
    framed("zip64-size-differs", zip64=Zip64(size=46)),
    framed("zip64-locator-astray", zip64=Zip64(locator=0)),
    framed("zip64-locator-beyond", zip64=Zip64(locator=2**63)),
    framed("zip64-magic", zip64=Zip64(magic=b"PK\6\7")),
    framed("zip64-length", zip64=Zip64(length=60)),
    framed("zip64-disk", zip64=Zip64(disk=1)),
    framed("zip64-disks", zip64=Zip64(disks=2)),
    Case("zip64-field-lies", lambda: widened(1, 1), kinds=EITHER),
    Case("zip64-field-huge", lambda: widened(2**62, 2**62), kinds=EITHER),
    Case("zip64-fields-contradict", lambda: widened(0, 7), kinds=EITHER),
    # APPNOTE 4.5.3: the field counts only for values that are the maximum.
    Case("zip64-field-without-need", widened_without_need, kinds=(*EITHER, *AUDITED)),
    Case("zip64-field-missing", field_missing),
    Case("overlap", overlapping, kinds=EITHER),
    Case("member-inside-member", quoted),
    Case("one-header-twice", kept_twice),
    Case("cut-short", lambda: pack(members())[:-40], kinds=EITHER),
    Case("cut-in-half", lambda: pack(members())[: len(pack(members())) // 2], kinds=BROKEN),
    Case("only-magic", lambda: b"PK\3\4", kinds=EITHER),
    Case("only-end", lambda: pack([]), kinds=FOREIGN),
    Case("empty", lambda: b"", kinds=BROKEN),
    Case("no-pickle", lambda: pack(members()[1:]), kinds=FOREIGN),
    Case("nested-zip", lambda: pack([Entry("archive/model.pt", pack(members()))]), kinds=FOREIGN),
    Case("pickle-is-zip", lambda: healthy_state_dict().archive(pack(members())), kinds=EITHER),
    Case("byteorder-forged", lambda: both_byteorder(b"middle"), kinds=EITHER),
    harmless("rewritten", lambda: pack(members())),
    harmless("rewritten-zip64", lambda: pack(members(), zip64=Zip64())),
    harmless(
        "rewritten-zip64-maxima", lambda: pack(members(), count=0xFFFF, offset=MAX_32, size=MAX_32, zip64=Zip64())
    ),
    harmless("rewritten-zip64-fields", lambda: widened(0, 0)),
    harmless("foreign-member", lambda: pack([*members(), Entry("archive/extra/notes.json", b"{}")])),
    harmless(
        "nested-zip-beside", lambda: pack([*members(), Entry("archive/extra/a.zip", pack([Entry("../x", b"x")]))])
    ),
    harmless("deflated", lambda: pack(deflated(members()))),
]


def both_byteorder(order: bytes) -> bytes:
    """Another byte order."""
    entries = members()
    next(entry for entry in entries if encoded_name(entry).endswith("byteorder")).data = order
    return pack(entries)


def deflated(entries: list[Entry]) -> list[Entry]:
    """All members packed, as tools that repack archives do."""
    for entry in entries:
        entry.method = 8
    return entries


def crc_of(which: Callable[[list[Entry]], Entry], crc: int) -> bytes:
    """A member's checksum forged in both headers."""
    entries = members()
    which(entries).crc = crc
    return pack(entries)


# torch reads on where a checksum is wrong, and so must the audit; it says so (test below).
CHECKSUMS = [
    harmless("crc-wrong-pickle", lambda: crc_of(WHICH["pickle"], 1)),
    harmless("crc-wrong-statistics", lambda: crc_of(WHICH["statistics"], 1)),
    harmless("crc-off", lambda: pack([crcless(entry) for entry in members()])),
    Case("crc-wrong-and-payload", lambda: crc_and_payload(), says="posix.system", live=True),
]


def crcless(entry: Entry) -> Entry:
    """As torch writes it where checksums are switched off."""
    entry.crc = 0
    return entry


def crc_and_payload() -> bytes:
    """A wrong checksum makes zipfile-based scanners give up before they see the payload."""
    entries = healthy_state_dict().entries(PROTO2 + SYSTEM + POP + healthy_state_dict().body + STOP)
    entries[0].crc = 1
    return pack(entries)


def swollen(pickle: bytes, size: int | None = None) -> bytes:
    """The healthy file, its pickle replaced and deflated, with a size declared."""
    entries = healthy_state_dict().entries(pickle)
    entries[0].method, entries[0].size = 8, size
    return pack(entries)


def long_text(length: int) -> bytes:
    """Beside the model a text of one astral character and many plain ones: four bytes of memory for each."""
    raw = "\U0001f40d".encode() + b"a" * length
    return PROTO2 + b"X" + struct.pack("<I", len(raw)) + raw + POP + healthy_state_dict().body + STOP


BOMBS = [
    Case("bomb-of-280-MB", lambda: swollen(PROTO2 + b"N0" * 140_000_000 + b"N."), kinds=EITHER),
    Case("bomb-that-hides-its-size", lambda: swollen(PROTO2 + b"N0" * 20_000_000 + b"N.", size=100), kinds=EITHER),
    Case("bomb-that-claims-4-GiB", lambda: swollen(PROTO2 + b"N.", size=MAX_32 - 1), kinds=EITHER),
    Case("bomb-of-text", lambda: swollen(long_text(240_000_000)), kinds=(*EITHER, *AUDITED)),
    Case("bomb-of-statistics", lambda: statistics_bomb(), kinds=(*EITHER, "unread")),
    Case("members-10**6", lambda: crowd(1_000_001), kinds=EITHER),
    Case("deflate-broken", lambda: deflate_broken(), kinds=REFUSED),
    Case("deflate-unfinished", lambda: deflate_broken(cut=True), kinds=REFUSED),
]


def statistics_bomb() -> bytes:
    """A storage of 32 bytes that unpacks to 300 MB."""
    entries = members()
    target = variance_member(entries)
    target.data, target.method, target.size = bytes(300_000_000), 8, 32
    return pack(entries)


def crowd(count: int) -> bytes:
    """Directory entries beyond number, all of one name."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    body = pack(members()[:1], count=0)[: 30 + 16 + len(members()[0].data)]
    directory = entry * count
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), len(body))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(body) + len(directory), 1)
    return body + directory + end + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, MAX_32, MAX_32, 0)


def deflate_broken(*, cut: bool = False) -> bytes:
    """A member called deflated that is not, or whose stream breaks off."""
    entries = members()
    target = variance_member(entries)
    true = target.data
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = engine.compress(true) + engine.flush(zlib.Z_SYNC_FLUSH if cut else zlib.Z_FINISH)
    body = packed if cut else b"\xff" * 16
    at = pack(entries).index(true)
    target.data, target.method, target.crc, target.size = body, 0, 0, len(body)
    out = bytearray(pack(entries))
    name = encoded_name(target).encode()
    for magic, field, size in ((b"PK\3\4", 8, 22), (b"PK\1\2", 10, 24)):
        header = next(m.start() for m in re.finditer(re.escape(magic), out) if name in out[m.start() : m.start() + 80])
        struct.pack_into("<H", out, header + field, 8)
        struct.pack_into("<L", out, header + size, len(true))
    assert at > 0
    return bytes(out)


def wrapped(magic: bytes) -> bytes:
    """A healthy file behind another format's signature."""
    return magic + pack(members())


# Content decides, never the extension.
EXTENSIONS = [
    *(
        harmless(f"called-{filename}", lambda: pack(members()), filename=filename)
        for filename in (
            "model",
            "model.txt",
            "model.safetensors",
            "model.h5",
            "model.onnx",
            "model.zip",
            "model.pt.gz",
        )
    ),
    *(
        Case(
            f"payload-called-{filename}",
            lambda: healthy_state_dict().beside(SYSTEM),
            says="posix.system",
            filename=filename,
        )
        for filename in ("model", "model.txt", "model.safetensors", "model.h5", "model.npy", "README.md")
    ),
    Case("module-called-txt", lambda: healthy_module().beside(call("os:system", "true")), filename="model.txt"),
    *(
        Case(f"wrapped-in-{kind}", lambda magic=magic: wrapped(magic), kinds=FOREIGN)  # type: ignore[misc]
        for kind, magic in {
            "gzip": b"\x1f\x8b\x08\0",
            "7z": b"7z\xbc\xaf\x27\x1c",
            "xz": b"\xfd7zXZ\0",
            "bzip2": b"BZh9",
            "zstd": b"\x28\xb5\x2f\xfd",
            "rar": b"Rar!\x1a\x07",
            "pickle": PAYLOAD,
            "html": b"<html>",
            "nothing": b"\0" * 64,
        }.items()
    ),
]

CASES = [*FLAGS, *NAMES, *LAYOUT, *CHECKSUMS, *BOMBS, *EXTENSIONS]

# --- names and numbers that reach the user -----------------------------------------------------------

EVIL_NAMES = {
    "clear-screen": "a\x1b[2J\x1b[H",
    "title": "a\x1b]0;owned\x07",
    "c1-control": "a\x9b31m",
    "markup": "[bold red]a[/bold red]",
    "markup-unclosed": "[/]a[",
    "workflow-command": "::error file=x::pwned",
    "workflow-command-on-line": "a\n::error file=x::pwned",
    "workflow-percent": "a%0A::error::pwned",
    "azure-command": "a\n##vso[task.setvariable variable=x]y",
    "carriage-return": "a\rclean",
    "line-separator": "a\u2028b\u0085c",
    "html": "<script>alert(1)</script>",
    "override": "a\u202eb\u2066c",
    "surrogate": "a\ud800",
    "nul": "a\0b",
    "long": "a" * 4_000,
    "link": "[link=https://example.org]a[/link]",
    "format": "{path} {0} %s %n",
}
FORMATS = {
    "text": ("--show-passed",),
    "json": ("--format", "json"),
}


def not_finite() -> bytes:
    """Running variances that are NaN and infinite."""
    entries = members()
    target = variance_member(entries)
    count = len(target.data) // 4
    target.data = struct.pack(f"<{count}f", float("nan"), float("inf"), float("-inf"), *[1.0] * (count - 3))
    return pack(entries)


PRINTED = [
    *(
        Case(f"{kind}-{form}", lambda name=name: faulty(name), kinds=AUDITED, exits=(1,), arguments=arguments)  # type: ignore[misc]
        for kind, name in EVIL_NAMES.items()
        for form, arguments in FORMATS.items()
    ),
    *(
        Case(f"file-{kind}-{form}", data, kinds=kinds, filename=filename, arguments=arguments)
        for form, arguments in FORMATS.items()
        for kind, filename in {"escape": "\x1b[2Jm.pt", "newline": "m\n::error::x.pt", "markup": "[red]m.pt"}.items()
        for data, kinds in [(lambda: healthy_state_dict().beside(SYSTEM), UNSAFE)]
    ),
    *(
        Case(f"member-{form}", lambda: pack([*members(), Entry("a/\x1b[2J\n::error::", b"x")]), arguments=arguments)
        for form, arguments in FORMATS.items()
    ),
    Case("not-finite-json", not_finite, kinds=AUDITED, exits=(1,)),
    Case("not-finite-text", not_finite, kinds=AUDITED, exits=(1,), arguments=FORMATS["text"]),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    return watch(tmp_path_factory.mktemp("archives"), [*CASES, *PRINTED])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hostile_zip(case: Case, results: dict[str, Watched]) -> None:
    judge(case, results)


@pytest.mark.parametrize(("case", "remarks"), [("crc-wrong-pickle", 1), ("crc-wrong-statistics", 1), ("crc-off", 0)])
def test_wrong_checksum_is_remarked(case: str, remarks: int, results: dict[str, Watched]) -> None:
    document = results[case].document
    assert isinstance(document["subjects"], list)
    assert len(document["subjects"][0]["remarks"]) == remarks


@pytest.mark.parametrize("case", PRINTED, ids=str)
def test_nothing_in_a_file_steers_the_terminal(case: Case, results: dict[str, Watched]) -> None:
    seen = results[case.name]
    assert not seen.deeds
    assert not seen.files
    assert seen.exit == (1 if case.kinds == AUDITED else 2), (seen.out[-500:], seen.err[-500:])
    assert "Traceback" not in seen.err
    printed = seen.out + seen.err
    assert all(letter.isprintable() or letter == "\n" for letter in printed)
    assert not any(line.lstrip().startswith(("::", "##vso", "%0A")) for line in printed.splitlines())
    if "json" in case.arguments:
        assert seen.document["summary"]


@pytest.mark.parametrize("kind", [kind for kind, name in EVIL_NAMES.items() if name.isascii() and name.isprintable()])
def test_printable_names_come_out_as_they_are(kind: str, results: dict[str, Watched]) -> None:
    name = EVIL_NAMES[kind]
    [subject] = results[f"{kind}-json"].document["subjects"]  # type: ignore[misc]
    assert any(name in layer["name"] for layer in subject["layers"])
    if len(name) < 100 and "::" not in name:
        assert name in re.sub(r"\n\s*", " ", results[f"{kind}-text"].out)


def test_torch_reads_what_the_writer_here_writes(tmp_path: Path) -> None:
    """The rewritten file is the same model to torch, so that the cases above differ in the attack alone."""
    import torch

    path = tmp_path / "model.pt"
    path.write_bytes(pack(members()))
    assert torch.load(path, weights_only=True).keys() == healthy_network().state_dict().keys()  # type: ignore[attr-defined]


def test_file_swapped_after_sniffing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at is what is read: the path is not opened twice."""
    path, other = tmp_path / "model.pt", tmp_path / "other.pt"
    path.write_bytes(healthy_state_dict().archive())
    other.write_bytes(saved({"other.weight": None}))

    def swap(source: object) -> object:
        container = true_sniff(source)  # type: ignore[arg-type]
        os.replace(other, path)
        return container

    monkeypatch.setattr(readers, "sniff", swap)
    assert [layer.name for layer in readers.read(str(path)).layers] == ["1"]
    assert not other.exists()


def test_file_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(healthy_state_dict().archive())

    def cut(source: object) -> object:
        container = true_sniff(source)  # type: ignore[arg-type]
        os.truncate(path, 100)
        return container

    monkeypatch.setattr(readers, "sniff", cut)
    with pytest.raises(UnreadableFile):
        readers.read(str(path))


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing", "device", "endless", "dangling", "looping", "nul"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """Opening a pipe waits for its writer, and a device never ends."""
    path = tmp_path / "model.pt"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
        case "looping":
            path.symlink_to(path)
    name = {"device": "/dev/null", "endless": "/dev/zero", "nul": "mo\0del.pt"}.get(kind, str(path))
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            readers.read(name)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert [type(failure) for failure in failures] == [UnreadableFile]


def test_nothing_is_left_beside_the_file(results: dict[str, Watched], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Members named ``../x`` would land beside the folder the audit ran in."""
    base = tmp_path_factory.getbasetemp()
    assert not [
        path for path in base.rglob("*") if path.name == "x" or (path.name == TRACE and "load" not in path.parts)
    ]
