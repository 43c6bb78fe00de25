"""Paths that are URLs: which are, and how they are shown without what they hold of secrets."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# RFC 3986, 3.1. One letter is a drive of Windows.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# fsspec's names of the machine's own files.
_LOCAL = ("file", "local")

_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]+")
_QUERY_IN_TEXT = re.compile(r"\?[^\s'\"<>]+")
_HIDDEN = "***"


def scheme_of(path: str) -> str | None:
    """The protocol of a URL in lower case; None where the path names a local file.

    A path that begins like a URL is one, whatever lies in the working folder: a folder called ``https:`` must not
    stand in for a server. ``./https://…`` names the local file.
    """
    found = _SCHEME.match(path)
    scheme = None if found is None else found[1].lower()
    return None if scheme in _LOCAL else scheme


def local_path(path: str) -> str:
    """The path without ``file://`` or ``local://``; any other path as it is."""
    found = _SCHEME.match(path)
    return path[found.end() :] if found is not None and found[1].lower() in _LOCAL else path


def is_pattern(url: str) -> bool:
    """Whether a URL names files by a pattern: ``*`` or ``[`` behind its host, before its query (``?`` begins that)."""
    place = re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0]
    return any(character in place.partition("/")[2] for character in "*[")


def shown(path: str) -> str:
    """A path as reports show it: of a URL without user name, password, query and fragment, which may be credentials."""
    if scheme_of(path) is None:
        return path
    scheme = path.partition("://")[0]
    try:
        parts = urlsplit(path)
        # A password with / or ? in it ends the host early, and what is left of it stands where the port belongs.
        web = scheme.lower() in ("http", "https")
        host = parts.netloc.rpartition("@")[2]
        if web and parts.port is None and ":" in host.rpartition("]")[2]:
            return f"{scheme}://{_HIDDEN}"
    except ValueError:
        return f"{scheme}://{_HIDDEN}"
    user = f"{_HIDDEN}@" if "@" in parts.netloc else ""
    query = f"?{_HIDDEN}" if parts.query else ""
    fragment = f"#{_HIDDEN}" if parts.fragment else ""
    return f"{scheme}://{user}{host}{parts.path}{query}{fragment}"


def redacted(text: str) -> str:
    """A library's message on one line, with every URL in it as ``shown`` has it."""
    shortened = _URL_IN_TEXT.sub(lambda found: shown(found[0]), " ".join(text.split()))
    return _QUERY_IN_TEXT.sub(f"?{_HIDDEN}", shortened)[:300]
