"""Config and command line together, as one run goes by them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bncheck
from bncheck.config.contents import Config
from bncheck.config.reading import read_config
from bncheck.core.choices import Choices, FailOn
from bncheck.core.errors import BadConfig, BadUsage, CannotWrite, FindingsFound
from bncheck.core.finding import ExitCode, Report, Severity
from bncheck.gate import Gate
from tests.config.configs import CODES, FORMATS
from tests.process import ROOT
from tests.saved_networks import save_network


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a sound model and one with a warning, BN405 after 40 updates."""
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path / "models" / "sound.pt")
    save_network(tmp_path / "models" / "warned.pt", updates={"bn2": 40})
    return tmp_path


def _config(text: str) -> Config:
    Path("bncheck.yaml").write_text(text)
    return read_config("bncheck.yaml", CODES, FORMATS)


def _run(config: str, *paths: str, said: Choices | None = None, **options: object) -> Report:
    gate = Gate(_config(config), said or Choices(), **options)  # type: ignore[arg-type]
    return gate.audit(paths)


MODELS = "models: [{paths: models}]\n"


def test_the_models_that_the_config_names_are_audited(here: Path) -> None:
    report = _run(MODELS)
    assert [subject.checkpoint.path for subject in report.subjects] == ["models/sound.pt", "models/warned.pt"]
    assert report.count(Severity.WARNING) == 1
    assert len(_run(MODELS, "models/sound.pt").subjects) == 1


def test_there_must_be_something_to_audit(here: Path) -> None:
    with pytest.raises(BadUsage, match=r"name model files.*; bncheck\.yaml names no models either"):
        _run("jobs: 1")
    with pytest.raises(BadUsage, match=r"name model files, folders or patterns to audit$"):
        Gate(Config(), Choices()).audit(())


@pytest.mark.parametrize(
    ("config", "options", "exit_code"),
    [
        ("", {}, ExitCode.CLEAN),
        ("fail-on: warning", {}, ExitCode.FINDINGS),
        ("fail-on: warning", {"fail_on": FailOn.ERROR}, ExitCode.CLEAN),
        ("fail-on: never", {"fail_on": FailOn.NOTICE}, ExitCode.FINDINGS),
        ("severity: {BN405: error}", {}, ExitCode.FINDINGS),
        ("severity: {BN405: notice}\nfail-on: warning", {}, ExitCode.CLEAN),
        ("fail-if-not-checked: true", {}, ExitCode.NOT_AUDITED),
        ("fail-if-not-checked: [BN407]", {}, ExitCode.NOT_AUDITED),
        ("fail-if-not-checked: BN40", {}, ExitCode.NOT_AUDITED),
        ("fail-if-not-checked: [BN405, BN201]", {}, ExitCode.CLEAN),
        ("fail-if-not-checked: true\nselect: [BN405]", {}, ExitCode.CLEAN),
        ("fail-if-not-checked: false", {"must_check": ("ALL",)}, ExitCode.NOT_AUDITED),
        ("fail-if-not-checked: true", {"must_check": ()}, ExitCode.CLEAN),
        ("fail-if-not-checked: true\nfail-on: warning", {}, ExitCode.NOT_AUDITED),
    ],
)
def test_exit_codes(config: str, options: dict[str, object], exit_code: ExitCode, here: Path) -> None:
    assert _run(MODELS + config, **options).exit_code is exit_code


def test_models_have_settings_of_their_own(here: Path) -> None:
    config = """
models:
  - paths: models
    limits: {residue-error: 0.01}
  - paths: models/warned.pt
    ignore: [BN405]
"""
    assert _run(config).exit_code is ExitCode.CLEAN
    save_network(here / "models" / "third.pt", updates={"bn2": 40})
    report = _run(config)
    assert [(finding.rule, finding.severity) for _, finding in report.failing] == [("BN405", Severity.ERROR)]


def test_the_command_line_stands_above_every_entry(here: Path) -> None:
    config = "models: [{paths: models, select: [BN201], stage: training}]"
    assert _run(config).count(Severity.WARNING) == 0
    report = _run(config, said=Choices(select=("BN405",)))
    assert report.count(Severity.WARNING) == 1
    assert {subject.checkpoint.stage.value for subject in report.subjects} == {"training"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("limits: {residue-warning: 0.2}", "residue_warning must not exceed residue_error"),
        ("models: [{paths: models, limits: {residue-warning: 0.2}}]", "residue_warning must not exceed"),
        ("models: [{paths: models, model: nets.py:build}]", "--data, what to run it on, is missing"),
    ],
)
def test_settings_that_do_not_fit_each_other(config: str, said: str, here: Path) -> None:
    with pytest.raises(BadUsage, match=re.escape(said)):
        _run(config, "models")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "known.yaml: cannot be read: No such file"),
        ("", "known.yaml: a baseline of no version"),
        ("version: 9", "known.yaml:1: a baseline of version 9; this bncheck reads version 1"),
        ("version: [", "known.yaml:1:11: malformed YAML"),
    ],
)
def test_a_baseline_that_cannot_be_read(content: str | None, said: str, here: Path) -> None:
    if content is not None:
        Path("known.yaml").write_text(content)
    with pytest.raises(BadConfig) as raised:
        _run(MODELS + "baseline: known.yaml")
    assert said in str(raised.value)


def test_the_first_baseline_may_be_named_by_the_config_already(here: Path) -> None:
    config = MODELS + "baseline: known.yaml\nfail-on: warning"
    assert _run(config, write_baseline="known.yaml").exit_code is ExitCode.CLEAN
    assert _run(config).exit_code is ExitCode.CLEAN
    assert _run(config).excused == 1


def test_where_no_baseline_can_be_written(here: Path) -> None:
    with pytest.raises(CannotWrite, match=r"nowhere/known\.yaml"):
        _run(MODELS, write_baseline="nowhere/known.yaml")
    with pytest.raises(BadUsage, match="a baseline is YAML"):
        _run(MODELS, write_baseline="pyproject.toml")
    model = Path("models/sound.pt").read_bytes()
    for path in ("bncheck.yaml", "models/sound.pt"):
        before = Path(path).read_bytes() if path != "bncheck.yaml" else MODELS.encode()
        with pytest.raises(BadConfig):
            _run(MODELS, write_baseline=path)
        assert Path(path).read_bytes() == before
    assert Path("models/sound.pt").read_bytes() == model


def test_jobs_of_the_config_and_of_the_command_line(here: Path) -> None:
    one = _run(MODELS)
    assert one.subjects[1].findings == _run(MODELS + "jobs: 2").subjects[1].findings
    with pytest.raises(BadUsage, match="jobs is 0"):
        bncheck.audit("models", jobs=0)


# --- the same from Python ----------------------------------------------------------------------------------


def test_what_is_not_clean_is_raised(here: Path) -> None:
    bncheck.audit("models").raise_for_findings()
    with pytest.raises(FindingsFound, match=r"models/warned\.pt: BN405 .* at bn2"):
        bncheck.audit("models", fail_on=Severity.WARNING).raise_for_findings()
    with pytest.raises(FindingsFound, match="BN405"):
        bncheck.audit("models", severities={"BN405": Severity.ERROR}).raise_for_findings()
    with pytest.raises(FindingsFound, match=r"nowhere\.pt: "):
        bncheck.audit("models", "nowhere.pt").raise_for_findings()
    with pytest.raises(FindingsFound, match="BN407 not checked: needs --data"):
        bncheck.audit("models", fail_if_not_checked=["BN407"]).raise_for_findings()
    bncheck.audit("models", fail_if_not_checked=["BN405"]).raise_for_findings()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fail_if_not_checked": ["BX"]}, "no rule starts with 'BX'"),
        ({"severities": {"BN999": Severity.ERROR}}, "no rule is called 'BN999'"),
    ],
)
def test_rules_that_there_are_not(options: dict[str, object], said: str, here: Path) -> None:
    with pytest.raises(BadUsage, match=said):
        bncheck.audit("models", **options)  # type: ignore[arg-type]


_SCRIPT = """
import bncheck

if __name__ == "__main__":
    report = bncheck.audit("models", jobs=2)
    print([subject.checkpoint.path for subject in report.subjects], len(report.subjects[1].findings))
"""


def test_a_script_may_use_several_processes(here: Path) -> None:
    (here / "script.py").write_text(_SCRIPT)
    finished = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False,
    )  # fmt: skip
    assert finished.stdout == "['models/sound.pt', 'models/warned.pt'] 1\n", finished.stderr
    assert finished.stderr == ""
