"""Hostile pickles inside files of ``torch.save``.

Nearly every case is a healthy model with the attack beside it: a reader that overlooks the attack calls the file clean
and the test fails. Live cases are loaded with torch as well, to see that the payload does run there.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.readers.hostile import (
    AUDITED,
    BROKEN,
    COMMAND,
    DUP,
    EITHER,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    POP,
    PROTO2,
    PROTO4,
    REFUSED,
    STOP,
    SYSTEM,
    TRACE,
    Case,
    Model,
    Watched,
    build,
    call,
    deed,
    get,
    harmless,
    healthy_module,
    healthy_state_dict,
    judge,
    new,
    number,
    pack,
    put,
    ref,
    stack_ref,
    storage,
    tensor,
    text,
    value,
    watch,
)


def beside(
    name: str,
    payload: bytes | Callable[[], bytes],
    kinds: tuple[str, ...] = ("unsafe-file",),
    *,
    says: str = "",
    live: bool = False,
    proto: bytes = PROTO2,
    model: Callable[[], Model] = healthy_state_dict,
) -> Case:
    """A payload in a second entry of the dict that holds the model."""
    return Case(
        name,
        lambda: model().beside(payload if isinstance(payload, bytes) else payload(), proto),
        kinds=kinds,
        says=says,
        live=live,
    )


def after(name: str, payload: bytes, kinds: tuple[str, ...] = ("unsafe-file",), *, says: str, live: bool) -> Case:
    """A payload that runs first and leaves nothing on the stack."""
    return Case(name, lambda: healthy_state_dict().after(payload), kinds=kinds, says=says, live=live)


def stream(
    name: str, alter: Callable[[bytes], bytes], kinds: tuple[str, ...], says: str = "", live: bool = False
) -> Case:
    """A healthy pickle whose bytes are altered."""
    return Case(
        name,
        lambda: healthy_state_dict().archive(alter(healthy_state_dict().pickle)),
        kinds=kinds,
        says=says,
        live=live,
    )


# --- every way to spell a call -----------------------------------------------------------------------

LAZY_SYSTEM = new("builtins:map", b"cposix\nsystem\n", [COMMAND])
KEYWORDS = value({"shell": True})
POPEN = (TRACE, b"")
SPELLINGS = [
    beside("global-reduce", SYSTEM, says="posix.system", live=True),
    beside(
        "stack-global-reduce", call(stack_ref("posix:system"), COMMAND), says="posix.system", live=True, proto=PROTO4
    ),
    beside("inst", b"(" + text(COMMAND) + b"iposix\nsystem\n", says="posix.system", live=True),
    beside("obj", b"(" + ref("posix:system") + text(COMMAND) + b"o", says="posix.system", live=True),
    # map.__new__ is lazy; bytes.__new__ exhausts it and so runs the command.
    beside("newobj", new("builtins:bytes", LAZY_SYSTEM), says="builtins.map", live=True),
    beside(
        "newobj-ex",
        ref("builtins:bytes")
        + value((ref("builtins:map") + value((ref("posix:system"), [COMMAND])) + b"}\x92",))
        + b"}\x92",
        says="builtins.map",
        live=True,
        proto=PROTO4,
    ),
    beside(
        "newobj-ex-keywords", ref("subprocess:Popen") + b")" + KEYWORDS + b"\x92", says="subprocess.Popen", proto=PROTO4
    ),
    beside("newobj-arguments", new("subprocess:Popen", COMMAND), says="subprocess.Popen"),
    beside("ext1", b"\x82\x01"),
    beside("ext2", b"\x83\x01\x00"),
    beside("ext4", b"\x84\x01\x00\x00\x00"),
    *(
        beside(
            f"protocol-{n}", call("posix:system", COMMAND), says="posix.system", live=True, proto=b"\x80" + bytes([n])
        )
        for n in range(6)
    ),
    Case(
        "whole-module",
        lambda: healthy_module().beside(SYSTEM),
        says="posix.system",
        live=True,
    ),
    Case(
        "in-module-attribute",
        lambda: healthy_module().archive(PROTO2 + healthy_module().body + value({"hook": SYSTEM}) + b"b" + STOP),
        says="posix.system",
        live=True,
    ),
]

# --- results thrown away, or hidden -----------------------------------------------------------------

DISCARDED = [
    after("pop", SYSTEM + POP, says="posix.system", live=True),
    after("pop-mark", b"(" + SYSTEM + b"1", says="posix.system", live=True),
    after("pop-as-mark", b"(" + SYSTEM + POP + POP, says="posix.system", live=True),
    after(
        "memo-overwritten", SYSTEM + put(60_000) + POP + value(1) + put(60_000) + POP, says="posix.system", live=True
    ),
    stream("before-stop", lambda p: p[:-1] + SYSTEM + POP + STOP, ("unsafe-file",), "posix.system", live=True),
    beside("in-dict-key", EMPTY_DICT + SYSTEM + value(1) + b"s", says="posix.system", live=True),
    beside("in-tensor-arguments", tensor((SYSTEM,)), EITHER, says="posix.system", live=True),
    beside("in-persistent-id", storage(SYSTEM), EITHER, says="posix.system", live=True),
    beside(
        "in-state", build(new("torch.nn.modules.module:Module"), {"training": SYSTEM}), says="posix.system", live=True
    ),
    Case(
        "replaces-model",
        lambda: healthy_state_dict().archive(PROTO2 + SYSTEM + STOP),
        says="posix.system",
        live=True,
    ),
]

# --- names that are not what they seem ---------------------------------------------------------------

MEMO_NAMES = text("posix") + put(70_000) + POP + text("system") + put(70_001) + POP
NAMES = [
    beside("dotted-global", call("shutil:os.system", COMMAND), says="shutil.os.system", live=True, proto=PROTO4),
    beside(
        "dotted-stack-global", call(stack_ref("pathlib:os.system"), COMMAND), says="os.system", live=True, proto=PROTO4
    ),
    beside(
        "operands-through-memo",
        EMPTY_LIST + MEMO_NAMES + get(70_000) + get(70_001) + b"\x93" + value((COMMAND,)) + b"R" + b"a",
        says="posix.system",
        live=True,
        proto=PROTO4,
    ),
    beside("operand-twice", call(text("commands") + DUP + b"\x93", COMMAND), says="commands.commands", proto=PROTO4),
    beside("memo-missing", get(99_999), BROKEN),
    beside("memo-missing-text", b"g99999\n", BROKEN),
    beside("memo-missing-operand", text("posix") + get(99_999) + b"\x93", BROKEN, proto=PROTO4),
    *(
        beside(f"operand-{kind}", text("posix") + operand + b"\x93", EITHER, proto=PROTO4)
        for kind, operand in {
            "int": value(1),
            "bytes": b"C\x06system",
            "tuple": value(("system",)),
            "none": b"N",
            "list": value(["system"]),
            "global": ref("posix:system"),
            "joined": call("builtins:str.join", "", ["sys", "tem"]),
        }.items()
    ),
    *(
        beside(f"name-{kind}", name, EITHER, proto=PROTO4)
        for kind, name in {
            "not-utf8": b"cpos\xffix\nsystem\n",
            "carriage-return": b"cposix\r\nsystem\r\n",
            "newline": text("posix") + text("sys\ntem") + b"\x93",
            "empty": b"c\n\n",
            "empty-name": text("posix") + text("") + b"\x93",
            "nul": text("posix\0") + text("system") + b"\x93",
            "override": text("posix") + text("\u202emetsys") + b"\x93",
            "escape": text("posix") + text("\x1b[2Jsystem") + b"\x93",
            "surrogate": text("posix") + text("sys\ud800tem") + b"\x93",
            "unfinished": b"cposix\nsystem",
            # Attribute access of a lazy loader: it opens the shared library, and nothing was called.
            "opens-library": stack_ref("ctypes:cdll./tmp/library"),
            "space": ref("posix:sys tem"),
            "no-identifier": ref("posix:system()"),
        }.items()
    ),
    beside("bare-global", ref("posix:system"), AUDITED, proto=PROTO2),
    beside("long-name", call("posix:" + "system" * 10_000, COMMAND), BROKEN, says="characters"),
]

# --- gadgets: nothing is on a list of bad names, everything is missing from the list of good ones ----

SOURCE = f"import os; os.system({COMMAND!r})"
CALL_IN_PICKLE = call("_codecs:encode", f"cos\nsystem\n(S'{COMMAND}'\ntR.", "latin1")
LIVE_GADGETS: dict[str, tuple[object, ...]] = {
    "os:system": (COMMAND,),
    "builtins:eval": (f"__import__('os').system({COMMAND!r})",),
    "builtins:exec": (SOURCE,),
    "__builtin__:eval": (f"__import__('os').system({COMMAND!r})",),
    "builtins:open": (TRACE, "w"),
    "io:FileIO": (TRACE, "w"),
    "subprocess:Popen": (["touch", TRACE],),
    "subprocess:getoutput": (COMMAND,),
    "commands:getoutput": (COMMAND,),
    "os:popen": (COMMAND,),
    "pty:spawn": (["touch", TRACE],),
    "logging:FileHandler": (TRACE,),
    "zipfile:ZipFile": (TRACE, "w"),
    "shutil:copyfile": ("/proc/self/comm", TRACE),
    "timeit:timeit": ("0", SOURCE, ref("timeit:default_timer"), 1),
    "profile:run": (SOURCE,),
    "cProfile:run": (SOURCE,),
    "runpy:_run_code": (call("builtins:compile", SOURCE, "x", "exec"), {}),
    "pickle:loads": (CALL_IN_PICKLE,),
    "_pickle:loads": (CALL_IN_PICKLE,),
    "operator:call": (ref("os:system"), COMMAND),
    "functools:reduce": (ref("builtins:exec"), [{}], SOURCE),
    "builtins:list": (call("builtins:map", ref("os:system"), [COMMAND]),),
    "collections:deque": (call("itertools:starmap", ref("os:system"), [(COMMAND,)]),),
    "pathlib:Path.touch": (call("pathlib:PosixPath", TRACE),),
    "numpy:savetxt": (TRACE, [1]),
    "numpy.testing._private.utils:runstring": (SOURCE, {}),
    "torch:save": ([1], TRACE),
    "torch.utils.collect_env:run": (COMMAND,),
    "torch.jit.unsupported_tensor_ops:execWrapper": (SOURCE, {}, {}),
    "torch.fx.graph_module:_forward_from_src": (SOURCE, {}),
}
# Known gadgets that this Python or torch may lack, or that need more than a trace can show.
NAMED_GADGETS = (
    "asyncio.unix_events:_UnixSubprocessTransport._start",
    "bdb:Bdb.run",
    "code:InteractiveInterpreter.runcode",
    "ctypes:CDLL",
    "distutils.file_util:write_file",
    "idlelib.pyshell:ModifiedInterpreter.runcode",
    "importlib:import_module",
    "lib2to3.pgen2.pgen:ParserGenerator.make_label",
    "marshal:loads",
    "numpy:load",
    "numpy.f2py.crackfortran:getlincoef",
    "pip:main",
    "pydoc:pipepager",
    "socket:create_connection",
    "torch:load",
    "torch.hub:load",
    "torch.hub:load_state_dict_from_url",
    "torch.fx.graph_module:reduce_graph_module",
    "torch._dynamo.guards:GuardBuilder.get",
    "torch._inductor.codecache:compile_file",
    "torch.storage:_load_from_bytes",
    "torch.serialization:load",
    "torch.utils._config_module:ConfigModule.load_config",
    "torch.utils.data.datapipes.utils.decoder:basichandlers",
    "types:CodeType",
    "types:FunctionType",
    "urllib.request:urlopen",
    "webbrowser:open",
)
GADGETS = [
    *(
        beside(
            f"gadget-{path}",
            call(path, *args),
            says="" if args[-1:] and isinstance(args[0], bytes) else path.replace(":", "."),
            live=True,
            proto=PROTO4 if "." in path.partition(":")[2] else PROTO2,
        )
        for path, args in LIVE_GADGETS.items()
    ),
    *(
        beside(f"gadget-{path}", call(path, "a", "b"), says=path.replace(":", "."), proto=PROTO4)
        for path in NAMED_GADGETS
    ),
    beside(
        "getattr-chain",
        call(call("builtins:getattr", ref("shutil:os"), "system"), COMMAND),
        says="os.system",
        live=True,
    ),
    beside(
        "getattr-of-import",
        call(call("builtins:getattr", call("builtins:__import__", "os"), "system"), COMMAND),
        says="__import__",
        live=True,
    ),
    beside(
        "getattr-joined",
        call(call("builtins:getattr", ref("shutil:os"), call("builtins:str.join", "", ["sys", "tem"])), COMMAND),
        EITHER,
        live=True,
        proto=PROTO4,
    ),
    beside("getattr-of-instance", call(call("builtins:getattr", new("torch.nn.modules.module:Module"), "eval"))),
    beside("attrgetter", call(call("operator:attrgetter", "system"), ref("shutil:os")), says="operator.attrgetter"),
    beside(
        "methodcaller",
        call(call("operator:methodcaller", "system", COMMAND), ref("shutil:os")),
        says="operator.methodcaller",
        live=True,
    ),
    beside("calls-result", call(call("functools:partial", ref("os:system"), COMMAND)), live=True),
    beside("calls-result-of-build", call(build(new("functools:partial"), (ref("os:system"), (COMMAND,), {}, {})))),
    beside("calls-string", call(text("system"), COMMAND), EITHER),
    beside("calls-with-list", ref("posix:system") + value([COMMAND]) + b"R", EITHER),
    beside(
        "tensor-type",
        call("torch._tensor:_rebuild_from_type_v2", ref("posix:system"), ref("torch:Tensor"), (COMMAND,), {}),
        EITHER,
        live=True,
    ),
    beside("set-of-lazy-map", call("builtins:set", LAZY_SYSTEM), says="builtins.map", live=True),
    beside("ordered-dict-of-lazy-map", call("collections:OrderedDict", LAZY_SYSTEM), says="builtins.map", live=True),
    beside("defaultdict-factory", call("collections:defaultdict", ref("posix:system")), AUDITED),
    beside(
        "copyreg", call("copyreg:_reconstructor", ref("subprocess:Popen"), ref("subprocess:Popen"), COMMAND), EITHER
    ),
    # Attributes forced upon a class or a module.
    beside(
        "build-on-class",
        build(ref("torch.nn.modules.batchnorm:BatchNorm2d"), {"forward": ref("posix:system")}),
        says="BatchNorm2d",
    ),
    beside("build-on-module", build(ref("torch:nn"), {"Module": ref("posix:system")}), says="torch.nn"),
    # Calls made by item assignment and by destructors of classes whose attributes the file chose: no call opcode.
    beside(
        "call-by-setitem",
        build(
            new("os:_Environ"),
            {"encodekey": ref("posix:system"), "encodevalue": ref("posix:system"), "_data": EMPTY_DICT},
        )
        + text(COMMAND)
        + text("true")
        + b"s",
        says="os._Environ",
        live=True,
    ),
    beside(
        "call-by-append",
        build(
            new("torch.nn.modules.container:ModuleList"),
            {"_modules": EMPTY_DICT, "add_module": call("functools:partial", ref("timeit:timeit"), "0", SOURCE)},
        )
        + value(1)
        + b"a",
        live=True,
    ),
    beside(
        "file-removed-by-destructor",
        build(
            new("tempfile:_TemporaryFileCloser"),
            {"file": new("torch.nn.modules.module:Module"), "close_called": False, "delete": True, "name": "/nowhere"},
        ),
        says="tempfile._TemporaryFileCloser",
    ),
]

# --- broken, stacked and oddly framed streams -------------------------------------------------------


def spliced(payload: bytes) -> Callable[[bytes], bytes]:
    """A payload inside the pickle, which then breaks off."""
    return lambda pickle: PROTO2 + payload + POP + pickle[2:-20]


def stacked(before: int) -> Callable[[bytes], bytes]:
    """Healthy pickles, then one with a payload."""
    return lambda pickle: pickle * before + PROTO2 + SYSTEM + STOP


STREAMS = [
    stream("payload-then-broken-tail", spliced(SYSTEM), EITHER, live=True),
    stream("payload-then-unknown-opcode", lambda p: PROTO2 + SYSTEM + b"\xff" + p[2:], EITHER, live=True),
    stream("payload-first-then-healthy", lambda p: PROTO2 + SYSTEM + STOP + p, EITHER, live=True),
    *(stream(f"payload-in-pickle-{n + 1}", stacked(n), EITHER) for n in range(1, 6)),
    stream("trailing-byte", lambda p: p + b"\0", EITHER),
    stream("cut-short", lambda p: p[: len(p) // 2], BROKEN),
    stream("no-stop", lambda p: p[:-1], BROKEN),
    stream("empty", lambda p: b"", BROKEN),
    stream("stop-only", lambda p: STOP, BROKEN),
    stream("two-objects", lambda p: p[:-1] + value(1) + STOP, BROKEN),
    stream("open-mark", lambda p: p[:2] + b"(" + p[2:], BROKEN),
    stream("protocol-6", lambda p: b"\x80\x06" + p[2:], BROKEN),
    stream("protocol-255", lambda p: b"\x80\xff" + p[2:], BROKEN),
    stream("text-persistent-id", lambda p: p[:-1] + b"Pposix\n" + POP + STOP, ("unsafe-file",)),
    stream("frame-too-long", lambda p: PROTO4 + b"\x95" + struct.pack("<Q", len(p)) + p[2:], EITHER),
    stream("frame-2**64", lambda p: PROTO4 + b"\x95" + b"\xff" * 8 + p[2:], EITHER),
    # CPython reads these; so must the audit.
    harmless("frame-too-short", lambda: framed(0)),
    harmless("frame-of-frames", lambda: framed(9)),
    harmless("protocol-twice", lambda: healthy_state_dict().after(PROTO2 + PROTO4)),
    harmless("protocol-late", lambda: healthy_state_dict().beside(PROTO4 + value(1))),
    harmless("protocol-missing", lambda: healthy_state_dict().archive(healthy_state_dict().pickle[2:])),
    *(harmless(f"written-by-protocol-{n}", lambda n=n: healthy_state_dict(n).archive()) for n in range(1, 6)),  # type: ignore[misc]
    # torch itself writes no file with protocol 0 that it could load: persistent ids become text.
    Case("written-by-protocol-0", lambda: healthy_state_dict(0).archive(), kinds=EITHER),
    harmless("module", lambda: healthy_module().archive()),
    harmless("module-beside-nothing", lambda: healthy_module().beside(value(None))),
]


def framed(length: int) -> bytes:
    """A FRAME that announces less than follows."""
    return healthy_state_dict().after(b"\x95" + struct.pack("<Q", length), PROTO4)


# --- containers that are none, forged storages and views ---------------------------------------------

MISUSED = [
    *(
        beside(f"setitem-on-{kind}", target + text("a") + value(1) + b"s", EITHER)
        for kind, target in {
            "tuple": EMPTY_TUPLE,
            "list": EMPTY_LIST,
            "int": value(1),
            "str": text("a"),
            "none": b"N",
            "global": ref("os:environ"),
            "tensor": tensor(),
        }.items()
    ),
    *(
        beside(f"append-on-{kind}", target + value(1) + b"a", EITHER)
        for kind, target in {
            "tuple": EMPTY_TUPLE,
            "dict": EMPTY_DICT,
            "set": b"\x8f",
            "global": ref("sys:path"),
            "tensor": tensor(),
            "ordered-dict": call("collections:OrderedDict"),
        }.items()
    ),
    beside("add-to-list", EMPTY_LIST + b"(" + value(1) + b"\x90", BROKEN, proto=PROTO4),
    beside("odd-items", EMPTY_DICT + b"(" + text("a") + b"u", BROKEN),
    beside("build-on-list", build(EMPTY_LIST, {"a": 1}), EITHER),
    beside("build-on-tensor", build(tensor(), {"a": 1}), EITHER),
    beside("newobj-without-build", new("torch.nn.modules.batchnorm:BatchNorm2d"), AUDITED),
    beside("newobj-of-nothing", b"N)\x81", EITHER),
    beside("reduce-without-arguments", ref("collections:OrderedDict") + b"R", EITHER),
    beside("stack-underflow", POP * 8, BROKEN),
    beside("mark-underflow", b"t", EITHER),
    beside("surrogate-text", text("\ud800"), AUDITED),
    beside("not-utf8-text", b"X\x02\x00\x00\x00\xff\xfe", BROKEN),
    beside("float-text", b"Fnot a number\n", BROKEN),
    beside("integer-text", b"I0x10; import os\n", BROKEN),
    beside("unquoted-string", b"Sabc\n", BROKEN),
    beside("raw-unicode-escape", b"V\\uZZZZ\n", BROKEN),
]

KINDS_OF_ID: dict[str, bytes] = {
    "int": value(1) + b"Q",
    "str": text("storage") + b"Q",
    "none": b"NQ",
    "list": value(["storage", ref("torch:FloatStorage"), "0", "cpu", 4]) + b"Q",
    "short-tuple": value(("storage", ref("torch:FloatStorage"), "0", "cpu")) + b"Q",
    "long-tuple": value(("storage", ref("torch:FloatStorage"), "0", "cpu", 4, 4)) + b"Q",
    "other-tag": storage(tag="module"),
    "bytes-tag": storage(tag=b"C\x07storage"),
    "int-key": storage(key=0),
    "tuple-key": storage(key=("0",)),
    "bytes-key": storage(key=b"C\x010"),
    "negative-numel": storage(numel=-1),
    "huge-numel": storage(numel=2**62),
    "huger-numel": storage(numel=2**200),
    "float-numel": storage(numel=4.0),
    "str-numel": storage(numel="4"),
    "function-kind": storage(kind=ref("posix:system")),
    "foreign-kind": storage(kind=ref("builtins:FloatStorage")),
    "str-kind": storage(kind="FloatStorage"),
}


def layer(mean: bytes, *, numel: int = 4, members: dict[str, bytes] | None = None) -> bytes:
    """A hand-written state dict of one batch norm, its running mean as told, beside a healthy model."""
    forged = value(
        {
            "bn.weight": tensor(of=storage("f1", numel)),
            "bn.bias": tensor(of=storage("f1", numel)),
            "bn.running_mean": mean,
            "bn.running_var": tensor(of=storage("f1", numel)),
        }
    )
    model = healthy_state_dict()
    entries = model.entries(
        PROTO2 + EMPTY_DICT + text("model") + model.body + b"s" + text("ema") + forged + b"s" + STOP
    )
    kept = type(entries[0])
    for key, data in ({"f1": struct.pack("<4f", 0.5, 1, 1.5, 2)} | (members or {})).items():
        entries.append(kept(f"archive/data/{key}", data))
    return pack(entries)


VIEWS: dict[str, tuple[object, object, object]] = {
    "past-the-end": ((5,), (1,), 0),
    "offset-past-the-end": ((4,), (1,), 1),
    "offset-negative": ((4,), (1,), -1),
    "offset-huge": ((4,), (1,), 2**62),
    "stride-past-the-end": ((4,), (2,), 0),
    "stride-negative": ((4,), (-1,), 3),
    "stride-huge": ((2,), (2**61,), 0),
    "size-negative": ((-4,), (1,), 0),
    "product-overflows": ((2**32, 2**32, 4), (0, 0, 1), 0),
    "product-wraps-to-four": ((2**62, 4, 2**62, 4), (0, 0, 0, 0), 0),
    "expanded-2**40": ((2**40,), (0,), 0),
    "expanded-2**59": ((2**59,), (0,), 0),
    "strides-missing": ((4,), (), 0),
    "strides-too-many": ((4,), (1, 1), 0),
    "dimensions-10**4": ((1,) * 10_000, (1,) * 10_000, 0),
    "size-float": ((4.0,), (1,), 0),
    "size-bool": ((True,), (1,), 0),
    "shape-list": ([4], [1], 0),
    "shape-text": ("4", "1", 0),
    "empty-and-huge": ((0, 2**59), (1, 1), 0),
    "empty-and-overflowing": ((0, 2**59, 2**59), (1, 1, 1), 0),
}
# Refused whole, or that layer reported as unread: exit 2 both ways, never clean.
STORED: dict[str, bytes] = {
    "storage-missing": tensor(of=storage("f9")),
    "storage-outside": tensor(of=storage("../data.pkl")),
    "storage-is-absolute": tensor(of=storage("/etc/passwd")),
    "storage-is-empty-name": tensor(of=storage("")),
    "storage-smaller": tensor((8,), of=storage("f1", 8)),
    "storage-larger": tensor((2,), of=storage("f1", 2)),
    "storage-of-wider-type": tensor(of=storage("f1", 4, ref("torch:DoubleStorage"))),
    "storage-of-narrower-type": tensor(of=storage("f1", 4, ref("torch:HalfStorage"))),
    "storage-of-unknown-type": tensor(of=storage("f1", 4, ref("torch:HugeStorage"))),
    "dtype-forged": call(
        "torch._utils:_rebuild_tensor_v3",
        storage("f1", 4),
        0,
        (4,),
        (1,),
        False,
        EMPTY_DICT,
        ref("torch:save"),
        EMPTY_DICT,
    ),
}
FORGED = [
    *(beside(f"id-{kind}", payload, BROKEN) for kind, payload in KINDS_OF_ID.items()),
    *(
        Case(f"view-{kind}", lambda view=view: layer(tensor(*view, of=storage("f1"))), kinds=REFUSED)  # type: ignore[misc]
        for kind, view in VIEWS.items()
    ),
    *(Case(kind, lambda mean=mean: layer(mean), kinds=REFUSED) for kind, mean in STORED.items()),  # type: ignore[misc]
    harmless("hand-written-layer", lambda: layer(tensor(of=storage("f1"))), exits=(0, 1)),
    harmless("aliased-views", lambda: layer(tensor((4,), (0,), of=storage("f1"))), exits=(0, 1)),
]

# --- bombs ------------------------------------------------------------------------------------------

COLLIDING = 2**61 - 1  # sys.hash_info.modulus: its multiples all hash to 0
MODULE = "torch.nn.modules.module:Module"
MANY = 4_900_000


def module_with(children: bytes, parameters: bytes = EMPTY_DICT) -> bytes:
    """A module whose tables are given."""
    return build(new(MODULE), {"_parameters": parameters, "_buffers": EMPTY_DICT, "_modules": children})


def chained(depth: int, children: Callable[[], bytes]) -> bytes:
    """Modules each of which is made of the one before, which lies at memo index 80000."""
    return module_with(EMPTY_DICT) + put(80_000) + (POP + module_with(children()) + put(80_000)) * depth


def tables(count: int) -> bytes:
    """One dict of children, each child having that very dict for its own."""
    modules = b"".join(
        text(f"m{n}") + build(new(MODULE), {"_parameters": EMPTY_DICT, "_buffers": EMPTY_DICT, "_modules": get(80_000)})
        for n in range(count)
    )
    return module_with(EMPTY_DICT + put(80_000) + b"(" + modules + b"u")


def shared_parameters(count: int) -> bytes:
    """Children that all have the same large table of parameters."""
    names = b"".join(text(f"p{n}") + get(80_001) for n in range(count))
    table = tensor((4,), of=storage("0")) + put(80_001) + POP + EMPTY_DICT + b"(" + names + b"u" + put(80_000) + POP
    modules = b"".join(
        text(f"m{n}") + build(new(MODULE), {"_parameters": get(80_000), "_buffers": EMPTY_DICT, "_modules": EMPTY_DICT})
        for n in range(count)
    )
    return EMPTY_LIST + table + module_with(EMPTY_DICT + b"(" + modules + b"u") + b"a"


def repeated(once: bytes, again: bytes, times: int) -> bytes:
    """A list that begins by storing something and then does one thing over and over."""
    return EMPTY_LIST + once + b"(" + again * times + b"e"


LONG_NAME = text("n" * 2**20) + put(80_000) + POP
BOMBS = [
    beside("list-in-itself", EMPTY_LIST + DUP + b"a", AUDITED),
    beside("dict-in-itself", EMPTY_DICT + put(80_000) + text("a") + get(80_000) + b"s", AUDITED),
    beside(
        "module-in-itself",
        build(new(MODULE) + put(80_000), {"_parameters": {}, "_buffers": {}, "_modules": {"a": get(80_000)}}),
        AUDITED,
    ),
    beside("dup-bomb", EMPTY_LIST + DUP * 1_000_000 + POP * 1_000_000, AUDITED),
    beside("laughs-lists", value([1]) + put(80_000) + (POP + value([get(80_000)] * 2) + put(80_000)) * 100, AUDITED),
    beside("laughs-tuples", value((1,)) + (DUP + b"\x86") * 150, AUDITED),
    beside("laughs-tuples-deep", value((1,)) + (DUP + b"\x86") * 200_000, BROKEN),
    beside(
        "laughs-modules",
        chained(100, lambda: value({"a": get(80_000), "b": get(80_000)})),
        AUDITED,
        model=healthy_module,
    ),
    beside("tower-of-modules", chained(20_000, lambda: value({"a": get(80_000)})), BROKEN),
    beside("tables-shared", lambda: tables(100_000), (*EITHER, *AUDITED)),
    beside("parameters-shared", lambda: shared_parameters(60_000), BROKEN),
    beside("nested-tuples", lambda: EMPTY_TUPLE + b"\x85" * 1_000_000, BROKEN),
    beside("nested-lists", lambda: EMPTY_LIST * 1_000_000 + b"a" * 999_999, BROKEN),
    beside("nested-dicts", lambda: (EMPTY_DICT + text("a")) * 500_000 + b"N" + b"s" * 500_000, BROKEN),
    beside("nested-partials", lambda: ref("functools:partial") * 500_000 + b"N" + b"\x85R" * 500_000, EITHER),
    beside("nested-marks", lambda: b"(" * 1_000_000 + b"l" * 1_000_000, EITHER),
    beside("tuple-key", lambda: EMPTY_DICT + EMPTY_TUPLE + b"\x85" * 1_000_000 + value(1) + b"s", AUDITED),
    beside(
        "tuple-in-set",
        lambda: b"\x8f(" + EMPTY_TUPLE + b"\x85" * 1_000_000 + b"\x90",
        (*BROKEN, *AUDITED),
        proto=PROTO4,
    ),
    *(
        beside(f"declares-{kind}", opcode, BROKEN, proto=PROTO4)
        for kind, opcode in {
            "long4": b"\x8b\xff\xff\xff\x7f",
            "long4-negative": b"\x8b\xff\xff\xff\xff",
            "text8": b"\x8d" + struct.pack("<Q", 2**63),
            "bytes8": b"\x8e" + struct.pack("<Q", 2**63),
            "bytearray8": b"\x96" + struct.pack("<Q", 2**64 - 1),
            "text4": b"X\xff\xff\xff\xff",
            "bytes4": b"B\xff\xff\xff\xff",
            "string4-negative": b"T\xff\xff\xff\xff",
        }.items()
    ),
    beside("integer-of-10**6-digits", b"I" + b"9" * 1_000_000 + b"\n", BROKEN),
    beside("long-of-10**6-digits", b"L" + b"9" * 1_000_000 + b"L\n", BROKEN),
    beside("long4-of-4-MiB", b"\x8b" + struct.pack("<I", 2**22) + b"\x7f" * 2**22, BROKEN),
    beside("memo-2**32", value(1) + put(2**32 - 1) + POP + get(2**32 - 1), AUDITED),
    beside("memo-10**30", value(1) + b"p" + b"9" * 30 + b"\n", (*BROKEN, *AUDITED)),
    beside("memo-negative", value(1) + b"p-1\n", (*BROKEN, *AUDITED)),
    beside("memo-of-everything", lambda: b"N" + b"\x94" * 2_000_000, AUDITED, proto=PROTO4),
    beside("opcodes", lambda: b"N0" * 2_600_000 + b"N", BROKEN),
    beside("opcodes-open-dicts", lambda: EMPTY_DICT * MANY, EITHER),
    beside("opcodes-open-marks", lambda: b"(" * MANY, EITHER),
    beside("opcodes-globals", lambda: "c\U0001f40d\n\U0001f40d\n".encode() * MANY, EITHER),
    beside("opcodes-dicts-in-memo", lambda: b"}\x94" * (MANY // 2), EITHER, proto=PROTO4),
    beside(
        "references-to-one",
        lambda: repeated(value({"a": {"a": 1}}) + put(80_000) + b"a", get(80_000), MANY),
        (*EITHER, *AUDITED),
    ),
    # Work or memory per opcode that grows with something stored once.
    beside(
        "copies-of-text",
        lambda: repeated(LONG_NAME, ref("_codecs:encode") + get(80_000) + text("latin1") + b"\x86R", 20_000),
        EITHER,
    ),
    beside(
        "copies-of-name",
        lambda: repeated(LONG_NAME, ref("builtins:getattr") + ref("torch:Tensor") + get(80_000) + b"\x86R", 20_000),
        EITHER,
    ),
    beside(
        "copies-of-dict",
        lambda: repeated(
            EMPTY_DICT + b"(" + b"".join(text(str(n)) + b"N" for n in range(30_000)) + b"u" + put(80_000) + POP,
            ref("collections:OrderedDict") + get(80_000) + b"\x85R",
            20_000,
        ),
        EITHER,
    ),
    beside(
        "copies-of-list",
        lambda: repeated(
            EMPTY_LIST + b"(" + b"N" * 100_000 + b"e" + put(80_000) + POP,
            ref("builtins:set") + get(80_000) + b"\x85R",
            20_000,
        ),
        EITHER,
    ),
    beside(
        "long-class-name",
        lambda: repeated(ref("a:" + "n" * 2**22) + put(80_000) + POP, get(80_000) + b")\x81", 100_000),
        EITHER,
    ),
    beside(
        "long-class-name-of-modules",
        lambda: repeated(
            ref("a:" + "n" * 2**20) + put(80_000) + POP,
            build(get(80_000) + b")\x81", {"_parameters": {}, "_buffers": {}, "_modules": {}}),
            20_000,
        ),
        EITHER,
    ),
    beside("long-module-names", lambda: LONG_NAME + chained_names(190), EITHER),
    beside(
        "keys-that-collide",
        lambda: EMPTY_DICT + b"(" + b"".join(number(n * COLLIDING) + b"N" for n in range(150_000)) + b"u",
        (*EITHER, *AUDITED),
    ),
    beside(
        "memo-that-collides",
        lambda: b"N" + b"".join(b"p%d\n" % (n * COLLIDING) for n in range(150_000)),
        (*EITHER, *AUDITED),
    ),
    Case("expanded-statistics", lambda: expanded(24), kinds=REFUSED),
]


def chained_names(depth: int) -> bytes:
    """Modules inside each other, every one under a name of 1 MiB that is stored once."""
    outer = POP + module_with(EMPTY_DICT + get(80_000) + get(80_001) + b"s") + put(80_001)
    return module_with(EMPTY_DICT) + put(80_001) + outer * depth


def expanded(layers: int) -> bytes:
    """Batch norms of 2**22 channels, each of whose five tensors is one byte seen 2**22 times."""
    one = tensor((2**22,), (0,), of=storage("f1", 16, ref("torch:ByteStorage")))
    leaves = ("weight", "bias", "running_mean", "running_var")
    forged = value({f"bn{n}.{leaf}": one for n in range(layers) for leaf in leaves})
    model = healthy_state_dict()
    entries = model.entries(
        PROTO2 + EMPTY_DICT + text("model") + model.body + b"s" + text("ema") + forged + b"s" + STOP
    )
    entries.append(type(entries[0])("archive/data/f1", bytes(16)))
    return pack(entries)


CASES = [*SPELLINGS, *DISCARDED, *NAMES, *GADGETS, *STREAMS, *MISUSED, *FORGED, *BOMBS]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    folder: Path = tmp_path_factory.mktemp("pickles")
    return watch(folder, CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hostile_pickle(case: Case, results: dict[str, Watched]) -> None:
    judge(case, results)


def test_names_of_cases_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("act", "event"),
    [
        (lambda folder: os.system("true"), "os.system"),
        (lambda folder: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda folder: (folder / "written").write_text(""), "open"),
        (lambda folder: eval("1 + 1"), "compile"),  # noqa: S307 - that it is noticed is the point
        (lambda folder: socket.socket().close(), "socket.__new__"),
        (lambda folder: ctypes.CDLL(None), "ctypes.dlopen"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_harness_notices_deeds(act: Callable[[Path], object], event: str, tmp_path: Path) -> None:
    """A watch that sees nothing would let every case pass."""
    noticed: list[str] = []
    watching = [True]

    def hook(name: str, args: tuple[object, ...]) -> None:
        if watching and deed(name, args):
            noticed.append(name)

    sys.addaudithook(hook)
    act(tmp_path)
    watching.clear()
    assert event in noticed
