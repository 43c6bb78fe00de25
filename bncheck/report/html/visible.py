"""Text out of files, made visible: what a browser would obey or hide becomes an escape."""

from __future__ import annotations

_LONGEST = 160
_LONGEST_LABEL = 30


def visible(text: str) -> str:
    """Control, bidirectional, zero-width and unassigned characters become escapes; line feeds stay."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else _escaped(character) for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(name: str, most: int = _LONGEST) -> str:
    """A name of any length for running text: its ends, which tell layers apart."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[most // 2 + 1 - most :]}"


def labels(names: list[str]) -> list[str]:
    """Names for an axis: without the parts that all of them begin or end with, and of what is left the last parts."""
    parts = [name.split(".") for name in names]
    head, tail = _shared(parts), _shared([list(reversed(entry)) for entry in parts])
    kept = [".".join(entry[head : len(entry) - tail]) for entry in parts]
    return [_ending(name) for name in kept]


def _ending(name: str) -> str:
    if len(name) <= _LONGEST_LABEL:
        return name
    kept = name[1 - _LONGEST_LABEL :]
    _, dot, whole = kept.partition(".")
    return f"…{whole if dot and len(whole) > _LONGEST_LABEL // 2 else kept}"


def _shared(parts: list[list[str]]) -> int:
    """How many leading parts all names have in common, leaving each at least one in the middle."""
    most = (min(map(len, parts), default=1) - 1) // 2
    count = 0
    while len(parts) > 1 and count < most and len({entry[count] for entry in parts}) == 1:
        count += 1
    return count
