"""Runs a campaign: inputs by the thousand in processes under watch, then a second opinion on what was read."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random

from tests.fuzzing.formats import FORMATS, input_of, makers
from tests.process import ROOT

BATCH = 5000
"""Inputs one process reads before a fresh one takes over."""
DEAF_SECONDS = 120.0
"""Wall time without a word from a process and without progress after which it is killed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Attributes:
        formats: names of rows of ``formats.FORMATS``.
        count: inputs, shared evenly.
        seed: of every random choice.
        compared: inputs of each format, of those read whole, that get a second opinion.
        keep: folder for inputs that crashed or differ; None keeps none.
        seeds: folder of seeds written before; None writes them anew.
        python: what runs the readers; a test puts a faulty reader here.
    """

    formats: Sequence[str]
    count: int
    seed: int = 0
    compared: int = 1000
    keep: Path | None = None
    seeds: Path | None = None
    python: Sequence[str] = (sys.executable, "-m", "tests.fuzzing.watched_reading")


@dataclass(frozen=True, slots=True)
class Fault:
    """An input no reader may treat as it was treated."""

    format: str
    index: int
    signature: str
    detail: str
    data: bytes


@dataclass(slots=True)
class Row:
    """A format's line of the table."""

    format: str
    inputs: int = 0
    unreadable: int = 0
    unsafe: int = 0
    unsupported: int = 0
    read: int = 0
    partly: int = 0
    slowest: float = 0.0
    peak: int = 0
    seconds: float = 0.0
    whole: list[int] = field(default_factory=list)
    compared: int = 0
    refused: int = 0
    differ: int = 0
    crashes: int = 0


@dataclass(slots=True)
class Outcome:
    """What a campaign came to."""

    rows: dict[str, Row]
    faults: list[Fault] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    """Why the library refused what bncheck read whole: format and reason → how often."""

    def table(self) -> str:
        """One line for each format."""
        return "\n".join(_table(list(self.rows.values())))


def run(plan: Plan) -> Outcome:
    """Run a campaign.

    Raises:
        RuntimeError: a process did not even begin.
    """
    outcome = Outcome({name: Row(name) for name in plan.formats})
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=shared) as room:
        campaign = _Campaign(plan, outcome, Path(room))
        campaign.write_seeds()
        campaign.read()
        campaign.compare()
    return outcome


class _Campaign:
    def __init__(self, plan: Plan, outcome: Outcome, room: Path) -> None:
        self._plan, self._outcome, self._room = plan, outcome, room
        self._seeds = plan.seeds or room / "seeds"
        self._progress = room / "progress"
        self._seen: Counter[tuple[str, str]] = Counter()

    def write_seeds(self) -> None:
        rows = [FORMATS[name] for name in self._plan.formats]
        kinds = {kind for row in rows for kind in (row.kind, row.beside) if kind}
        if self._plan.seeds is None:
            command = [sys.executable, "-m", "tests.fuzzing.seeds", str(self._seeds), *sorted(kinds)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the seeds could not be written: {done.stderr[-2000:]}")
        self._makers = makers(self._seeds, self._plan.formats)

    # --- reading ---------------------------------------------------------------------------------

    def read(self) -> None:
        each = -(-self._plan.count // len(self._plan.formats))
        todo = [
            {"format": name, "first": first, "count": min(BATCH, each - first)}
            for name in self._plan.formats
            for first in range(0, each, BATCH)
        ]
        while todo:
            size = 0
            batches = []
            while todo and size + todo[0]["count"] <= BATCH:
                size += todo[0]["count"]
                batches.append(todo.pop(0))
            todo[:0] = self._read_batches(batches)

    def _read_batches(self, batches: list[dict[str, object]]) -> list[dict[str, object]]:
        """Read in one process; returns what is left to do because it died."""
        done = 0
        for line in self._process(self._plan.python, batches):
            if "tally" in line:
                self._add(batches[line["batch"]]["format"], line["tally"])
                done = line["batch"] + 1
            elif "crash" in line:
                self._fault(**line["crash"])
            elif done < len(batches):
                name, index = batches[line["at"]]["format"], line["index"]
                self._fault(name, index, f"process died: {line['died']}", line["words"])
                self._outcome.rows[name].inputs += index + 1 - batches[line["at"]]["first"]
                rest = batches[done]["first"] + batches[done]["count"] - index - 1
                left = [{"format": name, "first": index + 1, "count": rest}] if rest else []
                return left + batches[done + 1 :]
        return []

    def _add(self, name: str, tally: dict[str, object]) -> None:
        row = self._outcome.rows[name]
        for key, value in tally.items():
            known = getattr(row, key)
            setattr(row, key, max(known, value) if key in ("slowest", "peak") else known + value)

    def _fault(self, format: str, index: int, signature: str, detail: str, kind: str = "crash") -> None:  # noqa: A002
        self._outcome.rows[format].crashes += kind == "crash"
        self._seen[format, signature] += 1
        if self._seen[format, signature] > 3:
            return  # three of a kind tell as much as a thousand
        data = input_of(self._makers[format], format, self._plan.seed, index)
        self._outcome.faults.append(Fault(format, index, signature, detail, data))
        if self._plan.keep is not None:
            self._plan.keep.mkdir(parents=True, exist_ok=True)
            path = self._plan.keep / f"{format}-{self._plan.seed}-{index}"
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(f"{signature}\n\n{detail}\n")

    # --- second opinion --------------------------------------------------------------------------

    def compare(self) -> None:
        batches = []
        for name, row in self._outcome.rows.items():
            if FORMATS[name].second and row.whole and self._plan.compared:
                count = min(self._plan.compared, len(row.whole))
                indices = sorted(Random(self._plan.seed).sample(row.whole, count))
                batches.append({"format": name, "indices": indices})
        while batches:
            batches = self._compare_batches(batches)

    def _compare_batches(self, batches: list[dict[str, object]]) -> list[dict[str, object]]:
        for line in self._process((sys.executable, "-m", "tests.fuzzing.second_opinion"), batches):
            name = batches[line.get("batch", line.get("at"))]["format"]
            row, index = self._outcome.rows[name], line["index"]
            row.compared += 1
            if "died" in line:
                row.refused += 1
                self._outcome.refusals[f"{name}: the library's process died: {line['died']}"] += 1
                rest = [number for number in batches[line["at"]]["indices"] if number > index]
                return [{"format": name, "indices": rest}, *batches[line["at"] + 1 :]]
            match line["outcome"]:
                case "refused":
                    row.refused += 1
                    self._outcome.refusals[f"{name}: {line['words'][:100]}"] += 1
                case "differ" | "unread":
                    row.differ += 1
                    self._fault(name, index, f"{line['outcome']}: {line['words'][:40]}", line["words"], kind="differ")
        return []

    # --- processes -------------------------------------------------------------------------------

    def _process(self, command: Sequence[str], batches: list[dict[str, object]]) -> Iterator[dict[str, object]]:
        """What a process says; where it dies, a last word on what it was doing."""
        job = self._room / "job.json"
        told = {"seeds": str(self._seeds), "room": str(self._room), "seed": self._plan.seed, "batches": batches}
        job.write_text(json.dumps({**told, "progress": str(self._progress)}))
        self._progress.write_bytes(b"")
        with open(self._room / "errors", "w+") as errors:
            process = subprocess.Popen(
                [*command, str(job)], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()
            )
            watchdog = _Watchdog(process, self._progress)
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    yield json.loads(line)
            code = process.wait()
            watchdog.cancel()
            if code:
                errors.seek(0)
                words = errors.read()[-3000:]
                where = self._progress.read_bytes()
                if len(where) < 16:
                    raise RuntimeError(f"{' '.join(command)} did not begin: {words}")
                at, index = struct.unpack("<2Q", where)
                yield {"died": f"exit code {code}", "at": at, "index": index, "words": words}


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class _Watchdog:
    """Kills a process that makes no progress: the reader's own clock does not tick inside one long C call."""

    def __init__(self, process: subprocess.Popen[str], progress: Path) -> None:
        self._process, self._progress = process, progress
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def cancel(self) -> None:
        """The process has ended."""
        self._over.set()

    def _watch(self) -> None:
        last, since = b"", time.monotonic()
        while not self._over.wait(1.0):
            now = self._progress.read_bytes()
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > DEAF_SECONDS:
                self._process.kill()
                return


# --- the table ---------------------------------------------------------------------------------------------

_COLUMNS = (
    *("format", "inputs", "unreadable", "unsafe", "unsupported", "read", "partly", "compared", "lib refuses"),
    *("differ", "crashes", "mean ms", "slowest ms", "peak MB"),
)


def _table(rows: list[Row]) -> Iterator[str]:
    lines = [_cells(row) for row in rows]
    if len(rows) > 1:
        lines.append(_cells(_sum(rows)))
    widths = [max(len(line[at]) for line in (_COLUMNS, *lines)) for at in range(len(_COLUMNS))]
    for line in (_COLUMNS, *lines):
        yield "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )


def _cells(row: Row) -> tuple[str, ...]:
    counts = (row.inputs, row.unreadable, row.unsafe, row.unsupported, row.read, row.partly, row.compared, row.refused)
    mean = 1e3 * row.seconds / max(row.inputs, 1)
    figures = (f"{mean:.2f}", f"{1e3 * row.slowest:.0f}", f"{row.peak / 2**20:.0f}")
    return (row.format, *(str(count) for count in (*counts, row.differ, row.crashes)), *figures)


def _sum(rows: Sequence[Row]) -> Row:
    total = Row("all")
    for row in rows:
        for entry in fields(Row):
            if entry.name not in ("format", "whole"):
                pair = getattr(total, entry.name), getattr(row, entry.name)
                setattr(total, entry.name, max(pair) if entry.name in ("slowest", "peak") else sum(pair))
    return total
