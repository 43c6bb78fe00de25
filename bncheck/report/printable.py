"""Names out of files, made harmless for terminals and CI logs."""

from __future__ import annotations

import math


def printable(text: str) -> str:
    """Escape whatever a terminal or a CI runner would obey.

    Control, bidirectional and unassigned characters become escapes; so do ``::`` and ``##[``, which GitHub and Azure
    read as workflow commands at the start of a line.
    """
    shown = "".join(character if character.isprintable() else _escaped(character) for character in text)
    return shown.replace("::", "\\x3a\\x3a").replace("##[", "\\x23#[")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(names: tuple[str, ...], most: int = 3) -> str:
    """Layer names in one line: all of a few, else the first, the last and how many."""
    shown = [printable(name) for name in (names if len(names) <= most else (names[0], names[-1]))]
    return ", ".join(shown) if len(names) <= most else f"{shown[0]} … {shown[1]} ({len(names)})"


def number(value: float | int | str | None) -> str:
    """A measured value as short as it can be told."""
    match value:
        case None:
            return "not in the file"
        case bool() | str() | int():
            return printable(str(value))
        case float():
            return f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """``1 layer``, ``2 layers``, ``2 processes``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


_BARS = "▁▂▃▄▅▆▇█"


def bar(size: float) -> str:
    """A drift as a bar, full at one stored standard deviation, which is where BN407 begins, and where it is none."""
    return _BARS[min(len(_BARS) - 1, int(size * len(_BARS)))] if math.isfinite(size) else _BARS[-1]
