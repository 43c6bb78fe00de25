"""Every normalisation is seen, whatever made it, with the right layer and mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from bncheck.runtime.batch_moments import BatchMoments
from bncheck.runtime.norm_watch import NormCall, NormWatch, running_means

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class OwnBatchNorm(nn.BatchNorm2d):
    """A subclass."""


class Functional(nn.Module):
    """Plain buffers and ``torch.nn.functional``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(values, self.running_mean, self.running_var, None, None, self.training, 0.1, 1e-3)


class Net(nn.Module):
    """Norms of every make, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.first = nn.BatchNorm2d(4)
        self.own = OwnBatchNorm(4)
        self.plain = Functional()
        self.instance = nn.InstanceNorm2d(4)
        self.sync = nn.SyncBatchNorm(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.first(self.conv(images))
        values = self.plain(self.own(values))
        values = self.instance(values)
        return self.sync(self.first(values))


def _scripted(model: nn.Module) -> nn.Module:
    return torch.jit.script(model)


def _traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model, IMAGES, check_trace=False)


def _exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model, (IMAGES,)).module()


MAKES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "eager": lambda model: model,
    "traced": _traced,
    "exported": _exported,
}


def _calls(model: nn.Module, images: torch.Tensor = IMAGES, runs: int = 1) -> list[NormCall]:
    seen: list[NormCall] = []
    with torch.no_grad(), NormWatch(running_means(model), seen.append):
        for _ in range(runs):
            model(images)
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKES)
def test_all_layers_are_seen_in_order(make: str) -> None:
    model = MAKES[make](Net().eval())
    calls = [call for call in _calls(model) if call.layer is not None]
    assert [call.layer for call in calls] == ["first", "own", "plain", "first", "sync"]
    assert not any(call.uses_batch_moments for call in calls)
    assert [call.eps for call in calls] == [1e-5, 1e-5, 1e-3, 1e-5, 1e-5]
    assert {tuple(call.input.shape) for call in calls} == {(6, 4, 6, 6)}


def test_scripted_code_is_seen_in_every_stage_of_its_optimiser() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))
    model.eval()
    assert [call.layer for call in _calls(model, runs=4)] == ["1", "3"] * 4


@pytest.mark.filterwarnings("ignore")
def test_a_graph_traced_in_training_mode_is_seen_to_use_batch_moments() -> None:
    layers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))]
    model = torch.jit.trace(layers[0].train(), IMAGES, check_trace=False).eval()
    assert [call.uses_batch_moments for call in _calls(model, runs=3)] == [True] * 6


def test_training_mode_is_seen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert [call.uses_batch_moments for call in _calls(model)] == [True]


def test_layers_without_buffers_have_no_name() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    (call,) = _calls(model)
    assert call.layer is None
    assert call.uses_batch_moments


def test_autocast_and_double_are_seen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [call.layer for call in _calls(model)] == ["1"]
    assert [call.input.dtype for call in _calls(model.double(), IMAGES.double())] == [torch.float64]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKES)
def test_batch_moments_give_what_training_mode_gives_and_write_nothing(make: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        for _ in range(5):
            net(torch.randn(8, 3, 8, 8) * 3 + 1)
        reference = nn.Sequential(net[0], net[1], nn.Identity(), net[3], net[4]).train()
        expected = reference(IMAGES)
    net.eval()
    model = MAKES[make](net)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad(), BatchMoments(running_means(model).values()):
        found = model(IMAGES)
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
