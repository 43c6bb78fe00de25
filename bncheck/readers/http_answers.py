"""What a web server must answer before a byte of its answer's body is taken."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits

if TYPE_CHECKING:
    from types import SimpleNamespace

    from aiohttp import ClientResponse, ClientSession, TraceRequestRedirectParams

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

CHANGED = "the file changed while it was read; run again when nobody writes it"

_REFUSALS = {
    401: "the server wants credentials (401): put them into ~/.netrc, or use a signed URL",
    403: "the server refuses access (403): check the credentials in ~/.netrc, or whether a signed URL has expired",
    404: "no such file on the server (404); check the URL",
    407: "the proxy wants credentials (407); check the proxy's settings in the environment",
    410: "the file is gone from the server (410)",
    416: CHANGED,  # it is shorter now
    429: "the server answers too many requests (429); run again later",
}


class HttpAnswers:
    """Checks each answer's status and headers, for one file.

    fsspec takes the body of any answer to a range request for the range, however long it is:
    https://github.com/fsspec/filesystem_spec/blob/2024.2.0/fsspec/implementations/http.py (``_cat_file``). aiohttp
    calls ``check`` before the body is read (``raise_for_status`` of its session).

    Args:
        limits: bounds.

    Attributes:
        size: length of the file in bytes, once it is known.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._version: tuple[str | None, str | None] | None = None
        self.size: int | None = None

    @property
    def tell_a_version(self) -> bool:
        """Whether the server says which version of the file it sends."""
        return self._version is not None and any(self._version)

    async def check(self, response: ClientResponse) -> None:
        """Accept an answer.

        Raises:
            UnreadableFile: it is an error, not what was asked for, too long, or of another version of the file.
        """
        try:
            self._check(response)
        except UnreadableFile:
            response.close()  # or the rest of the body would come before the connection is used again
            raise

    async def check_redirect(
        self, session: ClientSession, context: SimpleNamespace, redirect: TraceRequestRedirectParams
    ) -> None:
        """Accept a redirect before it is followed (``on_request_redirect`` of aiohttp's tracing).

        Raises:
            UnreadableFile: it leaves encryption.
        """
        answer = redirect.response
        if answer.url.scheme == "https" and answer.headers.get("Location", "").lower().startswith("http:"):
            answer.close()
            raise UnreadableFile("the server redirects from https to a connection that is not encrypted")

    def _check(self, response: ClientResponse) -> None:
        if response.status >= 400:
            broken = f"the server answers with the error {response.status}"
            raise UnreadableFile(_REFUSALS.get(response.status, broken))
        asked = _RANGE.fullmatch(response.request_info.headers.get("Range", ""))
        if asked is not None:
            self._check_body(response, int(asked[1]), int(asked[2]))

    def _check_body(self, response: ClientResponse, first: int, last: int) -> None:
        if response.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise UnreadableFile("the server compresses the answer, so that ranges of the file cannot be read")
        length = response.content_length
        if length is None or "Transfer-Encoding" in response.headers:
            raise UnreadableFile("the server does not tell how long its answer is")
        match response.status:
            case 206:
                total = self._check_part(response, first, last, length)
            case 200 if length <= self._limits.remote_whole_bytes:
                total = length  # the whole file, whatever was asked for
            case 200:
                raise UnreadableFile(
                    f"the server ignores byte ranges and would send all {length} bytes; download the file and audit it"
                )
            case other:
                raise UnreadableFile(f"the server answers a range request with status {other}")
        version = response.headers.get("ETag"), response.headers.get("Last-Modified")
        if self._version not in (None, version) or total not in (None, self.size):
            raise UnreadableFile(CHANGED)
        self._version = version

    def _check_part(self, response: ClientResponse, first: int, last: int, length: int) -> int | None:
        """The length of the whole file, by an answer that holds a part of it; None where it does not say."""
        sent = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if sent is None or (int(sent[1]), int(sent[2])) != (first, last) or length != last - first + 1:
            raise UnreadableFile("the server sends another range than was asked for: the file changed or it is broken")
        return None if sent[3] == "*" else int(sent[3])
