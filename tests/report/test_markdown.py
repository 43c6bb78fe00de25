"""Markdown, rendered by GitHub's own renderer and read back."""

from __future__ import annotations

import datetime
import re
from html.parser import HTMLParser
from pathlib import Path

import cmarkgfm
import pytest
from cmarkgfm.cmark import Options

from bncheck.catalogue import RULES
from bncheck.report.document import Document, report_document
from bncheck.report.markdown import to_markdown, to_short_markdown
from bncheck.report.printable import printable
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
    renamed,
    report,
)

TAGS = {"h1", "h2", "p", "code", "pre", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
TAGS |= {"details", "summary"}


class _Page(HTMLParser):
    """What a reader sees: tags, the text of code, cells, fences and all text."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.open: list[str] = []
        self.code: list[str] = []
        self.fences: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(cmarkgfm.github_flavored_markdown_to_html(markdown, Options.CMARK_OPT_UNSAFE))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))
        self.open.append(tag)
        match tag:
            case "code":
                (self.fences if "pre" in self.open else self.code).append("")
            case "tr":
                self.rows.append([])
            case "td" | "th":
                self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "code" in self.open:
            held = self.fences if "pre" in self.open else self.code
            held[-1] += data
        if self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data


def _page(told: Document) -> _Page:
    return _checked(_Page(to_markdown(told, RULES)))


def _checked(page: _Page) -> _Page:
    assert page.open == []
    assert {tag for tag, _ in page.tags} <= TAGS
    assert not [attrs for _, attrs in page.tags if attrs]
    return page


def test_verdict_table_and_fix() -> None:
    page = _page(document(FAULTY))
    assert page.text.lstrip().startswith("bncheck: FAIL")
    assert "2 errors in 1 file" in page.text
    assert page.rows[0] == ["severity", "rule", "what is wrong", "layers", "numbers"]
    assert page.rows[1][:2] == ["error", "BN201 statistics-at-initialisation"]
    assert page.rows[1][3:] == ["bn1 … bn4 (4)", "num_batches_tracked 300"]
    assert page.fences[0].startswith("bncheck recalibrate ")
    assert ["BN406", "needs --data"] in page.rows


@pytest.mark.parametrize(
    ("path", "word"), [(FAULTY, "FAIL"), (WARNED, "PASS"), (HEALTHY, "PASS"), (NO_NORM, "NOTHING TO AUDIT")]
)
def test_verdicts(path: Path, word: str) -> None:
    assert to_markdown(document(path), RULES).startswith(f"# bncheck: {word}\n")


def test_every_fixture_renders_and_no_finding_is_lost() -> None:
    told = every_fixture()
    page = _page(told)
    rows = [row for row in page.rows if row[0] in ("error", "warning", "notice")]
    findings = [finding for subject in told["subjects"] for finding in subject["findings"]]
    assert [row[1] for row in rows] == [f"{finding['rule']} {finding['name']}" for finding in findings]
    assert [row[2] for row in rows] == [printable(finding["message"]) for finding in findings]
    assert [fence.rstrip("\n") for fence in page.fences] == [finding["remedy"].rstrip("\n") for finding in findings]
    assert set(page.code) >= {subject["path"] for subject in told["subjects"]}


def test_what_could_not_be_audited_is_told_first(tmp_path: Path) -> None:
    page = _page(document(FAULTY, tmp_path / "missing.pt"))
    assert page.rows[1][:2] == [str(tmp_path / "missing.pt"), "unreadable-file"]
    assert ["rule-crashed", "BN402", "the rule itself failed: ZeroDivisionError: boom <b>"] in _page(
        crashing(HEALTHY)
    ).rows


def test_excused_findings_say_why() -> None:
    page = _page(excused(FAULTY, rule="BN201", until=datetime.date(2030, 1, 2)))
    row = next(row for row in page.rows if row[0].startswith("BN201"))
    assert row[1:] == ["error", "bn1 … bn4 (4)", "suppression", "known | [since](http://x) 2020", "2030-01-02"]


def test_no_subjects(tmp_path: Path) -> None:
    assert "holds no model file" in _page(document(tmp_path)).text


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    told = hostile(tmp_path)
    page = _page(told)
    cells = [row[3] for row in page.rows if row[:1] == ["error"]]
    assert cells == [printable(name) for name in HOSTILE]
    headings = [subject["path"] for subject in told["subjects"]]
    assert [text for text in page.code if text.startswith(str(tmp_path))][1:] == [printable(path) for path in headings]
    rows = [row for row in page.rows if row[:1] in (["error"], ["warning"])]
    assert {len(row) for row in rows} == {5}
    assert all(character.isprintable() or character == "\n" for character in page.text)


def test_a_mention_in_a_message_calls_nobody() -> None:
    told = document(HEALTHY)
    told["remarks"] = [
        "@octocat: see #1 and www.evil.example, http://evil.example",
        "- - -",
        "1. one",
        "+ more",
        "# big",
    ]
    page = _page(told)
    assert "@octocat" not in page.text
    assert "octocat" in page.text
    for text in ("see #1 and www.evil.example, http://evil.example", "- - -", "1. one", "+ more", "# big"):
        assert text in page.text


@pytest.mark.parametrize("remedy", ["a ``` b", "````", "```\n# x\n``````", "</details>", "<b>"])
def test_no_remedy_leaves_its_fence(remedy: str) -> None:
    told = document(WARNED)
    told["subjects"][0]["findings"][0]["remedy"] = remedy
    assert _page(told).fences == [f"{remedy}\n"]


def test_cut_where_a_part_ends() -> None:
    told = report_document(renamed(report(FAULTY), [f"{index}.pt" for index in range(40)]))
    whole = to_markdown(told, RULES)
    assert to_short_markdown(told, len(whole.encode())) == whole
    for room in (len(whole.encode()) - 1, 20_000, 3_000, 700):
        short = to_short_markdown(told, room)
        assert len(short.encode()) <= room
        assert re.search(r"\*\*Cut here:\*\* \d+ of 201 parts shown, there is no room for more\.\n$", short)
        assert "2 errors" not in short or whole.startswith(short.partition("**Cut")[0])
        _checked(_Page(short))
    assert to_short_markdown(told, 0) == ""


def test_hostile_words_are_text_and_nothing_else() -> None:
    page = _page(in_hostile_words())
    words = printable(" ".join(HOSTILE)).replace("@", "@\u200b")
    assert ["error", "BN501 zero-momentum", words, "bn1 … bn4 (4)", f"worst layer {words}"] in page.rows
    assert len(page.fences) == 2
    assert page.text.count(words) > 30
