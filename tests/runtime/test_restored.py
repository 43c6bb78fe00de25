"""Whatever a training step does to a model, all of it is put back, bit for bit, on every way out."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from bncheck.core.errors import TraceLeft
from bncheck.runtime.restored import WholeState, restored

IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Mixed modes, a parametrised layer, a gradient from before, a NaN and a fixed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4).eval()
        self.drop = nn.Dropout(0.5)
        self.head = parametrizations.spectral_norm(nn.Linear(4, 2))
        self.seen = 0
        self.losses: list[float] = []
        self.cache: dict[str, int] = {"size": 1}
        self.conv.bias.requires_grad_(False)
        self.conv.weight.grad = torch.ones_like(self.conv.weight)
        with torch.no_grad():
            self.head.bias[0] = float("nan")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.losses.append(0.5)
        self.cache["last"] = len(images)
        return self.head(self.drop(self.bn(self.conv(images))).mean((2, 3)))


def _state(net: nn.Module) -> dict[str, object]:
    """Everything there is to see, copied."""
    return {
        "objects": [id(tensor) for tensor in (*net.parameters(), *net.buffers())],
        "places": [tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())],
        "bits": {name: tensor.detach().numpy().tobytes() for name, tensor in net.state_dict().items()},
        "learns": [parameter.requires_grad for parameter in net.parameters()],
        "grads": [None if p.grad is None else p.grad.numpy().tobytes() for p in net.parameters()],
        "modes": [(name, module.training, type(module)) for name, module in net.named_modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()],
        "own": copy.deepcopy((net.seen, net.losses, net.cache)),
        "grad mode": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.random.get_state()[1].tobytes(),
        "python": random.getstate(),
    }


def _train(net: nn.Module) -> None:
    """What training steps do, and what they should rather not."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(IMAGES).nan_to_num().square().sum().backward()
    optimizer.step()
    net.conv.weight.data = net.conv.weight.data * 2
    net.head.requires_grad_(False)
    net.conv.bias.requires_grad_(True)
    net.bn.running_mean = torch.ones(4)
    net.drop = nn.Identity()
    net.extra = nn.Linear(2, 2)
    del net.cache
    net.register_forward_hook(lambda *_: None)
    net.zero_grad(set_to_none=True)
    torch.set_grad_enabled(False)
    random.random()
    np.random.rand(3)


@pytest.mark.parametrize("error", [None, ValueError("theirs"), KeyboardInterrupt()], ids=str)
def test_everything_is_put_back(error: BaseException | None) -> None:
    net = Net()
    before = _state(net)
    with contextlib.suppress(ValueError, KeyboardInterrupt), restored(net) as state:
        _train(net)
        assert state.changed_parameters() > 0
        assert "bn.running_mean" in state.mutated_buffers()
        if error is not None:
            raise error
    assert _state(net) == before


def test_weights_that_a_step_leaves_alone_count_as_unchanged() -> None:
    net = Net().eval()
    with restored(net) as state:
        net(IMAGES)
        assert state.changed_parameters() == 0
        assert state.mutated_buffers() == []


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: net], ids=["scripted", "eager"])
def test_scripted_modules_too(make: Callable[[nn.Module], nn.Module]) -> None:
    net = make(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with restored(net) as state:
        net.train()
        net(IMAGES).sum().backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        assert state.changed_parameters() > 1
    assert not any(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_what_cannot_be_put_back_is_told() -> None:
    net = nn.Linear(2, 2)

    def spoil(state: WholeState) -> None:
        state.restore = lambda: None  # type: ignore[method-assign]
        net.weight.data.add_(1)

    with pytest.raises(TraceLeft, match="training could not be undone: parameter weight"), restored(net) as state:
        spoil(state)
