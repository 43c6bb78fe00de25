"""The view for people: styled lines, the verdict first. Nothing here needs a terminal or rich."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from bncheck.core.finding import ExitCode, Finding, Report, Severity, Subject
from bncheck.core.rule import Rule
from bncheck.report.measured import drifted, measured_lines
from bncheck.report.printable import counted, number, printable, shortened
from bncheck.report.styled import Line, Span
from bncheck.report.summary_table import table_lines
from bncheck.report.verdict_words import Numbers, told

_SEVERITY_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTICE: "bold cyan"}
_VERDICT_STYLES = {
    ExitCode.CLEAN: "bold black on green",
    ExitCode.FINDINGS: "bold white on red",
    ExitCode.NOT_AUDITED: "bold white on red",
    ExitCode.NOTHING_TO_AUDIT: "bold black on yellow",
}
_LABEL = 11
_CODES_IN_A_RUN = 3
_FEW = 20
"""Files of which each gets its line; of more, a table says which have something to tell."""


def plain(lines: Sequence[Line]) -> str:
    """The lines without styles."""
    return "\n".join("".join(span.text for span in line).rstrip() for line in lines)


def report_lines(report: Report, width: int, *, show_passed: bool, verbose: bool = False) -> list[Line]:
    """The whole run: verdict, then each file, worst matters first inside it.

    Args:
        report: the run.
        width: columns.
        show_passed: whether to tell what passed and was not checked.
        verbose: whether to show the drift of every layer, and the worst channels of those that drifted.
    """
    lines = [_verdict(report)]
    many = len(report.subjects) > _FEW
    if many:
        lines.extend(table_lines(report, width))
    for subject in report.subjects:
        if not (many and _is_quiet(subject) and not show_passed):
            lines.extend(_subject(subject, report, width, show_passed=show_passed, verbose=verbose))
    for failure in report.failures:
        lines.append(())
        lines.append((Span(printable(failure.path), "bold"), Span("  "), Span("not audited", "bold red")))
        lines.extend(_labelled(failure.kind, printable(failure.message), width, label_width=len(failure.kind) + 2))
    if report.skipped:
        lines.append(())
        lines.append((Span(f"{counted(report.skipped, 'other file')} found in folders: no models.", "dim"),))
    if report.remarks:
        lines.append(())
        for remark in report.remarks:
            lines.extend(_labelled("note", printable(remark), width, "yellow", indent=0, label_width=6))
    return lines


def _verdict(report: Report) -> Line:
    said = told(
        Numbers(
            exit_code=report.exit_code,
            findings={severity.label: report.count(severity) for severity in reversed(Severity)},
            excused=report.excused,
            files=len(report.subjects),
            layers=sum(len(subject.checkpoint.layers) for subject in report.subjects),
            broken=len(report.failures) + sum(not subject.complete for subject in report.subjects),
            unchecked=len({entry.rule for _, entry in report.unchecked}),
        )
    )
    return (Span(f" {said.word} ", _VERDICT_STYLES[report.exit_code]), Span(f" {said.text}"), *_departure(report))


def _is_quiet(subject: Subject) -> bool:
    """Whether one line says everything."""
    checkpoint = subject.checkpoint
    told = subject.findings or subject.excused or checkpoint.unread or checkpoint.remarks or subject.measurements
    return not told and subject.complete


def _subject(subject: Subject, report: Report, width: int, *, show_passed: bool, verbose: bool) -> Iterator[Line]:
    checkpoint = subject.checkpoint
    said = f"{checkpoint.format.value} · {checkpoint.packaging.value} · {checkpoint.stage.value}"
    quiet = _is_quiet(subject)
    layers = counted(len(checkpoint.layers), "layer") if checkpoint.layers else "no batch-norm layer"
    if not quiet:
        yield ()
    yield (
        Span(printable(checkpoint.path), "bold"),
        Span("  "),
        *(_quiet_state(subject) if quiet else ()),
        Span(f"{said} · {layers}", "dim"),
    )
    for finding in subject.findings:
        yield from _finding(finding, width)
    yield from _excused(subject, width)
    yield from measured_lines(subject, width, verbose=verbose)
    for part in checkpoint.unread:
        yield from _labelled("unread", f"{printable(part.what)}: {printable(part.reason)}", width, "bold red")
    for remark in checkpoint.remarks:
        yield from _labelled("remark", printable(remark), width, "yellow")
    for entry in subject.not_checked:
        if entry.crashed:
            yield from _labelled("crashed", f"{entry.rule}: {printable(entry.reason)}", width, "bold red")
    if show_passed:
        yield from _labelled("passed", code_ranges(subject.passed) or "nothing", width, "green")
    if not quiet or show_passed or any(report.must_be_checked(entry.rule) for entry in subject.not_checked):
        for index, (reason, codes) in enumerate(_reasons(subject)):
            label = "" if index else "not checked"
            style = "bold red" if any(report.must_be_checked(code) for code in codes) else "dim"
            yield from _labelled(label, f"{code_ranges(codes)}: {printable(reason)}", width, style, label_width=13)


def _excused(subject: Subject, width: int) -> Iterator[Line]:
    """One line for each rule and excuse."""
    for entry in subject.excused:
        finding, excuse = entry.finding, entry.excuse
        where = f" at {shortened(finding.layers)}" if finding.layers else ""
        until = "" if excuse.until is None else f" (until {excuse.until:%Y-%m-%d})"
        text = f"{finding.rule} {finding.name}{where}: {printable(excuse.reason)}{until}"
        yield from _labelled("excused", text, width)


def _departure(report: Report) -> Line:
    """Where drift begins, of the first file that has any: later layers inherit it."""
    for subject in report.subjects:
        departed = drifted(subject)
        if departed:
            first = departed[0]
            where = f"{printable(first.layer.full_name)}, layer {first.order + 1} of {len(subject.drifts)}"
            return (Span(f"; drift begins at {where}"),)
    return ()


def _quiet_state(subject: Subject) -> Line:
    if not subject.checkpoint.layers:
        return (Span("nothing to audit  ", "yellow"),)
    unchecked = len({entry.rule for entry in subject.not_checked})
    passed = f"{counted(len(subject.passed), 'rule')} passed"
    return (Span("clean  ", "green"), Span(f"{passed}, {unchecked} not checked  " if unchecked else f"{passed}  "))


def _finding(finding: Finding, width: int) -> Iterator[Line]:
    style = _SEVERITY_STYLES[finding.severity]
    yield (
        Span("  "),
        Span(f"{finding.severity.label:<8}", style),
        Span(finding.rule, "bold"),
        Span(f" {finding.name}"),
    )
    yield from _wrapped(printable(finding.message), width, indent=4)
    if finding.layers:
        yield from _labelled("layers", shortened(finding.layers), width)
    if finding.evidence:
        numbers = ", ".join(f"{name} {number(value)}" for name, value in finding.evidence.items())
        yield from _labelled("numbers", numbers, width)
    yield from _labelled("why", finding.rationale, width)
    yield from _verbatim("fix", finding.remedy, "green", indent=4)


def _reasons(subject: Subject) -> Iterator[tuple[str, list[str]]]:
    entries = sorted((entry.reason, entry.rule) for entry in subject.not_checked if not entry.crashed)
    for reason, group in groupby(entries, key=lambda entry: entry[0]):
        yield reason, [code for _, code in group]


def code_ranges(codes: Sequence[str]) -> str:
    """Codes in one line, runs of three and more shortened: ``BN201, BN501–BN506``."""
    shown: list[str] = []
    numbers = sorted({int(code[2:]) for code in codes})
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        if len(members) >= _CODES_IN_A_RUN:
            shown.append(f"BN{members[0]}–BN{members[-1]}")
        else:
            shown.extend(f"BN{member}" for member in members)
    return ", ".join(shown)


def explain_lines(rule: Rule, width: int) -> list[Line]:
    """A rule's identity and argument."""
    lines: list[Line] = [
        (
            Span(rule.id, "bold"),
            Span(f" {rule.name}  "),
            Span(rule.severity.label, _SEVERITY_STYLES[rule.severity]),
            Span(f"  ({rule.family.name.lower()})", "dim"),
        ),
        (),
        *_wrapped(rule.rationale, width, indent=0),
        (),
    ]
    parts = [("formula", rule.formula), ("limit", rule.limit), ("needs", ", ".join(rule.needs) or "tensor names")]
    parts += [("silent on" if not index else "", text) for index, text in enumerate(rule.false_alarms)]
    for label, text in parts:
        lines.extend(_labelled(label, text, width, indent=0))
    lines.extend(_verbatim("fix", rule.remedy.replace("{path}", "model.pt"), "dim", indent=0))
    lines.extend(_labelled("reference", rule.reference, width, indent=0))
    return lines


def _labelled(
    label: str, text: str, width: int, style: str = "dim", *, indent: int = 4, label_width: int = _LABEL
) -> Iterator[Line]:
    label_width = max(label_width, len(label) + 2)
    room = max(20, width - indent - label_width)
    for index, piece in enumerate(_pieces(text, room)):
        yield (Span(" " * indent), Span(f"{'' if index else label:<{label_width}}", style), Span(piece))


def _verbatim(label: str, code: str, style: str, *, indent: int) -> Iterator[Line]:
    """Lines to paste, never broken."""
    for index, line in enumerate(code.splitlines()):
        yield (Span(" " * indent), Span(f"{'' if index else label:<{_LABEL}}", style), Span(printable(line)))


def _wrapped(text: str, width: int, *, indent: int) -> Iterator[Line]:
    for piece in _pieces(text, max(20, width - indent)):
        yield (Span(" " * indent + piece),)


def _pieces(text: str, room: int) -> list[str]:
    """Lines of at most ``room`` characters; a word longer than that (a URL, a path) keeps its own line, whole."""
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
