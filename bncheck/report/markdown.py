"""GitHub flavoured Markdown, https://github.github.com/gfm/: for step summaries, comments and wikis."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bncheck.core.rule import Rule
from bncheck.report.document import Document
from bncheck.report.document_types import (
    AuditDocument,
    FindingEntry,
    SubjectEntry,
    audit_document,
)
from bncheck.report.evidence import numbers
from bncheck.report.printable import counted, printable, shortened
from bncheck.report.shortfalls import shortfalls
from bncheck.report.verdict import is_complete, verdict

_MAY_BE_MARKUP = re.compile(r"[^A-Za-z0-9 /=%;,'\"(?!\u0080-\U0010ffff]")
_FEWEST_BACKTICKS = 3


def to_markdown(document: Document, rules: Sequence[Rule]) -> str:
    """The verdict, then each file with a table of its findings and what to paste; the argument is folded.

    Args:
        document: the canonical document.
        rules: those that were applied; findings carry their argument themselves.
    """
    return "\n\n".join(_blocks(audit_document(document))) + "\n"


def to_short_markdown(document: Document, room: int) -> str:
    """The same, cut after the last part that fits, with a line that says so.

    Args:
        document: the canonical document.
        room: bytes of UTF-8 there are.
    """
    blocks = list(_blocks(audit_document(document)))
    kept = "\n\n".join(blocks) + "\n"
    if len(kept.encode()) <= room:
        return kept
    length, kept = 0, ""
    for index, block in enumerate(blocks):
        cut = f"**Cut here:** {index} of {counted(len(blocks), 'part')} shown, there is no room for more.\n"
        if length + len(cut) > room:
            break
        kept = "\n\n".join([*blocks[:index], cut])
        length += len(block.encode()) + 2
    return kept


def _blocks(audit: AuditDocument) -> Iterator[str]:
    """Parts that can be cut between: no fence, table or folded part goes from one to the next."""
    said = verdict(audit)
    yield f"# bncheck: {said.word}\n\n{_text(said.text)}"
    if audit["errors"]:
        rows = [(_code(error["path"]), error["kind"], _text(error["message"])) for error in audit["errors"]]
        yield f"## Not audited\n\n{_table(('path', 'kind', 'why'), rows)}"
    loud = [subject for subject in audit["subjects"] if not _is_quiet(subject)]
    for subject in loud:
        yield from _subject(subject)
    quiet = [f"- {_quiet_line(subject)}" for subject in audit["subjects"] if _is_quiet(subject)]
    if quiet:
        yield _folded(f"{counted(len(quiet), 'file')} without findings", "\n".join(quiet))
    if audit["remarks"]:
        yield "## Remarks\n\n" + "\n".join(f"- {_text(remark)}" for remark in audit["remarks"])


def _is_quiet(subject: SubjectEntry) -> bool:
    return is_complete(subject) and not (subject["findings"] or subject["excused"] or subject["remarks"])


def _quiet_line(subject: SubjectEntry) -> str:
    if not subject["layers"]:
        return f"{_code(subject['path'])}: nothing to audit, no batch-norm layer"
    unchecked = len({entry["rule"] for entry in subject["not_checked"]})
    return f"{_code(subject['path'])}: {counted(len(subject['passed']), 'rule')} passed, {unchecked} not checked"


def _subject(subject: SubjectEntry) -> Iterator[str]:
    said = f"{subject['format']} · {subject['packaging']} · {subject['stage']} · {_count_of_layers(subject)}"
    yield f"## {_code(subject['path'])}\n\n{said}"
    broken = [(shortfall.kind, _code(shortfall.what), _text(shortfall.reason)) for shortfall in shortfalls(subject)]
    if broken:
        yield _table(("incomplete", "what", "why"), broken)
    if subject["findings"]:
        rows = [
            (
                finding["severity"],
                f"{finding['rule']} {finding['name']}",
                _text(finding["message"]),
                _code(shortened(tuple(finding["layers"]))) if finding["layers"] else "the whole model",
                _text(numbers(finding["evidence"])),
            )
            for finding in subject["findings"]
        ]
        yield _table(("severity", "rule", "what is wrong", "layers", "numbers"), rows)
    for finding in subject["findings"]:
        yield f"**{finding['rule']}**, to fix it:\n\n{_fenced(finding['remedy'])}\n\n{_argument(finding)}"
    if subject["excused"]:
        yield _excused(subject["excused"])
    if subject["remarks"]:
        yield "\n".join(f"- {_text(remark)}" for remark in subject["remarks"])
    if subject["not_checked"]:
        yield _not_checked(subject)


def _count_of_layers(subject: SubjectEntry) -> str:
    return counted(len(subject["layers"]), "layer") if subject["layers"] else "no batch-norm layer"


def _argument(finding: FindingEntry) -> str:
    lines = [_text(finding["rationale"])]
    if finding["layers"]:
        lines.append(_bulleted(finding["layers"]))
    return _folded(f"{finding['rule']}: why, and {_where(finding)}", "\n\n".join(lines))


def _where(finding: FindingEntry) -> str:
    return f"the {counted(len(finding['layers']), 'layer')}" if finding["layers"] else "where"


def _bulleted(names: Sequence[str]) -> str:
    return "\n".join(f"- {_code(printable(name))}" for name in names)


def _excused(findings: Sequence[FindingEntry]) -> str:
    rows = []
    for finding in findings:
        if "excuse" in finding:
            excuse = finding["excuse"]
            layers = _code(shortened(tuple(finding["layers"]))) if finding["layers"] else "the whole model"
            told = (f"{finding['rule']} {finding['name']}", finding["severity"], layers)
            rows.append((*told, excuse["by"], _text(excuse["reason"]), excuse["until"] or "for good"))
    header = ("rule", "severity", "layers", "excused by", "reason", "until")
    return _folded(f"{counted(len(rows), 'excused finding')}", _table(header, rows))


def _not_checked(subject: SubjectEntry) -> str:
    rows = [(entry["rule"], _text(entry["reason"])) for entry in subject["not_checked"] if not entry["crashed"]]
    return _folded(f"{len(rows)} not checked", _table(("rule", "why"), rows)) if rows else "Every rule was checked."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _folded(title: str, body: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def _fenced(code: str) -> str:
    """A fence longer than any run of backticks inside, which would end it."""
    lines = [printable(line) for line in code.splitlines()]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(_FEWEST_BACKTICKS, longest + 1)
    return "\n".join([fence, *lines, fence])


def _code(text: str) -> str:
    """As code that cannot end itself, end a cell of a table, or hold markup: what could is a numeric reference."""
    return f"<code>{_referenced(printable(text))}</code>"


def _text(text: str) -> str:
    """As text; a mention of somebody, which a comment would send them, is broken up."""
    return _referenced(printable(text)).replace("&#64;", "&#64;&#8203;")


def _referenced(text: str) -> str:
    return _MAY_BE_MARKUP.sub(_reference, text)


def _reference(found: re.Match[str]) -> str:
    """Some punctuation means something only in one place, and stays readable everywhere else."""
    character, before, behind = found[0], found.string[: found.start()], found.string[found.end() :][:1]
    match character:
        case "_":  # emphasis at the edge of words
            is_markup = not (before[-1:].isalnum() and behind.isalnum())
        case "-" | "+":  # a list, a rule or a heading at the start of a line
            is_markup = not before.strip(" ")
        case "." | ")":  # a list behind a number, an address behind www
            is_markup = before.isdecimal() or before.lower().endswith("www")
        case ":":  # an address, or a picture by its name
            is_markup = behind not in ("", " ")
        case _:
            is_markup = True
    return f"&#{ord(character)};" if is_markup else character
