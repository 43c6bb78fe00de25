"""A release pipeline, played with the files the README shows: a regression arrives, and every gate stops it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import chromium, needs_browser
from tests.process import FIXTURES, ROOT, bncheck
from tests.readme_blocks import named_files

FILES = named_files()
HEALTHY = FIXTURES / "healthy-cnn-state-dict" / "model.pt"
LEGACY = FIXTURES / "bn502-last-batch-only" / "model.pt"
SARIF_SCHEMA = ROOT / "tests" / "report" / "sarif-2.1.0.schema.json"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="module")
def put_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two models, the config, and a baseline of what was wrong when the gate was put up."""
    tmp_path = tmp_path_factory.mktemp("put_up")
    (tmp_path / "models").mkdir()
    shutil.copy(HEALTHY, tmp_path / "models" / "digits.pt")
    shutil.copy(LEGACY, tmp_path / "models" / "legacy.pt")
    (tmp_path / "nets.py").write_text(
        f"import sys\nsys.path.insert(0, {str(FIXTURES)!r})\n"
        "from networks import DigitNet\nfrom digits import held_out\n"
    )
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    # A baseline that is named and missing is an error: the gate is put up with the first one.
    assert bncheck("audit", cwd=tmp_path).returncode == 2
    written = bncheck("audit", "--write-baseline", "bncheck-baseline.yaml", cwd=tmp_path)
    assert written.returncode == 0, written.stdout + written.stderr
    return tmp_path


@pytest.fixture
def repository(put_up: Path, tmp_path: Path) -> Path:
    """The same for each test, to be spoilt."""
    shutil.copytree(put_up, tmp_path / "project")
    return tmp_path / "project"


def regress(repository: Path) -> None:
    """Somebody averages weights over checkpoints and lets the statistics start anew."""
    state = torch.load(HEALTHY)
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(1.0)
    torch.save(state, repository / "models" / "digits.pt")


def test_the_gate_is_open_while_nothing_is_new(repository: Path) -> None:
    finished = bncheck("audit", cwd=repository)
    assert finished.returncode == 0, finished.stdout
    assert "2 excused" in finished.stdout
    assert "replaced in the next release (until 2999-12-31)" in " ".join(finished.stdout.split())
    assert "known: it stands in bncheck-baseline.yaml" in finished.stdout
    # From a folder below, all means the same.
    below = repository / "models"
    again = bncheck("audit", "--format", "json", cwd=below)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["summary"]["excused"] == 2


def test_a_regression_is_stopped_and_told_in_every_report(repository: Path) -> None:
    regress(repository)
    finished = bncheck("audit", cwd=repository)
    assert finished.returncode == 1, finished.stdout
    assert "BN201 statistics-at-initialisation" in finished.stdout
    assert re.search(r"accuracy 0\.\d+ with stored moments, 0\.9\d+ with the batch's", finished.stdout)
    assert "--model nets.py:DigitNet --data nets.py:held_out" in finished.stdout, "the remedy is ready to paste"

    sarif = json.loads((repository / "bncheck.sarif").read_text())
    Draft202012Validator(json.loads(SARIF_SCHEMA.read_text())).validate(sarif)
    results = sarif["runs"][0]["results"]
    new = [result for result in results if not result.get("suppressions")]
    assert {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in new} == {
        "models/digits.pt"
    }
    assert "BN201" in {result["ruleId"] for result in new}
    assert {result["ruleId"] for result in results if result.get("suppressions")} >= {"BN502"}

    cases = ElementTree.parse(repository / "bncheck.xml").findall(".//testcase")
    failed = {case.get("name", "") for case in cases if case.find("failure") is not None}
    assert any("BN201" in name for name in failed)
    assert len(failed) == len(new)
    assert any(case.find("skipped") is not None for case in cases)

    page = (repository / "bncheck.html").read_text()
    assert "BN201" in page
    assert not re.search(r"<(link|script|img)[^>]*https?:", page), "the page must need no network"


@needs_browser
def test_the_page_of_a_regression_is_looked_at(repository: Path) -> None:
    regress(repository)
    assert bncheck("audit", cwd=repository).returncode == 1
    with chromium() as browser:
        browser.get((repository / "bncheck.html").as_uri())
        WebDriverWait(browser, 30).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "figure .main-svg"))
        assert "Fail" in browser.find_element(By.TAG_NAME, "h1").text
        shown = [card for card in browser.find_elements(By.CSS_SELECTOR, "article.finding") if card.is_displayed()]
        assert any("BN201" in card.text and "bncheck recalibrate" in card.text for card in shown)
        browser.find_element(By.CSS_SELECTOR, "input[type=checkbox][value=error]").click()
        assert not any("BN201" in card.text for card in shown if card.is_displayed()), "the filter filters"
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not browser.execute_script("return window.violations")


def test_the_action_stops_it(repository: Path, tmp_path: Path) -> None:
    """The steps of action.yml, as the runner calls them."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (audit,) = (step for step in action["runs"]["steps"] if step.get("id") == "audit")
    inputs = {name: entry["default"] for name, entry in action["inputs"].items()}
    workflow = yaml.safe_load(FILES[".github/workflows/models.yaml"])
    (given,) = (
        step["with"] for job in workflow["jobs"].values() for step in job["steps"] if "bncheck@" in step["uses"]
    )
    assert given.keys() <= inputs.keys()

    regress(repository)
    hostile = {"arguments": "--ignore=$(touch pwned)\n--allow-nothing", "paths": "models/digits.pt\n`touch pwned`"}
    for extra, code in ({}, 1), (hostile, 2):
        output, summary = tmp_path / f"output{code}", tmp_path / f"summary{code}"
        environment = {name: _filled(text, {**inputs, **extra}) for name, text in audit["env"].items()}
        finished = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", audit["run"]],
            cwd=repository,
            env={
                "PATH": PATH,
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(summary),
                "GITHUB_WORKSPACE": str(repository),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == code, finished.stdout + finished.stderr
        assert f"exit-code={code}\n" in output.read_text()
        if code == 1:
            assert "sarif=./bncheck.sarif\n" in output.read_text()
            assert re.search(r"^::error .*file=models/digits\.pt.*BN201", finished.stdout, re.MULTILINE)
            assert "BN201" in summary.read_text()
    assert not (repository / "pwned").exists()


def test_the_gitlab_job_stops_it(repository: Path) -> None:
    regress(repository)
    (job,) = yaml.safe_load(FILES[".gitlab-ci.yml"]).values()
    finished = subprocess.run(
        ["bash", "-ec", "\n".join(job["script"])],
        cwd=repository,
        env={"PATH": PATH, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    quality = json.loads((repository / job["artifacts"]["reports"]["codequality"]).read_text())
    assert {entry["location"]["path"] for entry in quality if entry["severity"] in ("critical", "blocker")} == {
        "models/digits.pt"
    }
    ElementTree.parse(repository / job["artifacts"]["reports"]["junit"])


def test_the_hook_stops_it(repository: Path) -> None:
    hooks = yaml.safe_load(FILES[".pre-commit-config.yaml"])["repos"][0]["hooks"]
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")

    def run_hook() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pre_commit", "try-repo", str(ROOT), hooks[0]["id"], "--files", "models/digits.pt"],
            cwd=repository,
            env={**os.environ, "PATH": PATH, "PRE_COMMIT_HOME": str(repository / ".cache")},
            capture_output=True,
            text=True,
            check=False,
        )

    subprocess.run([*git, "commit", "--quiet", "--all", "-m", "models"], cwd=repository, check=True)
    passed = run_hook()
    assert passed.returncode == 0, passed.stdout + passed.stderr
    regress(repository)
    stopped = run_hook()
    assert stopped.returncode == 1
    assert "BN201" in stopped.stdout


def test_the_test_suite_stops_it(repository: Path) -> None:
    def run_pytest() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "test_models.py"],
            cwd=repository,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    passed = run_pytest()
    assert passed.returncode == 0, passed.stdout + passed.stderr
    regress(repository)
    stopped = run_pytest()
    assert stopped.returncode == 1
    assert "2 failed" in stopped.stdout
    assert "BN201 statistics-at-initialisation" in stopped.stdout
    assert "bncheck recalibrate" in stopped.stdout, "the remedy is in the test's own output"
    assert "pytest_plugin.py" not in stopped.stdout, "no frame of ours"


def test_files_for_others_are_what_these_expect() -> None:
    """By the schemas that GitHub, GitLab and pre-commit publish."""
    _checked("vendor.github-actions", ROOT / "action.yml")
    subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")], check=True
    )


def test_workflows_of_the_readme_are_what_these_expect(repository: Path) -> None:
    _checked("vendor.github-workflows", repository / ".github/workflows/models.yaml")
    _checked("vendor.gitlab-ci", repository / ".gitlab-ci.yml")
    subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", str(repository / ".pre-commit-config.yaml")], check=True
    )


def _checked(schema: str, path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def _filled(text: str, inputs: Mapping[str, str]) -> str:
    """An expression of the runner, for the few that the action has."""
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs[match[1]], text)
