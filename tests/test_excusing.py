"""Suppressions and baselines, over real files and real configs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

import pytest

from bncheck.auditing import Settings, audit_paths
from bncheck.config.baseline_file import baseline_text, read_baseline
from bncheck.config.contents import Config
from bncheck.config.reading import read_config
from bncheck.core.choices import Choices
from bncheck.core.finding import ExcusedBy, ExitCode, Finding, Hit, Report, Severity
from bncheck.excusing import Excuses, excused
from bncheck.gate import Gate
from tests.config.configs import CODES, FORMATS
from tests.saved_networks import save_network

FEW = {"bn1": 20, "bn2": 19, "bn3": 20, "bn4": 18}
"""0.9 to the power of 18 is the worst."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model of four layers with BN405."""
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path / "models" / "a.pt", updates=FEW)
    return tmp_path


def _config(text: str) -> Config:
    Path("bncheck.yaml").write_text(text)
    return read_config("bncheck.yaml", CODES, FORMATS)


def _run(config: str = "", *paths: str, said: Choices | None = None, **options: str) -> Report:
    gate = Gate(_config(config) if config else Config(), said or Choices(), **options)
    return gate.audit(paths or ("models",))


def _at(report: Report) -> dict[str, tuple[str, ...]]:
    """Rule → the layers that count."""
    return {finding.rule: finding.layers for subject in report.subjects for finding in subject.findings}


def _excused_at(report: Report) -> list[tuple[str, tuple[str, ...], ExcusedBy]]:
    return [
        (entry.finding.rule, entry.finding.layers, entry.excuse.by)
        for subject in report.subjects
        for entry in subject.excused
    ]


def _suppress(**said: str) -> str:
    items = "".join(f"    {key}: {value}\n" for key, value in said.items())
    return f"suppress:\n  - rule: BN405\n    reason: head is retrained\n{items}"


# --- suppressions ------------------------------------------------------------------------------------------


def test_without_any_excuse(here: Path) -> None:
    report = _run()
    assert _at(report) == {"BN405": ("bn1", "bn2", "bn3", "bn4")}
    assert report.exit_code is ExitCode.FINDINGS
    assert report.excused == 0


def test_a_suppressed_finding_does_not_count_and_is_told(here: Path) -> None:
    report = _run(_suppress())
    assert report.exit_code is ExitCode.CLEAN
    assert _at(report) == {}
    assert _excused_at(report) == [("BN405", ("bn1", "bn2", "bn3", "bn4"), ExcusedBy.SUPPRESSION)]
    (entry,) = report.subjects[0].excused
    assert entry.excuse.reason == "head is retrained"
    assert report.excused == 1
    assert report.count(Severity.ERROR) == 0
    assert report.remarks == ()


def test_a_finding_goes_on_about_the_other_layers_with_the_numbers_of_their_worst(here: Path) -> None:
    both = "suppress: [{rule: BN405, reason: r, layer: bn4}, {rule: BN405, reason: r, layer: bn1}]"
    report = _run(both)
    assert report.exit_code is ExitCode.FINDINGS
    (finding,) = report.subjects[0].findings
    assert finding.layers == ("bn2", "bn3")
    assert finding.evidence["worst layer"] == "bn2"
    assert finding.evidence["share of initial values"] == pytest.approx(0.9**19)
    (entry,) = report.subjects[0].excused
    assert entry.finding.layers == ("bn1", "bn4")
    assert entry.finding.evidence["worst layer"] == "bn4"
    assert entry.finding.evidence["share of initial values"] == pytest.approx(0.9**18)


def test_two_reasons_are_two_entries(here: Path) -> None:
    both = "suppress: [{rule: BN405, reason: one, layer: bn4}, {rule: BN405, reason: two, layer: bn1}]"
    entries = _run(both).subjects[0].excused
    assert {(entry.excuse.reason, entry.finding.layers) for entry in entries} == {("one", ("bn4",)), ("two", ("bn1",))}


def test_only_the_models_it_names(here: Path) -> None:
    save_network(here / "models" / "b.pt", updates=FEW)
    report = _run(_suppress(path="models/b*"))
    assert [len(subject.findings) for subject in report.subjects] == [1, 0]
    assert report.remarks == ()


@pytest.mark.parametrize(("days", "counts"), [(-1, True), (0, False), (1, False)])
def test_it_holds_to_the_end_of_its_last_day(days: int, counts: bool, here: Path) -> None:
    until = datetime.date.today() + datetime.timedelta(days=days)
    report = _run(_suppress(until=until.isoformat()))
    assert (report.exit_code is ExitCode.FINDINGS) is counts
    if counts:
        assert report.remarks == (
            f"bncheck.yaml:2: the suppression of BN405 lapsed after {until}: its findings count again",
        )
    else:
        assert report.remarks == ()
        assert report.subjects[0].excused[0].excuse.until == until


def test_a_lapsed_one_that_has_nothing_left_to_excuse_is_to_be_removed(here: Path) -> None:
    report = _run(_suppress(until="2020-01-01", layer="head"))
    assert report.remarks == ("bncheck.yaml:2: the suppression of BN405 fits no finding any more: remove it",)


def test_behind_a_lapsed_one_another_holds(here: Path) -> None:
    report = _run(_suppress(until="2020-01-01") + "  - {rule: BN405, reason: still}\n")
    assert report.exit_code is ExitCode.CLEAN
    assert "lapsed" in report.remarks[0]


UNUSED = {
    "fits no layer": (_suppress(layer="head.*"), "fits no finding any more"),
    "passes": ("suppress: [{rule: BN401, reason: r}]", "fits no finding any more"),
    "rule that needs data": ("suppress: [{rule: BN407, reason: r}]", None),
    "rule that was left out": ("ignore: BN401\nsuppress: [{rule: BN401, reason: r}]", None),
    "model that was not audited": ("suppress: [{rule: BN405, reason: r, path: models/z.pt}]", None),
    "two that fit": ("suppress: [{rule: BN405, reason: r}, {rule: BN405, reason: s, layer: bn1}]", None),
}


@pytest.mark.parametrize("case", UNUSED)
def test_one_of_no_use_is_told_where_its_rule_could_judge(case: str, here: Path) -> None:
    config, said = UNUSED[case]
    remarks = _run(config).remarks
    assert len(remarks) == (said is not None)
    if said is not None:
        assert said in remarks[0]


def test_one_that_could_not_be_judged_everywhere_is_kept(here: Path) -> None:
    """A state dict says no momentum, so that BN405 cannot tell."""
    save_network(here / "models" / "a.pt", updates=FEW, state_dict=True)
    assert _run(_suppress()).remarks == ()


def test_one_that_names_no_model_is_told_when_all_were_audited(here: Path) -> None:
    config = "models: [{paths: models/*.pt}]\n" + _suppress(path="gone/*.pt")
    gate = Gate(_config(config), Choices())
    assert gate.audit(()).remarks == ("bncheck.yaml:3: the suppression of BN405 names no audited model: gone/*.pt",)
    assert gate.audit(("models/a.pt",)).remarks == ()


def test_a_verdict_on_the_whole_model() -> None:
    """A pattern of layers says nothing of it."""
    hit = Hit(None, {}, 1.0, "")
    finding = Finding("BN405", "x", Severity.ERROR, "", (), {}, "", "", (hit,))
    from bncheck.core.suppression import Suppression

    assert Suppression("BN405", "r").covers(finding.rule, "a.pt", hit.layer)
    assert not Suppression("BN405", "r", layer="bn*").covers(finding.rule, "a.pt", hit.layer)


def test_a_finding_that_tells_of_no_layer_is_never_lost(here: Path) -> None:
    (subject,) = audit_paths(["models/a.pt"], Settings()).subjects
    bare = Finding("BN999", "x", Severity.ERROR, "", (), {}, "", "")
    from dataclasses import replace

    odd = replace(subject, outcomes=(bare,))
    assert odd.excusing(lambda finding, hit: None).outcomes == (bare,)


# --- baselines ---------------------------------------------------------------------------------------------


def _write(path: str = "known.yaml", config: str = "", *paths: str, said: Choices | None = None) -> Report:
    return _run(config, *paths, said=said, write_baseline=path)


def _compare(config: str = "", *paths: str, said: Choices | None = None, path: str = "known.yaml") -> Report:
    return _run(config, *paths, said=said, baseline=path)


def test_known_findings_pass(here: Path) -> None:
    assert _write().exit_code is ExitCode.CLEAN
    report = _compare()
    assert report.exit_code is ExitCode.CLEAN
    assert _excused_at(report) == [("BN405", ("bn1", "bn2", "bn3", "bn4"), ExcusedBy.BASELINE)]
    assert report.subjects[0].excused[0].excuse.reason == "known: it stands in known.yaml"
    assert report.remarks == ()


CHANGES: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "nothing": ({}, ()),
    "layers in another order": ({"names": ("bn4", "bn2", "bn1", "bn3")}, ()),
    "moments a little different": ({"scale": 1.0000001}, ()),
    "one layer better": ({"updates": {**FEW, "bn1": 5000}}, ()),
    "residue within the margin": ({"updates": {**FEW, "bn1": 20}}, ()),
    "residue beyond the margin": ({"updates": {**FEW, "bn1": 18}}, ("bn1",)),
    "a new layer": ({"updates": {**FEW, "bn0": 20}, "names": ("bn0", "bn1", "bn2", "bn3", "bn4")}, ("bn0",)),
    "a layer of another name": ({"updates": {**FEW, "bnx": 20}, "names": ("bnx", "bn2", "bn3", "bn4")}, ("bnx",)),
}


@pytest.mark.parametrize("case", CHANGES)
def test_new_and_worsened_ones_fail(case: str, here: Path) -> None:
    _write()
    changes, failing = CHANGES[case]
    save_network(here / "models" / "a.pt", **{"updates": FEW, **changes})  # type: ignore[arg-type]
    report = _compare()
    assert _at(report) == ({"BN405": failing} if failing else {})
    assert report.exit_code is (ExitCode.FINDINGS if failing else ExitCode.CLEAN)


def test_more_channels_that_are_not_finite_fail(here: Path) -> None:
    for known, now, fails in ((2, 2, False), (2, 1, False), (2, 3, True)):
        save_network(here / "models" / "a.pt", not_finite={"bn2": known})
        _write()
        save_network(here / "models" / "a.pt", not_finite={"bn2": now})
        assert _at(_compare()) == ({"BN401": ("bn2",)} if fails else {}), (known, now)
        Path("known.yaml").unlink()


def test_a_severity_that_rose_fails(here: Path) -> None:
    save_network(here / "models" / "a.pt", updates={"bn1": 40})
    _write(said=Choices(severity={"BN405": Severity.NOTICE}))
    assert _at(_compare(said=Choices(severity={"BN405": Severity.NOTICE}))) == {}
    assert _at(_compare(said=Choices(severity={"BN405": Severity.WARNING}))) == {"BN405": ("bn1",)}


def test_the_margin_is_the_files_own(here: Path) -> None:
    _write()
    Path("known.yaml").write_text(Path("known.yaml").read_text().replace("margin: 0.1", "margin: 0.5"))
    save_network(here / "models" / "a.pt", updates={**FEW, "bn1": 18})
    assert _at(_compare()) == {}
    _write()  # and stays
    assert read_baseline("known.yaml").margin == 0.5


def test_it_is_the_same_from_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write("conf/known.yaml" if (here / "conf").mkdir() is None else "")
    text = Path("conf/known.yaml").read_text()
    assert "model: ../models/a.pt" in text
    monkeypatch.chdir(here / "conf")
    assert _run("", "../models/a.pt", baseline="known.yaml").exit_code is ExitCode.CLEAN
    monkeypatch.chdir("/")
    whole = (str(here / "models" / "a.pt"),)
    assert _run("", *whole, baseline=str(here / "conf" / "known.yaml")).exit_code is ExitCode.CLEAN
    _run("", *whole, write_baseline=str(here / "conf" / "known.yaml"))
    assert (here / "conf" / "known.yaml").read_text() == text


def test_the_same_bytes_whatever_the_order(here: Path) -> None:
    save_network(here / "models" / "b.pt", updates=FEW)
    texts = []
    for name, paths in (("one.yaml", ("models/b.pt", "models/a.pt")), ("two.yaml", ("models",))):
        _write(name, "", *paths)
        texts.append(Path(name).read_bytes())
        _write(name, "", *paths)
        texts.append(Path(name).read_bytes())
    assert len(set(texts)) == 1


def test_what_is_gone_is_told(here: Path) -> None:
    save_network(here / "models" / "b.pt", updates=FEW)
    _write()
    save_network(here / "models" / "a.pt", updates={"bn4": 18})
    (here / "models" / "b.pt").unlink()
    report = _compare()
    assert report.exit_code is ExitCode.CLEAN
    assert report.remarks == (
        "known.yaml: models/a.pt no longer has BN405 at bn1, bn2, bn3; renew it with --write-baseline",
        "known.yaml: models/b.pt no longer has BN405 at a file that is gone; renew it with --write-baseline",
    )
    assert _write().remarks == ()
    assert len(read_baseline("known.yaml").entries) == 1


def test_what_was_not_looked_at_is_not_gone(here: Path) -> None:
    save_network(here / "models" / "b.pt", not_finite={"bn1": 1})
    _write()
    assert _compare("", "models/b.pt").remarks == ()
    assert _compare(said=Choices(ignore=("BN405",))).remarks == ()
    save_network(here / "models" / "a.pt", updates=FEW, state_dict=True)  # BN405 cannot tell
    assert _compare().remarks == ()


def test_what_is_suppressed_is_not_gone(here: Path) -> None:
    """Neither where all is suppressed, nor where half is."""
    _write()
    for said in ({}, {"layer": "bn[12]"}):
        report = _compare(_suppress(**said))
        assert report.remarks == ()
        assert report.exit_code is ExitCode.CLEAN


def test_what_is_suppressed_is_not_written_down(here: Path) -> None:
    _write("known.yaml", _suppress(layer="bn[12]"))
    assert {key.layer for key in read_baseline("known.yaml").entries} == {"bn3", "bn4"}


PARTIAL: Mapping[str, tuple[tuple[str, ...], Choices]] = {
    "one model": (("models/b.pt",), Choices()),
    "one family of rules": ((), Choices(select=("BN401",))),
    "a rule left out": ((), Choices(ignore=("BN405",))),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_a_partial_run_keeps_what_it_did_not_look_at(case: str, here: Path) -> None:
    save_network(here / "models" / "b.pt", not_finite={"bn1": 1})
    _write()
    before = Path("known.yaml").read_text()
    paths, said = PARTIAL[case]
    _write("known.yaml", "", *paths, said=said)
    assert Path("known.yaml").read_text() == before


def test_what_could_not_be_judged_this_time_stays_known(here: Path) -> None:
    _write()
    before = Path("known.yaml").read_text()
    save_network(here / "models" / "a.pt", updates=FEW, state_dict=True)
    _write()
    assert Path("known.yaml").read_text() == before


def test_it_is_not_written_where_something_could_not_be_audited(here: Path) -> None:
    (here / "models" / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    report = _write()
    assert report.exit_code is ExitCode.NOT_AUDITED
    assert report.remarks == ("known.yaml was not written: not everything could be audited",)
    assert not Path("known.yaml").exists()
    strict = Gate(Config(), Choices(), write_baseline="known.yaml", must_check=("ALL",))
    assert strict.audit(("models",)).exit_code is ExitCode.NOT_AUDITED
    assert not Path("known.yaml").exists(), "unchecked rules must not hide the file that could not be read"


def test_rules_that_could_not_tell_do_not_keep_it_from_being_written(here: Path) -> None:
    strict = Gate(Config(), Choices(), write_baseline="known.yaml", must_check=("ALL",))
    assert strict.audit(("models",)).exit_code is ExitCode.NOT_AUDITED
    assert Path("known.yaml").exists()


def test_one_for_another_may_be_written(here: Path) -> None:
    """--baseline old --write-baseline new."""
    _write("old.yaml")
    _run("", baseline="old.yaml", write_baseline="new.json")
    assert read_baseline("old.yaml").entries == read_baseline("new.json").entries
    assert baseline_text(read_baseline("new.json"), "old.yaml") == Path("old.yaml").read_text()


def test_nothing_to_excuse_by_changes_nothing(here: Path) -> None:
    report = audit_paths(["models"], Settings())
    assert excused(report, Excuses()) is report
