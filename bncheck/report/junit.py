"""JUnit XML, which Jenkins, GitLab and most continuous integrations read: a test case for each rule and model.

There is no standard; what is written here is valid by the schema of Jenkins' xUnit plugin,
https://github.com/jenkinsci/xunit-plugin/blob/master/src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from bncheck.core.finding import ExitCode, Severity
from bncheck.core.rule import Rule
from bncheck.report.document import Document
from bncheck.report.document_types import (
    AuditDocument,
    FindingEntry,
    NotCheckedEntry,
    SubjectEntry,
    audit_document,
)
from bncheck.report.evidence import numbers
from bncheck.report.printable import counted, printable
from bncheck.report.shortfalls import Shortfall, shortfalls
from bncheck.report.verdict import fails_the_run, verdict


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What keeps a case from passing: an element's tag, its type, its message and its text."""

    tag: str
    type: str
    message: str
    text: str


@dataclass(frozen=True, slots=True)
class _Case:
    """A test case; it passes where there is no trouble."""

    name: str
    trouble: _Trouble | None = None
    output: str = ""


def to_junit(document: Document, rules: Sequence[Rule]) -> str:
    """A suite for each model, with failures and errors just where the exit code is not 0.

    A finding is a failure where it fails the run; a milder or excused one is told in the output of a passing case. What
    could not be audited is an error, and so is a run without anything to audit. What was not checked is skipped.

    Args:
        document: the canonical document.
        rules: those that were applied.
    """
    audit = audit_document(document)
    root = Element("testsuites", name="bncheck")
    for error in audit["errors"]:
        trouble = _Trouble("error", error["kind"], error["message"], error["message"])
        _suite(root, error["path"], [_Case("audit", trouble)])
    for subject in audit["subjects"]:
        _suite(root, subject["path"], list(_cases(subject, rules, audit["summary"]["fail_on"])))
    _suite(root, "bncheck", [_whole_run(audit, is_told=root.find(".//error") is not None)])
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    indent(root)
    # References instead of characters beyond ASCII: no encoding of a terminal or a pipe can break them.
    declaration = '<?xml version="1.0" encoding="UTF-8"?>\n'
    body: bytes = tostring(root, encoding="us-ascii", xml_declaration=False)
    return declaration + body.decode("ascii")


def _suite(root: Element, path: str, cases: Sequence[_Case]) -> None:
    tags = [None if case.trouble is None else case.trouble.tag for case in cases]
    suite = SubElement(
        root,
        "testsuite",
        name=printable(path),
        tests=str(len(cases)),
        failures=str(tags.count("failure")),
        errors=str(tags.count("error")),
        skipped=str(tags.count("skipped")),
    )
    for case in cases:
        element = SubElement(suite, "testcase", classname=printable(path), name=case.name)
        if case.trouble is not None:
            told = SubElement(
                element, case.trouble.tag, type=printable(case.trouble.type), message=printable(case.trouble.message)
            )
            told.text = _lines(case.trouble.text)
        if case.output:
            SubElement(element, "system-out").text = _lines(case.output)


def _lines(text: str) -> str:
    """XML 1.0 has no place for control characters and lone surrogates, not even as references; line ends may stay."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _whole_run(audit: AuditDocument, *, is_told: bool) -> _Case:
    """The verdict; an error where the run was not clean, and no other case tells."""
    said = verdict(audit)
    output = "\n".join([f"{said.word}: {said.text}", *audit["remarks"]])
    code = ExitCode(audit["summary"]["exit_code"])
    untold = code is ExitCode.NOTHING_TO_AUDIT or (code is ExitCode.NOT_AUDITED and not is_told)
    trouble = _Trouble("error", said.word.lower().replace(" ", "-"), said.text, output) if untold else None
    return _Case("verdict", trouble, output)


def _cases(subject: SubjectEntry, rules: Sequence[Rule], fail_on: str | None) -> Iterator[_Case]:
    missing = list(shortfalls(subject))
    yield _Case("read", _error("unread", missing), "\n".join(subject["remarks"]))
    if subject["measurements"] is not None:
        yield _Case("measure", _error("not-measured", missing))
    for rule in rules:
        case = _rule_case(f"{rule.id} {rule.name}", rule.id, subject, fail_on)
        if case is not None:
            yield case


def _rule_case(name: str, code: str, subject: SubjectEntry, fail_on: str | None) -> _Case | None:
    """What the rule said of the file; None where it was not applied to this one."""
    found = [finding for finding in subject["findings"] if finding["rule"] == code]
    excused = [finding for finding in subject["excused"] if finding["rule"] == code]
    unchecked = [entry for entry in subject["not_checked"] if entry["rule"] == code]
    failing = [finding for finding in found if fails_the_run(finding["severity"], fail_on)]
    milder = [finding for finding in found if finding not in failing]
    if not (found or excused or unchecked or code in subject["passed"]):
        return None
    if not (subject["layers"] or found or unchecked):
        return _Case(name, _Trouble("skipped", "nothing-to-audit", "the file has no batch-norm layer", ""))
    output = [_told(finding) for finding in (*milder, *excused)]
    missing = [shortfall for shortfall in shortfalls(subject) if shortfall.rule == code]
    if missing:
        return _Case(name, _error(missing[0].kind, missing), "\n\n".join([*output, *map(_told, failing)]))
    reasons = [_reason(entry) for entry in unchecked]
    if failing:
        return _Case(name, _failure(failing), "\n\n".join([*output, *reasons]))
    if reasons and not found and not excused:
        return _Case(name, _Trouble("skipped", "not-checked", "; ".join(reasons), "\n".join(reasons)))
    return _Case(name, output="\n\n".join([*output, *reasons]))


def _error(kind: str, missing: Sequence[Shortfall]) -> _Trouble | None:
    texts = [shortfall.text for shortfall in missing if shortfall.kind == kind]
    return _Trouble("error", kind, "; ".join(texts), "\n".join(texts)) if texts else None


def _reason(entry: NotCheckedEntry) -> str:
    where = f" on {counted(len(entry['layers']), 'layer')}: {', '.join(entry['layers'])}" if entry["layers"] else ""
    return f"not checked{where}: {entry['reason']}"


def _failure(findings: Sequence[FindingEntry]) -> _Trouble:
    """One element for all findings of a case: many readers look at the first alone."""
    worst = max(findings, key=lambda finding: Severity[finding["severity"].upper()])
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    text = "\n\n".join(_told(finding) for finding in findings)
    return _Trouble("failure", worst["severity"], worst["message"] + more, text)


def _told(finding: FindingEntry) -> str:
    lines = [f"{finding['severity']} {finding['rule']} {finding['name']}: {finding['message']}"]
    if "excuse" in finding:
        excuse = finding["excuse"]
        until = "" if excuse["until"] is None else f", until {excuse['until']}"
        lines.append(f"excused by {excuse['by']}: {excuse['reason']}{until}")
    if finding["layers"]:
        lines.append(f"layers ({len(finding['layers'])}): {', '.join(finding['layers'])}")
    if finding["evidence"]:
        lines.append(f"numbers: {numbers(finding['evidence'])}")
    lines += [f"why: {finding['rationale']}", "fix:", *(f"    {line}" for line in finding["remedy"].splitlines())]
    # A name with line ends in it must not look like several lines of ours.
    return "\n".join(printable(line) for line in lines)
