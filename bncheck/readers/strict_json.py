"""JSON objects that nobody can read in two ways, parsed within bounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NoReturn

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits

JsonObject = dict[str, object]


def refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity are no JSON: torch and safetensors write them as text, if at all."""
    raise ValueError(f"{name} is no JSON")


def json_object(
    data: bytes, what: str, limits: Limits, constant: Callable[[str], object] = refuse_constant
) -> JsonObject:
    """The object that JSON text holds.

    Args:
        data: the text, of a size that was held against a bound.
        what: what it is, for messages: ``its header``.
        limits: bounds on the values in it.
        constant: what to make of NaN and Infinity; ``float`` reads them as Python's own json does.

    Raises:
        UnreadableFile: it is no JSON, no object, holds too much, or names one thing twice: readers differ on which of
            the two counts.
    """
    # Lists are counted beforehand, and what objects hold as they are made: an empty one takes 20 times its bytes.
    lists = data.count(b"[")
    if lists > limits.json_values:
        raise UnreadableFile(f"{what} holds {lists} lists, more than any model's")
    count = _Count(limits.json_values - lists)
    try:
        parsed: object = json.loads(data.decode(), object_pairs_hook=count.unique, parse_constant=constant)
    except RecursionError:
        raise UnreadableFile(f"{what} nests too deeply") from None
    except ValueError as error:
        raise UnreadableFile(f"{what} is not JSON: {str(error)[:200]}") from None
    if not isinstance(parsed, dict):
        raise UnreadableFile(f"{what} is no JSON object")
    return parsed


class _Count:
    def __init__(self, left: int) -> None:
        self._left = left

    def unique(self, pairs: list[tuple[str, object]]) -> JsonObject:
        self._left -= max(len(pairs), 1)
        if self._left < 0:
            raise ValueError("it holds more values than any model's")
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a name occurs twice")
        return made
