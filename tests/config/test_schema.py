"""The JSON Schema that ships, held to what the reader takes.

python -m tests.config.test_schema --write     # after a change of keys, rules, limits or formats
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from bncheck.config.reading import read_config
from bncheck.config.schema import FILE, config_schema, schema_text
from bncheck.core.errors import BadConfig
from tests.config.configs import BAD, CODES, FORMATS, GOOD

_SCHEMA = config_schema(CODES, FORMATS)
_VALIDATOR = jsonschema.Draft7Validator(_SCHEMA, format_checker=jsonschema.FormatChecker())


def _errors(text: str) -> list[str]:
    """What the schema says; a day without quotes is text to editors."""
    value = json.loads(json.dumps(yaml.safe_load(text), default=str))
    return [error.message for error in _VALIDATOR.iter_errors(value)]


def test_what_ships_is_what_the_keys_say() -> None:
    assert FILE.read_text(encoding="utf-8") == schema_text(CODES, FORMATS), (
        "the keys have changed: python -m tests.config.test_schema --write"
    )


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(_SCHEMA)


@pytest.mark.parametrize("case", GOOD)
def test_what_the_reader_takes_is_valid(case: str) -> None:
    assert _errors(GOOD[case]) == []


@pytest.mark.parametrize("case", BAD)
def test_what_the_reader_refuses_is_not(case: str) -> None:
    assert _errors(BAD[case][0])


def _spoilt(schema: object) -> object:
    """A value that what a key holds can never be."""
    return {"nothing": "of the kind"} if isinstance(schema, dict) and "object" not in str(schema.get("type")) else 7.5


@pytest.mark.parametrize("key", sorted(_SCHEMA["properties"]))
def test_no_key_takes_anything(key: str, tmp_path: Path) -> None:
    """The reader and the schema refuse alike what is wrong, whichever key it stands at."""
    value = {key: _spoilt(_SCHEMA["properties"][key])}
    if key == "model-arg":
        value = {key: "text"}
    (tmp_path / "bncheck.yaml").write_text(yaml.safe_dump(value))
    assert not _VALIDATOR.is_valid(value)
    with pytest.raises(BadConfig, match=r"bncheck\.yaml:[12]: "):
        read_config(str(tmp_path / "bncheck.yaml"), CODES, FORMATS)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    FILE.write_text(schema_text(CODES, FORMATS), encoding="utf-8")
    print(FILE)
