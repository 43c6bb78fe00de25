"""Builds hostile model files and runs the audit on them under watch.

Three parts: opcodes of a pickle assembler, a zip writer that can lie in every field, and a harness. The harness forks
one child for each file: it has little memory and time, sits in an empty folder, and an audit hook records whatever a
file could have made it do. It runs ``python -m bncheck`` as a user would. A second kind of child loads the same file
with ``torch.load(weights_only=False)``, which proves that the payload is live and the test could fail.

Run as a script it is the process that forks; so nothing here imports torch before it is needed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import resource
import runpy
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

MEMORY = 1500 * 2**20
PEAK_KIB = 2**20
CPU_SECONDS = 20
WALL_SECONDS = 60
PARALLEL = 2
TRACE = "pwned"
COMMAND = f"touch {TRACE}"

# --- pickle assembler --------------------------------------------------------------------------------

PROTO2, PROTO4 = b"\x80\x02", b"\x80\x04"
STOP, POP, DUP, NONE, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE = b".", b"0", b"2", b"N", b"}", b"]", b")"


def text(value: str) -> bytes:
    """BINUNICODE; lone surrogates are written as CPython writes them."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """LONG1."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def value(item: object) -> bytes:
    """A plain value; bytes are opcodes already."""
    match item:
        case bytes():
            return item
        case bool():
            return b"\x88" if item else b"\x89"
        case None:
            return NONE
        case int():
            return number(item)
        case float():
            return b"G" + struct.pack(">d", item)
        case str():
            return text(item)
        case tuple():
            return b"(" + b"".join(map(value, item)) + b"t"
        case list():
            return b"](" + b"".join(map(value, item)) + b"e"
        case dict():
            return b"}(" + b"".join(value(key) + value(entry) for key, entry in item.items()) + b"u"
    raise TypeError(item)


def ref(path: str) -> bytes:
    """GLOBAL; a colon parts module from name, so that names can be dotted."""
    module, name = path.split(":")
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def stack_ref(path: str) -> bytes:
    """STACK_GLOBAL."""
    module, name = path.split(":")
    return text(module) + text(name) + b"\x93"


def call(maker: str | bytes, *args: object) -> bytes:
    """REDUCE."""
    return (maker if isinstance(maker, bytes) else ref(maker)) + value(args) + b"R"


def new(maker: str, *args: object) -> bytes:
    """NEWOBJ."""
    return ref(maker) + value(args) + b"\x81"


def build(instance: bytes, state: object) -> bytes:
    """BUILD."""
    return instance + value(state) + b"b"


def put(index: int) -> bytes:
    """LONG_BINPUT."""
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    """LONG_BINGET."""
    return b"j" + struct.pack("<I", index)


def storage(
    key: object = "0", numel: object = 4, kind: object = b"ctorch\nFloatStorage\n", tag: object = "storage"
) -> bytes:
    """BINPERSID of the tuple torch writes, any part of it forged."""
    return value((tag, kind, key, "cpu", numel)) + b"Q"


def tensor(shape: object = (4,), strides: object = (1,), offset: object = 0, *, of: bytes | None = None) -> bytes:
    """A call of torch's rebuild function."""
    stored, hooks = storage() if of is None else of, call("collections:OrderedDict")
    return call("torch._utils:_rebuild_tensor_v2", stored, offset, shape, strides, False, hooks)


SYSTEM = call("posix:system", COMMAND)


# --- healthy models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A file torch.save wrote, taken apart."""

    pickle: bytes
    members: tuple[Entry, ...]

    @property
    def body(self) -> bytes:
        """The pickle without its PROTO and STOP: opcodes that leave the model on the stack."""
        return self.pickle[2:-1]

    def archive(self, pickle: bytes | None = None) -> bytes:
        """The file again, its pickle replaced."""
        return pack(self.entries(pickle))

    def entries(self, pickle: bytes | None = None) -> list[Entry]:
        """Fresh copies of the members, the pickle first."""
        entries = [Entry(entry.name, entry.data) for entry in self.members]
        if pickle is not None:
            entries[0].data = pickle
        return entries

    def beside(self, payload: bytes, proto: bytes = PROTO2) -> bytes:
        """The file with something more in it: ``{"model": the model, "extra": payload}``."""
        pair = text("model") + self.body + b"s" + text("extra") + payload + b"s"
        return self.archive(proto + EMPTY_DICT + pair + STOP)

    def after(self, payload: bytes, proto: bytes = PROTO2) -> bytes:
        """The file with opcodes run before the model's own."""
        return self.archive(proto + payload + self.body + STOP)


def take_apart(saved: bytes) -> Model:
    """Read a file of ``torch.save``, written a moment ago by ourselves, with Python's own zipfile."""
    with zipfile.ZipFile(BytesIO(saved)) as archive:
        members = tuple(Entry(info.filename, archive.read(info)) for info in archive.infolist())
    assert members[0].name.endswith("/data.pkl")
    return Model(members[0].data, members)


@cache
def healthy_network() -> object:
    """A small network in which no rule finds a fault."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(norm.running_mean, torch.Tensor)
    assert isinstance(norm.running_var, torch.Tensor)
    assert isinstance(norm.num_batches_tracked, torch.Tensor)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.num_batches_tracked.fill_(1000)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    return network.eval()


@cache
def healthy_state_dict(protocol: int = 2) -> Model:
    """Its state dict, as torch saves it."""
    from torch import nn

    network = healthy_network()
    assert isinstance(network, nn.Module)
    return take_apart(saved(network.state_dict(), protocol))


@cache
def healthy_module() -> Model:
    """The module itself, as torch pickles it."""
    return take_apart(saved(healthy_network()))


def saved(thing: object, protocol: int = 2) -> bytes:
    """What torch.save writes."""
    import torch

    buffer = BytesIO()
    torch.save(thing, buffer, pickle_protocol=protocol)
    return buffer.getvalue()


# --- zip writer --------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A member. What is None is written truthfully; everything else as told, in one or both headers."""

    name: str | bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0x800
    mode: int = 0
    disk: int = 0
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    extra: bytes = b""
    local_name: str | bytes | None = None
    local_method: int | None = None
    local_flags: int | None = None
    local_crc: int | None = None
    local_size: int | None = None
    local_packed: int | None = None
    local_magic: bytes = b"PK\x03\x04"
    local_extra: bytes = b""
    listed: bool = True
    """Whether the directory knows it."""
    written: bool = True
    """Whether it has a local header and data of its own."""


@dataclass(frozen=True)
class Zip64:
    """The zip64 end record; what is None is written truthfully."""

    count: int | None = None
    size: int | None = None
    offset: int | None = None
    length: int = 44
    magic: bytes = b"PK\x06\x06"
    disk: int = 0
    locator: int | None = None
    disks: int = 1


def encoded(name: str | bytes) -> bytes:
    """A name's bytes."""
    return name if isinstance(name, bytes) else name.encode()


def chosen(told: int | None, true: int) -> int:
    """The told number, or the true one."""
    return true if told is None else told


def pack(
    entries: Sequence[Entry],
    *,
    before: bytes = b"",
    between: bytes = b"",
    behind: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
    size: int | None = None,
    offset: int | None = None,
    zip64: Zip64 | None = None,
) -> bytes:
    """Write an archive.

    Args:
        entries: members in the order of both their bodies and the directory.
        before: bytes before the first member; offsets stay true.
        between: bytes between the last member and the directory.
        behind: bytes behind the end record.
        comment: the archive's comment.
        count, size, offset: what the end record says of the directory.
        zip64: adds a zip64 end record and its locator.
    """
    out = bytearray(before)
    directory = bytearray()
    for entry in entries:
        method, crc = entry.method, zlib.crc32(entry.data)
        body = entry.data
        if method == 8:
            engine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
            body = engine.compress(body) + engine.flush()
        name = encoded(entry.name)
        local_name = name if entry.local_name is None else encoded(entry.local_name)
        told = (chosen(entry.crc, crc), chosen(entry.packed, len(body)), chosen(entry.size, len(entry.data)))
        lies = (entry.local_crc, entry.local_packed, entry.local_size)
        local = tuple(chosen(lie, number_) for lie, number_ in zip(lies, told, strict=True))
        where = chosen(entry.offset, len(out))
        if entry.written:
            out += struct.pack(
                "<4s5H3L2H",
                entry.local_magic,
                20,
                chosen(entry.local_flags, entry.flags),
                chosen(entry.local_method, method),
                0,
                0,
                *local,
                len(local_name),
                len(entry.local_extra),
            )
            out += local_name + entry.local_extra + body
        if entry.listed:
            directory += struct.pack(
                "<4s6H3L5H2L",
                b"PK\x01\x02",
                3 << 8 | 20,
                20,
                entry.flags,
                method,
                0,
                0,
                *told,
                len(name),
                len(entry.extra),
                0,
                entry.disk,
                0,
                entry.mode << 16,
                where,
            )
            directory += name + entry.extra
    out += between
    start, listed = len(out), sum(entry.listed for entry in entries)
    out += directory
    if zip64 is not None:
        true = (listed, len(directory), start)
        n, s, o = (chosen(a, b) for a, b in zip((zip64.count, zip64.size, zip64.offset), true, strict=True))
        where = chosen(zip64.locator, len(out))
        out += struct.pack("<4sQ2H2L4Q", zip64.magic, zip64.length, 45, 45, zip64.disk, 0, n, n, s, o)
        out += struct.pack("<4sLQL", b"PK\x06\x07", 0, where, zip64.disks)
    n = chosen(count, listed)
    out += struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, n, n, chosen(size, len(directory)), chosen(offset, start), len(comment)
    )
    return bytes(out + comment + behind)


def encoded_name(entry: Entry) -> str:
    """A member's name as text."""
    return entry.name if isinstance(entry.name, str) else entry.name.decode("latin-1")


def variance_member(entries: Sequence[Entry]) -> Entry:
    """The one with the healthy network's running variance, which every audit reads."""
    return next(entry for entry in entries if encoded_name(entry).endswith("data/4"))


def unread_member(entries: Sequence[Entry]) -> Entry:
    """The one with the convolution's weight, which no audit has to read."""
    return next(entry for entry in entries if encoded_name(entry).endswith("data/0"))


def faulty(layer: str) -> bytes:
    """The healthy state dict with a negative variance in a layer of this name, so that a report has to print it."""
    model = healthy_state_dict()
    renamed = model.pickle
    for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        renamed = renamed.replace(text(f"1.{leaf}"), text(f"{layer}.{leaf}"))
    assert renamed != model.pickle
    entries = model.entries(renamed)
    target = variance_member(entries)
    target.data = struct.pack("<f", -1.0) * (len(target.data) // 4)
    return pack(entries)


# --- harness -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A file and what the audit must make of it.

    Attributes:
        name: for the test's id.
        make: builds the file's bytes.
        kinds: what may come of it: kinds of error, ``audited``, or ``unread``: audited, a part that matters left out.
        exits: permitted exit codes where it is audited; for all else it is 2.
        says: what the error's message must contain.
        live: whether loading the file with torch must leave its trace.
        filename: what the file is called.
        arguments: of the command, behind the path.
    """

    name: str
    make: Callable[[], bytes]
    kinds: tuple[str, ...] = ("unsafe-file",)
    exits: tuple[int, ...] = (0,)
    says: str = ""
    live: bool = False
    filename: str = "model.pt"
    arguments: tuple[str, ...] = ("--format", "json")

    def __str__(self) -> str:
        return self.name


EITHER = ("unsafe-file", "unreadable-file")
BROKEN = ("unreadable-file",)
REFUSED = ("unsafe-file", "unreadable-file", "unread")
AUDITED = ("audited",)


def harmless(name: str, make: Callable[[], bytes], exits: tuple[int, ...] = (0,), filename: str = "model.pt") -> Case:
    """A file that looks odd and has to be audited all the same."""
    return Case(name, make, kinds=AUDITED, exits=exits, filename=filename)


@dataclass(frozen=True)
class Watched:
    """What a child did.

    Attributes:
        exit: its exit code, or the negative signal that ended it.
        out, err: what it printed.
        deeds: audit events no reader may raise, and modules imported because of the file.
        files: what lay in its folder afterwards.
        peak: largest resident memory, KiB.
        cpu: processor seconds.
    """

    exit: int
    out: str
    err: str
    deeds: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    peak: int = 0
    cpu: float = 0.0

    @property
    def document(self) -> dict[str, object]:
        """Its JSON; NaN and Infinity, which JSON has not, are an error."""
        parsed = json.loads(self.out, parse_constant=_no_constant)
        assert isinstance(parsed, dict)
        return parsed


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def watch(folder: Path, cases: Sequence[Case]) -> dict[str, Watched]:
    """Build every file, audit each in a child of its own, and load those with a live payload with torch.

    Returns:
        By case name what the audit did, and by ``live:`` and the name what loading did.
    """
    jobs: list[dict[str, object]] = []
    for number_, case in enumerate(cases):
        place = folder / str(number_)
        place.mkdir()
        path = place / case.filename
        path.write_bytes(case.make())
        jobs.append({"name": case.name, "act": "audit", "argv": ["audit", str(path), *case.arguments]})
        if case.live:
            jobs.append({"name": f"live:{case.name}", "act": "load", "argv": [str(path)]})
    warm = {"healthy": healthy_state_dict().archive(), "faulty": faulty("a\x1b\ud800"), "broken": b"PK\3\4"}
    for name, data in warm.items():
        (folder / name).write_bytes(data)
    paths = [str(folder / name) for name in warm]
    return {**_forked(folder, jobs, "audit", paths), **_forked(folder, jobs, "load", paths)}


def _forked(folder: Path, jobs: list[dict[str, object]], act: str, warm: list[str]) -> dict[str, Watched]:
    wanted = [job for job in jobs if job["act"] == act]
    if not wanted:
        return {}
    room = folder / act
    room.mkdir()
    (room / "jobs.json").write_text(json.dumps({"act": act, "warm": warm, "jobs": wanted}))
    env = {key: kept for key, kept in os.environ.items() if key not in ("FORCE_COLOR", "COLUMNS", "NO_COLOR")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, str(room)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((room / "results.json").read_text())
    return {
        name: Watched(**{**result, "deeds": tuple(result["deeds"]), "files": tuple(result["files"])})
        for name, result in results.items()
    }


def judge(case: Case, results: dict[str, Watched]) -> None:
    """Assert that the audit did what the case says, and nothing else."""
    if case.live:
        assert TRACE in results[f"live:{case.name}"].files, "the payload is dead, so the test proves nothing"
    seen = results[case.name]
    assert not seen.deeds
    assert not seen.files
    assert "Traceback" not in seen.err
    assert seen.exit in (0, 1, 2, 3), (seen.exit, seen.err[-2000:])
    assert seen.peak < PEAK_KIB, f"{seen.peak // 1024} MiB"
    outcome, message = _outcome(seen.document)
    assert outcome in case.kinds, (outcome, message)
    assert seen.exit in (case.exits if outcome == "audited" else (2,)), seen.out[-2000:]
    assert "MemoryError" not in message, "only this harness kept it from taking more memory"
    assert case.says in message
    assert message.isprintable(), message
    assert len(message) < 1000


def _outcome(document: dict[str, object]) -> tuple[str, str]:
    errors, subjects = document["errors"], document["subjects"]
    assert isinstance(errors, list)
    assert isinstance(subjects, list)
    if errors:
        assert not subjects
        [error] = errors
        assert error["message"]
        return error["kind"], error["message"]
    [subject] = subjects
    assert not any(entry["crashed"] for entry in subject["not_checked"])
    return ("unread", subject["unread"][0]["reason"]) if subject["unread"] else ("audited", "")


# --- the process that forks --------------------------------------------------------------------------

# Events whose mere occurrence is a deed; https://docs.python.org/3/library/audit_events.html
_DEEDS = re.compile(
    r"os\.(system|exec|spawn|posix_spawn|startfile|fork|forkpty|remove|rename|link|symlink|mkdir|rmdir|truncate|chmod"
    r"|chown|kill|utime|setxattr|chdir)|subprocess\.|pty\.|socket\.|ctypes\.|shutil\.|tempfile\."
    r"|code\.__new__|marshal\.|pickle\.|urllib\.|webbrowser\.|sqlite3\.|mmap\.|ftplib\.|smtplib\.|signal\.|resource\."
)
_OWN_FOLDERS = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]))


def _is_own_code(filename: object) -> bool:
    return isinstance(filename, str) and (filename.startswith(_OWN_FOLDERS) or filename.startswith("<frozen"))


def deed(event: str, args: tuple[object, ...]) -> str | None:
    """The event in words, if no reader of files may cause it."""
    match event, args:
        case "open", (path, mode, int(flags)):
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND)
            return f"open {path!r} {mode!r}" if writes else None
        case "compile", (source, filename):
            return None if _is_own_code(filename) else f"compile {str(source)[:200]!r}"
        case "exec", (code, *_):
            own = _is_own_code(getattr(code, "co_filename", ""))
            return None if own else f"exec of {getattr(code, 'co_names', code)} {getattr(code, 'co_consts', '')}"[:200]
    return f"{event} {args}"[:200] if _DEEDS.match(event) else None


_done: list[str] = []


def _hook(event: str, args: tuple[object, ...]) -> None:
    words = deed(event, args)
    if words is not None:
        _done.append(words)


def _audit(argv: list[str]) -> int:
    sys.argv = ["bncheck", *argv]
    try:
        runpy.run_module("bncheck", run_name="__main__", alter_sys=False)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    return 0


def _load(argv: list[str]) -> int:
    import torch

    with contextlib.suppress(BaseException):
        torch.load(argv[0], weights_only=False)
    gc.collect()
    patience = time.monotonic() + 5.0
    while not os.path.exists(TRACE) and time.monotonic() < patience:
        time.sleep(0.02)  # some payloads start a process and do not wait for it
    return 0


_ACTS: dict[str, Callable[[list[str]], int]] = {"audit": _audit, "load": _load}


def _child(folder: Path, act: str, argv: list[str]) -> None:
    """Never returns. Prints into files beside the folder it works in."""
    os.setpgid(0, 0)
    os.chdir(folder / "cwd")
    report = os.open(folder / "deeds", os.O_WRONLY | os.O_CREAT)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    signal.alarm(WALL_SECONDS)
    if act == "audit":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    usual, before = set(_done), set(sys.modules)
    _done.clear()
    code = _run(act, argv)
    deeds = [words for words in dict.fromkeys(_done) if words not in usual]
    deeds += [f"import of {name}" for name in sys.modules if name not in before and not _may_import(name)]
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(report, json.dumps(deeds).encode())
    os._exit(code)


def _may_import(name: str) -> bool:
    """Whether the tool may import it late: a part of itself or of rich, which colours its output."""
    return name.partition(".")[0] in ("bncheck", "rich", "pygments")


def _run(act: str, argv: list[str]) -> int:
    try:
        return _ACTS[act](argv)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 70


def _serve(room: Path) -> None:
    """Fork a child for each job of the room, two at a time."""
    told = json.loads((room / "jobs.json").read_text())
    act = told["act"]
    # What the tool does for any file, healthy, faulty or broken, is no deed: typer evaluates its own annotations.
    with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull), contextlib.redirect_stderr(devnull):
        if act == "load":
            _load(told["warm"])
        else:
            b"a".decode("raw-unicode-escape")  # imports the codec of the text opcodes
            for hooked in (False, True):
                if hooked:
                    sys.addaudithook(_hook)
                for options in ([], ["--format", "json"], ["--show-passed"]):
                    for path in (*told["warm"], "/nowhere"):
                        _audit(["audit", path, *options])
    assert act == "load" or "torch" not in sys.modules
    gc.freeze()
    running: dict[int, tuple[str, Path]] = {}
    results: dict[str, dict[str, object]] = {}
    for place, job in enumerate(told["jobs"]):
        folder = room / str(place)
        (folder / "cwd").mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            _child(folder, act, job["argv"])
        running[pid] = (job["name"], folder)
        while len(running) >= PARALLEL:
            results.update(_reap(running))
    while running:
        results.update(_reap(running))
    (room / "results.json").write_text(json.dumps(results))


def _reap(running: dict[int, tuple[str, Path]]) -> Iterator[tuple[str, dict[str, object]]]:
    pid, status, usage = os.wait4(-1, 0)
    name, folder = running.pop(pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what a live payload left running
    told = (folder / "deeds").read_text()
    yield (
        name,
        {
            "exit": os.waitstatus_to_exitcode(status),
            "out": (folder / "out").read_text(errors="surrogateescape"),
            "err": (folder / "err").read_text(errors="surrogateescape"),
            "deeds": json.loads(told) if told else [],
            "files": sorted(os.listdir(folder / "cwd")),
            "peak": usage.ru_maxrss,
            "cpu": usage.ru_utime + usage.ru_stime,
        },
    )


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
