"""Patterns of paths, as a config names models."""

from __future__ import annotations

import fnmatch
import re


def path_matches(pattern: str, path: str) -> bool:
    """Whether a pattern names a path, or a folder that the path lies in.

    Args:
        pattern: parts between slashes; ``*`` and ``?`` stay inside one part, ``**`` is any number of parts; ``.`` is
            the folder that paths are relative to.
        path: with forward slashes.
    """
    wanted, parts = _parts(pattern), _parts(path)
    if pattern.startswith("/") != path.startswith("/"):
        return False
    if not wanted:
        return parts[:1] != [".."]
    return any(_fits(wanted, parts[:length]) for length in range(1, len(parts) + 1))


def _parts(path: str) -> list[str]:
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts and parts[-1] not in ("..", "**"):
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return parts


def _fits(wanted: list[str], parts: list[str]) -> bool:
    """Dynamic programming over the pattern's parts: ``**`` may take any number, and no input makes it slow."""
    reached = {0}
    for index, part in enumerate(wanted, 1):
        if part == "**":
            # At the end, what lies inside: a file is no folder.
            reached = set(range(min(reached) + (index == len(wanted)), len(parts) + 1))
        else:
            matches = re.compile(fnmatch.translate(part)).match
            reached = {at + 1 for at in reached if at < len(parts) and matches(parts[at])}
        if not reached:
            return False
    return len(parts) in reached
