"""What a key of the config may hold: how it is read, and how an editor is told."""

from __future__ import annotations

import contextlib
import datetime
import enum
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bncheck.config.nodes import Node
from bncheck.core.code_prefixes import ALL, begins
from bncheck.core.nearest import closest

Schema = dict[str, object]
"""A JSON Schema."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of value.

    Attributes:
        read: gives the value, or raises ``BadConfig`` with its place.
        schema: the same in JSON Schema.
    """

    read: Callable[[Node], object]
    schema: Schema


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about a name that is none: the valid one it comes closest to, else all of them."""
    names = sorted(map(str, valid))
    close = closest(name, names)
    if close is not None:
        return f"did you mean {close!r}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names[:_LISTED])}{more}"


_LISTED = 24


def _text(node: Node) -> str:
    if not isinstance(node.value, str) or not node.value:
        raise node.wrong(f"wants text, not {_shown(node)}")
    return node.value


def _flag(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise node.wrong(f"wants true or false, not {_shown(node)}")
    return node.value


def _day(node: Node) -> datetime.date:
    value = node.value
    if isinstance(value, str):  # in quotes, or in JSON
        with contextlib.suppress(ValueError):
            return datetime.datetime.strptime(value, "%Y-%m-%d").date()
    if isinstance(value, datetime.datetime) or not isinstance(value, datetime.date):
        raise node.wrong(f"wants a day such as 2030-12-31, not {_shown(node)}")
    return value


def _any(node: Node) -> None:
    """Nothing: entries are read one by one, each with keys of its own."""


TEXT = Kind(_text, {"type": "string", "minLength": 1})
FLAG = Kind(_flag, {"type": "boolean"})
DAY = Kind(_day, {"type": "string", "format": "date"})
ANY = Kind(_any, {})


def whole_number(least: int) -> Kind:
    """An integer from ``least`` up."""

    def read(node: Node) -> int:
        if isinstance(node.value, bool) or not isinstance(node.value, int) or node.value < least:
            raise node.wrong(f"wants a whole number from {least} up, not {_shown(node)}")
        return node.value

    return Kind(read, {"type": "integer", "minimum": least})


_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def number(*, whole: bool = False, zero: bool = False) -> Kind:
    """A finite number above 0; ``whole`` an integer, ``zero`` allows 0."""
    what = f"wants a {'whole ' if whole else ''}number {'from 0 up' if zero else 'above 0'}"

    def read(node: Node) -> float:
        value = node.value
        if isinstance(value, str) and _WITH_EXPONENT.fullmatch(value) and not whole:
            value = float(value)  # PyYAML goes by YAML 1.1, which takes 1e-6 for text
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise node.wrong(f"{what}, not {_shown(node)}")
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise node.wrong(f"{what}, not {_shown(node)}")
        return value

    return Kind(read, {"type": "integer" if whole else "number", ("minimum" if zero else "exclusiveMinimum"): 0})


def one_of(choices: type[enum.StrEnum]) -> Kind:
    """A member of an enumeration, by its value."""
    values = [choice.value for choice in choices]

    def read(node: Node) -> enum.StrEnum:
        # YAML 1.1 reads off and no as false; nobody means a truth value here.
        if not isinstance(node.value, str) or node.value not in values:
            raise node.wrong(f"{_shown(node)} is no choice; {nearest(str(node.value), values)}")
        return choices(node.value)

    return Kind(read, {"enum": values})


def list_of(kind: Kind, least: int = 0) -> Kind:
    """Several values, ``least`` or more; one alone needs no list."""

    def read(node: Node) -> tuple[object, ...]:
        if isinstance(node.value, list):
            if len(node.value) < least:
                raise node.wrong("wants one at least, not an empty list")
            return tuple(kind.read(item) for item in node.value)
        return (kind.read(node),)

    return Kind(read, {"anyOf": [kind.schema, {"type": "array", "items": kind.schema, "minItems": least}]})


def name_among(names: Iterable[str], what: str) -> Kind:
    """One of the given names; ``what`` they are, for messages."""
    valid = tuple(names)

    def read(node: Node) -> str:
        if not isinstance(node.value, str) or node.value not in valid:
            raise node.wrong(f"{_shown(node)} is no {what}; {nearest(str(node.value), valid)}")
        return node.value

    return Kind(read, {"enum": list(valid)})


def prefix_of(codes: Iterable[str]) -> Kind:
    """The beginning of a rule's code, or ``ALL``."""
    valid = tuple(codes)

    def read(node: Node) -> str:
        value = node.value
        if not isinstance(value, str) or not (value and any(begins(code, (value,)) for code in valid)):
            raise node.wrong(f"{_shown(node)} begins no rule's code; {nearest(str(value), valid)}")
        return value

    prefixes = sorted({code[:length] for code in valid for length in range(1, len(code) + 1)})
    return Kind(read, {"enum": [ALL, *prefixes]})


def mapping_of(keys: Mapping[str, Kind], what: str) -> Kind:
    """A mapping whose keys are known; ``what`` they are, for messages."""

    def read(node: Node) -> dict[str, object]:
        return {key: keys[key].read(item) for key, item in known_items(node, keys, what).items()}

    return Kind(
        read,
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {key: kind.schema for key, kind in keys.items()},
        },
    )


def _free_mapping(node: Node) -> dict[str, object]:
    if not isinstance(node.value, dict):
        raise node.wrong(f"wants keys with values, not {_shown(node)}")
    return {key: item.plain() for key, item in node.value.items()}


MAPPING = Kind(_free_mapping, {"type": "object"})


def known_items(node: Node, keys: Iterable[str], what: str) -> dict[str, Node]:
    """A mapping's items.

    Raises:
        BadConfig: it is no mapping, or has a key that is not among the known ones.
    """
    if not isinstance(node.value, dict):
        raise node.wrong(f"wants keys with values, not {_shown(node)}")
    valid = set(keys)
    for key, item in node.value.items():
        if key not in valid:
            raise item.wrong(f"unknown {what} {key!r}; {nearest(key, valid)}")
    return node.value


def _shown(node: Node) -> str:
    match node.value:
        case list():
            return "a list"
        case dict():
            return "keys with values"
        case None:
            return "nothing"
        case bool():
            return "true" if node.value else "false"
    return repr(node.value)
