"""A config as a user meets it: found, named, run by, and wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.process import FIXTURES, bncheck
from tests.saved_networks import save_network


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a model that has a warning, BN405."""
    (tmp_path / "project" / ".git").mkdir(parents=True)
    save_network(tmp_path / "project" / "models" / "warned.pt", updates={"bn2": 40})
    return tmp_path / "project"


def _document(finished: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, object]]]:
    document: dict[str, list[dict[str, object]]] = json.loads(finished.stdout)
    return document


def test_it_is_found_from_a_subfolder_and_its_paths_are_its_own(project: Path) -> None:
    (project / "pyproject.toml").write_text(
        "[tool.bncheck]\nformat = 'json'\nfail-on = 'warning'\noutput = {text = 'report.txt'}\n"
        "[[tool.bncheck.models]]\npaths = 'models/*.pt'\n"
        "[[tool.bncheck.suppress]]\nrule = 'BN405'\nreason = 'r'\npath = 'models/*'\nlayer = 'bn1'\n"
    )
    (project / "deep" / "er").mkdir(parents=True)
    finished = bncheck("audit", cwd=project / "deep" / "er")
    assert finished.returncode == 1, finished.stderr
    assert finished.stderr == "bncheck: going by ../../pyproject.toml\n"
    document = _document(finished)
    assert document["subjects"][0]["path"] == "../../models/warned.pt"
    assert document["remarks"] == [
        "../../pyproject.toml:7: the suppression of BN405 fits no finding any more: remove it"
    ]
    assert "BN405" in (project / "report.txt").read_text()


def test_the_command_line_wins_and_can_do_without(project: Path) -> None:
    (project / "bncheck.yaml").write_text("fail-on: warning\nformat: json\noutput: {text: report.txt}\n")
    finished = bncheck(
        "audit", "models", "--fail-on", "error", "--format", "text", "--output", "json=o.json", cwd=project
    )
    assert finished.returncode == 0
    assert finished.stdout.startswith(" PASS ")
    assert (project / "o.json").exists()
    assert not (project / "report.txt").exists()
    without = bncheck("audit", "models", "--no-config", cwd=project)
    assert (without.returncode, without.stderr) == (0, "")
    both = bncheck("audit", "models", "--no-config", "--config", "bncheck.yaml", cwd=project)
    assert both.returncode == 2
    assert "--config and --no-config do not go together" in both.stderr


def test_what_lies_beside_a_model_decides_nothing(project: Path) -> None:
    """A config names code to run, and a model may come from anywhere."""
    (project / "models" / "bncheck.yaml").write_text("fail-on: warning\nmodel: evil.py:build\ndata: evil.py:build\n")
    (project / "models" / "pyproject.toml").write_text("[tool.bncheck]\nfail-on = 'warning'\n")
    (project / "models" / "evil.py").write_text("import pathlib\npathlib.Path('pwned').touch()\n")
    finished = bncheck("audit", "models/warned.pt", cwd=project)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert not list(project.rglob("pwned"))


@pytest.mark.parametrize("audited", ["warned.pt", ".", "..", "*.pt"])
def test_a_config_that_came_with_the_model_runs_nothing_unless_it_is_named(project: Path, audited: str) -> None:
    """Whoever steps into a folder that was downloaded has not said that its code may run."""
    folder = project / "models"
    (folder / "bncheck.yaml").write_text("model: evil.py:build\ndata: evil.py:build\n")
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('pwned').touch()\n")
    refused = bncheck("audit", audited, cwd=folder)
    assert refused.returncode == 2
    assert "bncheck.yaml names code to run" in refused.stderr
    assert "--config bncheck.yaml if it is yours" in refused.stderr
    assert not list(project.rglob("pwned"))
    named = bncheck("audit", audited, "--config", "bncheck.yaml", cwd=folder)
    assert "pwned" in {path.name for path in project.rglob("*")}, named.stderr
    (folder / "bncheck.yaml").write_text("fail-on: warning\n")
    assert bncheck("audit", audited, cwd=folder).returncode == 1, "it may decide what fails"


WRONG = {
    "unknown key": ("fail_on: error", "bncheck.yaml:1: unknown key 'fail_on'; did you mean 'fail-on'?"),
    "one file for two reports": ("output: {json: a.out, sarif: a.out}", "names 'a.out' for json and for sarif"),
    "a report over a model": ("output: {json: models/warned.pt}", "'models/warned.pt', which is to be audited"),
    "warning above error": ("limits: {residue-warning: 0.5}", "residue_warning must not exceed residue_error"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_exit_2(case: str, project: Path) -> None:
    text, said = WRONG[case]
    (project / "bncheck.yaml").write_text(text)
    before = (project / "models" / "warned.pt").read_bytes()
    finished = bncheck("audit", "models/warned.pt", cwd=project)
    assert finished.returncode == 2
    assert finished.stdout == ""
    going_by, error = finished.stderr.splitlines()
    assert going_by == "bncheck: going by bncheck.yaml"
    assert error.startswith("bncheck: ")
    assert said in error
    assert (project / "models" / "warned.pt").read_bytes() == before


def test_a_config_that_is_named_and_is_none(project: Path) -> None:
    finished = bncheck("audit", "models", "--config", "models", cwd=project)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "bncheck: models: cannot be read: Is a directory\n"


def test_a_run_of_the_model_from_another_folder(tmp_path: Path) -> None:
    """The SPECs are relative to the config, also where another config extends it from elsewhere."""
    (tmp_path / "team" / "models").mkdir(parents=True)
    shutil.copy(FIXTURES / "healthy-cnn-state-dict" / "model.pt", tmp_path / "team" / "models" / "digits.pt")
    for name in ("networks.py", "digits.py", "training.py"):
        shutil.copy(FIXTURES / name, tmp_path / "team")
    (tmp_path / "team" / "nets.py").write_text(
        "import networks\ndef build(bias): assert bias is False; return networks.DigitNet()\n"
    )
    (tmp_path / "team" / "bncheck.yaml").write_text("""
models:
  - paths: models/*.pt
    model: nets.py:build
    model-arg: {bias: false}
    data: digits.py:held_out
    samples: 64
format: json
""")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "bncheck.yaml").write_text("extends: ../team/bncheck.yaml\nfail-if-not-checked: [BN407]\n")
    finished = bncheck("audit", "--config", "app/bncheck.yaml", cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (subject,) = _document(finished)["subjects"]
    assert subject["path"] == "team/models/digits.pt"
    assert subject["measurements"]["samples"] == 64  # type: ignore[index]
