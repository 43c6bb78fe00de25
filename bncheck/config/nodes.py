"""A config as it was written: values that know their lines."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import yaml

from bncheck.core.errors import BadConfig

Scalar = object
"""Text, number, bool, date or None."""

_DEEPEST = 50
"""Values inside one another; a config needs five."""
_LARGEST_BITS = 1000
_TOO_DEEP = f"more than {_DEEPEST} values lie inside one another"


@dataclass(frozen=True, slots=True)
class Node:
    """A value.

    Attributes:
        value: a scalar, a list of nodes, or a mapping of keys to nodes.
        path: the file it stands in.
        line: where, from 1.
    """

    value: Scalar | list[Node] | dict[str, Node]
    path: str
    line: int

    def __post_init__(self) -> None:
        # Beyond every float, and too long to be printed.
        if isinstance(self.value, int) and self.value.bit_length() > _LARGEST_BITS:
            raise self.wrong("a number of more than 300 digits")

    @property
    def place(self) -> str:
        """``file:line``, as editors and terminals link it."""
        return f"{self.path}:{self.line}"

    def plain(self) -> object:
        """The value without its lines; what aliases share is made once, and shared again."""
        return _plain(self.value, {})

    def wrong(self, what: str) -> BadConfig:
        """An error about it."""
        return BadConfig(f"{self.place}: {what}")


def _plain(value: object, made: dict[int, object]) -> object:
    if not isinstance(value, (list, dict)):
        return value
    if id(value) not in made:
        made[id(value)] = (
            [_plain(item.value, made) for item in value]
            if isinstance(value, list)
            else {key: _plain(item.value, made) for key, item in value.items()}
        )
    return made[id(value)]


# --- YAML --------------------------------------------------------------------------------------------------


def parse_yaml(text: str, path: str) -> Node:
    """Read YAML.

    Args:
        text: a document; an empty one is an empty mapping.
        path: for messages.

    Raises:
        BadConfig: it is malformed, names a key twice, has keys that are no text, tags, or a value inside itself.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise BadConfig(f"{path}{where}: malformed YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise BadConfig(f"{path}: malformed YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadConfig(f"{path}: malformed YAML: {_TOO_DEEP}") from None
    if root is None or (root.tag == _NULL and not root.value):  # nothing, or the line --- alone
        return Node({}, path, 1)
    return _Composed(path).node(root)


_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"


class _Composed:
    """Turns what PyYAML composed into nodes; what an anchor stands for is turned once, however often it is named."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._done: dict[int, Node] = {}
        self._heights: dict[int, int] = {}
        self._open: list[int] = []
        self._scalars = yaml.constructor.SafeConstructor()

    def node(self, composed: yaml.Node) -> Node:
        done = self._done.get(id(composed))
        if done is not None:
            return done
        line = composed.start_mark.line + 1
        if id(composed) in self._open:
            raise BadConfig(f"{self._path}:{line}: a value contains itself through an alias")
        if len(self._open) > _DEEPEST:
            raise BadConfig(f"{self._path}:{line}: {_TOO_DEEP}")
        self._open.append(id(composed))
        self._done[id(composed)] = node = Node(self._value(composed, line), self._path, line)
        self._open.pop()
        # Aliases lay one value inside another without a bracket.
        self._heights[id(node.value)] = height = 1 + max(
            (self._heights.get(id(item.value), 0) for item in _items(node.value)), default=0
        )
        if height > _DEEPEST:
            raise BadConfig(f"{self._path}:{line}: {_TOO_DEEP}")
        return node

    def _value(self, composed: yaml.Node, line: int) -> object:
        match composed:
            case yaml.MappingNode():
                return self._mapping(composed)
            case yaml.SequenceNode():
                return [self.node(item) for item in composed.value]
        try:
            return self._scalars.construct_object(composed)
        except yaml.YAMLError as error:
            raise BadConfig(f"{self._path}:{line}: {error.problem}") from None
        except (ValueError, LookupError, AttributeError) as error:
            # A date such as 2026-02-30; or a value that is not what its tag says, on which PyYAML stumbles.
            shown = composed.value if len(composed.value) < _LONGEST_SHOWN else f"{composed.value[:_LONGEST_SHOWN]}…"
            why = str(error) if isinstance(error, ValueError) else f"is no {composed.tag.rpartition(':')[2]}"
            raise BadConfig(f"{self._path}:{line}: {shown}: {why}") from None

    def _mapping(self, composed: yaml.MappingNode) -> dict[str, Node]:
        items: dict[str, Node] = {}
        for key_node, value_node in composed.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                raise BadConfig(f"{self._path}:{line}: << merges nothing here; write the keys out")
            key = self.node(key_node).value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                named = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "of several values"
                raise BadConfig(f"{self._path}:{line}: the key {named} is no text; put it in quotes")
            if key in items:
                raise BadConfig(f"{self._path}:{line}: {key!r} stands here twice")
            value = self.node(value_node)
            # Errors about a key's value point at the key: a block begins on the line below it.
            items[key] = Node(value.value, self._path, line)
        return items


_LONGEST_SHOWN = 40


def _items(value: object) -> Iterable[Node]:
    match value:
        case list():
            return value
        case dict():
            return value.values()
    return ()


# --- JSON --------------------------------------------------------------------------------------------------


def parse_json(text: str, path: str) -> Node:
    """Read JSON, which YAML's parser would not read alike: surrogate pairs, keys of more than 1024 characters.

    Args:
        text: a document.
        path: for messages.

    Raises:
        BadConfig: it is malformed, or names a key twice.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        items: dict[str, object] = {}
        for key, value in pairs:
            if key in items:
                raise BadConfig(f"{path}:{_line_of(key, text.splitlines(), 1)}: {key!r} stands here twice")
            items[key] = value
        return items

    def no_number(name: str) -> object:
        raise BadConfig(f"{path}: malformed JSON: {name} is no number of JSON's; put it in quotes")

    try:
        value: object = json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise BadConfig(f"{path}:{error.lineno}:{error.colno}: malformed JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of more digits than Python reads
        raise BadConfig(f"{path}: malformed JSON: {_too_much(error)}") from None
    return _InJson(text, path).node(value)


class _InJson:
    """Gives values their lines: keys come in the order they are written in, so that each is looked for once."""

    def __init__(self, text: str, path: str) -> None:
        self._text, self._path = text, path
        self._at, self._line = 0, 1

    def node(self, value: object, depth: int = 0) -> Node:
        line = self._line
        if depth > _DEEPEST:
            raise BadConfig(f"{self._path}:{line}: {_TOO_DEEP}")
        match value:
            case dict():
                return Node({key: self._item(key, item, depth) for key, item in value.items()}, self._path, line)
            case list():
                return Node([self.node(item, depth + 1) for item in value], self._path, line)
        return Node(value, self._path, line)

    def _item(self, key: str, item: object, depth: int) -> Node:
        for spelt in (json.dumps(key), json.dumps(key, ensure_ascii=False)):
            found = self._text.find(spelt, self._at)
            if found >= 0:
                self._line += self._text.count("\n", self._at, found)
                self._at = found + len(spelt)
                break
        return self.node(item, depth + 1)


def _too_much(error: Exception) -> str:
    return _TOO_DEEP if isinstance(error, RecursionError) else str(error)


# --- TOML --------------------------------------------------------------------------------------------------


def parse_toml(text: str, path: str, table: tuple[str, ...]) -> Node | None:
    """Read one table of a TOML file; None where there is none.

    Args:
        text: the file.
        path: for messages.
        table: its name, part by part.

    Raises:
        BadConfig: the file is malformed.
    """
    try:
        value: object = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{path}: malformed TOML: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path}: malformed TOML: {_too_much(error)}") from None
    for part in table:
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    lines = text.splitlines()
    header = re.compile(r"\s*\[+\s*" + r"\s*\.\s*".join(map(re.escape, table)) + r"\s*[\].]")
    first = next((number for number, line in enumerate(lines, 1) if header.match(line)), 1)
    return _lined(value, path, lines, first, 0)


def _lined(value: object, path: str, lines: list[str], line: int, depth: int) -> Node:
    """Values with lines: a key's is where its name is next written."""
    if depth > _DEEPEST:
        raise BadConfig(f"{path}:{line}: {_TOO_DEEP}")
    match value:
        case dict():
            return Node(
                {key: _lined_item(key, item, path, lines, line, depth) for key, item in value.items()}, path, line
            )
        case list():
            return Node([_lined(item, path, lines, line, depth + 1) for item in value], path, line)
    return Node(value, path, line)


def _lined_item(key: str, item: object, path: str, lines: list[str], after: int, depth: int) -> Node:
    line = _line_of(key, lines, after)
    if isinstance(item, list):
        # Each table of an array has a header of its own.
        header = re.compile(rf"\s*\[\[[^\]]*\b{re.escape(key)}\s*\]\]")
        headers = [number for number, text in enumerate(lines, 1) if number >= line and header.match(text)]
        if len(headers) >= len(item):
            entries = zip(item, headers, strict=False)
            return Node([_lined(entry, path, lines, number, depth + 1) for entry, number in entries], path, line)
    return _lined(item, path, lines, line, depth + 1)


def _line_of(key: str, lines: list[str], after: int) -> int:
    named = re.compile(rf"(?<![\w-])[\"']?{re.escape(key)}[\"']?\s*[=\].:]")
    return next((number for number, line in enumerate(lines, 1) if number >= after and named.search(line)), after)
