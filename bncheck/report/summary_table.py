"""Many files in one table: those that have something to tell, worst first, and how many have not."""

from __future__ import annotations

from collections import Counter

from bncheck.core.finding import Report, Severity, Subject
from bncheck.report.printable import counted, printable
from bncheck.report.styled import Line, Span

_MOST_ROWS = 50
_SEVERITIES = tuple(reversed(Severity))
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTICE: "bold cyan"}
_COLUMN = 9


def table_lines(report: Report, width: int) -> list[Line]:
    """A row for each file with findings, the worst first; then the clean ones and those without layers, counted.

    Args:
        report: the run.
        width: columns; paths give way from their start, where they are most alike.
    """
    telling = sorted((s for s in report.subjects if s.findings), key=_badness, reverse=True)
    lines: list[Line] = [()]
    if telling:
        heads = "".join(f"{severity.label + 's':>{_COLUMN}}" for severity in _SEVERITIES)
        lines.append((Span(f"{heads}  file and rules", "dim"),))
    room = max(20, width - _COLUMN * len(_SEVERITIES) - 2)
    lines.extend(_row(subject, room) for subject in telling[:_MOST_ROWS])
    if len(telling) > _MOST_ROWS:
        lines.append(
            (Span(f"… and {counted(len(telling) - _MOST_ROWS, 'more file')} with findings, told below", "dim"),)
        )
    told = Counter(_state(subject) for subject in report.subjects if not subject.findings)
    told["not audited"] = len(report.failures)
    rest = ", ".join(f"{counted(told[what], 'file')} {what}" for what in _STATES if told[what])
    if rest:
        lines.append((Span(rest, "dim"),))
    return lines


_STATES = ("clean", "with excused findings alone", "without batch norm", "not read whole", "not audited")


def _state(subject: Subject) -> str:
    """Of a file without findings that count: clean is what was looked at, and nothing else."""
    if not subject.complete:
        return "not read whole"
    if subject.excused:
        return "with excused findings alone"
    return "clean" if subject.checkpoint.layers else "without batch norm"


def _badness(subject: Subject) -> list[int]:
    return [sum(finding.severity is severity for finding in subject.findings) for severity in _SEVERITIES]


def _row(subject: Subject, room: int) -> Line:
    counts = zip(_SEVERITIES, _badness(subject), strict=True)
    rules = " ".join(dict.fromkeys(finding.rule for finding in subject.findings))
    path = printable(subject.checkpoint.path)
    left = max(12, room - len(rules) - 2)
    shown = path if len(path) <= left else f"…{path[1 - left :]}"
    return (
        *(Span(f"{count or '·':>{_COLUMN}}", _STYLES[severity] if count else "dim") for severity, count in counts),
        Span(f"  {shown}  ", "bold"),
        Span(rules),
    )
