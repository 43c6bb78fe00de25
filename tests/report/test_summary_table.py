"""The table over many files: the worst first, and nothing called clean that was not looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging, Stage, Unread
from bncheck.core.finding import (
    Excuse,
    Excused,
    ExcusedBy,
    Failure,
    Finding,
    Hit,
    NotChecked,
    Report,
    Severity,
    Subject,
)
from bncheck.report.summary_table import table_lines
from bncheck.report.text import plain, report_lines
from tests.rules.layers import layer

CHECKPOINT = Checkpoint(
    "a.pt", FileFormat.TORCH_ZIP, Packaging.STATE_DICT, Stage.RELEASE, (layer(),), unread=()
)  # fmt: skip


def _finding(severity: Severity, rule: str = "BN405") -> Finding:
    return Finding(rule, "x", severity, "", ("bn",), {}, "", "", (Hit("bn", {}, 1.0, ""),))


def _subject(path: str, *severities: Severity, **changes: object) -> Subject:
    outcomes = tuple(_finding(severity, f"BN{400 + index}") for index, severity in enumerate(severities))
    return Subject(replace(CHECKPOINT, path=path, **changes), outcomes)  # type: ignore[arg-type]


def _table(*subjects: Subject, width: int = 100, failures: tuple[Failure, ...] = ()) -> list[str]:
    return plain(table_lines(Report(subjects, failures), width)).splitlines()[1:]


E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTICE


def test_the_worst_comes_first() -> None:
    table = _table(
        _subject("notices.pt", N, N, N), _subject("clean.pt"), _subject("one.pt", E), _subject("mixed.pt", E, W, N),
        _subject("warnings.pt", W, W),
    )  # fmt: skip
    assert table == [
        "   errors warnings  notices  file and rules",
        "        1        1        1  mixed.pt  BN400 BN401 BN402",
        "        1        ·        ·  one.pt  BN400",
        "        ·        2        ·  warnings.pt  BN400 BN401",
        "        ·        ·        3  notices.pt  BN400 BN401 BN402",
        "1 file clean",
    ]


def test_clean_is_what_was_looked_at_and_nothing_else() -> None:
    excuse = Excused(_finding(E), Excuse(ExcusedBy.BASELINE, "known"))
    crashed = NotChecked("BN405", "", crashed=True)
    table = _table(
        _subject("clean.pt"),
        _subject("bare.pt", layers=()),
        _subject("bare with a finding.pt", N, layers=()),
        _subject("unread.pt", unread=(Unread("x", "y"),)),
        _subject("unread and bare.pt", layers=(), unread=(Unread("x", "y"),)),
        replace(_subject("crashed.pt"), outcomes=(crashed,)),
        replace(_subject("excused.pt"), excused=(excuse,)),
        failures=(Failure("gone.pt", "unreadable-file", ""), Failure("cut.pt", "unreadable-file", "")),
    )
    assert table[-1] == (
        "1 file clean, 1 file with excused findings alone, 1 file without batch norm, 3 files not read whole, "
        "2 files not audited"
    )


def test_nothing_but_findings_and_nothing_but_clean_ones() -> None:
    assert len(_table(_subject("a.pt", E))) == 2
    assert _table(*[_subject(f"{index}.pt") for index in range(1000)]) == ["1000 files clean"]


def test_more_than_fit_are_counted() -> None:
    table = _table(*[_subject(f"{index:03}.pt", E) for index in range(60)])
    assert len(table) == 52
    assert table[-1] == "… and 10 more files with findings, told below"


@pytest.mark.parametrize("width", [20, 60, 100])
def test_long_paths_give_way_from_their_start(width: int) -> None:
    path = "folder/" * 40 + "epoch-007.pt"
    row = _table(_subject(path, E), width=width)[1]
    assert len(row) <= max(width, 60)
    assert row.split()[3].startswith("…")
    assert row.split()[3].endswith("7.pt")
    assert row.endswith("  BN400")


@pytest.mark.parametrize("name", ["\x1b[31mred.pt", "a\nb.pt", "\u202egnp.pt", "::error::x.pt", "[bold]x[/bold].pt"])
def test_names_are_made_harmless(name: str) -> None:
    row = "\n".join(_table(_subject(name, E)))
    assert "\x1b" not in row
    assert "\u202e" not in row
    assert "::" not in row
    assert row.count("\n") == 1


def test_only_what_is_telling_is_told_below() -> None:
    subjects = [_subject(f"{index:03}.pt") for index in range(999)] + [_subject("faulty.pt", E)]
    text = plain(report_lines(Report(tuple(subjects)), 100, show_passed=False))
    assert len(text.splitlines()) < 20
    assert "999 files clean" in text
    assert text.count("faulty.pt") == 2
    few = plain(report_lines(Report(tuple(subjects[-20:])), 100, show_passed=False))
    assert "files clean" not in few
    assert few.count(".pt") == 20
