"""The file that is to be patched, opened once and held to be the one that was read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import CannotPatch
from bncheck.core.places import LocalFile

_PIECE = 4 * 2**20
CHANGED = "it changed since it was read: run again"


class Original:
    """The file of a checkpoint.

    Attributes:
        file: what tells it from others.
        mode: its permission bits.

    Raises:
        CannotPatch: it lies elsewhere, cannot be opened, or is not the file that was read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.file is None:
            raise CannotPatch("it does not lie on this machine: download it first")
        self.file = checkpoint.file
        try:
            self._file = open(self.file.path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise CannotPatch(f"it cannot be opened again: {error.strerror}") from None
        self.mode = os.fstat(self._file.fileno()).st_mode & 0o777
        try:
            self.check_unchanged()
        except BaseException:
            self._file.close()
            raise

    def check_unchanged(self) -> None:
        """Compare size, time and identity of the opened file, and of what its path leads to, with those read.

        Raises:
            CannotPatch: they differ.
        """
        try:
            found = [os.fstat(self._file.fileno()), os.stat(self.file.path)]
        except OSError:
            raise CannotPatch(CHANGED) from None
        for status in found:
            now = LocalFile(self.file.path, status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))
            if now != self.file:
                raise CannotPatch(CHANGED)

    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``.

        Raises:
            CannotPatch: they are not there, or cannot be read.
        """
        parts: list[bytes] = []
        try:
            self._file.seek(start)
            while length > 0:
                part = self._file.read(length)
                if not part:
                    raise CannotPatch(CHANGED)
                parts.append(part)
                length -= len(part)
        except OSError as error:
            raise CannotPatch(f"it cannot be read: {error.strerror}") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self, start: int = 0, length: int | None = None) -> Iterator[tuple[int, bytes]]:
        """A range, or the whole file, in pieces of some megabytes: where each lies, and its bytes."""
        end = self.file.size if length is None else start + length
        for position in range(start, end, _PIECE):
            yield position, self.read(position, min(_PIECE, end - position))

    def sha256(self) -> str:
        """Of the whole file, in hexadecimal."""
        digest = hashlib.sha256()
        for _, data in self.pieces():
            digest.update(data)
        return digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
