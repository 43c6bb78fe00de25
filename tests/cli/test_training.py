"""``bncheck audit --train-data --train-step``: the user's own loader and training step, in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from bncheck import audit
from bncheck.core.run_options import RunOptions
from tests.process import FIXTURES, bncheck

STATE = FIXTURES / "healthy-training" / "model.pt"
NET = f"{FIXTURES / 'networks.py'}:Mlp"
LOADERS = FIXTURES / "training_loaders.py"
DIGITS = f"{FIXTURES / 'digits.py'}:held_out"


def _audit(*arguments: object) -> CompletedProcess[str]:
    return bncheck("audit", STATE, "--model", NET, *map(str, arguments))


def _subject(finished: CompletedProcess[str]) -> dict[str, object]:
    assert finished.stderr == "", finished.stderr
    (subject,) = json.loads(finished.stdout)["subjects"]
    return subject


def test_a_training_loader_is_measured_without_other_data() -> None:
    subject = _subject(_audit("--train-data", f"{LOADERS}:shuffled", "--format", "json"))
    measured = subject["measurements"]
    assert measured["samples"] == 0
    assert measured["not_measured"] == []
    training = measured["training"]
    assert training["data"] == {
        "samples": 1437,
        "batch_size": 64,
        "drop_last": False,
        "last_batch": 29,
        "replicas": 1,
        "sources": {"samples": "len(RandomSampler)", "batch_size": "DataLoader", "drop_last": "DataLoader"},
        "unknown": None,
    }
    assert training["batch"]["layers"][0] == {
        "layer": "bn1",
        "values": 64.0,
        "uses_batch_moments": True,
        "pooled": False,
    }
    assert training["step"]["by_user"] is False
    assert {"BN207", "BN208", "BN301", "BN302", "BN305"} <= set(subject["passed"])
    reasons = {entry["rule"]: entry["reason"] for entry in subject["not_checked"]}
    assert reasons["BN104"] == reasons["BN406"] == "needs --data"


def test_a_training_step_is_measured_and_told_in_one_line() -> None:
    finished = _audit("--train-data", f"{LOADERS}:shuffled", "--train-step", f"{LOADERS}:step")
    assert finished.returncode == 0, finished.stdout
    assert finished.stderr == ""
    (line,) = [line for line in finished.stdout.splitlines() if line.startswith("    training")]
    assert "1437 samples by 64, the last batch 29" in line
    assert "fewest values per channel 64 at bn1" in line
    assert "a step updates 2 of 2 layers" in line


def test_the_batch_of_a_step_may_come_from_the_data() -> None:
    finished = _audit("--data", DIGITS, "--train-step", f"{LOADERS}:step", "--format", "json")
    subject = _subject(finished)
    assert finished.returncode == 0
    assert subject["measurements"]["samples"] == 360
    assert subject["measurements"]["training"]["batch"]["source"] == "--data"
    assert {"BN207", "BN208", "BN301", "BN305", "BN104"} <= set(subject["passed"])
    assert [entry["reason"] for entry in subject["not_checked"] if entry["rule"] == "BN302"] == ["needs --train-data"]


def test_a_fault_of_training_is_exit_code_1() -> None:
    finished = _audit("--train-data", f"{LOADERS}:one_left_over")
    assert finished.returncode == 1
    for word in ("BN302", "1025", "drop_last=True"):
        assert word in finished.stdout


def test_a_file_of_training_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).random((33, 1, 8, 8), dtype=np.float32))
    finished = _audit("--train-data", tmp_path / "inputs.npy", "--batch-size", "32", "--format", "json")
    data = _subject(finished)["measurements"]["training"]["data"]
    assert (data["samples"], data["batch_size"], data["last_batch"]) == (33, 32, 1)
    assert finished.returncode == 1


_CODE = f"""
import sys
sys.path.insert(0, {str(FIXTURES)!r})
from training_loaders import few_at_a_time

def raises(): raise OSError("no such share")
def number(): return 3
def empty(): return []
def step_raises(model, batch): raise KeyError("loss")
def step_of_one(model): pass
constant = 4
"""


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--train-data", "raises", "failed with OSError: no such share"),
        ("--train-data", "number", "returned a int; an iterable of batches is expected"),
        ("--train-data", "empty", "--train-data is empty: it yields no batch"),
        ("--train-data", "nothing", "has no 'nothing'"),
        ("--train-step", "step_raises", "step_raises failed with KeyError: 'loss'"),
        ("--train-step", "step_of_one", "step_of_one failed with TypeError"),
        ("--train-step", "constant", "constant is a int"),
        ("--train-step", "nothing", "has no 'nothing'"),
    ],
)
def test_what_fails_is_told_and_hinders_nothing_else(option: str, name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_CODE)
    given = {"--train-data": f"{tmp_path}/mine.py:few_at_a_time", option: f"{tmp_path}/mine.py:{name}"}
    run = RunOptions(
        data=DIGITS, model=NET, train_data=given["--train-data"], train_step=given.get("--train-step"), samples=64
    )
    report = audit(STATE, run=run)
    assert report.exit_code == 2
    (subject,) = report.subjects
    assert subject.measurements is not None
    (entry,) = subject.measurements.not_measured
    assert said in entry.reason
    assert entry.failed
    assert subject.measurements.samples == 64
    assert {"BN201", "BN104", "BN406"} <= set(subject.passed)
    if option == "--train-step":
        assert [finding.rule for finding in subject.findings] == ["BN305"]


def test_a_frame_of_the_users_own_code_is_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_CODE)
    finished = _audit(
        "--train-data", f"{tmp_path}/mine.py:few_at_a_time", "--train-step", f"{tmp_path}/mine.py:step_raises"
    )
    assert finished.returncode == 2
    assert "training_step not measured" in finished.stdout
    assert 'raise KeyError("loss")' in finished.stdout
    assert "BN305" in finished.stdout


def test_a_step_without_a_batch_is_bad_usage() -> None:
    finished = _audit("--train-step", f"{LOADERS}:step")
    assert finished.returncode == 2
    assert "--train-data or --data, is missing" in finished.stderr
