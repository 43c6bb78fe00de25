"""Audits of real files, for the formats to tell: faulty, hostile, broken, excused."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from bncheck.auditing import Settings, audit_paths
from bncheck.catalogue import RULES
from bncheck.core.finding import Excuse, ExcusedBy, Report, Severity
from bncheck.core.limits import Limits
from bncheck.core.rule import Rule
from bncheck.report.document import Document, report_document
from tests.process import FIXTURES
from tests.readers.hostile import faulty

FAULTY = FIXTURES / "bn201-zero-momentum-module" / "model.pt"
WARNED = FIXTURES / "bn503-decay-point-nine" / "model.pt"
HEALTHY = FIXTURES / "healthy-cnn-module" / "model.pt"
NO_NORM = FIXTURES / "healthy-group-norm-only" / "model.pt"

HOSTILE = (
    "a|b`c``d",
    "<script>alert(1)</script><!-- --></details></code>",
    "x\n::error file=a::b\r\n| cell |\n# heading",
    "]]>&amp;&#60;\x00\x0b\x1b[31m\ufffe",
    "\ud800 half a pair",
    "\u202eevil\u2066",
    "[click](http://evil.example) ![x](http://evil.example/p.png) <http://evil.example>",
    "\\|\\\\| \\` ~~~ ``` ````",
    "@octocat www.evil.example http://evil.example #1 :smile:",
    "%0A::error::x,a=b;c:d%25",
    "* _a_ **b** ~~c~~ $x$ {0} {{1}}",
)
HOSTILE_FILE = "we|ird `<b>\n::error file=x::[y](z),100% #ü.pt"


@cache
def report(*paths: Path, fail_on: Severity | None = Severity.ERROR) -> Report:
    """The audit of these files by every rule."""
    return audit_paths([str(path) for path in paths], Settings(fail_on=fail_on))


def document(*paths: Path, fail_on: Severity | None = Severity.ERROR) -> Document:
    """Its document."""
    return report_document(report(*paths, fail_on=fail_on))


def every_fixture() -> Document:
    """All files that the fixtures hold."""
    return document(FIXTURES)


def hostile_files(folder: Path) -> list[Path]:
    """A faulty model for each hostile name, one under a hostile name of its own, and a broken one under another."""
    paths = []
    for index, name in enumerate(HOSTILE):
        path = folder / (HOSTILE_FILE if index == 0 else f"{index}.pt")
        path.write_bytes(faulty(name))
        paths.append(path)
    broken = folder / f"broken {HOSTILE_FILE}"
    broken.write_bytes(b"PK\3\4")
    return [*paths, broken]


def hostile(folder: Path) -> Document:
    """Their audit."""
    return document(*hostile_files(folder))


def excused(*paths: Path, rule: str, until: datetime.date | None = None) -> Document:
    """The audit of these files, in which nothing counts that a rule says."""
    excuse = Excuse(ExcusedBy.SUPPRESSION, "known | [since](http://x) 2020", until)
    found = report(*paths)
    subjects = [
        subject.excusing(lambda finding, _: excuse if finding.rule == rule else None) for subject in found.subjects
    ]
    return report_document(replace(found, subjects=tuple(subjects)))


def renamed(found: Report, names: list[str]) -> Report:
    """The report with as many copies of its first file, under these paths."""
    subject = found.subjects[0]
    copies = (replace(subject, checkpoint=replace(subject.checkpoint, path=name)) for name in names)
    return replace(found, subjects=(*found.subjects[1:], *copies))


def crashing(path: Path) -> Document:
    """The audit of a file by rules of which BN402 crashes."""

    def crash(layer: object, limits: Limits) -> None:
        raise ZeroDivisionError("boom <b>")

    def broken(rule: Rule) -> Rule:
        return replace(rule, check_layer=crash, check_model=None) if rule.id == "BN402" else rule

    return report_document(audit_paths([str(path)], Settings(rules=tuple(map(broken, RULES)))))


def in_hostile_words() -> Document:
    """An audit in which every free text is hostile: rules and readers quote what files hold."""
    words = " ".join(HOSTILE)
    told = excused(FAULTY, WARNED, NO_NORM.parent / "missing.pt", rule="BN201")
    told["remarks"] = [words]
    told["errors"][0]["message"] = words
    for subject in told["subjects"]:
        subject["remarks"] = [words]
        subject["unread"] = [{"what": words, "reason": words}]
        subject["measurements"] = {"not_measured": [{"what": words, "reason": words, "failed": True}]}
        for finding in (*subject["findings"], *subject["excused"]):
            finding.update(message=words, remedy=words, rationale=words, evidence={"worst layer": words})
        for entry in subject["excused"]:
            entry["excuse"]["reason"] = words
        for entry in subject["not_checked"]:
            entry.update(reason=words, layers=[words], crashed=entry["rule"] == "BN406")
    return told


def in_folder(folder: Path, act: Callable[[], str]) -> str:
    """What an act returns in another working folder."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        return act()
    finally:
        os.chdir(here)
