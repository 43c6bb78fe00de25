"""A module in memory says what it says when it is saved by torch.save and read from the file."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import bncheck
from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging
from bncheck.core.errors import BadUsage
from bncheck.core.layers import NormLayer
from bncheck.readers import read
from bncheck.readers.live_module import read_live
from bncheck.runtime.in_memory import describe
from tests.process import ROOT

IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class OwnNorm(nn.BatchNorm2d):
    """A subclass with a momentum of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.03)


class Attached(nn.Module):
    """Layers in a plain list, which PyTorch does not know of, and one in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.BatchNorm2d(3)
        self.hidden = [nn.BatchNorm2d(4), [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)]]
        self.by_name = {"a": nn.Sequential(nn.BatchNorm2d(6))}
        self.hidden.append(self.hidden)


class EveryKind(nn.Module):
    """Every norm of torch, with odd settings, one of them shared."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=True)
        self.plain = nn.BatchNorm2d(4)
        self.shared = nn.Sequential(self.plain, nn.BatchNorm2d(4, affine=False))
        self.cumulative = nn.BatchNorm1d(5, momentum=None)
        self.untracked = nn.BatchNorm3d(3, track_running_stats=False)
        self.sync = nn.SyncBatchNorm(4, eps=1e-4)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True)
        self.instance_plain = nn.InstanceNorm2d(4)
        self.group = nn.GroupNorm(2, 4)
        self.own = OwnNorm(4)
        self.lazy = nn.LazyBatchNorm2d()
        self.own.eval()


def _trained(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        for values in inputs:
            model(values)
    return model


def _resnet() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config)


def _mobilenet() -> nn.Module:
    config = transformers.MobileNetV2Config(depth_multiplier=0.1, image_size=32)
    return transformers.MobileNetV2ForImageClassification(config)


def _without_variance() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].running_var = None
    return model


MAKES: dict[str, Callable[[], nn.Module]] = {
    "sequential": lambda: _trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), IMAGES),
    "every kind": EveryKind,
    "attached": Attached,
    "data parallel": lambda: nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.BatchNorm2d(4)), use_buffers=True),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))),
    "half": lambda: _trained(nn.Sequential(nn.BatchNorm2d(3)), IMAGES).half(),
    "bfloat16": lambda: _trained(nn.Sequential(nn.BatchNorm2d(3)), IMAGES).bfloat16(),
    "root": lambda: _trained(nn.BatchNorm2d(3), IMAGES),
    "one moment missing": _without_variance,
    "resnet": lambda: _trained(_resnet(), IMAGES),
    "mobilenet": lambda: _trained(_mobilenet(), IMAGES),
}


def _from_file(model: nn.Module, folder: Path) -> Checkpoint:
    path = folder / "model.pt"
    torch.save(model, path)
    return read(str(path))


def _assert_same(live: NormLayer, stored: NormLayer) -> None:
    for field in fields(NormLayer):
        mine, theirs = getattr(live, field.name), getattr(stored, field.name)
        if isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
        else:
            assert mine == theirs, (live.name, field.name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_layers_are_those_of_the_saved_module(make: str, training: bool, tmp_path: Path) -> None:
    model = MAKES[make]()
    if not training:
        model.eval()
    live, stored = read_live(describe(model)), _from_file(model, tmp_path)
    assert [layer.full_name for layer in live.layers] == [layer.full_name for layer in stored.layers]
    assert live.layers, "there is nothing to compare"
    for mine, theirs in zip(live.layers, stored.layers, strict=True):
        _assert_same(mine, theirs)
    assert live.unread == stored.unread
    assert live.stage is stored.stage
    assert live.packaging is Packaging.MODULE
    assert live.format is FileFormat.IN_MEMORY
    assert list(live.tensors) == list(stored.tensors)
    for name, tensor in live.tensors.items():
        assert (tensor.dtype, tensor.shape, tensor.strides) == (
            stored.tensors[name].dtype,
            stored.tensors[name].shape,
            stored.tensors[name].strides,
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", ["sequential", "every kind", "resnet"])
def test_findings_are_those_of_the_saved_module(make: str, tmp_path: Path) -> None:
    model = MAKES[make]()
    torch.save(model, tmp_path / "model.pt")
    (live,), (stored,) = bncheck.audit(model).subjects, bncheck.audit(tmp_path / "model.pt").subjects
    assert [(finding.rule, finding.severity, finding.layers) for finding in live.findings] == [
        (finding.rule, finding.severity, finding.layers) for finding in stored.findings
    ]
    assert live.passed == stored.passed
    assert "BN101" in {finding.rule for finding in live.findings}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (torch.jit.script, "torch.jit.save"),
        (lambda model: torch.export.export(model.eval(), (IMAGES,)).module(), "torch.export.save"),
    ],
    ids=["scripted", "exported"],
)
def test_graphs_are_audited_as_files(make: Callable[[nn.Module], nn.Module], said: str) -> None:
    with pytest.raises(BadUsage, match=said):
        bncheck.audit(make(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))


# --- run ---------------------------------------------------------------------------------------------------


def _classifier() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    for _ in range(80):
        _trained(net, torch.randn(16, 3, 32, 32))
    return net


BATCHES = [torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def _saved(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save([model.state_dict(), [module.training for module in model.modules()]], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_it_is_run_in_eval_mode_and_left_as_it_was(training: bool) -> None:
    model = _classifier().train(training)
    model[1].eval()
    before = _saved(model)
    report = bncheck.audit(model, data=BATCHES)
    assert _saved(model) == before
    (subject,) = report.subjects
    assert subject.complete
    assert subject.checkpoint.path == "<Sequential>"
    assert subject.measurements.samples == 64
    assert not subject.measurements.layers["1"].uses_batch_moments
    assert {"BN104", "BN105", "BN406", "BN407"} <= set(subject.passed)
    assert subject.findings == ()


def test_drift_is_found() -> None:
    report = bncheck.audit(_classifier().eval(), data=[4 * images + 3 for images in BATCHES])
    assert "BN407" in {finding.rule for finding in report.subjects[0].findings}
    assert report.exit_code == 1


def test_how_to_predict_and_how_much_can_be_told() -> None:
    def forgets(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return model.train()(images)

    report = bncheck.audit(_classifier().eval(), data=BATCHES, forward=forgets, samples=40)
    (subject,) = report.subjects
    assert subject.measurements.samples == 40
    assert {"BN104", "BN105"} <= {finding.rule for finding in subject.findings}


def test_wrapped_models_are_judged_by_their_layers_own_names() -> None:
    (subject,) = bncheck.audit(nn.DataParallel(_classifier().eval()), data=BATCHES).subjects
    assert [layer.name for layer in subject.checkpoint.layers] == ["1"]
    assert set(subject.measurements.layers) == {"1"}
    assert [drift.layer.name for drift in subject.drifts] == ["1"]


def test_a_model_in_half_precision_gets_its_data_so() -> None:
    (subject,) = bncheck.audit(_classifier().eval().bfloat16(), data=BATCHES).subjects
    assert subject.complete
    assert subject.measurements.precision == "bf16"


def test_training_is_measured_and_undone() -> None:
    model = _classifier().train()
    before = _saved(model)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(BATCHES)), batch_size=9)

    def step(model: nn.Module, batch: list[torch.Tensor]) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(batch[0]).sum().backward()
        optimizer.step()

    (subject,) = bncheck.audit(model, train_data=loader, train_step=step).subjects
    assert _saved(model) == before
    assert subject.measurements.training_data.last_batch == 1
    assert "BN207" in subject.passed


def test_a_lazy_model_is_told_to_see_a_batch_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4))
    report = bncheck.audit(model, data=BATCHES)
    assert report.exit_code == 2
    assert "has seen no batch" in report.subjects[0].measurements.not_measured[0].reason


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bncheck.audit("model.pt", data=BATCHES), "run=RunOptions"),
        (lambda: bncheck.audit(nn.BatchNorm2d(3), "model.pt"), "alone"),
        (lambda: bncheck.audit(nn.BatchNorm2d(3), run=bncheck.RunOptions("d.py:data")), "give data="),
        (lambda: bncheck.audit(nn.BatchNorm2d(3), samples=4), "what to run it on, is missing"),
        (lambda: bncheck.audit({"a": 1}), "a path, or a torch.nn.Module"),
    ],
)
def test_arguments_that_do_not_go_together(call: Callable[[], object], said: str) -> None:
    with pytest.raises(BadUsage, match=said):
        call()


def test_paths_need_no_torch() -> None:
    program = (
        "import sys, bncheck; bncheck.audit('fixtures/healthy-cnn-module/model.pt');"
        "assert 'torch' not in sys.modules and 'bncheck.measuring' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False, capture_output=True)
    assert finished.returncode == 0, finished.stderr
