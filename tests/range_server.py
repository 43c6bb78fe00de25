"""A web server on this machine that sends byte ranges, counts what it sends, and can be told to misbehave.

No numpy, no torch: the benchmark runs it beside what it measures.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_ANOTHER_DATE = 10**18  # nanoseconds since 1970
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(slots=True)
class Sent:
    """One answer: its method, the range asked for, and the length of the body as far as it was sent.

    A body is noted before it is sent, so that who has one finds it in the log.
    """

    method: str
    asked: str | None
    length: int = 0


@dataclass(slots=True)
class Log:
    """All answers so far."""

    sent: list[Sent] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Of any method."""
        return len(self.sent)

    @property
    def bytes(self) -> int:
        """In bodies."""
        return sum(answer.length for answer in self.sent)


class WellBehaved(BaseHTTPRequestHandler):
    """Sends the files of a folder, or ranges of them, with an ETag; subclasses go wrong in one way each."""

    protocol_version = "HTTP/1.1"
    folder: Path
    log: Log
    delay = 0.0  # seconds before each answer

    def do_HEAD(self) -> None:  # the name http.server calls
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        time.sleep(self.delay)
        path = self.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.refuse(404)
            return
        size = path.stat().st_size
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2]) + 1, size)) if asked else (0, size)
        self.send(path, start, end, size, partial=asked is not None, body=body)

    def send(self, path: Path, start: int, end: int, size: int, *, partial: bool, body: bool) -> None:
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.send_version(path)
        self.end_headers()
        self.write(path, start, end, body=body)

    def send_version(self, path: Path) -> None:
        status = path.stat()
        self.send_header("ETag", f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"')

    def write(self, path: Path, start: int, end: int, *, body: bool) -> None:
        sent = self.note()
        if body:
            with open(path, "rb") as file:
                while sent.length < end - start:
                    part = os.pread(file.fileno(), min(end - start - sent.length, 2**18), start + sent.length)
                    sent.length += len(part)
                    self.wfile.write(part)

    def note(self) -> Sent:
        sent = Sent(self.command, self.headers.get("Range"))
        self.log.sent.append(sent)
        return sent

    def refuse(self, status: int) -> None:
        self.note()
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class IgnoresRanges(WellBehaved):
    """Answers 200 with the whole file."""

    def send(self, path: Path, start: int, end: int, size: int, *, partial: bool, body: bool) -> None:
        super().send(path, 0, size, size, partial=False, body=body)


class SendsAnotherRange(WellBehaved):
    """Answers 206 with the bytes before those asked for, and says so."""

    def send(self, path: Path, start: int, end: int, size: int, *, partial: bool, body: bool) -> None:
        shift = min(start, 10)
        super().send(path, start - shift, end - shift, size, partial=partial, body=body)


class LiesAboutLength(WellBehaved):
    """Says in HEAD that the file is longer than it is."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**7))
        self.end_headers()


class SendsTooMuch(WellBehaved):
    """Answers 206 for the range asked for, and an endless body."""

    def send(self, path: Path, start: int, end: int, size: int, *, partial: bool, body: bool) -> None:
        if not partial:
            super().send(path, start, end, size, partial=partial, body=body)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = self.note()
        with contextlib.suppress(OSError):
            while sent.length < 2**26:
                sent.length += 2**16
                self.wfile.write(b"10000\r\n" + b"\0" * 2**16 + b"\r\n")
        self.close_connection = True


class Compresses(WellBehaved):
    """Claims that what it sends is compressed."""

    def send_version(self, path: Path) -> None:
        if self.command == "GET":
            self.send_header("Content-Encoding", "gzip")


class SaysNothingOfVersions(WellBehaved):
    """No ETag, no date."""

    def send_version(self, path: Path) -> None:
        pass


class NoLength(WellBehaved):
    """Never says how long the file is."""

    def answer(self, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True


class NoHead(WellBehaved):
    """Knows GET alone, as a URL signed for GET does."""

    def do_HEAD(self) -> None:
        self.refuse(403)


class CutsShort(WellBehaved):
    """Resets the connection in the middle of every long body."""

    def write(self, path: Path, start: int, end: int, *, body: bool) -> None:
        if not body or end - start < 1000:
            super().write(path, start, end, body=body)
            return
        super().write(path, start, start + (end - start) // 2, body=True)
        self.wfile.flush()
        # SO_LINGER of 0 seconds: close sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


class Hangs(WellBehaved):
    """Sends headers and half the body, and then nothing, until it is stopped."""

    released: threading.Event

    def write(self, path: Path, start: int, end: int, *, body: bool) -> None:
        if body and end - start > 1000:
            super().write(path, start, start + (end - start) // 2, body=True)
            self.wfile.flush()
            self.released.wait(60)
            self.close_connection = True
        else:
            super().write(path, start, end, body=body)


class Drips(Hangs):
    """Sends a byte now and then: never silent for long, never done."""

    def write(self, path: Path, start: int, end: int, *, body: bool) -> None:
        if not body:
            super().write(path, start, end, body=body)
            return
        with contextlib.suppress(OSError):
            while not self.released.wait(0.05):
                self.wfile.write(b"\0")
        self.close_connection = True


class Changes(WellBehaved):
    """Gives the file another date after the first two ranges."""

    def send(self, path: Path, start: int, end: int, size: int, *, partial: bool, body: bool) -> None:
        if self.is_time:
            os.utime(path, ns=(_ANOTHER_DATE, _ANOTHER_DATE))
        super().send(path, start, end, size, partial=partial, body=body)

    @property
    def is_time(self) -> bool:
        return sum(answer.asked is not None for answer in self.log.sent) >= 2


class ChangesSilently(Changes):
    """The same, by a file of another length, and without a word on versions."""

    def send(self, path: Path, start: int, end: int, size: int, *, partial: bool, body: bool) -> None:
        WellBehaved.send(self, path, start, end, size + self.is_time, partial=partial, body=body)

    def send_version(self, path: Path) -> None:
        pass


class Redirects(WellBehaved):
    """Sends the client from /to/<URL> to that URL."""

    def answer(self, *, body: bool) -> None:
        if not self.path.startswith("/to/"):
            super().answer(body=body)
            return
        self.note()
        self.send_response(302)
        self.send_header("Location", self.path.removeprefix("/to/"))
        self.send_header("Content-Length", "0")
        self.end_headers()


class Refuses(WellBehaved):
    """Answers everything with one status."""

    status = 500

    def answer(self, *, body: bool) -> None:
        self.refuse(self.status)


class WantsPassword(WellBehaved):
    """Refuses who does not come as user:secret."""

    def answer(self, *, body: bool) -> None:
        if self.headers.get("Authorization") == "Basic dXNlcjpzZWNyZXQ=":
            super().answer(body=body)
        else:
            self.refuse(401)


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs."""

    url: str
    log: Log


@contextlib.contextmanager
def serving(
    folder: Path, kind: type[WellBehaved] = WellBehaved, context: ssl.SSLContext | None = None, **settings: object
) -> Iterator[Server]:
    """Serve a folder from a thread of this process.

    Args:
        folder: whose files are sent.
        kind: how it behaves.
        context: of an encrypted server.
        settings: attributes of that class, such as ``delay``.
    """
    log = Log()
    released = threading.Event()
    handler = type(kind.__name__, (kind,), {"folder": folder, "log": log, "released": released, **settings})
    server = _QuietServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Server(f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}", log)
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what is tested
