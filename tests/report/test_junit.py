"""JUnit XML: valid by the schema Jenkins uses, in agreement with the exit code, and safe from what names hold."""

from __future__ import annotations

import datetime
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from lxml import etree

from bncheck.catalogue import RULES
from bncheck.core.finding import Severity
from bncheck.report.document import Document, report_document
from bncheck.report.junit import to_junit
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
    in_hostile_words,
    report,
)

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).parent / "junit-10.xsd"))
# https://www.w3.org/TR/xml/#charsets
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _root(told: Document) -> ElementTree.Element:
    """The parsed report, which is valid and counts right."""
    text = to_junit(told, RULES)
    SCHEMA.assertValid(etree.fromstring(text.encode()))
    root = ElementTree.fromstring(text)
    for holder in (root, *root.findall("testsuite")):
        assert holder.get("tests") == str(len(list(holder.iter("testcase"))))
        assert holder.get("failures") == str(len(list(holder.iter("failure"))))
        assert holder.get("errors") == str(len(list(holder.iter("error"))))
    return root


def _case(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (case,) = (case for case in root.iter("testcase") if str(case.get("name")).startswith(name))
    return case


def test_the_schema_refuses_what_is_wrong() -> None:
    text = to_junit(document(FAULTY), RULES).replace(' tests="33"', "").replace("<failure", "<fault")
    assert not SCHEMA.validate(etree.fromstring(re.sub("</failure", "</fault", text).encode()))


def test_every_fixture_is_valid() -> None:
    told = every_fixture()
    root = _root(told)
    assert [suite.get("name") for suite in root] == [*(subject["path"] for subject in told["subjects"]), "bncheck"]


def test_a_case_for_each_rule_and_model() -> None:
    root = _root(document(FAULTY, HEALTHY))
    for suite in root.findall("testsuite")[:2]:
        names = [case.get("name") for case in suite if str(case.get("name")).startswith("BN")]
        assert names == [f"{rule.id} {rule.name}" for rule in RULES]
    assert list(_case(root[0], "BN402")) == []
    assert "needs --data" in str(_case(root[0], "BN406").find("skipped").get("message"))
    failure = _case(root[0], "BN201").find("failure")
    assert failure.get("type") == "error"
    for part in ("bn1, bn2, bn3, bn4", "num_batches_tracked 300", "bncheck recalibrate"):
        assert part in failure.text


@pytest.mark.parametrize(
    ("paths", "fail_on"),
    [
        ((FAULTY,), Severity.ERROR),
        ((FAULTY,), None),
        ((WARNED,), Severity.ERROR),
        ((WARNED,), Severity.WARNING),
        ((WARNED,), Severity.NOTICE),
        ((HEALTHY,), Severity.NOTICE),
        ((NO_NORM,), Severity.ERROR),
        ((NO_NORM, HEALTHY), Severity.ERROR),
        ((FAULTY, Path("missing.pt")), Severity.ERROR),
    ],
)
def test_failures_and_errors_agree_with_the_exit_code(paths: tuple[Path, ...], fail_on: Severity | None) -> None:
    found = report(*paths, fail_on=fail_on)
    root = _root(report_document(found))
    assert (root.get("failures") != "0") == bool(found.failing)
    assert (root.get("errors") != "0") == (found.exit_code in (2, 3))
    assert (root.get("failures") == root.get("errors") == "0") == (found.exit_code == 0)


def test_what_does_not_fail_the_run_passes_and_is_told() -> None:
    case = _case(_root(document(WARNED)), "BN503")
    assert [part.tag for part in case] == ["system-out"]
    assert "warning BN503" in case[0].text
    assert _case(_root(document(WARNED, fail_on=Severity.WARNING)), "BN503").find("failure").get("type") == "warning"


def test_excused_findings_pass_and_say_why() -> None:
    root = _root(excused(FAULTY, rule="BN201", until=datetime.date(2030, 1, 2)))
    case = _case(root, "BN201")
    assert [part.tag for part in case] == ["system-out"]
    assert "excused by suppression: known | [since](http://x) 2020, until 2030-01-02" in case[0].text
    assert root.get("failures") == "1"


def test_a_crashed_rule_is_an_error() -> None:
    error = _case(_root(crashing(HEALTHY)), "BN402").find("error")
    assert error.get("type") == "rule-crashed"
    assert "boom <b>" in error.text


def test_what_had_to_be_checked_is_an_error() -> None:
    told = document(HEALTHY)
    told["summary"]["exit_code"] = 2
    for entry in told["subjects"][0]["not_checked"]:
        entry["must_be_checked"] = entry["rule"] == "BN406"
    root = _root(told)
    assert root.get("errors") == "1"
    assert "had to be checked" in _case(root, "BN406").find("error").text


def test_an_unread_part_is_an_error() -> None:
    told = document(HEALTHY)
    told["summary"]["exit_code"] = 2
    told["subjects"][0]["unread"].append({"what": "optimizer", "reason": "it is cut short"})
    assert _case(_root(told), "read").find("error").text == "optimizer was not read: it is cut short"


def test_no_subjects(tmp_path: Path) -> None:
    root = _root(document(tmp_path))
    assert root.get("errors") == "1"
    assert "holds no model file" in str(_case(root, "audit").find("error").get("message"))


def test_hostile_names_leave_the_xml_whole(tmp_path: Path) -> None:
    told = hostile(tmp_path)
    text = to_junit(told, RULES)
    assert text.isascii()
    root = _root(told)
    assert len(root.findall("testsuite")) == len(HOSTILE) + 2
    for element in root.iter():
        for part in (element.text or "", *element.attrib.values()):
            assert not ILLEGAL.search(part)
    assert len(root.findall(".//failure")) == len(HOSTILE)
    texts = [failure.text for failure in root.iter("failure")]
    assert any("<script>alert(1)</script>" in told for told in texts)
    assert any("\\ud800 half a pair" in told for told in texts)
    assert any("]]>&amp;&#60;\\x00\\x0b\\x1b[31m\\ufffe" in told for told in texts)


def test_hostile_words_leave_the_xml_whole() -> None:
    root = _root(in_hostile_words())
    texts = [part for element in root.iter() for part in (element.text or "", *element.attrib.values())]
    assert not any(ILLEGAL.search(text) for text in texts)
    assert sum("\\ud800 half a pair" in text for text in texts) > 60
