"""Names out of files, made harmless for terminals and CI logs."""

from __future__ import annotations


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
