"""Hostile files in the two forms that ``torch.save`` wrote before its zip archives.

Unless a case says otherwise a healthy model lies in the file as well, so that a reader which overlooks the attack calls
it clean. Live cases are loaded with torch, to see that the payload does run there.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from bncheck.readers.torch_legacy import MAGIC_NUMBER
from fixtures.tar_writer import FIRST_KEY, TarMembers, packed
from tests.readers.hostile import (
    AUDITED,
    BROKEN,
    COMMAND,
    EITHER,
    EMPTY_DICT,
    POP,
    PROTO2,
    PROTO4,
    REFUSED,
    STOP,
    SYSTEM,
    TRACE,
    Case,
    Entry,
    Watched,
    build,
    call,
    get,
    harmless,
    healthy_network,
    judge,
    new,
    number,
    pack,
    put,
    ref,
    stack_ref,
    text,
    value,
    watch,
)

UNSAFE = ("unsafe-file",)
UNSUPPORTED = ("unsupported-file",)
FOREIGN = ("unsafe-file", "unreadable-file", "unsupported-file")
PAYLOAD = PROTO2 + SYSTEM + STOP
FACTS = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 8}}


def plain(item: object) -> bytes:
    """A whole pickle of one value."""
    return PROTO2 + value(item) + STOP


def keys_of(*keys: str) -> bytes:
    """A key list."""
    return plain(list(keys))


def laid(*storages: tuple[int, bytes]) -> bytes:
    """Storages as they lie behind one another: the number of elements told, and the bytes."""
    return b"".join(struct.pack("<q", numel) + data for numel, data in storages)


def loud(pickle: bytes) -> bytes:
    """The pickle with a payload before what it holds, and the same value."""
    return pickle[:2] + SYSTEM + POP + pickle[2:]


# --- the stream --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """A legacy stream taken apart."""

    magic: bytes
    version: bytes
    facts: bytes
    object: bytes
    keys: bytes
    storages: bytes

    def joined(self, behind: bytes = b"", **parts: bytes) -> bytes:
        """The stream again, some parts replaced."""
        told = replace(self, **parts)
        return told.magic + told.version + told.facts + told.object + told.keys + told.storages + behind

    def beside(self, payload: bytes, proto: bytes = PROTO2) -> bytes:
        """The model and a payload in one dict."""
        pair = text("model") + self.object[2:-1] + b"s" + text("extra") + payload + b"s"
        return self.joined(object=proto + EMPTY_DICT + pair + STOP)


def _taken_apart(thing: object) -> Stream:
    import torch

    buffer = io.BytesIO()
    torch.save(thing, buffer, _use_new_zipfile_serialization=False)
    data, ends = buffer.getvalue(), [0]
    buffer.seek(0)
    for _ in range(5):
        list(pickletools.genops(buffer))
        ends.append(buffer.tell())
    pickles = [data[start:end] for start, end in pairwise(ends)]
    return Stream(*pickles, data[ends[-1] :])


@cache
def healthy() -> Stream:
    """The healthy network's state dict in the old form."""
    return _taken_apart(healthy_network().state_dict())  # type: ignore[attr-defined]


@cache
def healthy_module() -> Stream:
    """The network itself."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _taken_apart(healthy_network())


def stored(
    key: object = "s",
    numel: object = 4,
    kind: object = b"ctorch\nFloatStorage\n",
    view: object = None,
    tag: object = "storage",
) -> bytes:
    """BINPERSID of the tuple torch writes, any part of it forged."""
    return value((tag, kind, key, "cpu", numel, view)) + b"Q"


def tensor(shape: object = (4,), strides: object = (1,), offset: object = 0, *, of: bytes | None = None) -> bytes:
    """A call of torch's rebuild function."""
    parts = stored() if of is None else of, offset, shape, strides, False, call("collections:OrderedDict")
    return call("torch._utils:_rebuild_tensor_v2", *parts)


FLOATS = struct.pack("<4f", 0.5, 1.0, 1.5, 2.0)


def written(
    mean: bytes,
    *,
    keys: bytes | None = None,
    storages: bytes | None = None,
    var: bytes | None = None,
    extra: bytes = b"",
) -> bytes:
    """A stream written by hand: one batch norm, its running mean as told, all other tensors in storage ``s``."""
    state = {
        "bn.weight": tensor(),
        "bn.bias": tensor(),
        "bn.running_mean": mean,
        "bn.running_var": tensor() if var is None else var,
        **({"extra": extra} if extra else {}),
    }
    return healthy().joined(
        object=plain(state),
        keys=keys_of("s") if keys is None else keys,
        storages=laid((4, FLOATS)) if storages is None else storages,
    )


def stream(
    name: str,
    make: Callable[[], bytes],
    kinds: tuple[str, ...] = UNSAFE,
    *,
    says: str = "",
    live: bool = False,
) -> Case:
    """A case of the old stream."""
    return Case(f"stream-{name}", make, kinds=kinds, says=says, live=live)


def part(name: str, kinds: tuple[str, ...] = UNSAFE, *, says: str = "", live: bool = False, **parts: bytes) -> Case:
    """The healthy stream with parts replaced."""
    return stream(name, lambda: healthy().joined(**parts), kinds, says=says, live=live)


EVAL = f"__import__('os').system({COMMAND!r})"
HEX = f"{MAGIC_NUMBER:x}"
HEADER = [
    # The first pickle: what is no constant is not torch's, whatever it would come to.
    part("magic-behind-payload", UNSUPPORTED, magic=loud(plain(MAGIC_NUMBER)), live=True),
    part("magic-is-payload", UNSUPPORTED, magic=PAYLOAD, live=True),
    part(
        "magic-by-eval",
        UNSUPPORTED,
        magic=PROTO2 + call("builtins:eval", f"{EVAL} * 0 + 0x{HEX}") + STOP,
        live=True,
    ),
    part("magic-by-int", UNSUPPORTED, magic=PROTO2 + call("builtins:int", HEX, 16) + STOP),
    part("magic-by-text-call", FOREIGN, magic=b"cbuiltins\nint\n(S'" + HEX.encode() + b"'\nI16\ntR."),
    part("magic-from-memo", UNSUPPORTED, magic=PROTO2 + number(MAGIC_NUMBER) + put(1) + POP + get(1) + STOP),
    part("magic-wrong", UNSUPPORTED, magic=plain(MAGIC_NUMBER + 1)),
    part("magic-negative", UNSUPPORTED, magic=plain(-MAGIC_NUMBER)),
    part("magic-missing", UNSUPPORTED, magic=b""),
    # The second and third: plain values, or the file is refused.
    part("version-behind-payload", version=loud(plain(1001)), says="posix.system", live=True),
    part("version-is-payload", version=PAYLOAD, says="posix.system", live=True),
    part("version-by-int", version=PROTO2 + call("builtins:int", "1001") + STOP, says="builtins.int"),
    part("version-1002", UNSUPPORTED, version=plain(1002)),
    part("version-is-text", UNSUPPORTED, version=plain("1001")),
    part("version-is-float", UNSUPPORTED, version=plain(1001.0)),
    part("facts-behind-payload", facts=loud(plain(FACTS)), says="posix.system", live=True),
    part("facts-is-payload", facts=PAYLOAD, says="posix.system", live=True),
    part("facts-by-dict", facts=PROTO2 + call("builtins:dict") + STOP, says="builtins.dict"),
    part("facts-by-ordered-dict", facts=PROTO2 + call("collections:OrderedDict") + STOP, says="OrderedDict"),
    part("facts-newobj", facts=PROTO2 + new("torch.nn.modules.module:Module") + STOP, says="torch.nn"),
    part("facts-list", BROKEN, facts=plain([1, 2])),
    part("facts-none", BROKEN, facts=plain(None)),
    part("facts-hold-a-name", BROKEN, facts=PROTO2 + value({"little_endian": ref("posix:system")}) + STOP),
    part("facts-hold-lists", BROKEN, facts=plain({"type_sizes": {"short": [1]}})),
    part("facts-keyed-by-numbers", BROKEN, facts=plain({1: 1})),
    part("facts-persistent-id", EITHER, facts=PROTO2 + text("x") + b"Q" + STOP),
    part("facts-10**4", BROKEN, facts=plain({f"k{n}": n for n in range(10_000)})),
    part("facts-declare-2**63", BROKEN, facts=PROTO4 + b"\x8d" + struct.pack("<Q", 2**63) + STOP),
    part("facts-missing", EITHER, facts=b""),
    harmless("stream-unchanged", lambda: healthy().joined()),
    harmless("stream-of-module", lambda: healthy_module().joined()),
    harmless("stream-by-hand", lambda: written(tensor()), exits=(0, 1)),
]

# --- the object --------------------------------------------------------------------------------------

SOURCE = f"import os; os.system({COMMAND!r})"
CALLS: dict[str, tuple[bytes, str]] = {
    "reduce": (SYSTEM, "posix.system"),
    "stack-global": (call(stack_ref("posix:system"), COMMAND), "posix.system"),
    "inst": (b"(" + text(COMMAND) + b"iposix\nsystem\n", "posix.system"),
    "obj": (b"(" + ref("posix:system") + text(COMMAND) + b"o", "posix.system"),
    "newobj": (new("builtins:bytes", new("builtins:map", b"cposix\nsystem\n", [COMMAND])), "builtins.map"),
    "in-persistent-id": (stored(SYSTEM), "posix.system"),
    "in-view": (stored(view=("v", 0, SYSTEM)), "posix.system"),
    "in-tensor": (tensor((SYSTEM,)), "posix.system"),
    "eval": (call("builtins:eval", EVAL), "builtins.eval"),
    "popen": (call("subprocess:Popen", ["touch", TRACE]), "subprocess.Popen"),
    "open": (call("builtins:open", TRACE, "w"), "builtins.open"),
    "timeit": (call("timeit:timeit", "0", SOURCE, ref("timeit:default_timer"), 1), "timeit.timeit"),
    "torch-save": (call("torch:save", [1], TRACE), "torch.save"),
    "partial": (call(call("functools:partial", ref("os:system"), COMMAND)), "os.system"),
    # A module's class is named by a persistent id, which torch takes as it is.
    "module-id": (call(value(("module", ref("posix:system"), None, None)) + b"Q", COMMAND), "posix.system"),
    "module-id-called": (value(("module", SYSTEM, None, None)) + b"Q", "posix.system"),
}
NAMED: dict[str, bytes] = {
    "setstate-on-module-id": build(
        value(("module", ref("torch.nn.modules.module:Module"), None, None)) + b"Q", {"forward": ref("posix:system")}
    ),
    "dotted": call(value(("module", stack_ref("pathlib:os.system"), None, None)) + b"Q", COMMAND),
    "nested-stream": call("torch.storage:_load_from_bytes", call("_codecs:encode", "x", "latin1")),
    "load": call("torch:load", "x"),
    "getattr": call(call("builtins:getattr", ref("shutil:os"), "system"), COMMAND),
    "extension": b"\x82\x01",
}
IDS: dict[str, bytes] = {
    "int": value(1) + b"Q",
    "str": text("s") + b"Q",
    "none": b"NQ",
    "list": value(["storage", ref("torch:FloatStorage"), "s", "cpu", 4, None]) + b"Q",
    "as-in-zips": value(("storage", ref("torch:FloatStorage"), "s", "cpu", 4)) + b"Q",
    "long-tuple": value(("storage", ref("torch:FloatStorage"), "s", "cpu", 4, None, None)) + b"Q",
    "bytes-tag": stored(tag=b"C\x07storage"),
    "int-key": stored(0),
    "tuple-key": stored(("s",)),
    "negative-numel": stored("s", -1),
    "huge-numel": stored("s", 2**62),
    "huger-numel": stored("s", 2**200),
    "float-numel": stored("s", 4.0),
    "function-kind": stored(kind=ref("posix:system")),
    "foreign-kind": stored(kind=ref("builtins:FloatStorage")),
    "unknown-kind": stored(kind=ref("torch:HugeStorage")),
    "str-kind": stored(kind="FloatStorage"),
    "module-of-text": value(("module", "torch.nn.Module", None, None)) + b"Q",
    "module-of-a-call": value(("module", call("collections:OrderedDict"), None, None)) + b"Q",
    "module-with-odd-source": value(("module", ref("torch.nn:Module"), 1, 2)) + b"Q",
    "module-short": value(("module", ref("torch.nn:Module"))) + b"Q",
    "other-tag": value(("class", ref("torch.nn:Module"), None, None)) + b"Q",
    "view-list": stored(view=["v", 0, 4]),
    "view-text": stored(view="v"),
    "view-short": stored(view=("v", 0)),
    "view-negative": stored(view=("v", -1, 4)),
    "view-past-the-end": stored(view=("v", 1, 4)),
    "view-huge": stored(view=("v", 0, 2**62)),
    "view-huger": stored(view=("v", 2**2000, 4)),
    "view-of-untyped": stored("s", 16, ref("torch.storage:UntypedStorage"), ("v", 0, 4)),
}
FIRST_TYPED = stored("s", 4, ref("torch:FloatStorage"))
OBJECT = [
    *(
        stream(f"call-{kind}", lambda code=code: healthy().beside(code, PROTO4), EITHER, says=says, live=True)  # type: ignore[misc]
        for kind, (code, says) in CALLS.items()
    ),
    *(stream(f"named-{kind}", lambda code=code: healthy().beside(code, PROTO4)) for kind, code in NAMED.items()),  # type: ignore[misc]
    stream("call-in-module", lambda: healthy_module().beside(SYSTEM), says="posix.system", live=True),
    stream(
        "call-before-object", lambda: healthy().joined(object=loud(healthy().object)), says="posix.system", live=True
    ),
    part("call-instead-of-object", object=PAYLOAD, says="posix.system", live=True),
    stream(
        "call-then-broken",
        lambda: healthy().joined(object=PROTO2 + SYSTEM + b"\xff" + healthy().object),
        EITHER,
        says="posix.system",
        live=True,
    ),
    *(stream(f"id-{kind}", lambda code=code: healthy().beside(code), BROKEN) for kind, code in IDS.items()),  # type: ignore[misc]
    stream("text-persistent-id", lambda: healthy().beside(b"Ps\n")),
    stream("object-twice", lambda: healthy().joined(object=healthy().object * 2), EITHER),
    stream("object-missing", lambda: healthy().joined(object=b""), EITHER),
    stream("object-unfinished", lambda: healthy().joined(object=healthy().object[:-1]), EITHER),
    *(
        stream(f"numel-{name}", lambda other=other: written(tensor(of=stored("s", *other))))  # type: ignore[misc]
        for name, other in {
            "of-one-key-differs": (3,),
            "of-one-key-0": (0,),
            "type-of-one-key-differs": (4, ref("torch:IntStorage")),
            "width-of-one-key-differs": (2, ref("torch:DoubleStorage")),
        }.items()
    ),
    stream("view-named-as-a-storage", lambda: written(tensor(of=stored(view=("s", 0, 4))))),
    stream(
        "view-described-in-two-ways",
        lambda: written(tensor(of=stored(view=("v", 0, 4))), var=tensor((2,), of=stored(view=("v", 2, 2)))),
    ),
    harmless("stream-with-views", lambda: written(tensor(of=stored(view=("v", 0, 4)))), exits=(0, 1)),
    *(
        stream(f"view-{name}", lambda view=view: written(tensor(*view)), REFUSED)  # type: ignore[misc]
        for name, view in {
            "past-the-end": ((5,), (1,), 0),
            "offset-past-the-end": ((4,), (1,), 1),
            "offset-negative": ((4,), (1,), -1),
            "stride-huge": ((2,), (2**61,), 0),
            "product-overflows": ((2**32, 2**32, 4), (0, 0, 1), 0),
            "expanded-2**40": ((2**40,), (0,), 0),
        }.items()
    ),
    # A view that fits its own part and not the storage behind it, or the other way round.
    stream("view-past-its-part", lambda: written(tensor((4,), of=stored(view=("v", 1, 3)))), REFUSED),
    stream(
        "type-told-twice",
        lambda: written(
            call(
                "torch._utils:_rebuild_tensor_v3",
                stored(),
                0,
                (4,),
                (1,),
                False,
                EMPTY_DICT,
                ref("torch:float16"),
            )
        ),
        REFUSED,
    ),
]

# --- keys and storages -------------------------------------------------------------------------------


def lists(name: str, keys: bytes, kinds: tuple[str, ...] = UNSAFE, *, says: str = "", live: bool = False) -> Case:
    """The hand-written stream with another key list."""
    return stream(f"keys-{name}", lambda: written(tensor(), keys=keys), kinds, says=says, live=live)


def lies(name: str, storages: bytes, kinds: tuple[str, ...] = EITHER, *, says: str = "") -> Case:
    """The hand-written stream with other storages."""
    return stream(f"storage-{name}", lambda: written(tensor(), storages=storages), kinds, says=says)


def doubled() -> bytes:
    """Two keys of which one is listed twice, and the other not at all."""
    return written(tensor(of=stored("t")), keys=keys_of("s", "s"), storages=laid((4, FLOATS), (4, FLOATS)))


KEYS = [
    lists("behind-payload", loud(keys_of("s")), says="posix.system", live=True),
    lists("is-payload", PAYLOAD, says="posix.system", live=True),
    lists("by-call", PROTO2 + call("builtins:list", value(("s",))) + STOP, says="builtins.list"),
    lists("twice", keys_of("s", "s"), EITHER),
    stream("keys-twice-and-one-missing", doubled),
    lists("empty", keys_of(), EITHER),
    lists("of-an-unknown-one", keys_of("s", "t"), EITHER),
    lists("of-another", keys_of("t"), EITHER),
    lists("tuple", plain(("s",)), BROKEN),
    lists("dict", plain({"s": 1}), BROKEN),
    lists("set", PROTO4 + b"\x8f(" + text("s") + b"\x90" + STOP, BROKEN),
    lists("none", plain(None), BROKEN),
    lists("text", plain("s"), BROKEN),
    lists("of-numbers", plain([1])),
    lists("of-names", PROTO2 + value([ref("posix:system")]) + STOP),
    lists("of-lists", plain([["s"]])),
    lists("persistent-id", PROTO2 + value([stored()]) + STOP, EITHER),
    lists("missing", b"", EITHER),
    lists("unfinished", keys_of("s")[:-1], EITHER),
    lists("long", keys_of("s", *(f"k{n}" for n in range(100_000))), EITHER),
    lists("declares-2**63", PROTO4 + b"\x8d" + struct.pack("<Q", 2**63) + STOP, BROKEN),
    stream(
        "keys-of-1-MiB",
        lambda: written(tensor(of=stored("k" * 2**20)), keys=keys_of("k" * 2**20, "s"), storages=laid((4, FLOATS)) * 2),
        AUDITED,
    ),
    *(
        lies(f"numel-{numel}", laid((numel, FLOATS)), BROKEN, says="elements where it lies")
        for numel in (0, 3, 5, -1, 16, 2**62, 2**63 - 1, -(2**63))
    ),
    lies("missing", b"", BROKEN, says="cut short"),
    lies("cut-short", laid((4, FLOATS[:-1])), BROKEN, says="cut short"),
    lies("byte-behind", laid((4, FLOATS)) + b"\0", says="behind its last storage"),
    lies("zeros-behind", laid((4, FLOATS)) + bytes(10_240), says="behind its last storage"),
    lies("payload-behind", laid((4, FLOATS)) + PAYLOAD, UNSAFE, says="behind its last storage"),
    lies("storage-behind", laid((4, FLOATS), (4, FLOATS)), UNSAFE, says="behind its last storage"),
    *(
        stream(
            f"storage-of-2**{bits}",
            lambda bits=bits: written(
                tensor(of=stored("t", 2**bits)), keys=keys_of("s", "t"), storages=laid((4, FLOATS), (2**bits, b""))
            ),  # type: ignore[misc]
            BROKEN,
            says="cut short",
        )
        for bits in (31, 32, 58, 59)
    ),
    stream(
        "storage-of-wider-type",
        lambda: written(
            tensor(of=stored("t", 4, ref("torch:DoubleStorage"))),
            keys=keys_of("s", "t"),
            storages=laid((4, FLOATS)) * 2,
        ),
        BROKEN,
    ),
    stream(
        "storage-of-narrower-type",
        lambda: written(
            tensor(of=stored("t", 4, ref("torch:HalfStorage"))), keys=keys_of("s", "t"), storages=laid((4, FLOATS)) * 2
        ),
        EITHER,
    ),
    stream("stream-behind", lambda: healthy().joined(behind=healthy().joined()), says="behind its last storage"),
    stream("stream-with-payload-behind", lambda: healthy().joined(behind=healthy().beside(SYSTEM))),
    stream("zip-behind", lambda: healthy().joined(behind=pack([Entry("a/data.pkl", PAYLOAD)]))),
    stream("tar-behind", lambda: healthy().joined(behind=packed({"pickle": PAYLOAD}))),
]

# --- work and memory ---------------------------------------------------------------------------------


def with_object(payload: Callable[[], bytes], behind: int = 0, proto: bytes = PROTO2) -> Callable[[], bytes]:
    """A stream whose object begins with a payload, and is followed by so many bytes of nothing."""
    return lambda: healthy().joined(object=proto + payload() + healthy().object[2:], behind=bytes(behind))


PADDING = 40_000_000  # larger than the windows in which the pickle is read
BOMBS = [
    stream("bomb-opcodes-padded", with_object(lambda: b"N0" * 2_600_000, PADDING), BROKEN),
    stream("bomb-open-dicts-padded", with_object(lambda: EMPTY_DICT * 1_500_000, PADDING), EITHER),
    stream("bomb-broken-late", with_object(lambda: (text("x" * 2**20) + POP) * 30 + b"\xff"), BROKEN),
    stream("bomb-endless", with_object(lambda: b"X" + struct.pack("<I", 2**31) + b"x" * PADDING), BROKEN),
    stream("bomb-endless-line", with_object(lambda: b"V" + b"x" * PADDING), EITHER),
    stream("bomb-declares-2**63", with_object(lambda: b"\x8d" + struct.pack("<Q", 2**63), proto=PROTO4), BROKEN),
    stream("bomb-frame-2**64", with_object(lambda: b"\x95" + b"\xff" * 8, PADDING, proto=PROTO4), EITHER),
    stream("bomb-nested-tuples", with_object(lambda: b")" + b"\x85" * 300_000 + POP), (*EITHER, *AUDITED)),
    stream("bomb-zeros", lambda: healthy().joined(object=bytes(PADDING)), BROKEN),
    stream(
        "bomb-aliases",
        lambda: written(tensor(), extra=value({f"t{n}": tensor((2**40,), (0,)) for n in range(2_000)})),
        (*EITHER, *AUDITED),
    ),
]

# --- the tar form ------------------------------------------------------------------------------------


@cache
def members() -> Mapping[str, bytes]:
    """The healthy network's state dict in the tar form, by member."""
    state = healthy_network().state_dict()  # type: ignore[attr-defined]
    return TarMembers({name: kept for name, kept in state.items() if "num_batches" not in name}).members


@dataclass(frozen=True)
class Member:
    """A member of an archive, any part of its header forged."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    size: int | None = None
    extended: tuple[tuple[str, str], ...] = ()
    form: int = tarfile.PAX_FORMAT
    change: Callable[[bytearray], None] | None = None


def archived(*chosen: Member, end: bytes | None = None) -> bytes:
    """An archive of these members."""
    out = bytearray()
    for member in chosen:
        entry = tarfile.TarInfo(member.name)
        entry.type, entry.linkname, entry.mtime = member.kind, member.link, 1_484_000_000
        entry.size = len(member.data) if member.size is None else member.size
        entry.pax_headers = dict(member.extended)
        header = bytearray(entry.tobuf(member.form))
        if member.change is not None:
            block = header[-512:]
            member.change(block)
            header[-512:] = block
        out += header + member.data + bytes(-len(member.data) % 512)
    return bytes(out) + (bytes(1024 + -(len(out) + 1024) % 10_240) if end is None else end)


def summed(block: bytearray) -> None:
    """Set the header's checksum right."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)


def field(start: int, data: bytes) -> Callable[[bytearray], None]:
    """A header field replaced, under a checksum that holds."""

    def change(block: bytearray) -> None:
        block[start : start + len(data)] = data
        summed(block)

    return change


def usual(**replaced: bytes) -> list[Member]:
    """The healthy members, the data of some replaced."""
    return [Member(name, replaced.get(name, data)) for name, data in members().items()]


def tar(
    name: str, make: Callable[[], bytes], kinds: tuple[str, ...] = UNSAFE, *, says: str = "", live: bool = False
) -> Case:
    """A case of the tar form."""
    return Case(f"tar-{name}", make, kinds=kinds, says=says, live=live)


def odd(name: str, kinds: tuple[str, ...] = UNSAFE, *, at: int = 3, live: bool = False, **forged: object) -> Case:
    """One member's header forged."""

    def make() -> bytes:
        chosen = usual()
        chosen[at] = replace(chosen[at], **forged)  # type: ignore[arg-type]
        return archived(*chosen)

    return tar(name, make, kinds, live=live)


def added(name: str, more: Member, kinds: tuple[str, ...] = UNSAFE, *, live: bool = False, at: int = 4) -> Case:
    """A member beside the healthy ones."""

    def make() -> bytes:
        chosen = usual()
        chosen.insert(at, more)
        return archived(*chosen)

    return tar(name, make, kinds, live=live)


def negative_sum(block: bytearray) -> None:
    """The checksum some old writers made, of signed bytes; Python's tarfile takes both."""
    block[265:268] = b"\xff\xfe\xfd"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) - 3 * 256)


ARCHIVE = [
    harmless("tar-unchanged", lambda: packed(dict(members()))),
    harmless("tar-by-hand", lambda: archived(*usual())),
    *(
        tar(f"without-{name}", lambda at=at: archived(*(usual()[:at] + usual()[at + 1 :])), FOREIGN)
        for at, name in enumerate(("sys_info", "pickle", "tensors", "storages"))
    ),  # type: ignore[misc]
    *(
        added(f"name-{kind}", Member(name, b"x"))
        for kind, name in {
            "other": "data.pkl",
            "parent": "../pickle",
            "absolute": "/pickle",
            "here": "./pickle",
            "below": "pickle/x",
            "case": "PICKLE",
            "empty": "",
            "not-ascii": "pïckle",
            "long": "x" * 150,
            "escape": "\x1b[2J",
            "newline": "a\n::error::b",
        }.items()
    ),
    # Python's tarfile takes the last of two.
    added("twin-pickle", Member("pickle", PAYLOAD), live=True),
    added("twin-pickle-first", Member("pickle", PAYLOAD), at=1),
    added("twin-storages", Member("storages", PAYLOAD), live=True),
    added("renamed-by-extended-header", Member("sys_info", PAYLOAD, extended=(("path", "pickle"),)), live=True),
    added("linked-by-extended-header", Member("sys_info", b"", extended=(("linkpath", "/etc/passwd"),))),
    *(
        added(f"kind-{name}", Member("x", b"", kind=kind, link="/etc/passwd"))
        for name, kind in {
            "symlink": tarfile.SYMTYPE,
            "link": tarfile.LNKTYPE,
            "folder": tarfile.DIRTYPE,
            "device": tarfile.CHRTYPE,
            "block-device": tarfile.BLKTYPE,
            "pipe": tarfile.FIFOTYPE,
            "contiguous": tarfile.CONTTYPE,
            "gnu-sparse": tarfile.GNUTYPE_SPARSE,
            "gnu-long-name": tarfile.GNUTYPE_LONGNAME,
            "global-header": tarfile.XGLTYPE,
            "solaris": tarfile.SOLARIS_XHDTYPE,
            "unknown": b"Z",
        }.items()
    ),
    odd("storages-is-a-symlink", kind=tarfile.SYMTYPE, link="/etc/passwd", data=b""),
    odd("storages-is-a-link", kind=tarfile.LNKTYPE, link="pickle", data=b""),
    odd("storages-is-a-device", kind=tarfile.CHRTYPE, data=b""),
    odd("old-kind", change=field(156, b"\0")),
    odd("gnu-magic", form=tarfile.GNU_FORMAT),
    odd("no-magic", change=field(257, bytes(8))),
    odd("folder", change=field(345, b"folder")),
    odd("link-name", change=field(157, b"x")),
    odd("hidden-bytes", change=field(500, b"x")),
    odd("hidden-behind-name", change=field(50, b"x")),
    odd("size-binary", EITHER, change=field(124, b"\x80" + bytes(9) + b"\x02\0")),
    odd("size-negative", EITHER, change=field(124, b"\xff" * 12)),
    odd("size-text", EITHER, change=field(124, b"0x000000010\0")),
    odd("size-beyond-file", BROKEN, size=2**32),
    odd("size-8-GiB", EITHER, change=field(124, b"77777777777\0")),
    odd("size-too-small", EITHER, size=512),
    odd("size-in-both-headers", extended=(("size", "512"),)),
    odd("size-in-extended-header-forged", EITHER, size=0, extended=(("size", "-1"),)),
    odd("size-in-extended-header-huge", EITHER, size=0, extended=(("size", str(2**62)),)),
    odd("checksum-wrong", BROKEN, change=lambda block: block.__setitem__(150, block[150] ^ 1)),
    odd("checksum-of-signed-bytes", EITHER, change=negative_sum),
    odd("checksum-text", EITHER, change=lambda block: block.__setitem__(slice(148, 156), b"0o7_7\0\0\0")),
    odd("extended-comment", extended=(("comment", "x"),)),
    odd("extended-sparse", extended=(("GNU.sparse.major", "1"), ("GNU.sparse.name", "pickle"))),
    odd("extended-charset", extended=(("hdrcharset", "BINARY"),)),
    odd("extended-long", extended=(("uname", "x" * 10_000),)),
    tar("extended-header-of-nothing", lambda: archived(*usual(), Member("././@PaxHeader", b"12 mtime=1\n", kind=b"x"))),
    tar(
        "extended-header-twice",
        lambda: archived(
            Member("././@PaxHeader", b"11 mtime=1\n", kind=b"x"),
            *[replace(each, extended=(("uname", "x"),)) for each in usual()],
        ),
        FOREIGN,
    ),
    *(
        tar(
            f"extended-{name}",
            lambda line=line: archived(usual()[0], Member("././@PaxHeader", line, kind=b"x"), *usual()[1:]),
        )  # type: ignore[misc]
        for name, line in {
            "length-short": b"3 mtime=1\n",
            "length-long": b"99 mtime=1\n",
            "length-zero": b"0 mtime=1\n",
            "length-negative": b"-11 mtime=1\n",
            "no-newline": b"10 mtime=1",
            "no-equals": b"9 mtime1\n",
            "twice": b"11 mtime=1\n11 mtime=2\n",
            "nul": b"11 mtime=1\0",
        }.items()
    ),
    tar(
        "padding-hidden",
        lambda: packed(dict(members())).replace(members()["sys_info"] + b"\0", members()["sys_info"] + b"x"),
    ),
    tar("byte-behind", lambda: packed(dict(members())) + b"x"),
    tar("payload-behind", lambda: archived(*usual(), end=bytes(1024) + PAYLOAD)),
    tar("tar-behind", lambda: packed(dict(members())) + packed({"pickle": PAYLOAD})),
    tar("stream-behind", lambda: packed(dict(members())) + healthy().joined()),
    tar("zip-behind", lambda: packed(dict(members())) + pack([Entry("a/data.pkl", PAYLOAD)])),
    tar("zeros-behind", lambda: packed(dict(members())) + bytes(PADDING)),
    tar("one-zero-block", lambda: archived(*usual(), end=bytes(512)), BROKEN),
    tar("no-end", lambda: archived(*usual(), end=b""), BROKEN),
    tar("only-header", lambda: packed(dict(members()))[:512], FOREIGN),
    tar("unfinished-block", lambda: archived(*usual(), end=bytes(100)), BROKEN),
]

# --- what is in it -----------------------------------------------------------------------------------


def cut(member: str) -> list[bytes]:
    """A member of pickles and binary numbers, taken apart behind its first two pickles."""
    data, ends = members()[member], [0]
    for _ in range(2):
        start = ends[-1]
        whole = io.BytesIO(data[start:])
        list(pickletools.genops(whole))
        ends.append(start + whole.tell())
    return [data[: ends[1]], data[ends[1] : ends[2]], data[ends[2] :]]


def holds(
    name: str, kinds: tuple[str, ...] = EITHER, *, says: str = "", live: bool = False, **replaced: Callable[[], bytes]
) -> Case:
    """The data of some members replaced."""
    return tar(
        name,
        lambda: archived(*usual(**{member: make() for member, make in replaced.items()})),
        kinds,
        says=says,
        live=live,
    )


def beside_in_tar(payload: bytes) -> Callable[[], bytes]:
    """The object's pickle with a payload beside the model."""
    return lambda: PROTO2 + value({"model": members()["pickle"][2:-1], "extra": payload}) + STOP


def with_storage(entry: object, numel: int = 4, data: bytes = FLOATS, views: object = ()) -> Callable[[], bytes]:
    """Storages: one told here, before the healthy ones."""

    def make() -> bytes:
        count = value(len(healthy_keys()) + 1)
        rest = b"".join(cut("storages")[1:])
        listed = rest[: -len(plain_empty())]
        told = PROTO2 + value(list(views) if isinstance(views, tuple) else views) + STOP
        return PROTO2 + count + STOP + plain(entry) + struct.pack("<q", numel) + data + listed + told

    return make


def plain_empty() -> bytes:
    """How Python pickles an empty list."""
    return pickle.dumps([], protocol=2)


@cache
def healthy_keys() -> list[int]:
    """Keys of the healthy tensors, of which every second is a storage's."""
    return [FIRST_KEY + 64 * n for n in range(pickle.loads(cut("tensors")[0]))]


FLOAT_STORAGE, FLOAT_TENSOR = ref("torch:FloatStorage"), ref("torch:FloatTensor")


def with_tensor(entry: object, sizes: bytes | None = None) -> Callable[[], bytes]:
    """Tensors: one told here, before the healthy ones."""

    def make() -> bytes:
        told = struct.pack("<ii3q", 1, 0, 4, 1, 0) if sizes is None else sizes
        return plain(len(healthy_keys()) + 1) + plain(entry) + told + b"".join(cut("tensors")[1:])

    return make


@cache
def a_storage() -> int:
    """The key of a healthy storage: of the second of the tensors, a batch norm's weight."""
    entry = pickle.loads(cut("tensors")[1])
    assert isinstance(entry[1], int)
    return entry[1]


CONTENTS = [
    holds("call-in-pickle", UNSAFE, pickle=beside_in_tar(SYSTEM), says="posix.system", live=True),
    holds("call-in-id", UNSAFE, pickle=beside_in_tar(SYSTEM + b"Q"), says="posix.system", live=True),
    holds(
        "call-of-module-id",
        UNSAFE,
        pickle=beside_in_tar(call(value((ref("posix:system"), None, None)) + b"Q", COMMAND)),
        says="posix.system",
        live=True,
    ),
    holds("call-instead-of-pickle", UNSAFE, pickle=lambda: PAYLOAD, says="posix.system", live=True),
    holds("call-in-sys-info", UNSAFE, sys_info=lambda: loud(members()["sys_info"]), says="posix.system"),
    holds("pickle-behind-sys-info", UNSAFE, sys_info=lambda: members()["sys_info"] + PAYLOAD),
    holds("pickle-behind-pickle", UNSAFE, pickle=lambda: members()["pickle"] + PAYLOAD),
    holds("pickle-behind-tensors", UNSAFE, tensors=lambda: members()["tensors"] + PAYLOAD),
    holds("pickle-behind-storages", UNSAFE, storages=lambda: members()["storages"] + PAYLOAD),
    *(
        holds(f"call-in-{member}-{at}", UNSAFE, says="posix.system", live=True, **{member: make})
        for member in ("tensors", "storages")
        for at, make in {
            "count": lambda member=member: loud(cut(member)[0]) + b"".join(cut(member)[1:]),  # type: ignore[misc]
            "entry": lambda member=member: cut(member)[0] + loud(cut(member)[1]) + cut(member)[2],  # type: ignore[misc]
        }.items()
    ),
    holds(
        "call-in-views",
        UNSAFE,
        storages=lambda: members()["storages"][: -len(plain_empty())] + loud(plain_empty()),
        says="posix.system",
        live=True,
    ),
    *(
        holds(
            f"{member}-count-{name}",
            BROKEN,
            **{member: lambda member=member, count=count: plain(count) + b"".join(cut(member)[1:])},
        )  # type: ignore[misc]
        for member in ("tensors", "storages")
        for name, count in {
            "none": None,
            "text": "1",
            "negative": -1,
            "10**9": 10**9,
            "2**70": 2**70,
            "bool": True,
        }.items()
    ),
    *(
        holds(f"{member}-{name}", **{member: make})
        for member in ("tensors", "storages", "pickle", "sys_info")
        for name, make in {
            "empty": lambda: b"",
            "cut": lambda member=member: members()[member][:-3],  # type: ignore[misc]
            "zeros": lambda: bytes(5000),
        }.items()
    ),
    *(
        holds(f"storage-{name}", kinds, storages=with_storage(entry, *rest))
        for name, (entry, kinds, *rest) in {
            "short": ((1, "cpu"), BROKEN),
            "list": ([1, "cpu", FLOAT_STORAGE], BROKEN),
            "key-text": (("1", "cpu", FLOAT_STORAGE), BROKEN),
            "kind-text": ((1, "cpu", "FloatStorage"), BROKEN),
            "kind-function": ((1, "cpu", ref("posix:system")), BROKEN),
            "kind-unknown": ((1, "cpu", ref("torch:HugeStorage")), BROKEN),
            "key-twice": ((FIRST_KEY + 64, "cpu", FLOAT_STORAGE), EITHER),
            "numel-negative": ((1, "cpu", FLOAT_STORAGE), BROKEN, -1),
            "numel-2**62": ((1, "cpu", FLOAT_STORAGE), BROKEN, 2**62),
            "numel-2**63-1": ((1, "cpu", FLOAT_STORAGE), BROKEN, 2**63 - 1),
            "numel-2**40": ((1, "cpu", FLOAT_STORAGE), BROKEN, 2**40),
            "of-wider-type": ((1, "cpu", ref("torch:DoubleStorage")), EITHER),
        }.items()
    ),
    *(
        holds(f"view-{name}", storages=with_storage((1, "cpu", FLOAT_STORAGE), 4, FLOATS, views))
        for name, views in {
            "none": None,
            "text": "views",
            "of-text": ("view",),
            "of-lists": ([2, 1, 0, 4],),
            "short": ((2, 1, 0),),
            "past-the-end": ((2, 1, 1, 4),),
            "negative": ((2, 1, -1, 2),),
            "numel-negative": ((2, 1, 0, -4),),
            "numel-2**62": ((2, 1, 0, 2**62),),
            "of-nothing": ((2, 3, 0, 4),),
            "of-itself": ((2, 2, 0, 4),),
            "named-as-a-storage": ((1, 1, 0, 4),),
            "twice": ((2, 1, 0, 4), (2, 1, 0, 2)),
            "past-a-view": ((2, 1, 2, 2), (3, 2, 0, 3)),
        }.items()
    ),
    harmless(
        "tar-view-of-a-view",
        lambda: archived(
            *usual(storages=with_storage((1, "cpu", FLOAT_STORAGE), 4, FLOATS, ((2, 1, 1, 3), (3, 2, 1, 2)))())
        ),
    ),
    *(
        holds(f"tensor-{name}", BROKEN, tensors=with_tensor(*told))
        for name, told in {
            "short": ((1, 2),),
            "list": ([1, 2, FLOAT_TENSOR],),
            "without-storage": ((1, None, FLOAT_TENSOR),),
            "of-unknown-storage": ((1, 2, FLOAT_TENSOR),),
            "kind-text": ((1, FIRST_KEY + 64, "FloatTensor"),),
            "unfinished": ((1, FIRST_KEY + 64, FLOAT_TENSOR), b"\1\0\0\0"),
        }.items()
    ),
    *(
        holds(
            f"tensor-{name}", BROKEN, tensors=lambda sizes=sizes: with_tensor((1, a_storage(), FLOAT_TENSOR), sizes)()
        )  # type: ignore[misc]
        for name, sizes in {
            "dimensions-negative": struct.pack("<ii3q", -1, 0, 4, 1, 0),
            "dimensions-2**31": struct.pack("<ii3q", 2**31 - 1, 0, 4, 1, 0),
            "dimensions-65": struct.pack("<ii131q", 65, 0, *[1] * 130, 0),
            "past-the-end": struct.pack("<ii3q", 1, 0, 10**6, 1, 0),
            "size-negative": struct.pack("<ii3q", 1, 0, -4, 1, 0),
            "size-2**63-1": struct.pack("<ii3q", 1, 0, 2**63 - 1, 0, 0),
            "stride-huge": struct.pack("<ii3q", 1, 0, 2, 2**62, 0),
            "offset-negative": struct.pack("<ii3q", 1, 0, 4, 1, -1),
            "offset-huge": struct.pack("<ii3q", 1, 0, 4, 1, 2**62),
        }.items()
    ),
    tar(
        "tensor-key-of-a-storage",
        lambda: archived(*usual(tensors=with_tensor((a_storage(), a_storage(), FLOAT_TENSOR))())),
    ),
    tar(
        "tensor-of-a-tensor",
        lambda: archived(*usual(tensors=with_tensor((1, healthy_keys()[0], FLOAT_TENSOR))())),
        BROKEN,
    ),
    *(
        holds(f"id-{name}", BROKEN, pickle=beside_in_tar(told + b"Q"))
        for name, told in {
            "unknown": text("12345"),
            "number": value(12345),
            "negative": text("-1"),
            "spaced": text(f" {FIRST_KEY} "),
            "digits-of-another-script": text("١٢٣"),
            "10**5-digits": text("1" * 100_000),
            "empty": text(""),
            "none": b"N",
            "list": value([ref("torch.nn:Module"), None, None]),
            "short": value((ref("torch.nn:Module"),)),
            "as-in-streams": value(("storage", FLOAT_STORAGE, "s", "cpu", 4, None)),
        }.items()
    ),
    holds("bomb-tensors", EITHER, tensors=lambda: plain(290_000) + b"".join(cut("tensors")[1:]) * 2),
]

# --- one file, two readings --------------------------------------------------------------------------


def stream_and_tar(*, checksum: bool = True, magic: bool = False) -> bytes:
    """A healthy stream whose third pickle throws a whole tar archive away; torch looks for that first."""
    inside = archived(*usual(pickle=PAYLOAD))
    start = healthy().magic + healthy().version + PROTO2 + b"B"
    block = bytearray(512)
    block[: len(start)] = start
    length = 512 - len(start) - 4 + len(inside)
    block[len(start) : len(start) + 4] = struct.pack("<I", length)
    block[100:156] = b"0000600\0" + b"0000000\0" * 2 + b"00000000000\0" * 2 + b" " * 8
    block[156:157] = b"0"
    if magic:
        block[257:265] = b"ustar\x0000"
    if checksum:
        summed(block)
    return bytes(block) + inside + POP + healthy().facts[2:] + healthy().object + healthy().keys + healthy().storages


def zip_and_tar() -> bytes:
    """A healthy zip archive whose first bytes are the header of a tar member, which is followed by others."""
    from tests.readers.hostile import healthy_state_dict

    inside = archived(*usual(pickle=PAYLOAD))
    entries = healthy_state_dict().entries()
    name = "archive/.note"
    block = bytearray(512)
    block[124:156] = b"00000000000\0" * 2 + b" " * 8
    block[156:157] = b"0"
    head = 30 + len(name)
    for _ in range(3):
        # The checksum is part of what the zip archive takes a CRC of, and the CRC is part of the checksum.
        entries_now = [Entry(name, bytes(block[head:]) + inside, crc=0), *entries]
        block = bytearray(pack(entries_now)[:512])
        summed(block)
    return pack([Entry(name, bytes(block[head:]) + inside, crc=0), *entries])


def zip_in_the_last_storage() -> bytes:
    """A stream that is whole and ends in a zip archive: its last storage holds one."""
    inside = pack([Entry("a/data.pkl", PAYLOAD), Entry("a/version", b"3\n")])
    kept = tensor((len(inside),), of=stored("z", len(inside), ref("torch:ByteStorage")))
    return written(tensor(), extra=kept, keys=keys_of("s", "z"), storages=laid((4, FLOATS), (len(inside), inside)))


def zip_in_the_padding() -> bytes:
    """A tar archive whose last member holds a zip archive with a comment that reaches to the end."""
    plain_archive = archived(*usual())
    inside = pack([Entry("a/data.pkl", PAYLOAD)])
    data = members()["storages"] + inside
    whole = archived(*usual(storages=data))
    comment = len(whole) - whole.index(inside) - len(inside)
    assert len(plain_archive) % 10_240 == len(whole) % 10_240 == 0
    return whole.replace(inside, inside[:-2] + struct.pack("<H", comment))


def named_as(name: bytes) -> bytes:
    """A healthy tar archive whose first member's name begins with a pickle."""
    first = usual()[0]
    block = bytearray(512)
    made = archived(replace(first, name="x", data=b""), end=b"")
    block[:] = made
    block[: len(name)] = name
    summed(block)
    return bytes(block) + archived(*usual())


TWICE = [
    Case("twice-stream-and-tar", stream_and_tar, says="tar archive", live=True),
    Case("twice-stream-and-ustar", lambda: stream_and_tar(magic=True), says="tar archive", live=True),
    Case("twice-stream-and-broken-ustar", lambda: stream_and_tar(checksum=False, magic=True), says="tar archive"),
    Case("twice-tar-named-as-stream", lambda: named_as(healthy().magic), says="tar archive"),
    Case("twice-tar-named-as-old-stream", lambda: named_as(b"L%dL\n." % MAGIC_NUMBER), says="tar archive"),
    Case("twice-tar-named-as-pickle", lambda: named_as(b"cposix\nsystem\n(S'touch pwned'\ntR."), kinds=FOREIGN),
    Case("twice-tar-named-as-payload", lambda: named_as(PAYLOAD), kinds=FOREIGN),
    Case("twice-zip-and-tar", zip_and_tar, says="tar archive"),
    Case("twice-stream-and-zip", zip_in_the_last_storage, says="zip archive"),
    Case("twice-tar-and-zip", zip_in_the_padding, says="zip archive"),
    Case("twice-zip-before-stream", lambda: pack([Entry("a", b"")]) + healthy().joined(), kinds=FOREIGN),
    Case("twice-pickle-before-stream", lambda: PAYLOAD + healthy().joined(), kinds=UNSUPPORTED, live=True),
    Case("twice-pickle-before-tar", lambda: PAYLOAD + packed(dict(members())), kinds=UNSUPPORTED, live=True),
    harmless("stream-called-zip", lambda: healthy().joined(), filename="model.zip"),
    harmless("tar-called-safetensors", lambda: packed(dict(members())), filename="model.safetensors"),
]

CASES = [*HEADER, *OBJECT, *KEYS, *BOMBS, *ARCHIVE, *CONTENTS, *TWICE]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    return watch(tmp_path_factory.mktemp("legacy"), CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hostile_legacy(case: Case, results: dict[str, Watched]) -> None:
    judge(case, results)


def test_names_of_cases_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_torch_reads_what_the_writers_here_write(tmp_path: Path) -> None:
    """So that the cases above differ from a healthy file in the attack alone."""
    import torch

    state = healthy_network().state_dict()  # type: ignore[attr-defined]
    for name, data in {
        "stream": healthy().joined(),
        "beside": healthy().beside(b"N"),
        "by-hand": written(tensor()),
        "tar": archived(*usual()),
        "tar-beside": archived(*usual(pickle=beside_in_tar(b"N")())),
        "tar-storage": archived(*usual(storages=with_storage((1, "cpu", FLOAT_STORAGE), 4, FLOATS, ((2, 1, 1, 3),))())),
        "tar-tensor": archived(*usual(tensors=with_tensor((1, a_storage(), FLOAT_TENSOR))())),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        loaded = torch.load(path, weights_only=False)
        loaded = loaded.get("model", loaded)
        if name != "by-hand":
            assert torch.equal(loaded["1.running_var"], state["1.running_var"]), name


def test_both_readings_are_there(tmp_path: Path) -> None:
    """What the cases of two readings claim: another program does find the other thing."""
    for make in (stream_and_tar, zip_and_tar):
        with tarfile.open(fileobj=io.BytesIO(make())) as archive:
            extracted = archive.extractfile("pickle")
            assert extracted is not None
            assert extracted.read() == PAYLOAD
    for make in (zip_in_the_last_storage, zip_in_the_padding):
        with zipfile.ZipFile(io.BytesIO(make())) as archive:
            assert archive.read("a/data.pkl") == PAYLOAD
    import torch

    (tmp_path / "stream").write_bytes(zip_in_the_last_storage())
    assert "bn.running_mean" in torch.load(tmp_path / "stream", weights_only=False)
    (tmp_path / "zip").write_bytes(zip_and_tar())
    assert "1.running_var" in torch.load(tmp_path / "zip", weights_only=True)
