"""Every fixture gives exactly the findings its expected.json declares."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest

import bncheck
from bncheck.core.run_options import RunOptions
from tests.process import FIXTURES
from tests.process import bncheck as run

CASES = sorted(path.parent for path in FIXTURES.glob("*/expected.json"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_findings_are_those_expected(case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text())
    models = {path.name for path in case.iterdir()} - {"expected.json"}
    assert models == {*expected["files"], *expected.get("beside", ())}
    for name, findings in expected["files"].items():
        report = bncheck.audit(case / name)
        assert report.failures == ()
        (subject,) = report.subjects
        found = [
            {"rule": finding.rule, "severity": finding.severity.label, "layers": list(finding.layers)}
            for finding in subject.findings
        ]
        assert sorted(found, key=_key) == sorted(findings, key=_key), name
        assert subject.checkpoint.stage.value == expected["stage"]
        assert subject.complete
    assert bncheck.audit(case).exit_code == expected["exit_code"]


RUN = [case for case in CASES if "run" in json.loads((case / "expected.json").read_text())]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_findings_of_running_are_those_expected(case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text())
    for name, findings in expected["files"].items():
        report = bncheck.audit(case / name, run=run_of(case))
        (subject,) = report.subjects
        assert subject.complete
        found = [
            {"rule": finding.rule, "severity": finding.severity.label, "layers": list(finding.layers)}
            for finding in subject.findings
        ]
        assert sorted(found, key=_key) == sorted([*findings, *expected["run"]["findings"]], key=_key), name


def run_of(case: Path) -> RunOptions:
    """How a case's files are run."""
    run = json.loads((case / "expected.json").read_text())["run"]
    specs = {
        option: None if run.get(option) is None else str(FIXTURES / run[option])
        for option in ("data", "model", "train_data", "train_step")
    }
    return RunOptions(**specs)


def _key(finding: dict[str, object]) -> str:
    return json.dumps(finding, sort_keys=True)


def test_all_fixtures_in_one_run() -> None:
    finished = run("audit", FIXTURES, "--format", "json")
    document = json.loads(finished.stdout)
    got = {
        subject["path"]: sorted((finding["rule"], finding["severity"]) for finding in subject["findings"])
        for subject in document["subjects"]
    }
    wanted = {
        str(case / name): sorted((finding["rule"], finding["severity"]) for finding in findings)
        for case in CASES
        for name, findings in json.loads((case / "expected.json").read_text())["files"].items()
    }
    assert got == wanted
    assert document["errors"] == []
    assert finished.returncode == document["summary"]["exit_code"] == 1
    assert finished.stderr == ""


def test_the_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("[!_]*") if path.is_file()) < 5_000_000


def test_no_file_tells_where_it_was_made() -> None:
    """TorchScript and exported programs keep stack traces; members of an archive may be packed."""
    told: list[str] = []
    for path in FIXTURES.glob("[!_]*/*"):
        contents = {path.name: path.read_bytes()}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents.update((name, archive.read(name)) for name in archive.namelist())
        told += [f"{path}: {name}" for name, data in contents.items() if b"site-packages" in data or b".py\x00" in data]
        told += [f"{path}: {name}" for name, data in contents.items() if re.search(rb"/\w+/[\w./-]+\.py\b", data)]
    assert not told
