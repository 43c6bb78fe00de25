"""Where a config lies: from the working directory upward, never beside a model."""

from __future__ import annotations

import os
import re

NAMES = ("bncheck.yaml", "bncheck.yml", "pyproject.toml")
TABLE = ("tool", "bncheck")
"""Where pyproject.toml keeps it."""
_MAY_SAY = re.compile(r"tool[\"']?\s*\.\s*[\"']?bncheck|^\s*\[\s*[\"']?tool[\"']?\s*\]|^\s*tool\s*=", re.MULTILINE)


def find_config(start: str = ".") -> str | None:
    """The nearest config in a folder or above it; None where there is none.

    Nothing is looked for beside models: a config names code to run, and a model comes from somewhere else. The search
    ends at the root of a repository, so that what lies around a checkout decides nothing.

    Args:
        start: the folder to begin in.

    Returns:
        Its path, relative to the working directory.

    Raises:
        BadConfig: a pyproject.toml on the way is malformed.
    """
    try:
        folder = os.path.abspath(start)
    except FileNotFoundError:  # the working directory has been removed
        return None
    while True:
        for name in NAMES:
            path = os.path.join(folder, name)
            if _has_table(path) if name.endswith(".toml") else _stands(path):
                return os.path.relpath(path)
        above = os.path.dirname(folder)
        if above == folder or os.path.exists(os.path.join(folder, ".git")):
            return None
        folder = above


def _stands(path: str) -> bool:
    """Whether somebody put a config there; a link that leads nowhere is one too, and reading it will say so."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _has_table(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        return False  # it is another tool's file, and not ours to complain of
    # Most projects have a pyproject.toml that says nothing to us: it is parsed only where it may.
    if not _MAY_SAY.search(text):
        return False
    from bncheck.config.nodes import parse_toml  # noqa: PLC0415 - a run without a config needs no parser

    return parse_toml(text, os.path.relpath(path), TABLE) is not None
