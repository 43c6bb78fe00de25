"""Values with their lines, out of YAML, JSON and TOML, however they are written."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bncheck.config.nodes import Node, parse_json, parse_toml, parse_yaml
from bncheck.core.errors import BadConfig


def _toml(text: str, path: str) -> Node | None:
    return parse_toml(text, path, ("tool", "bncheck"))


def _error(parse: Callable[[str, str], object], text: str) -> str:
    with pytest.raises(BadConfig) as raised:
        parse(text, "c")
    return str(raised.value)


def test_values_know_their_lines() -> None:
    root = parse_yaml("# a comment\nsamples: 3\nmodels:\n  - paths:\n      - a.pt\n      - b.pt\n", "c.yaml")
    assert root.plain() == {"samples": 3, "models": [{"paths": ["a.pt", "b.pt"]}]}
    models = root.value["models"]
    assert models.place == "c.yaml:3"
    assert models.value[0].value["paths"].value[1].place == "c.yaml:6"


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "---\n", "--- # nothing\n"])
def test_an_empty_document_is_an_empty_mapping(text: str) -> None:
    assert parse_yaml(text, "c").plain() == {}


def test_what_an_alias_names_is_what_the_anchor_says() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\n", "c").plain() == {"a": [1, 2], "b": [1, 2]}


YAML_ERRORS = {
    "malformed": ("a: [1, 2\nb: 3", "c:2:2: malformed YAML"),
    "tabulator": ("a:\n\t- b", "c:2:1: malformed YAML"),
    "two documents": ("a: 1\n---\nb: 2", "c:2:1: malformed YAML"),
    "no text at all": ("a: \0", "malformed YAML: unacceptable character"),
    "key twice": ("a: 1\nb: 2\na: 3", "c:3: 'a' stands here twice"),
    "key twice, further in": ("a:\n  b: 1\n  b: 2", "c:3: 'b' stands here twice"),
    "key that is a number": ("a: 1\n5: x", "c:2: the key '5' is no text; put it in quotes"),
    "key that YAML 1.1 takes for a truth value": ("no: x", "c:1: the key 'no' is no text"),
    "key of several values": ("? [a, b]\n: c", "c:1: the key of several values is no text"),
    "merge key": ("a: &x {b: 1}\nc:\n  <<: *x", "c:3: << merges nothing here"),
    "alias without an anchor": ("a: *nowhere", "c:1:4: malformed YAML: found undefined alias"),
    "value inside itself": ("a: 1\nb: &x\n  c: *x", "c:2: a value contains itself"),
    "list inside itself": ("a: &x [1, *x]", "c:1: a value contains itself"),
    "tag that names code": ("a: !!python/name:os.system x", "c:1: could not determine a constructor"),
    "tag that calls code": ("a: !!python/object/apply:os.getcwd []\nb: !!int ''", "c:2: "),
    "tag that does not fit": ("a: !!bool perhaps", "c:1: perhaps: is no bool"),
    "empty integer": ("a: !!int ''", "c:1: : is no int"),
    "day that is none": ("a: 2026-02-30", "c:1: 2026-02-30: day is out of range"),
    "time that is none": ("a: !!timestamp soon", "c:1: soon: is no timestamp"),
    "number of 5000 digits": ("a: " + "9" * 5000, "c:1: 999"),
    "hexadecimal number of 4000 digits": ("a: 0x" + "f" * 4000, "c:1: a number of more than 300 digits"),
    "brackets without end": ("a: " + "[" * 600, "malformed YAML"),
    "300 lists": ("a: " + "[" * 300 + "]" * 300, "more than 50 values lie inside one another"),
    "450 lists": ("a: " + "[" * 450 + "]" * 450, "more than 50 values lie inside one another"),
    "600 lists": ("a: " + "[" * 600 + "]" * 600, "more than 50 values lie inside one another"),
    "400 lists by alias": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 400)),
        "c:50: more than 50 values lie inside one another",
    ),
}


@pytest.mark.parametrize("case", YAML_ERRORS)
def test_malformed_yaml_is_one_line_with_its_place(case: str) -> None:
    text, said = YAML_ERRORS[case]
    message = _error(parse_yaml, text)
    assert said in message
    assert "\n" not in message
    assert len(message) < 1000


def test_a_billion_laughs_cost_nothing() -> None:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    begun = time.process_time()
    laughs = parse_yaml("\n".join(lines), "c").plain()
    assert time.process_time() - begun < 1.0
    assert laughs["a1"][3][4] == "ha"


JSON_ERRORS = {
    "malformed": ('{"a": 1,\n "b": }', "c:2:7: malformed JSON"),
    "key twice": ('{"a": 1,\n "b": 2,\n "b": 3}', "'b' stands here twice"),
    "NaN": ('{"a": NaN}', "NaN is no number of JSON's"),
    "infinite": ('{"a": -Infinity}', "-Infinity is no number of JSON's"),
    "lists without end": ("[" * 100_000, "more than 50 values lie inside one another"),
    "60 lists": ("[" * 60 + "]" * 60, "more than 50 values lie inside one another"),
    "number of 5000 digits": ('{"a": ' + "9" * 5000 + "}", "malformed JSON"),
    "number of 400 digits": ('{"a": ' + "9" * 400 + "}", "a number of more than 300 digits"),
    "nothing": ("", "c:1:1: malformed JSON"),
}


@pytest.mark.parametrize("case", JSON_ERRORS)
def test_malformed_json(case: str) -> None:
    text, said = JSON_ERRORS[case]
    assert said in _error(parse_json, text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),  # surrogates too
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(_JSON, st.sampled_from([None, 2]), st.booleans())
def test_json_is_read_as_python_reads_it(value: object, indent: int | None, plain: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=plain)
    assert parse_json(text, "c").plain() == json.loads(text)


def test_json_keys_know_their_lines() -> None:
    root = parse_json('{\n  "samples": 3,\n  "limits": {\n    "gain-warning": 4\n  }\n}', "c.json")
    assert root.value["limits"].value["gain-warning"].place == "c.json:4"


def test_toml_keys_know_their_lines() -> None:
    text = """\
[project]
name = "x"
samples = 9

[tool.bncheck]
samples = 3

[tool.bncheck.limits]
gain-warning = 4.0

[[tool.bncheck.models]]
paths = "a.pt"
stage = "release"

[[tool.bncheck.models]]
paths = "b.pt"
stage = "later"
until = 2030-12-31
"""
    root = _toml(text, "p.toml")
    assert root is not None
    assert root.place == "p.toml:5"
    assert root.value["samples"].place == "p.toml:6"
    assert root.value["limits"].value["gain-warning"].place == "p.toml:9"
    first, second = root.value["models"].value
    assert first.value["stage"].place == "p.toml:13"
    assert second.value["stage"].place == "p.toml:17"
    assert second.value["until"].value == datetime.date(2030, 12, 31)


@pytest.mark.parametrize("text", ["", "[tool]\n", "[tool.other]\na = 1\n", "tool = 3\n"])
def test_a_toml_file_without_the_table(text: str) -> None:
    assert _toml(text, "c") is None


TOML_ERRORS = {
    "malformed": ("[tool.bncheck\n", "malformed TOML: "),
    "place": ("[tool.bncheck]\nsamples = ,\n", "line 2, column 11"),
    "key twice": ("[tool.bncheck]\nsamples = 1\nsamples = 2\n", "malformed TOML: Cannot overwrite a value"),
    "1500 lists": ("[tool.bncheck]\na = " + "[" * 1500 + "]" * 1500, "more than 50 values lie inside one another"),
    "60 lists": ("[tool.bncheck]\na = " + "[" * 60 + "]" * 60, "more than 50 values lie inside one another"),
    "number of 5000 digits": ("[tool.bncheck]\na = " + "9" * 5000, "malformed TOML"),
    "number of 400 digits": ("[tool.bncheck]\na = " + "9" * 400, "c:2: a number of more than 300 digits"),
}


@pytest.mark.parametrize("case", TOML_ERRORS)
def test_malformed_toml(case: str) -> None:
    text, said = TOML_ERRORS[case]
    assert said in _error(_toml, text)
