"""Workflow commands, read back as the runner of GitHub Actions reads them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bncheck.catalogue import RULES
from bncheck.report.document import Document, report_document
from bncheck.report.github import to_github
from tests.process import ROOT
from tests.report.audited_files import (
    FAULTY,
    HEALTHY,
    HOSTILE,
    NO_NORM,
    WARNED,
    crashing,
    document,
    excused,
    hostile,
    in_folder,
    in_hostile_words,
    renamed,
    report,
)


class _Command(NamedTuple):
    name: str
    properties: dict[str, str]
    data: str


def _parsed(line: str) -> _Command | None:
    """As ``ActionCommand.TryParseV2`` of https://github.com/actions/runner/blob/main/src/Runner.Common/ActionCommand.cs."""
    line = line.lstrip()
    if not line.startswith("::") or "::" not in line[2:]:
        return None
    head, _, data = line[2:].partition("::")
    name, _, told = head.partition(" ")
    properties = dict(entry.split("=", 1) for entry in told.strip().split(",") if "=" in entry)
    return _Command(name, {key: _unescaped(value, ":,") for key, value in properties.items()}, _unescaped(data, ""))


def _unescaped(text: str, more: str) -> str:
    for character in f"\r\n{more}%":
        text = text.replace(f"%{ord(character):02X}", character)
    return text


def _commands(told: Document) -> list[_Command]:
    """Every line but those that are no command."""
    lines = in_folder(ROOT, lambda: to_github(told, RULES)).split("\n")
    return [command for command in map(_parsed, lines) if command is not None]


def test_a_finding_is_an_annotation_of_its_file() -> None:
    first, second = _commands(document(FAULTY))
    assert first.name == "error"
    assert first.properties == {
        "file": "fixtures/bn201-zero-momentum-module/model.pt",
        "title": "BN201 statistics-at-initialisation",
    }
    lines = first.data.split("\n")
    assert lines[0].startswith("Running mean is exactly 0")
    assert lines[1] == "Layers: bn1 … bn4 (4)"
    assert lines[2] == "Numbers: num_batches_tracked 300"
    assert lines[4].startswith("bncheck recalibrate")
    assert second.properties["title"] == "BN501 zero-momentum"


def test_levels_and_verdict() -> None:
    (command,) = _commands(document(WARNED))
    assert command.name == "warning"
    assert to_github(document(WARNED), RULES).startswith("bncheck PASS: 1 warning in")
    for path, word in ((FAULTY, "FAIL"), (HEALTHY, "PASS"), (NO_NORM, "NOTHING TO AUDIT")):
        assert to_github(document(path), RULES).startswith(f"bncheck {word}: ")
    assert _commands(document(HEALTHY)) == []


def test_what_could_not_be_audited_comes_first(tmp_path: Path) -> None:
    commands = _commands(document(FAULTY, tmp_path / "missing.pt"))
    assert [command.name for command in commands] == ["error"] * 3
    assert commands[0].properties == {"title": "not audited: unreadable-file"}
    assert commands[0].data.startswith(f"{tmp_path / 'missing.pt'}: no such file")
    (crashed,) = _commands(crashing(HEALTHY))
    assert crashed.name == "error"
    assert "boom <b>" in crashed.data


def test_ten_of_each_level_and_the_rest_is_counted() -> None:
    many = renamed(report(FAULTY), [f"{index}.pt" for index in range(8)])
    warned = renamed(report(WARNED), [f"w{index}.pt" for index in range(11)])
    told = report_document(replace(many, subjects=(*warned.subjects, *many.subjects)))
    assert [command.name for command in _commands(told)] == ["error"] * 10 + ["warning"] * 10
    assert to_github(told, RULES).endswith("7 further annotations left out: GitHub shows ten of each level for a step.")


def test_excused_findings_are_no_annotations() -> None:
    (command,) = _commands(excused(FAULTY, rule="BN201"))
    assert command.properties["title"].startswith("BN501")
    assert "1 error, 1 excused in 1 file" in to_github(excused(FAULTY, rule="BN201"), RULES)


def test_no_subjects(tmp_path: Path) -> None:
    (command,) = _commands(document(tmp_path))
    assert "holds no model file" in command.data


def test_hostile_names_give_no_orders(tmp_path: Path) -> None:
    told = in_folder(tmp_path, lambda: to_github(hostile(tmp_path), RULES))
    lines = told.splitlines()
    commands = [command for command in map(_parsed, lines) if command is not None]
    assert len(commands) == 20
    assert len(lines) == 22
    for command in commands:
        assert command.name in ("error", "warning")
        assert set(command.properties) == {"file", "title"}
        assert re.fullmatch(r"(BN40[23] [a-z-]+|not audited: unreadable-file)", command.properties["title"])
    assert all(character.isprintable() for line in lines for character in line)
    names = "\n".join(command.data for command in commands)
    assert "%0A\\x3a\\x3aerror\\x3a\\x3ax,a=b;c:d%25" in names
    assert len(HOSTILE) == 11
    assert any(command.properties["file"].endswith("[y](z),100% #ü.pt") for command in commands)


def test_hostile_words_give_no_orders() -> None:
    lines = to_github(in_hostile_words(), RULES).splitlines()
    commands = [command for command in map(_parsed, lines) if command is not None]
    assert len(lines) == len(commands) + 1 == 10
    assert {command.name for command in commands} == {"error", "warning"}
    assert all(character.isprintable() for line in lines for character in line)
