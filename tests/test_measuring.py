"""Probes that fail, leave a trace or are interrupted: each is told, and hinders none of the others."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bncheck
from bncheck.core.finding import Subject
from tests.process import FIXTURES, ROOT

BATCHES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Net(nn.Module):
    """A small classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.conv(images)).relu().mean((2, 3)))


def _trained(net: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = Net() if net is None else net
    with torch.no_grad():
        for _ in range(60):
            net(torch.randn(16, 3, 8, 8))
    return net.eval()


def _audited(data: object, **options: object) -> Subject:
    (subject,) = bncheck.audit(options.pop("model", None) or _trained(), data=data, **options).subjects
    return subject


def _reasons(subject: Subject) -> dict[str, str]:
    return {probe.what: probe.reason for probe in subject.measurements.not_measured}


# --- traces ------------------------------------------------------------------------------------------------


def test_a_trace_in_one_probe_leaves_the_others_standing() -> None:
    """The weights are written when a sample is predicted alone, which only one probe does."""

    def writes(model: nn.Module, images: torch.Tensor) -> object:
        if len(images) == 1:
            model.head.weight.data.add_(1.0)
        return model(images)

    subject = _audited(BATCHES, forward=writes)
    assert not subject.complete
    assert _reasons(subject) == {"companions": "running the model changed parameter head.weight"}
    assert subject.measurements.companions is None
    assert {"BN105", "BN106", "BN406"} <= set(subject.passed)
    assert "BN104" in {entry.rule for entry in subject.not_checked}


def test_a_trace_in_the_sweep_is_no_measurement() -> None:
    def hooks(model: nn.Module, images: torch.Tensor) -> object:
        model.bn.register_forward_hook(lambda *_: None)
        return model(images)

    subject = _audited(BATCHES, forward=hooks)
    assert _reasons(subject)["prediction"] == "running the model changed hooks of bn"
    assert subject.measurements.layers is None
    assert not subject.complete
    assert "BN406" not in subject.passed
    assert "BN103" in subject.passed


def test_every_kind_of_failure_is_an_incomplete_audit() -> None:
    report = bncheck.audit(_trained(), data=BATCHES, forward=lambda model, images: None)
    assert report.exit_code == 2


# --- bad input ---------------------------------------------------------------------------------------------


def _half_way() -> Iterator[torch.Tensor]:
    yield BATCHES[0]
    raise OSError("disk gone")


def _other_shape_later() -> list[torch.Tensor]:
    return [BATCHES[0], torch.randn(16, 4, 8, 8)]


@pytest.mark.parametrize(
    ("data", "what", "said", "samples"),
    [
        ([], "data", "the data is empty", 0),
        (iter([]), "data", "the data is empty", 0),
        (3, "data", "data is a int; an iterable of batches is expected", 0),
        (_half_way(), "data", r"failed with OSError: disk gone \(after 16 samples\)", 16),
        (_other_shape_later(), "data", r"failed with RuntimeError: .*\(after 16 samples\)", 16),
        ([torch.randn(16, 4, 8, 8)], "prediction", "failed with RuntimeError", 0),
        ([torch.randint(9, (16, 3, 8, 8))], "prediction", "failed with RuntimeError", 0),
        ([BATCHES[0], torch.full((16, 3, 8, 8), torch.nan)], "data", "not finite", 16),
        ([torch.full((16, 3, 8, 8), torch.inf)], "data", "not finite", 0),
        ([["a", "b"]], "data", "no tensor of samples", 0),
        ([{"label": torch.zeros(4)}], "data", "no tensor of samples", 0),
        ([np.array([object()])], "data", "Python objects", 0),
    ],
    ids=[
        "empty", "empty iterator", "no iterable", "raises half-way", "other shape later", "wrong shape", "wrong dtype",
        "NaN later", "infinite", "text", "labels alone", "objects",
    ],
)  # fmt: skip
def test_bad_data_is_told_and_what_came_before_it_stands(data: object, what: str, said: str, samples: int) -> None:
    subject = _audited(data)
    (told,) = (probe for probe in subject.measurements.not_measured if probe.failed)
    assert told.what == what
    assert re.search(said, told.reason), told.reason
    assert not subject.complete
    assert subject.measurements.samples == samples
    assert ("BN406" in subject.passed) == bool(samples)
    assert "BN201" in subject.passed


def test_batches_of_different_sizes_are_one_data_set() -> None:
    everything = torch.cat(BATCHES)
    split = [everything[:16], everything[16:19], everything[19:20], everything[20:]]
    whole, parts = _audited([everything]), _audited(split)
    assert parts.complete
    one, other = (subject.measurements.layers["bn"].moments for subject in (whole, parts))
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.var, other.var, rtol=1e-5)
    assert one.images == other.images == 48


def test_a_single_sample_judges_no_drift() -> None:
    subject = _audited([BATCHES[0][:1]])
    reasons = {entry.rule: entry.reason for entry in subject.not_checked}
    assert "single sample" in reasons["BN104"]
    assert "single sample" in reasons["BN406"]
    assert "BN105" in subject.passed
    assert subject.complete


def test_a_model_that_needs_more_inputs() -> None:
    class Two(Net):
        def forward(self, images: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return super().forward(images * scale)

    net = _trained()
    two = Two()
    two.load_state_dict(net.state_dict())
    subject = _audited(BATCHES, model=two.eval())
    assert "missing 1 required positional argument: 'scale'" in _reasons(subject)["prediction"]
    given = [{"left": images, "scale": torch.ones(len(images), 1, 1, 1)} for images in BATCHES]
    assert _audited(given, model=two, forward=lambda model, named: model(named["left"], named["scale"])).complete


def test_a_model_without_a_prediction() -> None:
    subject = _audited(BATCHES, forward=lambda model, images: {"loss": model(images).mean()})
    assert "--forward" in _reasons(subject)["prediction"]


# --- norms of every make -----------------------------------------------------------------------------------


class Frozen(nn.Module):
    """As detection toolboxes write it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.3), ("running_var", 0.8)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return values * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class Leaking(nn.Module):
    """Takes each batch into its moments, whatever its mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((channels,), 0.2))
        self.register_buffer("running_var", torch.full((channels,), 0.5))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        var, mean = torch.var_mean(values, (0, 2, 3))
        self.running_mean += 0.1 * (mean - self.running_mean)
        self.running_var += 0.1 * (var - self.running_var)
        return (values - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]


def _with(norm: nn.Module) -> nn.Module:
    net = _trained()
    net.bn = norm
    return net.eval()


def test_drift_of_a_frozen_layer_is_found() -> None:
    assert "BN407" not in {finding.rule for finding in _audited(BATCHES, model=_with(Frozen(6))).findings}
    subject = _audited([9 * images for images in BATCHES], model=_with(Frozen(6)))
    assert "BN407" in {finding.rule for finding in subject.findings}
    assert "BN209" in subject.passed
    assert "but frozen ones" in _reasons(subject)["gap"]


def test_a_hand_written_layer_that_leaks_is_found() -> None:
    subject = _audited(BATCHES, model=_with(Leaking(6)))
    fired = {finding.rule: finding.layers for finding in subject.findings}
    assert fired["BN104"] == fired["BN105"] == ("bn",)


def test_a_hand_written_layer_that_never_runs_is_found() -> None:
    net = _trained()
    net.idle = Frozen(6)
    (finding,) = (finding for finding in _audited(BATCHES, model=net).findings if finding.rule == "BN209")
    assert finding.layers == ("idle",)


def test_a_layer_that_is_not_understood_is_not_passed() -> None:
    class Odd(Frozen):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return super().forward(values).tanh()

    subject = _audited(BATCHES, model=_with(Odd(6)))
    reasons = {entry.rule: entry.reason for entry in subject.not_checked}
    for rule in ("BN106", "BN406", "BN407"):
        assert "Odd" in reasons[rule]
        assert rule not in subject.passed


def test_prediction_in_inference_mode_is_measured() -> None:
    def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(images)

    subject = _audited(BATCHES, forward=predict)
    assert subject.complete
    assert {"BN106", "BN209", "BN406"} <= set(subject.passed)


# --- Ctrl-C ------------------------------------------------------------------------------------------------

_INTERRUPTED = """
import io, signal, sys, time
import numpy as np, random
import torch
from torch.utils.data import DataLoader, Dataset
import bncheck
from tests.test_measuring import Net

class Slow(Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        if index == 40:
            print("running", flush=True)
        time.sleep(0.002)
        return torch.randn(3, 8, 8), index % 3

def state(model):
    buffer = io.BytesIO()
    torch.save([model.state_dict(), [module.training for module in model.modules()]], buffer)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    generators = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    return buffer.getvalue(), hooks, generators, torch.is_grad_enabled()

model = Net().train()
model.conv.eval()
before = state(model)
try:
    bncheck.audit(model, data=DataLoader(Slow(), batch_size=16, num_workers=int(sys.argv[1])))
except KeyboardInterrupt:
    print("restored" if state(model) == before else "changed", flush=True)
else:
    print("ran to its end", flush=True)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_puts_everything_back(workers: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(_INTERRUPTED)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{FIXTURES}", "PATH": "/usr/bin:/bin"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "restored\n"


@pytest.mark.parametrize("keep", [lambda net: net.train(), lambda net: net.bn.eval()], ids=["training", "mixed"])
def test_a_run_that_fails_puts_everything_back_too(keep: Callable[[nn.Module], object]) -> None:
    net = _trained().train()
    keep(net)
    modes = [module.training for module in net.modules()]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def fails(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        model.train()
        model(images)
        raise ValueError("theirs")

    assert not _audited(BATCHES, model=net, forward=fails).complete
    assert [module.training for module in net.modules()] == modes
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, buffers[name])
