"""Layers that normalise without a batch-norm operator are recalibrated as others are, or told to be left alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bncheck
from bncheck.core.errors import BadModel
from tests.process import bncheck as command
from tests.recalibration.networks import images

SAMPLES = 48


class Own(nn.Module):
    """A batch norm as people write it."""

    def __init__(self, channels: int, *, last: bool = False, always_batch: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, channels))
        self.beta = nn.Parameter(torch.linspace(-1, 1, channels))
        self.register_buffer("running_mean", torch.linspace(-1, 1, channels))
        self.register_buffer("running_var", torch.linspace(0.5, 2, channels))
        self.last, self.always_batch = last, always_batch

    def forward(self, values: Tensor) -> Tensor:
        moved = values if self.last else values.movedim(1, -1)
        mean, var = self.running_mean, self.running_var
        if self.always_batch:
            mean, var = moved.mean((0, 1, 2)), moved.var((0, 1, 2), unbiased=False)
        normal = (moved - mean) / torch.sqrt(var + 1e-5) * self.gamma + self.beta
        return normal if self.last else normal.movedim(-1, 1)


class Fixed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.running_mean[:, None, None]) * (self.running_var + 1e-5).rsqrt()[:, None, None]


class ChannelsLast(nn.Module):
    """The second norm stands behind the first, so that only waves find its moments in one sweep."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.own1 = nn.Conv2d(3, 6, 3), Own(6)
        self.conv2, self.bn = nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
        self.linear, self.own2 = nn.Linear(5, 4), Own(4, last=True)

    def forward(self, values: Tensor) -> Tensor:
        values = torch.relu(self.bn(self.conv2(torch.relu(self.own1(self.conv1(values))))))
        return self.own2(self.linear(values.permute(0, 2, 3, 1)))


def _net() -> ChannelsLast:
    torch.manual_seed(0)
    return ChannelsLast().eval()


def _inputs(model: nn.Module, name: str, axis: int, data: Tensor) -> np.ndarray:
    """What a layer is given when all data is one batch, in float64 and with channels last."""
    seen: list[Tensor] = []
    model = copy.deepcopy(model).double()
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(data.double())
    handle.remove()
    return seen[0].movedim(axis, -1).numpy()


@pytest.mark.parametrize("memory", [None, 600_000])
def test_stored_moments_are_those_of_the_layers_inputs(memory: int | None) -> None:
    model, data = _net(), images((SAMPLES,))[0]
    report = bncheck.recalibrate(model, data.split(5), samples=SAMPLES, memory=memory).report
    assert list(report.layers) == ["own1", "bn", "own2"], "in the order of execution"
    assert not report.unreached
    assert report.residual is not None
    assert report.residual <= 1e-6
    for name, axis, mean, var in (
        ("own1", 1, model.own1.running_mean, model.own1.running_var),
        ("bn", 1, model.bn.running_mean, model.bn.running_var),
        ("own2", -1, model.own2.running_mean, model.own2.running_var),
    ):
        given = _inputs(model, name, axis, data)
        error = given.mean((1, 2)).std(0, ddof=1) / np.sqrt(SAMPLES)
        np.testing.assert_allclose(mean.numpy(), given.mean((0, 1, 2)), atol=2e-6)
        np.testing.assert_allclose(var.numpy(), given.var((0, 1, 2)) + error**2, rtol=1e-5)


def test_no_hook_is_left_and_undo_puts_everything_back() -> None:
    model = _net()
    before = copy.deepcopy(model.state_dict())
    done = bncheck.recalibrate(model, images((SAMPLES,))[0].split(16), samples=SAMPLES)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    done.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_without_parameters_is_taken_for_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Fixed(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    report = bncheck.recalibrate(model, images((SAMPLES,))[0].split(16), samples=SAMPLES).report
    assert list(report.layers) == ["3"]
    assert report.not_estimated == {"1": "Fixed has no parameters, as frozen layers have"}
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_one_that_always_uses_the_batch_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Own(4, always_batch=True)).eval()
    with pytest.raises(BadModel, match="1 normalises with the moments of its batch"):
        bncheck.recalibrate(model, images((SAMPLES,))[0].split(16), samples=SAMPLES)


def test_the_command_writes_them(tmp_path: Path) -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    classes = source[source.index("class Own") : source.index("class Fixed")]
    classes += source[source.index("class ChannelsLast") : source.index("def _net")]
    (tmp_path / "net.py").write_text(
        f"import torch\nfrom torch import Tensor, nn\n\n\n{classes}\n\n"
        "def loader():\n    return torch.randn(48, 3, 9, 9, generator=torch.Generator().manual_seed(1)).split(16)\n"
    )
    torch.save(_net().state_dict(), tmp_path / "model.pt")
    finished = command(
        "recalibrate", "model.pt", "--model", "net.py:ChannelsLast", "--data", "net.py:loader", "-o", "fixed.pt",
        cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    before, after = torch.load(tmp_path / "model.pt"), torch.load(tmp_path / "fixed.pt")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        "own1.running_mean", "own1.running_var", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
        "own2.running_mean", "own2.running_var",
    }  # fmt: skip
