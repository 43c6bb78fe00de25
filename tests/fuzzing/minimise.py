"""Makes a failing input small: pieces are left out as long as it goes on failing alike."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzzing.formats import Format
from tests.fuzzing.pieces import Whole
from tests.process import ROOT

_PROGRAM = """
import json, sys
from pathlib import Path
from tests.fuzzing.watched_reading import Reader, preload, watch
preload(Path(sys.argv[3]))
watch()
reader = Reader(Path(sys.argv[1]) / "read", Path(sys.argv[3]))
reader.start(sys.argv[2])
for line in sys.stdin:
    crash = reader.read(sys.argv[2], 0, bytes.fromhex(line))
    print(json.dumps(crash.signature if crash else ""), flush=True)
"""


def minimise(pieces: Sequence[bytes], fails: Callable[[Sequence[bytes]], bool]) -> list[bytes]:
    """The pieces without runs that do not matter, longest runs first (delta debugging, Zeller 2002, in short)."""
    kept = list(pieces)
    length = max(1, len(kept) // 2)
    while length:
        start, shorter = 0, False
        while start < len(kept):
            trial = kept[:start] + kept[start + length :]
            if fails(trial):
                kept, shorter = trial, True
            else:
                start += length
        if not shorter or length > 1:
            length //= 2
    return kept


class _Signatures:
    """What a process under watch says of each input; a new one where it dies."""

    def __init__(self, row: Format, room: Path) -> None:
        seeds = room / "seeds"
        subprocess.run(
            [sys.executable, "-m", "tests.fuzzing.seeds", str(seeds), row.kind, row.beside or row.kind],
            cwd=ROOT,
            check=True,
        )
        self._command = [sys.executable, "-c", _PROGRAM, str(room), row.name, str(seeds)]
        self._process: subprocess.Popen[str] | None = None

    def of(self, data: bytes) -> str:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(data.hex() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            return "died"
        return str(json.loads(line))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def minimise_file(row: Format, path: Path) -> str:
    """Write ``<path>.small``; returns what was done, in words."""
    data = path.read_bytes()
    with tempfile.TemporaryDirectory() as room:
        signatures = _Signatures(row, Path(room))
        try:
            wanted = signatures.of(data)
            if not wanted:
                return "it does not fail"
            for whole in _wholes(row, data):
                if signatures.of(whole.assemble(whole.pieces)) == wanted:
                    data = whole.assemble(minimise(whole.pieces, _fails_alike(signatures, whole, wanted)))
                    break
        finally:
            signatures.close()
    path.with_suffix(".small").write_bytes(data)
    return f"{wanted}: {path.stat().st_size} bytes became {len(data)}\n{data[:2000]!r}"


def _fails_alike(signatures: _Signatures, whole: Whole, wanted: str) -> Callable[[Sequence[bytes]], bool]:
    return lambda pieces: signatures.of(whole.assemble(pieces)) == wanted


def _wholes(row: Format, data: bytes) -> list[Whole]:
    try:
        return list(row.wholes(data))
    except Exception:
        return []
