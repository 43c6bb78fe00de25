"""The config's keys for editors: a JSON Schema, made of the same table the config is read by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bncheck.config.keys import PATHS, Key, choice_keys, run_keys, suppression_keys

FILE = Path(__file__).with_name("bncheck.schema.json")
"""Where it ships."""


def config_schema(codes: Sequence[str], formats: Sequence[str]) -> dict[str, object]:
    """The schema, of draft 7, which editors' YAML plugins know.

    Args:
        codes: of all rules.
        formats: of reports.
    """
    choices = choice_keys(codes)
    properties = _properties((*run_keys(codes, formats), *choices))
    properties["models"] = _list_of((PATHS, *choices), ["paths"], properties["models"])
    properties["suppress"] = _list_of(suppression_keys(codes), ["rule", "reason"], properties["suppress"])
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "bncheck.yaml",
        "description": "How bncheck audits the models of a project.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def schema_text(codes: Sequence[str], formats: Sequence[str]) -> str:
    """The shipped file."""
    return json.dumps(config_schema(codes, formats), indent=2) + "\n"


def _properties(keys: Iterable[Key]) -> dict[str, dict[str, object]]:
    return {key.name: {"description": key.meaning, **key.kind.schema} for key in keys}


def _list_of(keys: Iterable[Key], required: list[str], said: dict[str, object]) -> dict[str, object]:
    entry = {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": _properties(keys),
    }
    # A key whose entries are all commented out says nothing, and may.
    return {**said, "type": ["array", "null"], "items": entry}
