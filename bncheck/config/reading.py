"""A config file → what it says, checked, with every path made one from the working directory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeVar, cast

from bncheck.config.contents import Config, ModelEntry, from_here, relative_to
from bncheck.config.discovery import TABLE
from bncheck.config.keys import PATHS, Key, choice_keys, run_keys, suppression_keys
from bncheck.config.kinds import known_items
from bncheck.config.nodes import Node, parse_json, parse_toml, parse_yaml
from bncheck.core.choices import Choices, FailOn
from bncheck.core.code_prefixes import ALL
from bncheck.core.errors import BadConfig
from bncheck.core.finding import Severity
from bncheck.core.limits import Limits
from bncheck.core.suppression import Suppression

T = TypeVar("T")

_LARGEST = 64 * 2**20
"""Bytes; a baseline of a thousand models, each with a hundred faulty layers, has a tenth of it."""


def read_config(path: str, codes: Sequence[str], formats: Sequence[str]) -> Config:
    """Read a config and what it extends.

    Args:
        path: a YAML or JSON file, or a TOML file with a table ``[tool.bncheck]``.
        codes: of all rules.
        formats: of reports.

    Raises:
        BadConfig: it cannot be read, is malformed, or says something bncheck does not know; with its line.
    """
    return _Reader(tuple(codes), tuple(formats)).read(path, ())


def parse_file(path: str) -> Node | None:
    """The file's nodes; None where it is a TOML file without the table.

    Raises:
        BadConfig: it cannot be read, or is malformed.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: no name a file can have
        raise BadConfig(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > _LARGEST:
        raise BadConfig(f"{path}: has more than {_LARGEST // 2**20} MiB, which no config has")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: is no text in UTF-8 (byte {error.start})") from None
    if path.endswith(".toml"):
        return parse_toml(text, path, TABLE)
    return parse_json(text, path) if path.endswith(".json") else parse_yaml(text, path)


class _Reader:
    def __init__(self, codes: tuple[str, ...], formats: tuple[str, ...]) -> None:
        self._choice_keys = choice_keys(codes)
        self._run_keys = run_keys(codes, formats)
        self._suppression_keys = suppression_keys(codes)

    def read(self, path: str, extending: tuple[str, ...]) -> Config:
        root = parse_file(path)
        if root is None:
            raise BadConfig(f"{path}: has no table [{'.'.join(TABLE)}]")
        folder = os.path.relpath(os.path.dirname(os.path.abspath(path)))
        said, items = self._said((*self._run_keys, *self._choice_keys), root, folder, "key")
        config = Config(
            path=path,
            folder=folder,
            choices=self._choices(said, root, items),
            models=tuple(self._model(node, folder) for node in _list(items.get("models"))),
            suppressions=tuple(self._suppression(node, folder) for node in _list(items.get("suppress"))),
            fail_on=cast("FailOn | None", said.get("fail_on")),
            fail_if_not_checked=_must_check(said.get("fail_if_not_checked")),
            allow_nothing=cast("bool | None", said.get("allow_nothing")),
            baseline=cast("str | None", said.get("baseline")),
            output_format=cast("str | None", said.get("format")),
            outputs=tuple(
                (name, file)
                for name, files in cast("Mapping[str, tuple[str, ...]]", said.get("output", {})).items()
                for file in files
            ),
            jobs=cast("int | None", said.get("jobs")),
        )
        return self._extended(config, items.get("extends"), cast("tuple[str, ...]", said.get("extends", ())), extending)

    def _extended(
        self, config: Config, node: Node | None, paths: tuple[str, ...], extending: tuple[str, ...]
    ) -> Config:
        """With what it stands on, the last named uppermost."""
        assert config.path is not None
        chain = (*extending, os.path.realpath(config.path))
        for path in reversed(paths):
            assert node is not None
            if os.path.realpath(path) in chain:
                raise node.wrong(f"extends {path}, which extends it in turn: a circle")
            config = _over(config, self.read(path, chain))
        return config

    def _said(
        self, keys: tuple[Key, ...], node: Node, folder: str, what: str
    ) -> tuple[dict[str, object], dict[str, Node]]:
        """The values by attribute, and the nodes by key."""
        by_name = {key.name: key for key in keys}
        items = known_items(node, by_name, what)
        said: dict[str, object] = {}
        for name, item in items.items():
            key = by_name[name]
            value = key.kind.read(item)
            said[key.attribute] = _placed(value, folder) if key.is_path else value
        return said, items

    def _choices(self, said: Mapping[str, object], node: Node, items: Mapping[str, Node]) -> Choices:
        values = {key.attribute: said[key.attribute] for key in self._choice_keys if key.attribute in said}
        if "limits" in values:
            limits = cast("Mapping[str, float]", values["limits"])
            values["limits"] = named = {name.replace("-", "_"): value for name, value in limits.items()}
            try:
                replace(Limits(), **_paired(named))  # type: ignore[arg-type]  # the kinds have told integers from floats
            except ValueError as error:
                raise items["limits"].wrong(str(error)) from None
        if "severity" in values:
            severities = cast("Mapping[str, str]", values["severity"])
            values["severity"] = {code: Severity[name.upper()] for code, name in severities.items()}
        return Choices(**values)  # type: ignore[arg-type]  # each value was read by its own key

    def _model(self, node: Node, folder: str) -> ModelEntry:
        keys = (replace(PATHS, is_path=False), *self._choice_keys)
        said, items = self._said(keys, node, folder, "key of a model")
        if "paths" not in said:
            raise node.wrong("says no paths: which models is it about?")
        paths = tuple(_inside(path, folder) for path in cast("tuple[str, ...]", said["paths"]))
        return ModelEntry(paths, self._choices(said, node, items))

    def _suppression(self, node: Node, folder: str) -> Suppression:
        said, _ = self._said(self._suppression_keys, node, "", "key of a suppression")
        for wanted in ("rule", "reason"):
            if wanted not in said:
                raise node.wrong(f"a suppression says its {wanted}")
        suppression = Suppression(**said, place=node.place)  # type: ignore[arg-type]
        return replace(suppression, path=_inside(suppression.path, folder))


def _over(above: Config, below: Config) -> Config:
    """One config on another; patterns of the lower one are made relative to the upper one's folder."""

    def moved(pattern: str) -> str:
        return relative_to(above.folder, from_here(below.folder, pattern))

    return replace(
        above,
        choices=above.choices.over(below.choices),
        models=(
            *(replace(entry, paths=tuple(map(moved, entry.paths))) for entry in below.models),
            *above.models,
        ),
        suppressions=(
            *(
                replace(entry, path=entry.path if entry.path == "**" else moved(entry.path))
                for entry in below.suppressions
            ),
            *above.suppressions,
        ),
        fail_on=_first(above.fail_on, below.fail_on),
        fail_if_not_checked=_first(above.fail_if_not_checked, below.fail_if_not_checked),
        allow_nothing=_first(above.allow_nothing, below.allow_nothing),
        baseline=_first(above.baseline, below.baseline),
        output_format=_first(above.output_format, below.output_format),
        outputs=above.outputs or below.outputs,
        jobs=_first(above.jobs, below.jobs),
    )


def _paired(limits: Mapping[str, float]) -> dict[str, float]:
    """Limits with their partners, warning or error: what is not said here may be said elsewhere; no fault yet."""
    known = {field.name for field in fields(Limits)}
    pairs = (("_warning", "_error"), ("_error", "_warning"))
    others = {
        name.removesuffix(end) + other: value
        for name, value in limits.items()
        for end, other in pairs
        if name.endswith(end) and name.removesuffix(end) + other in known
    }
    return {**others, **limits}


def _inside(pattern: str, folder: str) -> str:
    """Models are met by their paths from the config's folder: a pattern from the root is made one from there."""
    return relative_to(folder, pattern) if os.path.isabs(pattern) else pattern


def _first(here: T | None, there: T | None) -> T | None:
    return there if here is None else here


def _list(node: Node | None) -> list[Node]:
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list):
        raise node.wrong("wants a list")
    return node.value


def _must_check(value: object) -> tuple[str, ...] | None:
    match value:
        case None:
            return None
        case bool():
            return (ALL,) if value else ()
    return cast("tuple[str, ...]", value)


_SPEC_FILE = re.compile(r"(?P<file>.+\.py)(?P<callable>:[^:/\\]+)")


def _placed(value: object, folder: str) -> object:
    """Paths, in texts, lists and mappings, from the config's folder to the working directory."""
    match value:
        case str():
            spec = _SPEC_FILE.fullmatch(value)
            if spec is not None:
                return from_here(folder, spec["file"]) + spec["callable"]
            return value if re.fullmatch(r"[\w.]+:[\w.]+", value) else from_here(folder, value)
        case tuple():
            return tuple(_placed(item, folder) for item in value)
        case dict():
            return {key: _placed(item, folder) for key, item in value.items()}
    return value
