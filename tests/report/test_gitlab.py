"""GitLab's code quality report: the fields its documentation asks for, and fingerprints that are unique."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bncheck.catalogue import RULES
from bncheck.report.document import Document
from bncheck.report.gitlab import to_gitlab
from tests.process import ROOT
from tests.report.audited_files import (
    FAULTY,
    HEALTHY,
    HOSTILE,
    WARNED,
    crashing,
    document,
    every_fixture,
    excused,
    hostile,
    in_folder,
    in_hostile_words,
)

SEVERITIES = {"info", "minor", "major", "critical", "blocker"}


def _entries(told: Document) -> list[dict[str, Any]]:
    """Every entry, of the form https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format asks for."""
    entries = json.loads(in_folder(ROOT, lambda: to_gitlab(told, RULES)))
    assert isinstance(entries, list)
    for entry in entries:
        assert entry.keys() == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["location"].keys() == {"path", "lines"}
        assert entry["location"]["lines"] == {"begin": 1}
        assert entry["severity"] in SEVERITIES
        assert all(isinstance(entry[key], str) and entry[key] for key in ("description", "check_name"))
        assert "\n" not in entry["description"]
        assert re.fullmatch("[0-9a-f]{32}(-[0-9]+)?", entry["fingerprint"])
    assert len({entry["fingerprint"] for entry in entries}) == len(entries)
    return entries


def test_every_finding_of_every_fixture_is_an_entry() -> None:
    told = every_fixture()
    entries = _entries(told)
    assert len(entries) == sum(len(subject["findings"]) for subject in told["subjects"]) > 40
    assert all((ROOT / entry["location"]["path"]).exists() for entry in entries)


def test_severities_and_words() -> None:
    first, _ = _entries(document(FAULTY))
    assert first["severity"] == "critical"
    assert first["check_name"] == "BN201 statistics-at-initialisation"
    assert first["location"]["path"] == "fixtures/bn201-zero-momentum-module/model.pt"
    assert "Layers: bn1 … bn4 (4). Numbers: num_batches_tracked 300." in first["description"]
    assert [entry["severity"] for entry in _entries(document(WARNED))] == ["major"]
    assert _entries(document(HEALTHY)) == []


def test_what_could_not_be_audited_blocks(tmp_path: Path) -> None:
    broken = _entries(document(FAULTY, tmp_path / "missing.pt"))[0]
    assert (broken["severity"], broken["check_name"]) == ("blocker", "unreadable-file")
    assert broken["location"]["path"] == str(tmp_path / "missing.pt")
    (crashed,) = _entries(crashing(HEALTHY))
    assert crashed["severity"] == "blocker"
    assert "BN402 crashed" in crashed["description"]


def test_excused_findings_are_left_out() -> None:
    (entry,) = _entries(excused(FAULTY, rule="BN201"))
    assert entry["check_name"].startswith("BN501")


def test_no_subjects(tmp_path: Path) -> None:
    (entry,) = _entries(document(tmp_path))
    assert entry["severity"] == "blocker"


def test_hostile_names_can_be_read_by_strict_readers(tmp_path: Path) -> None:
    entries = _entries(hostile(tmp_path))
    assert len(entries) == 2 * len(HOSTILE) + 1
    for entry in entries:
        for text in (entry["description"], entry["check_name"], entry["location"]["path"]):
            text.encode("utf-8")
            assert text.isprintable()


def test_hostile_words_can_be_read_by_strict_readers() -> None:
    entries = _entries(in_hostile_words())
    assert len(entries) == 9
    assert all("\\ud800 half a pair" in entry["description"] for entry in entries)
    assert all(entry["description"].isprintable() for entry in entries)
