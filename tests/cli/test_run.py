"""``bncheck audit --data``: the user's own model and data, in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bncheck import audit
from bncheck.core.run_options import RunOptions
from tests.process import FIXTURES, bncheck

STATE = FIXTURES / "healthy-cnn-state-dict" / "model.pt"
MODULE = FIXTURES / "healthy-cnn-module" / "model.pt"
TRACED = FIXTURES / "healthy-traced-archive" / "model.pt"
DIGITS = f"{FIXTURES / 'digits.py'}:held_out"
NET = f"{FIXTURES / 'networks.py'}:DigitNet"


def _document(*arguments: object) -> dict[str, object]:
    finished = bncheck("audit", *arguments, "--format", "json")
    assert finished.stderr == ""
    document: dict[str, object] = json.loads(finished.stdout)
    return document


def test_a_healthy_model_is_clean_and_measured() -> None:
    finished = bncheck("audit", STATE, "--model", NET, "--data", DIGITS)
    assert finished.returncode == 0, finished.stdout
    assert "measured  360 samples · cpu · fp32 · accuracy 0.99" in finished.stdout
    assert "in execution order" in finished.stdout
    assert finished.stderr == ""


def test_json_holds_what_was_measured() -> None:
    (subject,) = _document(STATE, "--model", NET, "--data", DIGITS, "--samples", "128")["subjects"]
    measured = subject["measurements"]
    assert measured["samples"] == 128
    assert [entry["layer"] for entry in measured["drift"]] == ["bn1", "bn2", "bn3", "bn4"]
    assert measured["gap"]["accuracy_stored"] > 0.9
    assert measured["companions"]["change"] < 1e-5
    assert measured["mutated"] == measured["not_measured"] == []
    assert {"BN104", "BN105", "BN106", "BN209", "BN406", "BN407", "BN408"} <= set(subject["passed"])


def test_the_data_is_in_another_domain() -> None:
    fog = DIGITS.replace("held_out", "in_fog")
    finished = bncheck("audit", STATE, "--model", NET, "--data", fog)
    assert finished.returncode == 1
    for word in ("BN106", "BN407", "BN406", "var ratio", "bn4"):
        assert word in finished.stdout


def test_graphs_need_no_model() -> None:
    assert bncheck("audit", TRACED, "--data", DIGITS).returncode == 0


def test_a_file_of_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32))
    (subject,) = _document(TRACED, "--data", tmp_path / "inputs.npy", "--batch-size", "16")["subjects"]
    assert subject["measurements"]["samples"] == 64
    assert subject["measurements"]["gap"]["accuracy_stored"] is None


def test_a_pickled_module_runs_only_when_it_is_trusted() -> None:
    refused = bncheck("audit", MODULE, "--data", DIGITS)
    assert refused.returncode == 2
    assert "--trust-pickle" in refused.stdout
    folder = {"PYTHONPATH": str(FIXTURES)}
    assert bncheck("audit", MODULE, "--data", DIGITS, "--trust-pickle", **folder).returncode == 0


def test_how_to_predict_can_be_told(tmp_path: Path) -> None:
    """The function forgets eval(): the model is sound, and its use is not."""
    (tmp_path / "serving.py").write_text(
        "def predict(model, images):\n    model.train()\n    return {'logits': model(images)}\n"
    )
    (subject,) = _document(STATE, "--model", NET, "--data", DIGITS, "--forward", f"{tmp_path}/serving.py:predict")[
        "subjects"
    ]
    fired = {finding["rule"] for finding in subject["findings"]}
    assert {"BN104", "BN105"} <= fired


def test_arguments_of_the_model_are_yaml(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        f"import sys\nsys.path.insert(0, {str(FIXTURES)!r})\nimport networks\n"
        "def build(bias, note): assert bias is False and note == 'a b', (bias, note); return networks.DigitNet()\n"
    )
    spec = f"{tmp_path}/m.py:build"
    arguments = ("--model-arg", "bias=false", "--model-arg", "note=a b")
    assert bncheck("audit", STATE, "--model", spec, *arguments, "--data", DIGITS).returncode == 0


_MODELS = """
import torch
from torch import nn

def wrong_shape(): return nn.Sequential(nn.Conv2d(3, 8, 3))
def no_module(): return 3
def fails(): raise RuntimeError("no weights here")
number = 4
"""

_DATA = """
import torch
def empty(): return []
def no_iterable(): return 3
def wrong_shape(): return [torch.randn(4, 3, 8, 8)]
def half_way():
    yield torch.rand(64, 1, 8, 8)
    raise OSError("disk gone")
def one(): return [torch.rand(1, 1, 8, 8)]
def not_finite(): return [torch.full((16, 1, 8, 8), float("nan"))]
"""


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ("wrong_shape", None, "does not fit the file: the model wants what the file lacks: 0.weight, 0.bias"),
        ("no_module", None, "returned a int; a torch.nn.Module is expected"),
        ("fails", None, "failed with RuntimeError: no weights here"),
        ("number", None, "number is a int; name a function that returns it"),
        ("nothing", None, "has no 'nothing'; it has"),
        (None, "empty", "the data is empty"),
        (None, "no_iterable", "returned a int; an iterable of batches is expected"),
        (None, "wrong_shape", "called with a batch of the data, failed with RuntimeError"),
        (None, "half_way", "reading the data failed with OSError: disk gone (after 64 samples)"),
    ],
)
def test_what_cannot_be_run_is_told_and_leaves_the_audit_incomplete(
    model: str | None, data: str | None, said: str, tmp_path: Path
) -> None:
    """What the file alone shows is reported all the same."""
    (tmp_path / "m.py").write_text(_MODELS)
    (tmp_path / "d.py").write_text(_DATA)
    run = RunOptions(
        model=NET if model is None else f"{tmp_path}/m.py:{model}",
        data=DIGITS if data is None else f"{tmp_path}/d.py:{data}",
    )
    report = audit(STATE, run=run)
    assert report.exit_code == 2
    (subject,) = report.subjects
    assert subject.measurements is not None
    assert said in " ".join(probe.reason for probe in subject.measurements.not_measured)
    assert "BN201" in subject.passed


def test_the_users_own_frames_are_shown_below_our_line(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(_MODELS)
    finished = bncheck("audit", STATE, "--model", f"{tmp_path}/m.py:fails", "--data", DIGITS)
    assert finished.returncode == 2
    assert "failed with RuntimeError: no weights here" in finished.stdout
    assert 'raise RuntimeError("no weights here")' in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr
    assert "user_code.py" not in finished.stdout


def test_one_sample_measures_what_one_sample_can(tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text(_DATA)
    (subject,) = audit(STATE, run=RunOptions(model=NET, data=f"{tmp_path}/d.py:one")).subjects
    reasons = {entry.rule: entry.reason for entry in subject.not_checked}
    assert reasons["BN104"] == "the first batch holds a single sample"
    assert "BN105" in subject.passed


def test_data_that_is_not_finite_is_no_clean_pass(tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text(_DATA)
    report = audit(STATE, run=RunOptions(model=NET, data=f"{tmp_path}/d.py:not_finite"))
    assert report.exit_code == 2
    assert "not finite" in report.subjects[0].measurements.not_measured[0].reason


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", NET), "--data, what to run it on, is missing"),
        (("--data", DIGITS, "--model", NET, "--model-arg", "nonsense"), "is no KEY=VALUE"),
        (("--data", DIGITS, "--precision", "int8"), "int8"),
    ],
)
def test_bad_usage(options: tuple[str, ...], said: str) -> None:
    finished = bncheck("audit", STATE, *options)
    assert finished.returncode == 2
    assert said in finished.stderr


def test_the_file_is_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(TRACED.read_bytes())
    bncheck("audit", path, "--data", DIGITS)
    assert path.read_bytes() == TRACED.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_lower_precision_runs() -> None:
    (subject,) = _document(STATE, "--model", NET, "--data", DIGITS, "--precision", "bf16")["subjects"]
    assert subject["measurements"]["precision"] == "bf16"
    assert subject["measurements"]["gap"]["accuracy_stored"] > 0.9
