"""Running leaves no trace: what was touched is put back on every way out, and what cannot be is told."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.core.errors import TraceLeft
from bncheck.runtime.unchanged import Snapshot, unchanged

IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def _net() -> nn.Module:
    """Mixed modes: a frozen layer beside one in training."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4))
    net[1].eval()
    return net


def _state(net: nn.Module) -> dict[str, object]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "modes": [module.training for module in net.modules()],
        "grad": torch.is_grad_enabled(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }


def _assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    assert before["modes"] == after["modes"]
    assert before["grad"] == after["grad"]
    assert before["python"] == after["python"]
    assert np.array_equal(before["numpy"], after["numpy"])
    assert torch.equal(before["torch"], after["torch"])
    for name, tensor in before["tensors"].items():
        torch.testing.assert_close(after["tensors"][name], tensor, rtol=0, atol=0, equal_nan=True)


def _disturb(net: nn.Module) -> None:
    torch.set_grad_enabled(False)
    net.train()
    net(IMAGES)
    random.random()
    np.random.rand(3)
    torch.randn(3)


def _raise(error: BaseException) -> Callable[[nn.Module], None]:
    def disturb(net: nn.Module) -> None:
        _disturb(net)
        raise error

    return disturb


@pytest.mark.parametrize("error", [None, ValueError("theirs"), KeyboardInterrupt()], ids=str)
def test_all_is_put_back_on_every_way_out(error: BaseException | None) -> None:
    net = _net()
    before = _state(net)
    if error is None:
        with unchanged(net):
            _disturb(net)
    else:
        with pytest.raises(type(error)), unchanged(net):
            _raise(error)(net)
    _assert_same(before, _state(net))


def test_nan_buffers_are_put_back_too() -> None:
    net = _net()
    net[1].running_mean.fill_(float("nan"))
    before = _state(net)
    with unchanged(net) as snapshot:
        assert snapshot.mutated_buffers() == []
        net[1].running_mean.zero_()
        assert snapshot.mutated_buffers() == ["1.running_mean"]
    _assert_same(before, _state(net))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda net: net[0].weight.data.add_(1.0), "parameter 0.weight"),
        (lambda net: net[0].register_forward_hook(lambda *_: None), "hooks of 0"),
        (lambda net: net.append(nn.ReLU()), "the set of modules"),
        (lambda net: net(IMAGES).sum().backward(), "parameter"),
    ],
)
def test_what_cannot_be_put_back_is_told(change: Callable[[nn.Module], object], told: str) -> None:
    net = _net()
    with pytest.raises(TraceLeft, match=told), unchanged(net):
        change(net)


def test_a_large_model_is_not_copied() -> None:
    net = nn.Linear(4096, 4096)
    snapshot = Snapshot(net)
    assert not any(tensor.numel() > 4096 for pair in snapshot._buffers.values() for tensor in pair)
