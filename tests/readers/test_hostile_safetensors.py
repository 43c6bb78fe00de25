"""Hostile safetensors files: a healthy file's header rewritten by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import pytest

from tests.readers.hostile import (
    AUDITED,
    BROKEN,
    EITHER,
    REFUSED,
    SYSTEM,
    Case,
    Watched,
    harmless,
    healthy_state_dict,
    judge,
    watch,
)

FOREIGN = ("unsafe-file", "unreadable-file", "unsupported-file")
FOUR = struct.pack("<4f", 0.5, 1.0, 1.5, 2.0)
LEAVES = ("weight", "bias", "running_mean", "running_var")
Header = dict[str, dict[str, object]]


def healthy_header() -> Header:
    """A batch norm of four channels, its tensors one after the other."""
    return {
        f"bn.{leaf}": {"dtype": "F32", "shape": [4], "data_offsets": [16 * n, 16 * n + 16]}
        for n, leaf in enumerate(LEAVES)
    }


def written(header: object, data: bytes = FOUR * 4, *, length: int | None = None) -> bytes:
    """The file of a header, which may be bytes already, and its data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def forged(name: str, field: str, told: object, kinds: tuple[str, ...] = BROKEN) -> Case:
    """One field of the running variance's entry forged."""

    def make() -> bytes:
        header = healthy_header()
        header["bn.running_var"][field] = told
        return written(header)

    return Case(name, make, kinds=kinds)


def raw(name: str, make: Callable[[], bytes], kinds: tuple[str, ...] = BROKEN) -> Case:
    """A header given as bytes."""
    return Case(name, lambda: written(make()), kinds=kinds)


def twice() -> bytes:
    """A JSON object in which one name occurs twice; readers differ on which one counts."""
    text = json.dumps(healthy_header())
    return (text[:-1] + ', "bn.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}').encode()


def with_more(more: dict[str, object], data: bytes = b"") -> bytes:
    """Entries beside the healthy ones."""
    return written(healthy_header() | more, FOUR * 4 + data)


def many(count: int) -> bytes:
    """A header of very many empty tensors."""
    return written({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(count)}, b"")


CASES = [
    harmless("healthy", lambda: written(healthy_header())),
    harmless("called-pt", lambda: written(healthy_header()), filename="model.pt"),
    harmless("called-bin", lambda: written(healthy_header()), filename="pytorch_model.bin"),
    harmless("padded", lambda: written(json.dumps(healthy_header()).encode() + b"   ")),
    harmless("metadata", lambda: with_more({"__metadata__": {"format": "pt"}})),
    Case("header-longer-than-file", lambda: written(healthy_header(), length=10**6), kinds=BROKEN),
    Case("header-2**47", lambda: written(healthy_header(), length=2**47), kinds=BROKEN),
    Case("header-2**63", lambda: written(healthy_header(), length=2**63), kinds=FOREIGN),
    Case("header-2**64-1", lambda: written(healthy_header(), length=2**64 - 1), kinds=FOREIGN),
    Case(
        "header-one-short",
        lambda: written(healthy_header(), length=len(json.dumps(healthy_header())) - 1),
        kinds=BROKEN,
    ),
    Case("header-zero", lambda: written(b"{", length=0), kinds=FOREIGN),
    Case("header-of-110-MB", lambda: written(b"{" + b" " * 110_000_000 + b"}"), kinds=BROKEN),
    Case("header-of-lists", lambda: written(b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"), kinds=EITHER),
    Case("header-of-objects", lambda: written(b'{"a":[' + b"{}," * 10_000_000 + b"{}]}"), kinds=EITHER),
    Case("header-of-tensors", lambda: many(100_000), kinds=(*EITHER, "unsupported-file", *AUDITED), exits=(0, 3)),
    Case("only-length", lambda: bytes(8), kinds=FOREIGN),
    Case("three-bytes", lambda: b"\2\0\0", kinds=FOREIGN),
    Case("cut-short", lambda: written(healthy_header())[:-1], kinds=EITHER),
    raw("not-an-object", lambda: b"[1, 2, 3]", FOREIGN),
    raw("text", lambda: b'"{}"', FOREIGN),
    raw("space-first", lambda: b" " + json.dumps(healthy_header()).encode(), FOREIGN),
    raw("not-utf8", lambda: json.dumps(healthy_header()).encode().replace(b"bn.bias", b"bn.\xff\xfe")),
    raw("utf16", lambda: b"{" + json.dumps(healthy_header()).encode("utf-16")),
    raw("bom", lambda: "\ufeff".encode() + json.dumps(healthy_header()).encode(), FOREIGN),
    raw("nested-100000", lambda: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    raw("nested-objects", lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    raw("duplicate-name", twice),
    raw(
        "duplicate-field",
        lambda: json.dumps(healthy_header()).encode().replace(b'"shape": [4]', b'"shape": [4], "shape": [4]', 1),
    ),
    raw("trailing-text", lambda: json.dumps(healthy_header()).encode() + b"{}"),
    raw("integer-of-10**5-digits", lambda: b'{"a":' + b"9" * 100_000 + b"}"),
    raw("nan", lambda: b'{"a": NaN}'),
    raw("unclosed", lambda: json.dumps(healthy_header()).encode()[:-1]),
    forged("dtype-unknown", "dtype", "F31", REFUSED),
    forged("dtype-number", "dtype", 32),
    forged("dtype-wider", "dtype", "F64"),
    forged("dtype-narrower", "dtype", "F16"),
    forged("shape-negative", "shape", [-4]),
    forged("shape-two-negatives", "shape", [-2, -2]),
    forged("shape-float", "shape", [4.0]),
    forged("shape-bool", "shape", [True]),
    forged("shape-text", "shape", "4"),
    forged("shape-none", "shape", None),
    forged("shape-larger", "shape", [5]),
    forged("shape-overflows", "shape", [2**62, 4, 2**62]),
    forged("shape-wraps-to-four", "shape", [2**63 + 2, 2]),
    forged("shape-of-10**5", "shape", [1] * 100_000),
    forged("offsets-negative", "data_offsets", [-16, 0]),
    forged("offsets-reversed", "data_offsets", [64, 48]),
    forged("offsets-beyond", "data_offsets", [64, 80]),
    forged("offsets-huge", "data_offsets", [2**64 - 16, 2**64]),
    forged("offsets-float", "data_offsets", [48.0, 64.0]),
    forged("offsets-bool", "data_offsets", [False, True]),
    forged("offsets-one", "data_offsets", [48]),
    forged("offsets-three", "data_offsets", [48, 64, 80]),
    forged("offsets-overlap", "data_offsets", [40, 56], EITHER),
    forged("offsets-alias", "data_offsets", [32, 48], EITHER),
    forged("more-fields", "extra", 1),
    Case("entry-is-list", lambda: with_more({"x": [1]}), kinds=BROKEN),
    Case("entry-is-number", lambda: with_more({"x": 1}), kinds=BROKEN),
    Case("entry-is-empty", lambda: with_more({"x": {}}), kinds=BROKEN),
    Case("bytes-behind", lambda: written(healthy_header(), FOUR * 4 + b"x"), kinds=EITHER),
    Case("payload-behind", lambda: written(healthy_header(), FOUR * 4 + SYSTEM), kinds=EITHER),
    Case("zip-behind", lambda: written(healthy_header(), FOUR * 4 + healthy_state_dict().archive()), kinds=EITHER),
    Case(
        "hole",
        lambda: with_more({"x": {"dtype": "F32", "shape": [4], "data_offsets": [80, 96]}}, FOUR * 2),
        kinds=EITHER,
    ),
    Case(
        "empty-and-huge",
        lambda: with_more({"b.running_mean": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [64, 64]}}),
        kinds=(*REFUSED, *AUDITED),
        exits=(1,),
    ),
    Case(
        "empty-and-overflowing",
        lambda: with_more({"b.running_mean": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [64, 64]}}),
        kinds=(*REFUSED, *AUDITED),
        exits=(1,),
    ),
    Case(
        "statistics-of-65-dimensions",
        lambda: with_more({"b.running_mean": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [64, 80]}}, FOUR),
        kinds=(*REFUSED, *AUDITED),
    ),
    Case(
        "statistics-without-end",
        lambda: with_more(
            {"b.running_mean": {"dtype": "U8", "shape": [2**23], "data_offsets": [64, 64 + 2**23]}}, bytes(2**23)
        ),
        kinds=REFUSED,
    ),
    Case("metadata-of-numbers", lambda: with_more({"__metadata__": {"a": 1}}), kinds=(*BROKEN, *AUDITED)),
    Case("metadata-is-list", lambda: with_more({"__metadata__": [1]}), kinds=(*BROKEN, *AUDITED)),
]
EVIL_NAMES = {
    "surrogate": "a\ud800.running_mean",
    "escape": "a\x1b[2J.running_mean",
    "workflow-command": "a\n::error::x.running_mean",
    "empty": "",
    "dots": "...",
    "long": "a." * 50_000 + "running_mean",
}
PRINTED = [
    Case(
        f"name-{kind}-{form}",
        lambda name=name: with_more({name: {"dtype": "F32", "shape": [4], "data_offsets": [64, 80]}}, FOUR),  # type: ignore[misc]
        kinds=AUDITED,
        arguments=arguments,
    )
    for kind, name in EVIL_NAMES.items()
    for form, arguments in {"text": ("--show-passed",), "json": ("--format", "json")}.items()
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    return watch(tmp_path_factory.mktemp("safetensors"), [*CASES, *PRINTED])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hostile_safetensors(case: Case, results: dict[str, Watched]) -> None:
    judge(case, results)


@pytest.mark.parametrize("case", PRINTED, ids=str)
def test_names_do_not_steer_the_terminal(case: Case, results: dict[str, Watched]) -> None:
    seen = results[case.name]
    assert not seen.deeds
    assert not seen.files
    assert seen.exit in (0, 1, 2), seen.err[-500:]
    assert "Traceback" not in seen.err
    assert all(letter.isprintable() or letter == "\n" for letter in seen.out + seen.err)
    assert not any(line.lstrip().startswith("::") for line in seen.out.splitlines())
    if "json" in case.arguments:
        assert seen.document["summary"]
