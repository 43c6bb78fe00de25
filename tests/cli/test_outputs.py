"""``--format`` and ``--output`` as a user meets them: several reports of one run, and what stands in their way."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bncheck.cli.outputs import output_files
from bncheck.core.errors import BadUsage
from tests.process import FIXTURES, ROOT, bncheck
from tests.readers.hostile import faulty
from tests.report.audited_files import HOSTILE

HEALTHY = FIXTURES / "healthy-cnn-module" / "model.pt"
FAULTY = FIXTURES / "bn201-zero-momentum-module" / "model.pt"
FORMATS = ("text", "json", "sarif", "junit", "github", "gitlab", "markdown")


def _is_whole(name: str, text: str) -> bool:
    """Whether a reader of this format finds the finding in it."""
    match name:
        case "json" | "sarif" | "gitlab":
            return "BN201" in json.dumps(json.loads(text))
        case "junit":
            return any("BN201" in str(failure.text) for failure in ElementTree.fromstring(text).iter("failure"))
        case _:
            return "BN201" in text


@pytest.fixture(scope="module")
def usual() -> subprocess.CompletedProcess[str]:
    """The audit of the faulty model without any option."""
    return bncheck("audit", FAULTY)


def test_all_formats_of_one_run(tmp_path: Path, usual: subprocess.CompletedProcess[str]) -> None:
    options = [option for name in FORMATS for option in ("--output", f"{name}={tmp_path / name}")]
    finished = bncheck("audit", FAULTY, "--format", "sarif", *options, FORCE_COLOR="1", TERM="xterm")
    assert finished.returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FORMATS)
    texts = {name: (tmp_path / name).read_text() for name in FORMATS}
    for name, text in texts.items():
        assert _is_whole(name, text)
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
    assert "\x1b" not in texts["text"]
    assert texts["sarif"] == finished.stdout
    assert texts["text"] == usual.stdout
    assert json.loads(texts["json"]) == json.loads(bncheck("audit", FAULTY, "--format", "json").stdout)
    assert texts["markdown"] == bncheck("audit", FAULTY, "--format", "markdown").stdout


def test_a_page_is_one_of_the_formats(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    finished = bncheck("audit", FAULTY, "--output", f"html={tmp_path / 'page.html'}")
    assert finished.returncode == 1, finished.stderr
    assert "BN201" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (("sarfi=a",), "no format is called 'sarfi'; did you mean sarif?"),
        (("yaml-ish=a",), "no format is called 'yaml-ish'; there are text, json, sarif, junit, github"),
        (("report.sarif",), "--output 'report.sarif' is no FORMAT=FILE"),
        (("sarif=",), "--output 'sarif=' is no FORMAT=FILE"),
        (("sarif=a", "json=./b/../a"), "--output names './b/../a' for sarif and for json"),
        (("sarif=a", "json=link"), "--output names 'link' for sarif and for json"),
        (("sarif=a", "sarif=a"), "--output names 'a' for sarif and for sarif"),
        (("json=model.pt",), "--output would overwrite 'model.pt', which is to be audited"),
        (("json=b/../model.pt",), "--output would overwrite 'b/../model.pt', which is to be audited"),
    ],
)
def test_bad_usage(wanted: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(FAULTY, tmp_path / "model.pt")
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadUsage, match=f"^{re.escape(said)}"):
        output_files(wanted, ("model.pt",))
    assert output_files(("sarif=a", "json=b/a", "sarif=c=d"), ("model.pt",))[2].path == "c=d"


@pytest.mark.parametrize(
    "arguments", [("--format", "sarfi"), ("--output", "sarif=a", "--output", "json=./a"), ("--output", "json=model.pt")]
)
def test_bad_usage_is_told_before_the_audit(arguments: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copy(FAULTY, tmp_path / "model.pt")
    finished = bncheck("audit", "model.pt", *arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert re.fullmatch("bncheck: (--output|no format) .*\n", finished.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == FAULTY.read_bytes()


@pytest.mark.parametrize("place", ["nowhere/report.sarif", "folder", "file/report.sarif", "x" * 300])
def test_a_report_that_cannot_be_written_is_exit_2_and_costs_no_other(
    place: str, tmp_path: Path, usual: subprocess.CompletedProcess[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    outputs = ("--output", f"sarif={tmp_path / place}", "--output", f"json={tmp_path / 'report.json'}")
    finished = bncheck("audit", FAULTY, *outputs)
    assert finished.returncode == 2
    assert finished.stdout == usual.stdout
    assert json.loads((tmp_path / "report.json").read_text())["subjects"]
    assert re.fullmatch("bncheck: sarif report not written: .*\n", finished.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "report.json"]


def test_a_clean_run_whose_report_cannot_be_written_is_not_clean(tmp_path: Path) -> None:
    finished = bncheck("audit", HEALTHY, "--output", f"sarif={tmp_path / 'no' / 'where'}")
    assert finished.returncode == 2
    assert finished.stdout.startswith(" PASS ")


def test_a_format_that_fails_is_exit_2_and_costs_no_other(tmp_path: Path) -> None:
    """The format is broken on purpose: there is no audit known that crashes it."""
    program = f"""
import sys
from bncheck.report import sarif
def crash(document, rules):
    raise ZeroDivisionError("boom\\nin two lines")
sarif.to_sarif = crash
from bncheck.cli import main
sys.argv = ["bncheck", "audit", {str(HEALTHY)!r}, "--format", "junit",
            "--output", "sarif=a.sarif", "--output", "markdown=a.md", *sys.argv[1:]]
main()
"""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    finished = run()
    assert finished.returncode == 2
    assert finished.stderr == (
        "bncheck: sarif report not written: internal error, please report it: ZeroDivisionError: boom\\nin two lines\n"
    )
    assert ElementTree.fromstring(finished.stdout).get("failures") == "0"
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]
    assert "Traceback" in run("--debug").stderr


def test_a_reader_of_stdout_who_has_gone_costs_no_file(tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -m bncheck audit {FAULTY} --output sarif={tmp_path / 'a.sarif'} | true; "
        "exit ${PIPESTATUS[0]}"
    )
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 2
    assert _is_whole("sarif", (tmp_path / "a.sarif").read_text())


def test_what_a_link_leads_to_is_replaced_and_a_device_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("old.json")
    device = os.stat("/dev/null")
    outputs = ("--output", f"json={tmp_path / 'link.json'}", "--output", "sarif=/dev/null")
    assert bncheck("audit", FAULTY, *outputs).returncode == 1
    assert (tmp_path / "link.json").is_symlink()
    assert _is_whole("json", (tmp_path / "old.json").read_text())
    after = os.stat("/dev/null")
    assert (after.st_mode, after.st_rdev, after.st_ino) == (device.st_mode, device.st_rdev, device.st_ino)


def test_a_model_that_was_found_in_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    shutil.copy(FAULTY, tmp_path / "model.pt")
    finished = bncheck("audit", ".", "--output", "json=model.pt", cwd=tmp_path)
    assert finished.returncode == 2
    assert "model.pt was audited, and is not overwritten" in finished.stderr
    assert (tmp_path / "model.pt").read_bytes() == FAULTY.read_bytes()


def test_the_step_summary_is_appended_to(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    finished = bncheck("audit", FAULTY, "--format", "github", GITHUB_STEP_SUMMARY=str(summary))
    assert finished.returncode == 1
    assert finished.stdout.count("\n::error ") == 2
    assert (
        summary.read_text() == "before\n" + bncheck("audit", FAULTY, "--format", "markdown").stdout.rstrip("\n") + "\n"
    )
    bncheck("audit", FAULTY, GITHUB_STEP_SUMMARY=str(summary))
    assert summary.read_text().count("# bncheck: FAIL") == 1


def test_the_step_summary_has_room_for_a_mebibyte(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_bytes(b"x" * (2**20 - 2000))
    finished = bncheck("audit", FAULTY, "--output", f"github={tmp_path / 'a'}", GITHUB_STEP_SUMMARY=str(summary))
    assert finished.returncode == 1
    assert 2**20 - 2000 < summary.stat().st_size <= 2**20
    assert "there is no room for more" in summary.read_text()


def test_a_step_summary_that_cannot_be_written_is_exit_2(tmp_path: Path) -> None:
    finished = bncheck("audit", HEALTHY, "--format", "github", GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "where"))
    assert finished.returncode == 2
    assert finished.stdout.startswith("bncheck PASS")
    assert finished.stderr.startswith("bncheck: step summary not written: ")


@pytest.mark.parametrize("name", ["github", "markdown"])
def test_hostile_names_in_a_terminal_without_their_letters(name: str, tmp_path: Path) -> None:
    for index, layer in enumerate(HOSTILE):
        (tmp_path / f"{index}.pt").write_bytes(faulty(layer))
    finished = bncheck("audit", tmp_path, "--format", name, PYTHONIOENCODING="ascii")
    assert finished.returncode == 1
    assert finished.stderr == ""
    assert "\x1b" not in finished.stdout
    orders = [line for line in finished.stdout.splitlines() if line.lstrip().startswith(("::", "##["))]
    assert len(orders) == (20 if name == "github" else 0)
    assert not any("error file=a" in order.partition("::")[2].partition("::")[0] for order in orders)


def test_an_audit_pays_for_no_format_it_does_not_write() -> None:
    program = """
import sys
from bncheck.cli import main
sys.argv = ["bncheck", "audit", sys.argv[1]]
try:
    main()
except SystemExit:
    print(*sorted(sys.modules), file=sys.stderr)
"""
    command = [sys.executable, "-c", program, str(FAULTY)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(finished.stderr.split())
    assert "bncheck.report.formats" in loaded
    unwanted = {f"bncheck.report.{name}" for name in ("sarif", "junit", "github", "gitlab", "markdown", "html")}
    assert not loaded & {*unwanted, "xml.etree.ElementTree", "urllib.request", "plotly", "jinja2", "rich", "torch"}


@pytest.mark.parametrize("option", ["--config", "--baseline", "--write-baseline"])
def test_what_the_run_goes_by_is_not_overwritten(tmp_path: Path, option: str) -> None:
    path = tmp_path / "bncheck.yaml"
    path.write_text("version: 1\n" if "baseline" in option else "")
    before = path.read_bytes()
    finished = bncheck("audit", HEALTHY, option, path, "--output", f"json={tmp_path}/./bncheck.yaml")
    assert finished.returncode == 2
    assert "this run's config or baseline" in finished.stderr
    assert path.read_bytes() == before
