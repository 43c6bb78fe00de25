"""A file behind a URL, read by ranges through fsspec.

Nothing is written to disk. The bytes wanted come in few requests: a miss brings along what was announced, near ranges
come as one, and many ranges come at a time.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import TimeoutError as PoolTimeout
from multiprocessing.pool import ThreadPool
from types import TracebackType
from typing import Protocol, Self, TypeVar

import fsspec
import fsspec.config
import fsspec.core

from bncheck.core.errors import BadUsage, BncheckError, UnreadableFile
from bncheck.core.limits import Limits
from bncheck.readers.byte_ranges import FetchedRanges, Range, joined, pieces
from bncheck.readers.http_answers import CHANGED, HttpAnswers
from bncheck.readers.source import WORTH_A_REQUEST
from bncheck.readers.urls import redacted, scheme_of

_T = TypeVar("_T")
_R = TypeVar("_R")

_WEB = ("http", "https")
_IPV6_HOST = re.compile(r"//\[[0-9A-Fa-f:.]+\]")
# Protocols of fsspec that are about another file, or copy it to disk: what is read must be what the URL names.
_WRAPPERS = frozenset(
    (
        *("async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dir", "filecache", "generic"),
        *("libarchive", "reference", "simplecache", "tar", "zip"),
    )
)

# The pickle of a ResNet-50 takes 33 kB and with Adam's state 73 kB, the header of its safetensors file 33 kB; both
# stand at the start of their files.
_HEAD = 2 * WORTH_A_REQUEST
# Requests at a time: some more than the ten of s3transfer, as these are smaller than its parts.
# https://github.com/boto/s3transfer/blob/0.10.0/s3transfer/manager.py (``max_request_concurrency``)
_CONNECTIONS = 16
# One answer, so that a large pickle comes over several connections; the same file's ``multipart_chunksize``.
_LONGEST = 8 * 2**20

_FOLDER = "is a folder; name the files in it, or a pattern such as */model.pt"

# What filesystems call a version of a file in ``info``: s3fs, gcsfs, adlfs, HfFileSystem, memory, sftp and others.
_VERSION_FIELDS = (
    *("ETag", "etag", "VersionId", "version_id", "generation", "md5Hash", "content_md5", "blob_id", "xet_hash"),
    *("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
)


class _Filesystem(Protocol):
    """What is used of ``fsspec.AbstractFileSystem``."""

    async_impl: bool

    def info(self, path: str) -> Mapping[str, object]: ...

    def cat_file(self, path: str, *, start: int, end: int) -> bytes: ...

    def glob(self, path: str) -> list[str]: ...

    def invalidate_cache(self, path: str | None = None) -> None: ...


class _Place:
    """A path on a filesystem: fsspec shares asynchronous ones between threads, and makes others for each thread.

    Raises:
        BadUsage: the URL is chained, or its protocol is no plain one.
        UnreadableFile: the protocol needs a package that is not installed.
    """

    def __init__(self, url: str, limits: Limits) -> None:
        self.protocol = scheme_of(url) or ""
        self.answers = HttpAnswers(limits) if self.protocol in _WEB else None
        self._url = url
        self._stall = limits.remote_stall_seconds
        self._own = threading.local()
        self._shared: _Filesystem | None = None
        if self.protocol in _WRAPPERS or "::" in (_IPV6_HOST.sub("//", url) if self.answers else url):
            raise BadUsage("chained URLs and protocols that wrap others are not read; name the file itself")
        _require(self.protocol)
        self._own.filesystem, self.path = self._connect()
        if self._own.filesystem.async_impl:
            self._shared = self._own.filesystem

    def info(self) -> Mapping[str, object]:
        """What the server says of the file now."""
        filesystem = self._filesystem()
        filesystem.invalidate_cache()
        try:
            return filesystem.info(self.path)
        except FileNotFoundError as error:
            if self.answers is not None and error.__cause__ is not None:
                raise error.__cause__ from None  # fsspec's http calls every failure a missing file
            raise

    def fetch(self, part: Range) -> tuple[Range, bytes]:
        """The range and its bytes."""
        start, end = part
        return part, self._filesystem().cat_file(self.path, start=start, end=end)

    def names(self) -> list[str]:
        """The paths that this one matches as a pattern."""
        return self._filesystem().glob(self.path)

    def _filesystem(self) -> _Filesystem:
        if self._shared is not None:
            return self._shared
        if not hasattr(self._own, "filesystem"):
            self._own.filesystem = self._connect()[0]
        own: _Filesystem = self._own.filesystem
        return own

    def _connect(self) -> tuple[_Filesystem, str]:
        if self.answers is None:
            opened: tuple[_Filesystem, str] = fsspec.core.url_to_fs(self._url, skip_instance_cache=True)
            return opened
        settings = self._session_settings(self.answers)
        return fsspec.filesystem(self.protocol, client_kwargs=settings, skip_instance_cache=True), self._url

    def _session_settings(self, answers: HttpAnswers) -> dict[str, object]:
        from aiohttp import ClientTimeout, TraceConfig  # noqa: PLC0415 - only web servers need it

        configured = fsspec.config.conf.get(self.protocol, {}).get("client_kwargs", {})
        redirects = TraceConfig()
        redirects.on_request_redirect.append(answers.check_redirect)
        return {
            "trust_env": True,  # proxies and ~/.netrc
            **configured,
            "headers": {**configured.get("headers", {}), "Accept-Encoding": "identity"},
            "raise_for_status": answers.check,
            "trace_configs": [redirects],
            "timeout": ClientTimeout(total=None, sock_connect=self._stall, sock_read=self._stall),
        }


def _require(protocol: str) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise BadUsage(f"fsspec knows no protocol {protocol}://; check the URL") from None
    except ImportError as error:
        advice = 'pip install "bncheck[remote]"' if protocol in _WEB else redacted(str(error))
        raise UnreadableFile(f"{protocol}:// needs a package that is not installed: {advice}") from None


class _Requests:
    """Asks a filesystem from several threads, for no longer than the file may take.

    The threads are daemons: one that a hanging server keeps does not keep the program from ending.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.remote_seconds
        self._threads = ThreadPool(_CONNECTIONS)

    def each(self, work: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
        """The results in the order in which they come; the first error ends it.

        Raises:
            UnreadableFile: an item failed, or time is up.
        """
        results = self._threads.imap_unordered(work, items)
        for _ in items:
            try:
                yield results.next(max(0.0, self._deadline - time.monotonic()))
            except PoolTimeout:
                raise UnreadableFile(
                    f"it did not come within {self._limits.remote_seconds:g} seconds; download the file and audit it"
                ) from None
            except Exception as error:  # every protocol has its own
                raise self._explained(error) from None

    def close(self) -> None:
        """Drop what is still waiting."""
        self._threads.terminate()

    def _explained(self, error: Exception) -> BncheckError:
        match error:
            case BncheckError():
                return error
            case FileNotFoundError():
                return UnreadableFile("no such file; check the URL")
            case IsADirectoryError():
                return UnreadableFile(_FOLDER)
            case PermissionError():
                return UnreadableFile("access denied; check the credentials that this protocol's package reads")
            case TimeoutError():
                stall = self._limits.remote_stall_seconds
                return UnreadableFile(f"the server sent nothing for {stall:g} seconds; run again")
        return UnreadableFile(f"cannot be fetched: {type(error).__name__}: {redacted(str(error))}")


class RemoteSource:
    """A file behind a URL, of which only the ranges asked for are fetched.

    Attributes:
        requests: how often something was asked for.
        bytes_fetched: length of the answers.

    Raises:
        BadUsage: the URL is chained, or its protocol is unknown.
        UnreadableFile: it is missing or cannot be reached, or the server does not tell its length.
    """

    small_reads_are_cheap = False
    start = 0
    file = None

    def __init__(self, url: str, limits: Limits) -> None:
        self._limits = limits
        self.requests = 0
        self.bytes_fetched = 0
        self._fetched = FetchedRanges(limits.remote_cache_bytes)
        self._failure: BncheckError | None = None
        self._requests = _Requests(limits)
        try:
            self._place = next(self._requests.each(lambda url: _Place(url, limits), [url]))
            self._size, self._version = self._size_and_version()
        except BaseException:
            self._requests.close()
            raise
        if self._place.answers is not None:
            self._place.answers.size = self._size
        self._announced: list[Range] = [(0, min(_HEAD, self._size))]

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""
        return self._size

    @property
    def remarks(self) -> tuple[str, ...]:
        """Said where the server tells no version of the file."""
        answers = self._place.answers
        if self._version if answers is None else answers.tell_a_version:
            return ()
        return ("the server tells no version of the file: whether it changed was judged by its length alone",)

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``."""
        end = offset + length
        if offset < 0 or length < 0 or end > self._size:
            raise UnreadableFile(
                f"bytes {offset} to {end} are needed of {self._size}: the file was cut short or forged"
            )
        missing = self._fetched.missing(offset, end)
        if missing:
            try:
                self._fetch([*missing, *self._worth_adding(missing[0][0], end)])
            except BncheckError as error:
                self._failure = error
                raise
        data = self._fetched.take(offset, end)
        self._fetched.trim()
        return data

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Remember ranges; the first read of one brings the others along."""
        inside = [(first, first + length) for first, length in ranges if 0 <= first <= first + length <= self._size]
        wanted = [part for start, end in inside for part in self._fetched.missing(start, end)]
        self._announced = list(pieces(joined([*self._announced, *wanted], 0), _LONGEST))

    def _worth_adding(self, start: int, end: int) -> Iterator[Range]:
        """What comes along with a range that must be fetched: announced ranges if it is one, else what follows it."""
        hit = next((index for index, (_, last) in enumerate(self._announced) if start < last), None)
        if hit is None or self._announced[hit][0] > start:
            yield end, min(max(end, start + WORTH_A_REQUEST), self._size)
            return
        left, stop = self._limits.remote_cache_bytes, hit
        while stop < len(self._announced) and left > 0:
            first, last = self._announced[stop]
            left -= last - first
            stop += 1
            yield first, last
        del self._announced[hit:stop]

    def _fetch(self, ranges: Sequence[Range]) -> None:
        if self._failure is not None:
            raise self._failure  # a server that failed once is not asked again for each tensor
        needed = [part for start, end in joined(ranges, 0) for part in self._fetched.missing(start, end)]
        parts = list(pieces(joined(needed, WORTH_A_REQUEST), _LONGEST))
        self._count(len(parts), sum(end - start for start, end in parts))
        for (start, end), data in self._requests.each(self._place.fetch, parts):
            if len(data) == end - start:
                self._fetched.put(start, data)
            elif self._place.answers is not None and len(data) == self._size:
                self.bytes_fetched += len(data) - (end - start)
                self._fetched.put(0, data)  # HttpAnswers let the whole file pass
            else:
                raise UnreadableFile(f"{len(data)} bytes came instead of {end - start}: the answer was cut short")

    def _count(self, requests: int, length: int) -> None:
        self.requests += requests
        self.bytes_fetched += length
        if self.requests > self._limits.remote_requests or self.bytes_fetched > self._limits.remote_bytes:
            raise UnreadableFile(
                f"more would have to be fetched than {self._limits.remote_bytes} bytes in"
                f" {self._limits.remote_requests} requests; download the file and audit it"
            )

    def _size_and_version(self) -> tuple[int, tuple[str, ...]]:
        self._count(1, 0)
        info = next(self._requests.each(_Place.info, [self._place]))
        size = info.get("size")
        if info.get("type") == "directory":
            raise UnreadableFile(_FOLDER)
        if not isinstance(size, int) or size < 0:
            raise UnreadableFile("the server does not tell how long the file is; download the file and audit it")
        return size, tuple(f"{field} {info[field]}" for field in _VERSION_FIELDS if info.get(field) is not None)

    def _check_version(self) -> None:
        """Compare the version with that at the start; a web server's answers were each compared when they came."""
        if self._place.answers is None and self._size_and_version() != (self._size, self._version):
            raise UnreadableFile(CHANGED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Readers pass over a tensor that cannot be read; here it is the file that cannot.
            if self._failure is not None and (error is None or isinstance(error, BncheckError)):
                raise self._failure from None
            if error is None:
                self._check_version()
        finally:
            self._requests.close()


def matching(pattern: str, limits: Limits) -> list[str]:
    """The files that a URL with ``*`` or ``[`` in its path matches, as URLs, sorted.

    Raises:
        BadUsage: the protocol has no listing.
        UnreadableFile: the listing cannot be had.
    """
    requests = _Requests(limits)
    try:
        place = next(requests.each(lambda url: _Place(url, limits), [pattern]))
        if place.protocol in _WEB or not pattern.endswith(place.path):
            raise BadUsage(f"{place.protocol}:// has no listing to match a pattern with; name each file")
        names = next(requests.each(_Place.names, [place]))
        return sorted(pattern.removesuffix(place.path) + name for name in names)
    finally:
        requests.close()
