"""``bncheck audit`` as a user meets it: exit codes, bad input, selection, output."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tests.process import FIXTURES, ROOT, bncheck

HEALTHY = FIXTURES / "healthy-cnn-module" / "model.pt"
FAULTY = FIXTURES / "bn201-zero-momentum-module" / "model.pt"
WARNED = FIXTURES / "bn503-decay-point-nine" / "model.pt"
NO_NORM = FIXTURES / "healthy-group-norm-only" / "model.pt"


def _errors(finished: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    errors: list[dict[str, str]] = json.loads(finished.stdout)["errors"]
    return errors


def _save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


class _Runs:
    """Its pickle calls os.system when it is loaded."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self._command,)


def _code_runner(folder: Path) -> Path:
    return _save({"state": torch.load(HEALTHY.parent.parent / "healthy-cnn-state-dict" / "model.pt"),
                  "extra": _Runs(f"touch {folder / 'pwned'}")}, folder / "evil.pt")  # fmt: skip


def _truncated(folder: Path) -> Path:
    path = folder / "truncated.pt"
    path.write_bytes(HEALTHY.read_bytes()[:-2000])
    return path


def _written(name: str, content: bytes, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.pt")
    return folder / "pipe.pt"


BAD = {
    "empty file": (lambda folder: _written("empty.pt", b"", folder), "unreadable-file", "is empty"),
    "truncated zip": (_truncated, "unreadable-file", "cut short"),
    "text called .pt": (
        lambda folder: _written("notes.pt", b"loss went down\n", folder),
        "unsupported-file",
        "is text",
    ),
    "git-lfs pointer": (
        lambda folder: _written("p.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", folder),
        "unsupported-file",
        "git lfs pull",
    ),
    "gzip": (
        lambda folder: _written("m.pt", gzip.compress(HEALTHY.read_bytes()), folder),
        "unsupported-file",
        "gunzip",
    ),
    "list of numbers": (lambda folder: _save([1, 2, 3], folder / "list.pt"), "unsupported-file", "holds no model"),
    "single tensor": (lambda folder: _save(torch.ones(3), folder / "one.pt"), "unsupported-file", "a single tensor"),
    "settings": (lambda folder: _save({"lr": 0.1}, folder / "dict.pt"), "unsupported-file", "holds no model"),
    "missing path": (lambda folder: folder / "nowhere.pt", "unreadable-file", "no such file"),
    "pipe": (_pipe, "unreadable-file", "no regular file"),
    "folder without models": (lambda folder: folder, "nothing-found", "holds no model file"),
    "glob without matches": (lambda folder: folder / "*.pt", "nothing-found", "matches no file"),
    "runs code": (_code_runner, "unsafe-file", "posix.system"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_one_clear_line_and_exit_2(case: str, tmp_path: Path) -> None:
    make, kind, said = BAD[case]
    path = make(tmp_path)
    finished = bncheck("audit", path, "--format", "json")
    (error,) = _errors(finished)
    assert error["path"] == str(path)
    assert error["kind"] == kind
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert finished.returncode == 2
    assert finished.stderr == ""
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_leaves_the_other_files_audited(case: str, tmp_path: Path) -> None:
    path = BAD[case][0](tmp_path)
    finished = bncheck("audit", path, FAULTY)
    assert finished.returncode == 2
    assert finished.stdout.startswith(" INCOMPLETE ")
    assert "BN201" in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr


def test_the_pickle_that_runs_code_really_does(tmp_path: Path) -> None:
    """Guards the case above against a payload that would do nothing anyway."""
    program = f"import torch; torch.load({str(_code_runner(tmp_path))!r}, weights_only=False)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "pwned").exists()


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.pt"
    shutil.copy(HEALTHY, path)
    path.chmod(0)
    program = [sys.executable, "-m", "bncheck", "audit", str(path), "--format", "json"]
    # Root may read any file; without its capabilities it may not.
    drop = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    finished = subprocess.run([*drop, *program], capture_output=True, text=True, cwd=ROOT, check=False)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert "permission denied" in _errors(finished)[0]["message"]
    assert finished.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([HEALTHY], 0),
        ([WARNED], 0),
        ([FAULTY], 1),
        ([WARNED, "--fail-on", "warning"], 1),
        ([FAULTY, "--fail-on", "never"], 0),
        ([FAULTY, "--ignore", "BN201,BN501"], 0),
        ([FAULTY, "--ignore", "BN2", "--ignore", "BN5"], 0),
        ([FAULTY, "--select", "BN4"], 0),
        ([FAULTY, "--select", "ALL"], 1),
        ([NO_NORM], 3),
        ([NO_NORM, HEALTHY], 0),
        ([NO_NORM, FAULTY], 1),
        ([FAULTY, "--select", "BN9"], 2),
        ([], 2),
        (["--stage", "holiday", HEALTHY], 2),
    ],
)
def test_exit_codes(arguments: list[str | Path], code: int) -> None:
    finished = bncheck("audit", *arguments)
    assert finished.returncode == code, finished.stdout + finished.stderr


def test_unknown_rule_is_one_line(tmp_path: Path) -> None:
    finished = bncheck("audit", HEALTHY, "--select", "BN777")
    assert finished.stdout == ""
    assert finished.stderr == "bncheck: no rule starts with 'BN777'; `bncheck rules` lists them\n"


def test_stage_decides_whether_training_mode_matters() -> None:
    path = FIXTURES / "bn101-saved-in-training-mode" / "model.pt"
    assert "BN101" in bncheck("audit", path).stdout
    assert "BN101 saved" not in bncheck("audit", path, "--stage", "training").stdout


def test_folders_are_searched_and_content_decides(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    shutil.copy(HEALTHY, deep / "weights")
    shutil.copy(FIXTURES / "healthy-mlp-safetensors" / "model.safetensors", deep / "weights.dat")
    (deep / "README.md").write_text("no model")
    (tmp_path / ".cache").mkdir()
    shutil.copy(FAULTY, tmp_path / ".cache" / "model.pt")
    document = json.loads(bncheck("audit", tmp_path, "--format", "json").stdout)
    assert [Path(subject["path"]).name for subject in document["subjects"]] == ["weights", "weights.dat"]
    assert document["summary"]["skipped"] == 1


def test_broken_file_with_a_models_name_is_not_skipped(tmp_path: Path) -> None:
    shutil.copy(HEALTHY, tmp_path / "good.pt")
    (tmp_path / "bad.pth").write_bytes(b"\x00\x01")
    assert bncheck("audit", tmp_path).returncode == 2


def test_what_trainers_save_beside_a_model_is_passed_over_in_folders(tmp_path: Path) -> None:
    """A scheduler's state and a file of settings are no models; named themselves, they are an error."""
    shutil.copy(FIXTURES / "healthy-mlp-safetensors" / "model.safetensors", tmp_path)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = _save(torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(), tmp_path / "scheduler.pt")
    _save(argparse.Namespace(lr=0.1, run=os.getcwd), tmp_path / "training_args.bin")
    finished = bncheck("audit", tmp_path, "--format", "json")
    assert finished.returncode == 0, finished.stdout
    assert json.loads(finished.stdout)["summary"]["skipped"] == 2
    assert bncheck("audit", tmp_path, scheduler).returncode == 2


def test_a_file_named_twice_is_audited_once() -> None:
    document = json.loads(bncheck("audit", HEALTHY, HEALTHY.parent, "--format", "json").stdout)
    assert len(document["subjects"]) == 1


def test_quoted_glob() -> None:
    document = json.loads(bncheck("audit", "fixtures/healthy-*/*.safetensors", "--format", "json").stdout)
    assert len(document["subjects"]) >= 2


def test_json_is_the_whole_of_stdout() -> None:
    finished = bncheck("audit", FAULTY, WARNED, FAULTY.parent / "missing.pt", "--format", "json")
    document = json.loads(finished.stdout)
    assert document["schema_version"] == 1
    assert document["summary"]["exit_code"] == finished.returncode == 2
    subject = document["subjects"][0]
    assert subject["format"] == "torch-zip"
    assert subject["packaging"] == "module"
    assert subject["layers"][0]["num_features"] == 8
    finding = subject["findings"][0]
    assert {"rule", "name", "severity", "message", "layers", "evidence", "remedy"} <= finding.keys()
    assert {entry["rule"] for entry in subject["not_checked"]}.isdisjoint(subject["passed"])


def test_non_finite_statistics_keep_the_json_valid() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    finished = bncheck("audit", FIXTURES / "bn401-overflow", "--format", "json")
    document = json.loads(finished.stdout, parse_constant=refuse)
    assert document["subjects"][0]["layers"][0]["running_var"]["max"] in ("NaN", "Infinity")


def test_show_passed_tells_what_was_not_checked_and_why() -> None:
    shown = bncheck("audit", FIXTURES / "healthy-cnn-state-dict", "--show-passed").stdout
    assert "passed" in shown
    assert "momentum is not in the file" in shown
    assert "training is not in the file" in shown


def test_clean_files_take_one_line_each() -> None:
    shown = bncheck("audit", *[FIXTURES / name / "model.pt" for name in ("healthy-cnn-module", "healthy-zero-gamma")])
    assert len(shown.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "[bold]markup[/bold]", "\n::error file=a::b", "##[error]x", "\u202eevil"]
)
def test_hostile_layer_names_stay_text(name: str, tmp_path: Path) -> None:
    state = torch.load(FAULTY.parent.parent / "bn201-zero-momentum-state-dict" / "model.pt")
    renamed = {key.replace("bn1", name): value for key, value in state.items()}
    path = _save(renamed, tmp_path / "m.pt")
    for environment in ({}, {"FORCE_COLOR": "1", "TERM": "xterm"}):
        finished = bncheck("audit", path, **environment)
        assert "BN201" in finished.stdout
        assert "\x1b[31mred" not in finished.stdout
        assert "\u202e" not in finished.stdout
        assert not any(line.lstrip().startswith(("::", "##[")) for line in finished.stdout.splitlines())
        if "markup" in name:
            assert "[bold]markup[/bold]" in finished.stdout
    document = json.loads(bncheck("audit", path, "--format", "json").stdout)
    assert name in {layer["name"] for layer in document["subjects"][0]["layers"]}


def test_ascii_terminal_does_not_break_the_report() -> None:
    finished = bncheck("audit", FAULTY, PYTHONIOENCODING="ascii")
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("width", [40, 80, 120])
def test_report_fits_the_terminal(width: int) -> None:
    shown = bncheck("audit", "fixtures/bn101-mixed-modes/model.pt", COLUMNS=str(width)).stdout
    body = [line for line in shown.splitlines() if line.startswith("  ")]
    assert len(body) > 5
    # Lines to paste are never broken, so a narrow terminal may see them stick out.
    prose = body[: next(index for index, line in enumerate(body) if line.strip().startswith("fix"))]
    assert not [line for line in prose if len(line) > width]


def test_closed_pipe_is_no_success() -> None:
    command = f"{sys.executable} -m bncheck audit {HEALTHY} | true; exit ${{PIPESTATUS[0]}}"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("eps", [10**400, -(10**400)])
def test_integer_beyond_every_float_is_no_crash(eps: int, tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm2d(4).eval()
    norm.eps = eps
    finished = bncheck("audit", _save(norm, tmp_path / "m.pt"), HEALTHY, "--format", "json")
    document = json.loads(finished.stdout)
    assert document["subjects"][0]["layers"][0]["eps"] == ("Infinity" if eps > 0 else "-Infinity")
    assert len(document["subjects"]) == 2
    assert finished.stderr == ""


@pytest.mark.parametrize("command", ["audit", "inspect"])
def test_a_fault_of_the_readers_is_exit_2_and_leaves_the_other_files(command: str) -> None:
    """The reader is broken on purpose: there is no file known that crashes it."""
    files = [str(FAULTY), *([str(FIXTURES / "healthy-mlp-safetensors")] if command == "audit" else [])]
    program = f"""
import sys
from bncheck.readers import pickled
def crash(root, limits):
    raise ZeroDivisionError("boom")
pickled.search = crash
from bncheck.cli import main
sys.argv = ["bncheck", {command!r}, *{files!r}]
main()
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 2
    assert "ZeroDivisionError: boom" in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    if command == "audit":
        assert "healthy-mlp-safetensors/model.safetensors  clean" in finished.stdout


def _has_open(process: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return any(os.readlink(entry).endswith(name) for entry in Path(f"/proc/{process}/fd").iterdir())
    return False


def test_interrupt_is_neither_a_verdict_nor_a_traceback(tmp_path: Path) -> None:
    """The file takes seconds to read: it has millions of opcodes."""
    with zipfile.ZipFile(tmp_path / "slow.pt", "w") as archive:
        archive.writestr("slow/data.pkl", b"\x80\x02" + b"N0" * 2_400_000 + b"N.")
    command = [sys.executable, "-m", "bncheck", "audit", *[str(tmp_path / "slow.pt")]]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Before it has started up, the signal is the interpreter's affair.
    deadline = time.monotonic() + 30
    while not _has_open(process.pid, "slow.pt") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    if process.returncode == 2:
        pytest.skip("the machine read the file before the signal came")
    assert process.returncode == 130
    assert (out, err) == ("", "")


def test_debug_shows_where_an_error_came_from() -> None:
    finished = bncheck("audit", HEALTHY, "--select", "BN777", "--debug")
    assert finished.returncode == 2
    assert "Traceback" in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("bncheck: no rule")


def test_crash_in_a_rule_is_not_checked_and_exit_2(tmp_path: Path) -> None:
    program = f"""
import sys
from bncheck.rules import zero_momentum
from dataclasses import replace
import bncheck.catalogue as catalogue
def crash(layer, limits):
    raise ZeroDivisionError("boom")
broken = replace(zero_momentum.RULE, check_layer=crash)
catalogue.RULES = tuple(broken if rule.id == "BN501" else rule for rule in catalogue.RULES)
from bncheck.cli import main
sys.argv = ["bncheck", "audit", {str(WARNED)!r}]
main()
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 2
    assert "BN501: the rule itself failed: ZeroDivisionError: boom" in finished.stdout
    assert "BN503" in finished.stdout
    assert "Traceback" not in finished.stderr
