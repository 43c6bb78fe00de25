"""Where an audited file lies, as machines that know the source tree want to hear it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from bncheck.report.document_types import FindingEntry
from bncheck.report.printable import printable

# Roots of the checkout, https://docs.github.com/en/actions/reference/workflows-and-actions/variables and
# https://docs.gitlab.com/ci/variables/predefined_variables/; a job may work in a folder below.
_ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")
_SAFE = "/-._~"


@dataclass(frozen=True, slots=True)
class Location:
    """A file's place.

    Attributes:
        path: below the source tree with forward slashes where ``inside``; else absolute, or a URL.
        inside: whether it lies in the source tree.
        uri: the same, %-encoded: relative where it lies inside.
    """

    path: str
    inside: bool
    uri: str


def location(path: str) -> Location:
    """Where a path of a report leads; a URL stays one.

    Args:
        path: as the document has it: of a file, a URL, or a name in angle brackets of a module in memory.
    """
    scheme, separator, rest = path.partition("://")
    if separator and scheme.isalnum():
        return Location(printable(path), False, f"{scheme}://{_quoted(rest, safe='/-._~:@?=&%#')}")
    if path.startswith("<"):
        return Location(printable(path), True, _quoted(path))
    root, whole = _source_root(), os.path.abspath(path)
    try:
        below = os.path.relpath(whole, root)
    except ValueError:  # on another drive of Windows
        below = os.pardir
    if below.partition(os.sep)[0] == os.pardir:
        outside = whole.replace(os.sep, "/")
        return Location(printable(outside), False, f"file:///{_quoted(outside.lstrip('/'))}")
    inside = below.replace(os.sep, "/")
    return Location(printable(inside), True, _quoted(inside))


def _source_root() -> str:
    """The checkout of a continuous integration that works in it or below; else the working folder."""
    here = os.getcwd()
    roots = (os.environ.get(name, "") for name in _ROOTS)
    return next((root for root in roots if os.path.isabs(root) and _is_below(here, root)), here)


def _is_below(path: str, root: str) -> bool:
    return os.path.join(path, "").startswith(os.path.join(root, ""))


def _quoted(text: str, safe: str = _SAFE) -> str:
    """Bytes that are no text in a name of the file system stay themselves; no character can fail."""
    try:
        return quote(text.encode("utf-8", "surrogateescape"), safe=safe)
    except UnicodeEncodeError:
        return quote(text.encode("utf-8", "backslashreplace"), safe=safe)


def fingerprinted(findings: Iterable[tuple[str, FindingEntry]]) -> Iterator[tuple[str, FindingEntry, str]]:
    """Each finding with a fingerprint that stays the same while the defect does, and is no other's in this run.

    Rule, place and layers make it up. The order of files and layers, the numbers and the wording do not, so that a
    finding keeps its identity over runs; where two agree in all three, the later one is counted.

    Args:
        findings: path of the file, and the finding.
    """
    seen: Counter[str] = Counter()
    for path, finding in findings:
        parts = [finding["rule"], location(path).uri, *sorted(finding["layers"])]
        key = hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()[:32]
        seen[key] += 1
        yield path, finding, key if seen[key] == 1 else f"{key}-{seen[key]}"
