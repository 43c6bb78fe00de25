"""SARIF 2.1.0, which GitHub code scanning, Azure DevOps and editors read.

The format: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html. What GitHub makes of it, and its limits:
https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from bncheck.core.finding import ExitCode, Severity
from bncheck.core.rule import Rule
from bncheck.report.document import Document
from bncheck.report.document_types import (
    AuditDocument,
    ExcuseEntry,
    FindingEntry,
    audit_document,
)
from bncheck.report.evidence import numbers
from bncheck.report.json import to_json
from bncheck.report.locations import fingerprinted, location
from bncheck.report.printable import counted, printable, shortened
from bncheck.report.shortfalls import shortfalls
from bncheck.report.verdict import verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "%SRCROOT%"
_MOST_RESULTS = 5000
"""GitHub takes 25 000 results in a run and shows the worst 5000."""
_MOST_CHARACTERS = 1024
"""GitHub cuts the descriptions of a rule here."""
_LEVELS = {"error": "error", "warning": "warning", "notice": "note"}
_PROBLEM_SEVERITIES = {"error": "error", "warning": "warning", "notice": "recommendation"}


def to_sarif(document: Document, rules: Sequence[Rule]) -> str:
    """One run with a result for each finding.

    Paths lie below ``%SRCROOT%`` where the files lie in the working tree. Excused findings are results with a
    suppression. What could not be audited is a notification, and the run then counts as unsuccessful.

    Args:
        document: the canonical document.
        rules: those that were applied.
    """
    audit = audit_document(document)
    told = list(_worst_first(audit))
    places = {rule.id: index for index, rule in enumerate(rules)}
    run: Document = {
        "tool": {
            "driver": {
                "name": "bncheck",
                "fullName": f"bncheck {audit['bncheck_version']}",
                "semanticVersion": audit["bncheck_version"],
                "shortDescription": {"text": "Audits batch normalisation in trained models."},
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "invocations": [_invocation(audit, left_out=max(0, len(told) - _MOST_RESULTS))],
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The root of the source tree."}}},
        "artifacts": [{"location": place, "roles": ["analysisTarget"]} for place in _distinct_artifacts(audit)],
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(*entry, places, tells_suppressions=audit["summary"]["excused"] > 0)
            for entry in told[:_MOST_RESULTS]
        ],
    }
    return to_json({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]})


def _worst_first(audit: AuditDocument) -> Iterator[tuple[str, FindingEntry, str]]:
    """Findings that count before excused ones, and worse before milder ones; else in the document's order."""
    every = chain(
        ((subject["path"], finding) for subject in audit["subjects"] for finding in subject["findings"]),
        ((subject["path"], finding) for subject in audit["subjects"] for finding in subject["excused"]),
    )
    ranked = sorted(
        fingerprinted(every),
        key=lambda entry: ("excuse" in entry[1], -Severity[entry[1]["severity"].upper()]),
    )
    return iter(ranked)


def _rule(rule: Rule) -> Document:
    title = rule.name.replace("-", " ").capitalize()
    fix = rule.remedy.replace("{path}", "model.pt")
    parts = {"Computed": rule.formula, "Limit": rule.limit, "Silent on": "; ".join(rule.false_alarms)}
    said = [(label, text) for label, text in parts.items() if text]
    plain = "\n".join([rule.rationale, *(f"{label}: {text}" for label, text in said), "Fix:", fix])
    formatted = "\n\n".join(
        [rule.rationale, *(f"**{label}:** {text}" for label, text in said), f"**Fix:**\n\n```\n{fix}\n```"]
    )
    described: Document = {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": title},
        "fullDescription": {"text": rule.rationale[:_MOST_CHARACTERS]},
        "help": {"text": plain, "markdown": formatted},
        "defaultConfiguration": {"level": _LEVELS[rule.severity.label]},
        "properties": {
            "tags": ["batch-normalization", rule.family.name.lower()],
            "problem.severity": _PROBLEM_SEVERITIES[rule.severity.label],
        },
    }
    link = re.match(r"https?://[^\s;]+", rule.reference)  # a note or a second source may stand behind it
    if link is not None:
        described["helpUri"] = link[0]
    return described


def _result(
    path: str, finding: FindingEntry, fingerprint: str, places: Mapping[str, int], *, tells_suppressions: bool
) -> Document:
    result: Document = {
        "ruleId": finding["rule"],
        "kind": "fail",
        "level": _LEVELS[finding["severity"]],
        "message": {"text": _message(finding)},
        "locations": [_location(path, finding["layers"])],
        "partialFingerprints": {"bncheckFinding/v1": fingerprint},
        "properties": {"evidence": {name: _json(value) for name, value in finding["evidence"].items()}},
    }
    if finding["rule"] in places:
        result["ruleIndex"] = places[finding["rule"]]
    if tells_suppressions:
        # §3.27.23: either all results of a run tell whether they are suppressed, or none does.
        result["suppressions"] = [_suppression(finding["excuse"])] if "excuse" in finding else []
    return result


def _json(value: float | int | str | None) -> float | int | str | None:
    """Strict readers of JSON refuse half a surrogate pair, which a layer's name may hold."""
    return printable(value) if isinstance(value, str) else value


def _message(finding: FindingEntry) -> str:
    """What is wrong, where and by how much; the first sentence stands alone where a viewer has little room."""
    lines = [printable(finding["message"])]
    if finding["layers"]:
        lines.append(f"Layers: {shortened(tuple(finding['layers']))}")
    if finding["evidence"]:
        lines.append(f"Numbers: {numbers(finding['evidence'])}")
    lines += ["Fix:", *(printable(line) for line in finding["remedy"].splitlines())]
    return _without_links("\n".join(lines))


def _without_links(text: str) -> str:
    """Viewers make a link of ``[text](target)`` in a plain message (§3.11.6), which a layer's name may hold."""
    return text.replace("](", "] (")


def _suppression(excuse: ExcuseEntry) -> Document:
    until = "" if excuse["until"] is None else f" (until {excuse['until']})"
    return {
        "kind": "external",
        "status": "accepted",
        "justification": f"{excuse['by']}: {printable(excuse['reason'])}{until}",
    }


def _location(path: str, layers: Sequence[str]) -> Document:
    """A model file has no lines, but GitHub wants one."""
    place: Document = {"physicalLocation": {"artifactLocation": _artifact(path), "region": {"startLine": 1}}}
    if layers:
        place["logicalLocations"] = [
            {
                "name": printable(name.rpartition(".")[2] or name),
                "fullyQualifiedName": printable(name),
                "kind": "module",
            }
            for name in layers
        ]
    return place


def _distinct_artifacts(audit: AuditDocument) -> list[Document]:
    """The schema wants each once; two spellings of a path may lead to one file."""
    places = (_artifact(subject["path"]) for subject in audit["subjects"])
    return list({str(place["uri"]): place for place in places}.values())


def _artifact(path: str) -> Document:
    place = location(path)
    return {"uri": place.uri, "uriBaseId": _ROOT} if place.inside else {"uri": place.uri}


def _invocation(audit: AuditDocument, *, left_out: int) -> Document:
    code = ExitCode(audit["summary"]["exit_code"])
    said = verdict(audit)
    notifications = list(_notifications(audit))
    if left_out:
        what = f"{counted(left_out, 'further result')} left out: GitHub shows {_MOST_RESULTS}, which are the worst."
        notifications.append(_notification("results-left-out", what, "warning"))
    return {
        "executionSuccessful": code is not ExitCode.NOT_AUDITED,
        "exitCode": int(code),
        "exitCodeDescription": f"{said.word}: {said.text}",
        "toolExecutionNotifications": notifications,
    }


def _notifications(audit: AuditDocument) -> Iterator[Document]:
    for error in audit["errors"]:
        yield _notification(error["kind"], f"{error['path']}: {error['message']}", "error", error["path"])
    for subject in audit["subjects"]:
        for shortfall in shortfalls(subject):
            yield _notification(shortfall.kind, shortfall.text, "error", subject["path"], shortfall.rule)
        for remark in subject["remarks"]:
            yield _notification("remark", remark, "note", subject["path"])
        if not subject["layers"]:
            yield _notification("nothing-to-audit", "The file has no batch-norm layer.", "note", subject["path"])
    for remark in audit["remarks"]:
        yield _notification("remark", remark, "note")


def _notification(kind: str, text: str, level: str, path: str | None = None, rule: str | None = None) -> Document:
    told: Document = {
        "descriptor": {"id": kind},
        "level": level,
        "message": {"text": _without_links(printable(text))},
    }
    if path is not None:
        told["locations"] = [_location(path, ())]
    if rule is not None:
        told["associatedRule"] = {"id": rule}
    return told
