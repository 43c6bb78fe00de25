"""Random access to a file's bytes through one descriptor, from sniffing to the last read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from bncheck.core.errors import UnreadableFile
from bncheck.core.places import LocalFile

# Bytes that cost about as much as another request does. Measured on a 500 MB Adam checkpoint of a wide ResNet-50:
# joining batch-norm tensors up to this distance apart takes 73 requests instead of 117 and 1.3 times their bytes; at
# twice the distance 66 requests and 2.6 times the bytes, at four times 56 and 6.7 times.
WORTH_A_REQUEST = 65_536


class Source(Protocol):
    """Bytes that can be read in ranges."""

    @property
    def start(self) -> int:
        """Where in its file the source begins."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    @property
    def small_reads_are_cheap(self) -> bool:
        """Whether a few bytes here and there cost little, as on a disk; over a network each costs a round trip."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``.

        Raises:
            UnreadableFile: the range does not lie inside the source, or reading failed.
        """
        ...

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Announce (offset, length) ranges that will be read; fetching them together may be cheaper than one by one."""
        ...


class OpenedSource(Source, Protocol):
    """A file opened for reading, to be closed at the end of a ``with`` block.

    Raises:
        UnreadableFile: at the end of the block, where the file changed while it was read.
    """

    @property
    def file(self) -> LocalFile | None:
        """The file as it was when it was opened; None where it lies elsewhere."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to say of the way the bytes came."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SliceSource:
    """A part of another source, as a source: a file stored inside an archive.

    Args:
        source: the whole.
        start: first byte of the part.
        size: its length in bytes; the part must lie inside the whole.
    """

    def __init__(self, source: Source, start: int, size: int) -> None:
        self._source = source
        self._start = start
        self._size = size

    @property
    def start(self) -> int:
        """Where in its file the part begins."""
        return self._source.start + self._start

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    @property
    def small_reads_are_cheap(self) -> bool:
        """As in the whole."""
        return self._source.small_reads_are_cheap

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` of the part."""
        if offset < 0 or length < 0 or offset + length > self._size:
            raise UnreadableFile(f"bytes {offset} to {offset + length} are needed of a member of {self._size}")
        return self._source.read_at(self._start + offset, length)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Announce ranges to the whole."""
        self._source.prefetch([(self._start + offset, length) for offset, length in ranges])


class FileSource:
    """A regular file, opened once: a file swapped under the path afterwards changes nothing.

    Attributes:
        file: what tells it from others.

    Raises:
        UnreadableFile: it is missing, a folder, a device or pipe, or may not be read.
    """

    def __init__(self, path: str) -> None:
        try:
            # O_NONBLOCK: opening a pipe without a writer would hang before fstat could refuse it.
            flags = (
                os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            )
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            raise UnreadableFile("no such file; check the path") from None
        except PermissionError:
            raise UnreadableFile("permission denied; make the file readable for this user") from None
        except (OSError, ValueError) as error:
            raise UnreadableFile(f"cannot be opened: {error}") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            what = "a folder; name a model file in it" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UnreadableFile(f"is {what}")
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._size = status.st_size
        self.file = LocalFile(os.path.abspath(path), status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))

    @property
    def start(self) -> int:
        """The source is the file."""
        return 0

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""
        return self._size

    @property
    def small_reads_are_cheap(self) -> bool:
        """They are: the operating system reads ahead and keeps what it read."""
        return True

    @property
    def remarks(self) -> tuple[str, ...]:
        """None."""
        return ()

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``."""
        if offset < 0 or length < 0 or offset + length > self._size:
            raise UnreadableFile(
                f"bytes {offset} to {offset + length} are needed of {self._size}: the file was cut short or forged"
            )
        parts: list[bytes] = []
        try:
            self._file.seek(offset)
            while length > 0:
                part = self._file.read(length)
                if not part:
                    raise UnreadableFile("the file became shorter while it was read; run again")
                parts.append(part)
                length -= len(part)
        except OSError as error:
            raise UnreadableFile(f"cannot be read: {error.strerror}") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: the operating system reads ahead."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
