"""SARIF: valid by the standard's schema, and what GitHub asks for beyond it."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from bncheck.catalogue import RULES
from bncheck.core.finding import Severity
from bncheck.report.document import Document, report_document
from bncheck.report.locations import location
from bncheck.report.sarif import to_sarif
from tests.process import FIXTURES, ROOT
from tests.report.audited_files import (
    FAULTY,
    HEALTHY,
    HOSTILE,
    NO_NORM,
    WARNED,
    crashing,
    document,
    every_fixture,
    excused,
    hostile,
    in_folder,
    in_hostile_words,
    renamed,
    report,
)

SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0.schema.json").read_text())
FORMATS = FormatChecker(["uri", "uri-reference"])
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=FORMATS)


def _run(told: Document) -> dict[str, Any]:
    """The only run of the report, which is valid."""
    log = json.loads(to_sarif(told, RULES))
    VALIDATOR.validate(log)
    (run,) = log["runs"]
    assert isinstance(run, dict)
    return run


def _invocation(run: Mapping[str, Any]) -> Any:
    (invocation,) = run["invocations"]
    return invocation


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for entry in value.items() for part in entry for text in _strings(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _strings(part))


def test_the_schema_refuses_what_is_wrong() -> None:
    """Guards every other test here: neither the validator nor its formats may be toothless."""
    log = json.loads(to_sarif(document(FAULTY), RULES))
    for spoil in (
        lambda run: run["results"][0].pop("message"),
        lambda run: run["results"][0].update(level="fatal"),
        lambda run: run["results"][0].update(remedy="x"),
        lambda run: run["tool"]["driver"]["rules"][0].update(helpUri="https://a.example (a note)"),
        lambda run: run["artifacts"][0]["location"].update(uri="a b"),
    ):
        spoiled = json.loads(json.dumps(log))
        spoil(spoiled["runs"][0])
        with pytest.raises(ValidationError):
            VALIDATOR.validate(spoiled)


def test_every_fixture_is_valid_and_no_finding_is_lost() -> None:
    told = every_fixture()
    findings = [finding for subject in told["subjects"] for finding in subject["findings"]]
    results = _run(told)["results"]
    assert len(results) == len(findings) > 40
    assert sorted(result["ruleId"] for result in results) == sorted(finding["rule"] for finding in findings)


def test_each_result_has_what_github_asks_for() -> None:
    run = _run(every_fixture())
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        (place,) = result["locations"]
        physical = place["physicalLocation"]
        artifact = physical["artifactLocation"]
        assert artifact["uriBaseId"] == "%SRCROOT%"
        assert not artifact["uri"].startswith(("/", ".", "file:"))
        assert (ROOT / unquote(artifact["uri"])).exists()
        assert physical["region"] == {"startLine": 1}
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert re.fullmatch("[0-9a-f]{32}(-[0-9]+)?", result["partialFingerprints"]["bncheckFinding/v1"])
        assert result["message"]["text"].strip()
    fingerprints = [result["partialFingerprints"]["bncheckFinding/v1"] for result in run["results"]]
    assert len(set(fingerprints)) == len(fingerprints)


def test_layers_are_logical_locations() -> None:
    result = _run(document(FAULTY))["results"][0]
    assert [place["fullyQualifiedName"] for place in result["locations"][0]["logicalLocations"]] == [
        "bn1",
        "bn2",
        "bn3",
        "bn4",
    ]


def test_rules_are_described_in_full() -> None:
    described = {rule["id"]: rule for rule in _run(document(HEALTHY))["tool"]["driver"]["rules"]}
    levels = {"error": ("error", "error"), "warning": ("warning", "warning"), "notice": ("note", "recommendation")}
    for rule in RULES:
        told = described[rule.id]
        level, problem = levels[rule.severity.label]
        assert told["name"] == rule.name
        assert told["defaultConfiguration"] == {"level": level}
        assert told["properties"]["problem.severity"] == problem
        assert 0 < len(told["properties"]["tags"]) <= 20
        assert told["fullDescription"]["text"] in rule.rationale
        assert rule.formula in told["help"]["text"]
        assert rule.remedy.replace("{path}", "model.pt") in told["help"]["markdown"]
        assert ("helpUri" in told) == rule.reference.startswith("http")
        for text in (told["shortDescription"]["text"], told["fullDescription"]["text"]):
            assert 0 < len(text) <= 1024


def _fingerprints(told: Document) -> set[tuple[str, str]]:
    return {(result["ruleId"], result["partialFingerprints"]["bncheckFinding/v1"]) for result in _run(told)["results"]}


def test_fingerprints_outlast_order_spelling_and_numbers() -> None:
    found = report(FAULTY, WARNED)
    usual = _fingerprints(report_document(found))
    assert len(usual) == 3
    turned = replace(found, subjects=tuple(reversed(found.subjects)))
    assert _fingerprints(report_document(turned)) == usual
    relative = [os.path.relpath(path, ROOT) for path in (FAULTY, WARNED)]

    def here() -> str:
        told = report_document(report(*map(Path, relative)))
        for subject in told["subjects"]:
            subject["path"] = f"./{subject['path']}"
            for finding in subject["findings"]:
                finding["layers"].reverse()
                finding["evidence"] = {"other": 0.1234}
        return json.dumps(told)

    assert _fingerprints(json.loads(in_folder(ROOT, here))) == usual


def test_fingerprints_tell_rules_files_and_layers_apart() -> None:
    told = document(FAULTY)
    usual = _fingerprints(told)
    for change in (
        lambda subject, finding: subject.update(path="elsewhere.pt"),
        lambda subject, finding: finding.update(rule="BN999"),
        lambda subject, finding: finding["layers"].pop(),
        lambda subject, finding: finding.update(layers=["bn1\0bn2", "bn3", "bn4"]),
    ):
        changed = json.loads(json.dumps(told))
        change(changed["subjects"][0], changed["subjects"][0]["findings"][0])
        assert {print_ for _, print_ in _fingerprints(changed)} != {print_ for _, print_ in usual}


def test_two_findings_alike_in_all_that_makes_them_up_are_still_two() -> None:
    told = json.loads(json.dumps(document(FAULTY)))
    told["subjects"][0]["findings"] *= 2
    assert len(_fingerprints(told)) == 4


def test_github_shows_five_thousand_and_the_rest_is_told() -> None:
    names = [f"{index}.pt" for index in range(4990)]
    worse = report(FAULTY).subjects * 11
    many = replace(report(WARNED), subjects=(*renamed(report(WARNED), names).subjects, *worse))
    # Not held against the schema: that compares each result with each other.
    (run,) = json.loads(to_sarif(report_document(many), RULES))["runs"]
    assert len(run["results"]) == 5000
    assert [result["level"] for result in run["results"][:22]] == ["error"] * 22
    assert run["results"][22]["level"] == "warning"
    (told,) = _invocation(run)["toolExecutionNotifications"]
    assert told["level"] == "warning"
    assert told["message"]["text"].startswith("12 further results left out")


def test_a_file_named_twice_is_one_artifact() -> None:
    assert len(_run(report_document(renamed(report(FAULTY), ["a.pt", "./a.pt"])))["artifacts"]) == 1


def test_excused_findings_are_suppressed_results() -> None:
    run = _run(excused(FAULTY, rule="BN201", until=datetime.date(2030, 1, 2)))
    counting, suppressed = run["results"]
    assert (counting["ruleId"], counting["suppressions"]) == ("BN501", [])
    assert suppressed["ruleId"] == "BN201"
    (suppression,) = suppressed["suppressions"]
    assert suppression["kind"] == "external"
    assert suppression["status"] == "accepted"
    assert suppression["justification"] == "suppression: known | [since](http://x) 2020 (until 2030-01-02)"
    assert not any("suppressions" in result for result in _run(document(FAULTY))["results"])


def test_what_could_not_be_audited_is_an_unsuccessful_run(tmp_path: Path) -> None:
    invocation = _invocation(_run(document(FAULTY, tmp_path / "missing.pt")))
    assert invocation["executionSuccessful"] is False
    assert invocation["exitCode"] == 2
    (told,) = invocation["toolExecutionNotifications"]
    assert told["level"] == "error"
    assert told["descriptor"] == {"id": "unreadable-file"}
    assert "no such file" in told["message"]["text"]
    assert told["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith("missing.pt")


def test_a_crashed_rule_is_an_unsuccessful_run() -> None:
    invocation = _invocation(_run(crashing(HEALTHY)))
    assert invocation["executionSuccessful"] is False
    (told,) = invocation["toolExecutionNotifications"]
    assert told["associatedRule"] == {"id": "BN402"}
    assert "ZeroDivisionError: boom" in told["message"]["text"]


@pytest.mark.parametrize(("path", "code"), [(HEALTHY, 0), (FAULTY, 1), (NO_NORM, 3)])
def test_a_complete_run_is_successful_whatever_it_found(path: Path, code: int) -> None:
    invocation = _invocation(_run(document(path)))
    assert invocation["executionSuccessful"] is True
    assert invocation["exitCode"] == code


def test_no_subjects(tmp_path: Path) -> None:
    run = _run(document(tmp_path))
    assert run["results"] == run["artifacts"] == []
    assert _invocation(run)["executionSuccessful"] is False


def test_hostile_names_are_valid_and_link_nowhere(tmp_path: Path) -> None:
    told = hostile(tmp_path)
    run = _run(told)
    assert len(run["results"]) == 2 * len(HOSTILE)
    for text in _strings([run["results"], run["invocations"]]):
        text.encode("utf-8")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\u2066]", text)
    for message in (result["message"]["text"] for result in run["results"]):
        assert not re.search(r"\[[^\]]*\]\(", message)
    uris = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
    assert {unquote(uri.removeprefix("file://")) for uri in uris} == {subject["path"] for subject in told["subjects"]}


def test_numbers_that_json_has_not_stay_strings() -> None:
    finding = replace(report(FAULTY).subjects[0].findings[0], evidence={"ratio": math.inf, "least": math.nan})
    subject = replace(report(FAULTY).subjects[0], outcomes=(finding,))
    (result,) = _run(report_document(replace(report(FAULTY), subjects=(subject,))))["results"]
    assert result["properties"]["evidence"] == {"ratio": "Infinity", "least": "NaN"}
    assert "Numbers: ratio Infinity, least NaN" in result["message"]["text"]


@pytest.mark.parametrize(
    ("path", "uri", "inside"),
    [
        ("a b/ü%.pt", "a%20b/%C3%BC%25.pt", True),
        ("./x/../m.pt", "m.pt", True),
        ("../m.pt", "file://{above}/m.pt", False),
        ("/elsewhere/m.pt", "file:///elsewhere/m.pt", False),
        ("m\udcff.pt", "m%FF.pt", True),
        ("m\ud800.pt", "m%5Cud800.pt", True),
        ("a:b.pt", "a%3Ab.pt", True),
        ("https://host/a b.pt?…", "https://host/a%20b.pt?%E2%80%A6", False),
        ("<Net>", "%3CNet%3E", True),
    ],
)
def test_locations(path: str, uri: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    found = location(path)
    assert (found.uri, found.inside) == (uri.format(above=os.path.dirname(os.getcwd())), inside)


def test_paths_lie_below_the_checkout_where_a_job_works_in_a_folder_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "training").mkdir()
    monkeypatch.chdir(tmp_path / "training")
    monkeypatch.setenv("GITHUB_WORKSPACE", os.getcwd().removesuffix("/training"))
    assert location("m.pt").uri == "training/m.pt"
    assert location("../m.pt").uri == "m.pt"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(FIXTURES))
    assert location("m.pt").uri == "m.pt"


def test_severity_of_the_finding_and_not_of_the_rule_is_the_level() -> None:
    told = json.loads(json.dumps(document(FAULTY)))
    told["subjects"][0]["findings"][0]["severity"] = Severity.NOTICE.label
    assert [result["level"] for result in _run(told)["results"]] == ["error", "note"]


def test_hostile_words_can_be_read_by_strict_readers() -> None:
    run = _run(in_hostile_words())
    for text in _strings([run["results"], run["invocations"]]):
        assert text.replace("\n", " ").isprintable()
    told = [*run["results"], *_invocation(run)["toolExecutionNotifications"]]
    assert not any(re.search(r"\[[^\]]*\]\(", entry["message"]["text"]) for entry in told)
    assert len(_invocation(run)["toolExecutionNotifications"]) == 10
