"""JSON of exported programs, taken apart as if its writer were hostile."""

from __future__ import annotations

from bncheck.core.errors import UnreadableFile
from bncheck.readers.strict_json import JsonObject


def entry(owner: object, key: str) -> object:
    """``owner[key]``.

    Raises:
        UnreadableFile: the owner is no object, or has no such entry.
    """
    if isinstance(owner, dict) and key in owner:
        return owner[key]
    raise UnreadableFile(f"the exported program is malformed: {key!r} is missing")


def text(owner: object, key: str) -> str:
    """``owner[key]``, which must be text.

    Raises:
        UnreadableFile: it is missing or something else.
    """
    value = entry(owner, key)
    if isinstance(value, str):
        return value
    raise UnreadableFile(f"the exported program is malformed: {key!r} is not text")


def number(owner: object, key: str) -> int:
    """``owner[key]``, which must be a whole number.

    Raises:
        UnreadableFile: it is missing or something else.
    """
    value = entry(owner, key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UnreadableFile(f"the exported program is malformed: {key!r} is not a whole number")


def flag(owner: object, key: str) -> bool:
    """``owner[key]``, which must be true or false.

    Raises:
        UnreadableFile: it is missing or something else.
    """
    value = entry(owner, key)
    if isinstance(value, bool):
        return value
    raise UnreadableFile(f"the exported program is malformed: {key!r} is neither true nor false")


def items(owner: object, key: str) -> list[object]:
    """``owner[key]``, which must be a list.

    Raises:
        UnreadableFile: it is missing or something else.
    """
    value = entry(owner, key)
    if isinstance(value, list):
        return value
    raise UnreadableFile(f"the exported program is malformed: {key!r} is not a list")


def entries(owner: object, key: str) -> JsonObject:
    """``owner[key]``, which must be an object.

    Raises:
        UnreadableFile: it is missing or something else.
    """
    value = entry(owner, key)
    if isinstance(value, dict):
        return value
    raise UnreadableFile(f"the exported program is malformed: {key!r} is not an object")


def variant(value: object, what: str) -> tuple[str, object]:
    """Tag and content of a union, which is written as an object with one entry.

    Raises:
        UnreadableFile: it is none.
    """
    if isinstance(value, dict) and len(value) == 1:
        tag, content = next(iter(value.items()))
        return str(tag), content
    raise UnreadableFile(f"the exported program is malformed: {what!r} is not one thing")
