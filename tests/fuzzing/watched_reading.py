"""Reads inputs in one process under watch and says what became of each.

    python -m tests.fuzzing.watched_reading JOB.json

An input may be refused with a ``BncheckError``, or read. Anything else is a crash: another exception, an import, a
file opened beside the input, a process, a compilation, too much memory, too much time, a rule that failed on what was
read, a report that is no JSON. The audit hook lets through what it knows to be harmless; all other events are deeds.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import bncheck
from bncheck import readers
from bncheck.catalogue import RULES
from bncheck.core.errors import BncheckError, UnsafeFile, UnsupportedFile
from bncheck.core.finding import Report, Severity
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.engine import examine
from bncheck.report.document import report_document
from bncheck.report.json import to_json
from bncheck.report.text import plain, report_lines
from tests.fuzzing.formats import FORMATS, input_of, makers
from tests.fuzzing.pieces import Maker

MEMORY = 2**30
"""Address space an input may take beyond what the process had, in bytes."""
HEAVY = 300 * 2**20
"""Resident bytes beyond which reading a small file is reported, though it came to an end."""
SMALL = 2**20
"""Bytes of a file called small."""
SECONDS = 20.0
"""Processor time after which reading is stopped."""
SLOW_SECONDS = 2.0
"""Processor time beyond which reading a small file is reported, though it came to an end."""
_RESET_ABOVE = 16 * 2**20

# Modules no local file has a reader in: commands, what fetches URLs, and what runs models.
_NOT_FOR_FILES = (
    "bncheck.cli",
    "bncheck.__main__",
    "bncheck.measuring",
    "bncheck.probe",
    "bncheck.readers.remote",
    "bncheck.recalibrating",
    "bncheck.recalibration",
    "bncheck.runtime",
)

# Events that change nothing and reveal nothing; https://docs.python.org/3/library/audit_events.html
_HARMLESS = frozenset({"builtins.id", "sys._getframe", "object.__getattr__", "array.__new__", "gc.get_referents"})


@dataclass(frozen=True, slots=True)
class Crash:
    """An input that did what no input may do.

    Attributes:
        signature: what happened and where, the same for inputs that fail alike.
        detail: the traceback or the deeds.
    """

    format: str
    index: int
    signature: str
    detail: str


@dataclass(slots=True)
class Tally:
    """What became of a format's inputs."""

    inputs: int = 0
    unreadable: int = 0
    unsafe: int = 0
    unsupported: int = 0
    read: int = 0
    partly: int = 0
    """Of those read: with something unread, so never clean."""
    slowest: float = 0.0
    """Processor seconds."""
    peak: int = 0
    """Resident bytes beyond those before the format's first input."""
    seconds: float = 0.0
    """Processor time of reading, without making the inputs."""
    whole: list[int] = field(default_factory=list)
    """Indices of the inputs that were read whole."""


class _TooLong(BaseException):
    """Reading did not end; no ``except Exception`` of a reader can swallow it."""


# --- the watch ---------------------------------------------------------------------------------------------

_deeds: list[str] = []
_watched: list[str] = []
"""The folder whose files may be opened while an input is read; empty while none is."""


def _hook(event: str, args: tuple[object, ...]) -> None:
    if not _watched or event in _HARMLESS:
        return
    if event == "open":
        path, _, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        # A number is a descriptor that was opened a moment ago, and looked at then.
        if not writes and (isinstance(path, int) or _lies_in(path, _watched[0])):
            return
    _deeds.append(f"{event} {args!r}"[:160])


def _lies_in(path: object, folder: str) -> bool:
    if not isinstance(path, str):
        return False
    parent, name = os.path.split(path)
    return parent == folder and name not in ("", ".", "..")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _TooLong


def preload(seeds: Path | None = None) -> None:
    """Import what reading and judging imports, whatever the file: what a file causes must stand out.

    Args:
        seeds: folder of files to read once, because numpy imports parts of itself when they are first used.
    """
    for module in pkgutil.walk_packages(bncheck.__path__, "bncheck."):
        if not module.name.startswith(_NOT_FOR_FILES):
            importlib.import_module(module.name)
    for codec in ("raw-unicode-escape", "latin-1", "unicode-escape", "ascii"):
        b"a".decode(codec)
    importlib.import_module("numpy.ma")  # numpy does so for the first median
    for path in () if seeds is None else sorted(seeds.glob("*/*")):
        if path.is_file():
            with contextlib.suppress(Exception):  # a mutated one will fail likewise, and be seen
                judge(str(path))


def watch() -> None:
    """From now on, in this process and for ever, events are looked at and memory is bounded."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _stop)
    sys.addaudithook(_hook)
    gc.freeze()


def reset_peak() -> int:
    """Forget the largest resident memory so far; returns today's, in bytes."""
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    return peak_memory()


def peak_memory() -> int:
    """The largest resident memory since it was reset, in bytes; getrusage counts that of the parent process as well."""
    with open("/proc/self/status", "rb", buffering=0) as status:
        told = status.read(4096)
    return int(told[told.index(b"VmHWM:") + 6 :].split(None, 1)[0]) * 1024


# --- reading -----------------------------------------------------------------------------------------------


def judge(path: str) -> str:
    """Audit a file as the command does; returns what became of it.

    Raises:
        AssertionError: what is said of it is not what may be said.
    """
    try:
        checkpoint = readers.read(path)
    except BncheckError as error:
        _check_message(str(error))
        match error:
            case UnsafeFile():
                return "unsafe"
            case UnsupportedFile():
                return "unsupported"
        return "unreadable"
    subject = examine(checkpoint, RULES, DEFAULT_LIMITS)
    for outcome in subject.not_checked:
        assert not outcome.crashed, f"rule {outcome.rule} failed: {outcome.reason}"
    for entry in checkpoint.unread:
        assert len(entry.reason) < 1000, f"a reason of {len(entry.reason)} characters"
    report = Report((subject,), (), 0, Severity.ERROR)
    document = json.loads(to_json(report_document(report)), parse_constant=_no_constant)
    assert not checkpoint.unread or document["summary"]["exit_code"] == 2, (
        "something is unread and the exit code is not 2"
    )
    for line in plain(report_lines(report, 100, show_passed=True)).split("\n"):
        assert line.isprintable(), f"a line of the report holds control characters: {line[:200]!r}"
    return "partly" if checkpoint.unread else "read"


def _check_message(message: str) -> None:
    assert message, "an error says nothing"
    assert message.isprintable(), f"an error's message holds control characters: {message[:200]!r}"
    assert len(message) < 1000, f"an error's message has {len(message)} characters: {message[:200]}"


def _no_constant(name: str) -> object:
    raise AssertionError(f"the report holds {name}, which is no JSON")


def _signature(error: BaseException) -> str:
    """Exception and place, without numbers of this one input."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if f"{os.sep}bncheck{os.sep}" in frame.filename), frames[-1])
    words = str(error).partition(":")[0][:60] if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__} {words} in {Path(place.filename).name}:{place.name}"


class Reader:
    """Reads one input after the other.

    Args:
        folder: where the input lies while it is read, with nothing else; best in memory.
        seeds: where the files lie that some formats need beside the input.
    """

    def __init__(self, folder: Path, seeds: Path) -> None:
        self._folder = folder
        self._seeds = seeds
        self.tally = Tally()
        self._base = self._peak = 0
        self.start("")

    def start(self, name: str) -> None:
        """Begin a new format."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        if name and FORMATS[name].beside:
            for path in (self._seeds / FORMATS[name].beside).iterdir():
                shutil.copy(path, self._folder)
        gc.collect()
        self.tally = Tally()
        self._base = self._peak = reset_peak()

    def read(self, name: str, index: int, data: bytes) -> Crash | None:
        """Read an input; what became of it is tallied."""
        path = str(self._folder / FORMATS[name].filename)
        with open(path, "wb") as file:
            file.write(data)
        _deeds.clear()
        failed: BaseException | None = None
        began = time.process_time()
        _watched.append(str(self._folder))
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                became = judge(path)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except (Exception, _TooLong) as error:
            failed, became = error, "crashed"
        finally:
            _watched.clear()
        took = time.process_time() - began
        grown = self._measure()
        self._count(index, became, took, grown)
        if failed is not None:
            detail = "".join(traceback.format_exception(failed, limit=-12, chain=False))[-4000:]
            return Crash(name, index, _signature(failed), detail)
        if _deeds:
            return Crash(name, index, f"deed: {_deeds[0].partition(' ')[0]}", "\n".join(_deeds[:8]))
        if len(data) < SMALL and took > SLOW_SECONDS:
            return Crash(name, index, "slow", f"{took:.1f} s for {len(data)} bytes")
        if len(data) < SMALL and grown > HEAVY:
            return Crash(name, index, "heavy", f"{grown / 2**20:.0f} MiB for {len(data)} bytes")
        return None

    def _measure(self) -> int:
        peak = peak_memory()
        grown = max(0, peak - self._base)
        if peak > self._peak + _RESET_ABOVE:
            self._peak = reset_peak()
        return grown

    def _count(self, index: int, became: str, took: float, grown: int) -> None:
        tally = self.tally
        tally.inputs += 1
        tally.seconds += took
        tally.slowest = max(tally.slowest, took)
        tally.peak = max(tally.peak, grown)
        match became:
            case "unreadable":
                tally.unreadable += 1
            case "unsafe":
                tally.unsafe += 1
            case "unsupported":
                tally.unsupported += 1
            case "read" | "partly":
                tally.read += 1
                tally.partly += became == "partly"
                if became == "read":
                    tally.whole.append(index)


# --- the process -------------------------------------------------------------------------------------------


def serve(job: Path) -> Iterator[dict[str, object]]:
    """Read the inputs of a job; yields a crash as soon as it is seen, and each batch's tally.

    The job's ``progress`` file holds the batch and the index being worked on: should the process die, it tells of what.
    """
    told = json.loads(job.read_text())
    known: dict[str, Maker] = makers(Path(told["seeds"]), [batch["format"] for batch in told["batches"]])
    progress = os.open(told["progress"], os.O_WRONLY | os.O_CREAT)
    preload(Path(told["seeds"]))
    assert "torch" not in sys.modules, "the process that reads must not have torch"
    watch()
    reader = Reader(Path(told["room"]) / "read", Path(told["seeds"]))
    for place, batch in enumerate(told["batches"]):
        name = batch["format"]
        reader.start(name)
        for index in range(batch["first"], batch["first"] + batch["count"]):
            os.pwrite(progress, struct.pack("<2Q", place, index), 0)
            crash = reader.read(name, index, input_of(known[name], name, told["seed"], index))
            if crash is not None:
                yield {"crash": asdict(crash)}
        yield {"batch": place, "tally": asdict(reader.tally)}


def main() -> None:
    """Print one JSON object a line."""
    for line in serve(Path(sys.argv[1])):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
