"""``bncheck recalibrate``: real files, the user's own code, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import bncheck as bncheck_api
from bncheck.cli.app import app
from bncheck.core.errors import BncheckError, CannotWrite, UnreadableFile
from bncheck.core.estimate import moved_by
from bncheck.core.recalibration import Choice, FileChoice
from bncheck.core.run_options import RunOptions
from bncheck.recalibrating import recalibrate_file
from tests.process import FIXTURES, ROOT, bncheck

STALE = FIXTURES / "bn407-moments-of-another-network" / "model.pt"
HELD_OUT = f"{FIXTURES / 'digits.py'}:held_out"
DIGIT_NET = ("--model", f"{FIXTURES / 'networks.py'}:DigitNet")
MLP = ("--model", f"{FIXTURES / 'networks.py'}:Mlp")


def _recalibrate(path: Path, output: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return bncheck("recalibrate", path, "--data", HELD_OUT, "-o", output, *arguments)


def _left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_stale_model_is_mended(tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.pt"
    finished = _recalibrate(STALE, fixed, *DIGIT_NET, "--eval-data", HELD_OUT)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "RECALIBRATED  4 layers" in finished.stdout
    assert "accuracy 0.1278 → 0.99" in finished.stdout
    audit = bncheck("audit", fixed, "--data", HELD_OUT, *DIGIT_NET)
    assert audit.returncode == 0, audit.stdout
    assert "PASS" in audit.stdout
    assert "warning" not in audit.stdout
    before, after = torch.load(STALE), torch.load(fixed)
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"bn{index}.running_{moment}" for index in (1, 2, 3, 4) for moment in ("mean", "var")}


def test_the_record_holds_what_was_written(tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.pt"
    finished = _recalibrate(STALE, fixed, *DIGIT_NET, "--format", "json", "--samples", "200", "--seed", "7")
    shown = json.loads(finished.stdout)
    record = json.loads((tmp_path / "fixed.pt.bncheck.json").read_text())
    assert shown == record
    assert record["samples"] == 200
    assert record["seed"] == 7
    assert record["libraries"]["torch"] == torch.__version__
    assert record["residual"] == 0.0
    for key, path in (("input_sha256", STALE), ("output_sha256", fixed)):
        digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
        assert record[key] == digest
    first, second = STALE.read_bytes(), fixed.read_bytes()
    assert record["bytes_changed"] == sum(a != b for a, b in zip(first, second, strict=True))
    state = torch.load(fixed)
    for layer in record["layers"]:
        for moment in ("mean", "var"):
            stored = state[f"{layer['layer']}.running_{moment}"].numpy()
            np.testing.assert_array_equal(stored, np.float32(layer["after"][moment]))
        assert all(0 < error < 1 for error in layer["standard_error"]["mean"])


@pytest.mark.parametrize(
    ("case", "model"),
    [
        ("healthy-legacy-state-dict/model.pth", MLP),
        ("healthy-legacy-module/model.pth", MLP),
        ("healthy-mlp-safetensors/model.safetensors", MLP),
        ("healthy-scripted-archive/model.pt", ()),
        ("healthy-traced-archive/model.pt", ()),
        ("healthy-training-checkpoint/model.pt", DIGIT_NET),
        ("healthy-data-parallel/model.pt", DIGIT_NET),
        ("healthy-half-convolutions/bfloat16.pt", DIGIT_NET),
    ],
)
def test_every_format(case: str, model: tuple[str, ...], tmp_path: Path) -> None:
    """The copy is read as the file was, and stores what it needs: another recalibration finds the same."""
    original = FIXTURES / case
    fixed = tmp_path / original.name
    run = RunOptions(HELD_OUT, model[-1] if model else None, trust_pickle=True, device="cpu")
    first = recalibrate_file(str(original), FileChoice(run, output=str(fixed)))
    assert first.written is not None
    assert len(original.read_bytes()) == len(fixed.read_bytes())
    reports = [bncheck_api.audit(path).subjects[0].checkpoint for path in (original, fixed)]
    assert reports[0].format == reports[1].format
    stored = {layer.name: layer for layer in reports[1].layers}
    for name, layer in first.estimate.layers.items():
        np.testing.assert_allclose(stored[name].running_mean, layer.after_mean, rtol=1e-2, atol=1e-6)
        np.testing.assert_allclose(stored[name].running_var, layer.after_var, rtol=1e-2)
    again = recalibrate_file(str(fixed), FileChoice(run))
    assert max(moved_by(layer).rms_delta for layer in again.estimate.layers.values()) < 0.01


def test_a_graph_made_for_one_batch_size(tmp_path: Path) -> None:
    """An exported program may take batches of two and nothing else: they are neither put together nor cut."""
    program = FIXTURES / "healthy-exported-program" / "model.pt2"
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32))
    run = RunOptions(str(tmp_path / "inputs.npy"), batch_size=2, device="cpu")
    choice = FileChoice(run, Choice(samples=31), output=str(tmp_path / "fixed.pt2"))
    found = recalibrate_file(str(program), choice)
    assert found.estimate.samples == 32
    assert found.estimate.residual == 0.0
    loaded = dict(torch.export.load(tmp_path / "fixed.pt2").module().named_buffers())
    for name, layer in found.estimate.layers.items():
        np.testing.assert_array_equal(loaded[f"{name}.running_mean"].numpy(), np.float32(layer.after_mean))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    finished = bncheck("recalibrate", STALE, "--data", HELD_OUT, *DIGIT_NET, "--dry-run", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "DRY RUN  4 layers estimated; nothing was written" in finished.stdout
    assert not _left_in(tmp_path)


def test_pictures_of_what_moved(tmp_path: Path) -> None:
    finished = bncheck(
        "recalibrate", STALE, "--data", HELD_OUT, *DIGIT_NET, "--dry-run", "--format", "html", cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("<!DOCTYPE html>")
    assert "Movement by depth" in finished.stdout
    assert "bn4" in finished.stdout


def test_limits_and_specs_come_from_the_config(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(STALE.read_bytes())
    (tmp_path / "bncheck.yaml").write_text(
        f"limits: {{settled-mean: 0.9, settled-variance: 0.9}}\n"
        f"models:\n  - paths: models/*.pt\n    model: {FIXTURES / 'networks.py'}:DigitNet\n    data: {HELD_OUT}\n"
    )
    finished = bncheck("recalibrate", "models/model.pt", "--dry-run", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "100 % of channels within the limits of standard error" in finished.stdout
    assert "going by bncheck.yaml" in finished.stderr


def test_nothing_is_written_where_the_metric_falls(tmp_path: Path) -> None:
    """Digits in fog are not what the healthy model will see."""
    healthy = FIXTURES / "healthy-cnn-state-dict" / "model.pt"
    (tmp_path / "score.py").write_text("scores = iter([0.9, 0.8])\ndef score(model): return next(scores)\n")
    arguments = ("--evaluate", f"{tmp_path}/score.py:score", *DIGIT_NET)
    finished = _recalibrate(healthy, tmp_path / "out.pt", *arguments, "--require-improvement")
    assert finished.returncode == 1
    assert "NOT WRITTEN" in finished.stdout
    assert "0.9 → 0.8" in finished.stdout
    assert "out.pt" not in _left_in(tmp_path)
    assert _recalibrate(healthy, tmp_path / "out.pt", *arguments).returncode == 0


def test_layers_are_chosen_by_globs(tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.pt"
    finished = _recalibrate(STALE, fixed, *DIGIT_NET, "--layers", "bn[123]", "--skip", "*2")
    assert "left alone bn2, bn4" in finished.stdout
    before, after = torch.load(STALE), torch.load(fixed)
    changed = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"bn1", "bn3"}


def test_another_copy_of_the_network_in_the_file(tmp_path: Path) -> None:
    stale = torch.load(STALE)
    torch.save({"model": stale, "ema": {name: value.clone() for name, value in stale.items()}}, tmp_path / "both.pt")
    finished = _recalibrate(tmp_path / "both.pt", tmp_path / "fixed.pt", *DIGIT_NET, "--group", "ema")
    assert finished.returncode == 0, finished.stderr
    after = torch.load(tmp_path / "fixed.pt")
    assert all(torch.equal(value, stale[name]) for name, value in after["model"].items())
    assert not torch.equal(after["ema"]["bn4.running_mean"], stale["bn4.running_mean"])


def test_the_counter_says_that_nothing_of_the_start_is_left(tmp_path: Path) -> None:
    """A copy that was averaged over no batches: 0 and 1 with a count of 0."""
    state = torch.load(FIXTURES / "healthy-cnn-state-dict" / "model.pt")
    for name, value in state.items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            value.zero_()
        elif name.endswith("running_var"):
            value.fill_(1)
    torch.save(state, tmp_path / "reset.pt")
    assert "BN201" in bncheck("audit", tmp_path / "reset.pt").stdout
    finished = _recalibrate(tmp_path / "reset.pt", tmp_path / "fixed.pt", *DIGIT_NET)
    assert "num_batches_tracked raised to 44" in finished.stdout
    assert 0.9**44 < 0.01 < 0.9**43
    assert bncheck("audit", tmp_path / "fixed.pt", "--data", HELD_OUT, *DIGIT_NET).returncode == 0


_USER_CODE = """
import os, time
import torch
from torch import nn

def empty(): return []
def half_way():
    yield torch.rand(64, 1, 8, 8)
    raise OSError("disk gone")
def not_finite(): return [torch.full((16, 1, 8, 8), float("nan"))]
def other_shape(): return [torch.randn(4, 3, 8, 8)]
def inputs_alone(): return [torch.rand(32, 1, 8, 8)]
def touches():
    with open(os.environ["TOUCHED"], "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    return [torch.rand(32, 1, 8, 8)]
def slow():
    for index in range(1000):
        with open(os.environ["TOUCHED"], "w") as file: file.write(str(index))
        time.sleep(0.05)
        yield torch.rand(64, 1, 8, 8)
def words(model): return "good"
def nothing(model): return float("nan")
def fails(model): raise RuntimeError("no such metric")
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "empty"), "the data is empty"),
        (("--data", "half_way"), "reading the data failed with OSError: disk gone"),
        (("--data", "not_finite"), "not finite"),
        (("--data", "other_shape"), "called with a batch of the data, failed with RuntimeError"),
        (("--eval-data", "inputs_alone"), "gives no class labels"),
        (("--evaluate", "words"), "returned a str; a number is expected"),
        (("--evaluate", "nothing"), "returned NaN"),
        (("--evaluate", "fails"), "failed with RuntimeError: no such metric"),
        (("--layers", "norm*"), "--layers and --skip leave none of the layers with running moments: bn1, bn2, bn3"),
        (("--samples", "many"), "--samples 'many' is no number of samples"),
        (("--prior", "-1"), "--prior '-1' is no number of samples"),
        (("--memory", "lots"), "--memory 'lots' is no size"),
        (("--require-improvement",), "needs something to measure"),
        (("--data", "absent"), "has no 'absent'"),
        (("--group", "ema"), "ema"),
        (("--mode", "exakt"), "exakt"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    code, out = tmp_path / "code", tmp_path / "out"
    code.mkdir()
    out.mkdir()
    (code / "m.py").write_text(_USER_CODE)
    spelled = [
        f"{code}/m.py:{value}" if option in ("--data", "--eval-data", "--evaluate") else value
        for option, value in zip(("", *arguments), (*arguments, ""), strict=True)
    ][: len(arguments)]
    command = ["recalibrate", str(STALE), "--data", HELD_OUT, "-o", str(out / "fixed.pt"), *DIGIT_NET, *spelled]
    result = CliRunner().invoke(app, command)
    # What main() prints as one line, with exit code 2; wrong choices are told by the parser, with the same code.
    message = str(result.exception) if isinstance(result.exception, BncheckError) else result.output
    assert said in message
    assert isinstance(result.exception, BncheckError) or result.exit_code == 2
    assert not _left_in(out)


@pytest.mark.parametrize(
    ("output", "said"),
    [("there.pt", "--force"), ("no/such/folder/fixed.pt", "no/such/folder"), ("model.pt", "--force")],
)
def test_outputs_that_cannot_be(output: str, said: str, tmp_path: Path) -> None:
    shutil.copy(STALE, tmp_path / "model.pt")
    (tmp_path / "there.pt").write_bytes(b"precious")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    choice = FileChoice(RunOptions(HELD_OUT, DIGIT_NET[-1]), output=str(tmp_path / output))
    with pytest.raises(CannotWrite, match=said):
        recalibrate_file(str(tmp_path / "model.pt"), choice)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_force_replaces(tmp_path: Path) -> None:
    shutil.copy(STALE, tmp_path / "model.pt")
    os.chmod(tmp_path / "model.pt", 0o640)
    finished = _recalibrate(tmp_path / "model.pt", tmp_path / "model.pt", *DIGIT_NET, "--force")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "model.pt").stat().st_mode & 0o777 == 0o640
    assert _left_in(tmp_path) == {"model.pt", "model.pt.bncheck.json"}
    assert bncheck("audit", tmp_path / "model.pt", "--data", HELD_OUT, *DIGIT_NET).returncode == 0


def test_an_archive_whose_moments_are_folded_away_is_refused() -> None:
    frozen = FIXTURES / "healthy-frozen-archive" / "model.pt"
    finished = bncheck("recalibrate", frozen, "--data", HELD_OUT, "--dry-run")
    assert finished.returncode == 2
    assert "no layer with running moments" in finished.stderr


def test_neither_an_output_nor_a_dry_run() -> None:
    finished = bncheck("recalibrate", STALE, "--data", HELD_OUT, *DIGIT_NET)
    assert finished.returncode == 2
    assert "-o fixed.pt" in finished.stderr


def test_a_file_that_changes_meanwhile_is_not_written_from(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(_USER_CODE)
    shutil.copy(STALE, tmp_path / "model.pt")
    finished = bncheck(
        *("recalibrate", tmp_path / "model.pt", *DIGIT_NET, "--data", f"{tmp_path}/m.py:touches", "-o"),
        tmp_path / "fixed.pt",
        TOUCHED=str(tmp_path / "model.pt"),
    )
    assert finished.returncode == 2
    assert "changed" in finished.stderr
    assert not any(name.startswith((".fixed", "fixed")) for name in _left_in(tmp_path))


def test_an_interrupt_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(_USER_CODE)
    out = tmp_path / "out"
    out.mkdir()
    command = [
        *(sys.executable, "-m", "bncheck", "recalibrate", str(STALE), *DIGIT_NET),
        *("--data", f"{tmp_path}/m.py:slow", "-o", str(out / "fixed.pt"), "--samples", "60000"),
    ]
    touched = tmp_path / "touched"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOUCHED": str(touched)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not touched.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert output == ""
    assert "Traceback" not in error
    assert not _left_in(out)


def test_processes_share_the_work_and_agree_with_one(tmp_path: Path) -> None:
    """Each takes every second batch; one of them writes."""
    alone = _recalibrate(STALE, tmp_path / "alone.pt", *DIGIT_NET, "--samples", "360")
    assert alone.returncode == 0, alone.stderr
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bncheck"),
        *("recalibrate", str(STALE), *DIGIT_NET, "--data", HELD_OUT, "--samples", "360", "--device", "cpu"),
        *("-o", str(tmp_path / "together.pt")),
    ]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("RECALIBRATED") == 1
    assert "2 processes" in finished.stdout
    first, second = torch.load(tmp_path / "alone.pt"), torch.load(tmp_path / "together.pt")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-6)
    assert json.loads((tmp_path / "together.pt.bncheck.json").read_text())["samples"] == 360


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        ("bn201-reset-after-training", "BN201"),
        ("bn401-nan-batch", "BN401"),
        ("bn402-extrapolated", "BN402"),
        ("bn405-forty-updates", "BN405"),
        ("bn406-moments-left-behind", "BN406"),
        ("bn408-frozen-while-the-weights-moved", "BN408"),
    ],
)
def test_what_the_rules_recommend_cures_what_they_found(case: str, rule: str, tmp_path: Path) -> None:
    path = FIXTURES / case / "model.pt"
    fixed = tmp_path / path.name
    run = RunOptions(HELD_OUT, DIGIT_NET[-1], device="cpu", trust_pickle=True)
    (subject,) = bncheck_api.audit(path, run=run).subjects
    assert rule in {finding.rule for finding in subject.findings}
    recalibrate_file(str(path), FileChoice(run, output=str(fixed)))
    (mended,) = bncheck_api.audit(fixed, run=run).subjects
    assert mended.complete
    assert not {rule, "BN106", "BN201", "BN405", "BN406", "BN407"} & {finding.rule for finding in mended.findings}


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(STALE.read_bytes()[:9000])
    with pytest.raises(UnreadableFile, match=f"{cut}: .* cut short"):
        recalibrate_file(str(cut), FileChoice(RunOptions(HELD_OUT, DIGIT_NET[-1]), output=str(tmp_path / "fixed.pt")))
    assert _left_in(tmp_path) == {"cut.pt"}
