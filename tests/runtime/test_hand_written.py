"""Layers that normalise without a batch-norm operator are seen, told apart and measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.probe.evaluation import Evaluation, evaluate
from bncheck.runtime.batch_moments import BatchMoments
from bncheck.runtime.batches import Batch, DataOptions, batches, forward
from bncheck.runtime.hand_written import hookable
from bncheck.runtime.norm_watch import NormCall, NormWatch, running_means
from bncheck.runtime.unchanged import unchanged

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(24, 3, 8, 8, generator=GENERATOR)


class Frozen(nn.Module):
    """As torchvision and detection toolboxes write it: everything a buffer, eps in the forward function or outside."""

    def __init__(self, channels: int, eps: float | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", 1 + 0.1 * torch.arange(channels))
        self.register_buffer("bias", 0.3 * torch.arange(channels))
        self.register_buffer("running_mean", torch.linspace(-1, 1, channels))
        self.register_buffer("running_var", torch.linspace(0.001, 2, channels))
        if eps is not None:
            self.eps = eps

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + getattr(self, "eps", 1e-3)).rsqrt()
        shift = self.bias - self.running_mean * scale
        return values * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Own(nn.Module):
    """A batch norm as people write it, with ``gamma`` and ``beta``; it updates its moments in training mode."""

    def __init__(self, channels: int, *, always_batch: bool = False, unbiased: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, channels))
        self.beta = nn.Parameter(torch.linspace(-1, 1, channels))
        self.register_buffer("running_mean", torch.linspace(-1, 1, channels))
        self.register_buffer("running_var", torch.linspace(0.5, 2, channels))
        self.always_batch = always_batch
        self.unbiased = unbiased

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training or self.always_batch:
            mean, var = values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=self.unbiased)
        if self.training:
            with torch.no_grad():
                self.running_mean += 0.1 * (mean - self.running_mean)
                self.running_var += 0.1 * (var - self.running_var)
        normal = (values - mean[None, :, None, None]) / torch.sqrt(var[None, :, None, None] + 1e-5)
        return normal * self.gamma[None, :, None, None] + self.beta[None, :, None, None]


class ChannelsLast(nn.Module):
    """Normalises the last dimension of (N, positions, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("moving_mean", torch.linspace(-1, 1, channels))
        self.register_buffer("moving_variance", torch.linspace(0.5, 2, channels))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values - self.moving_mean) / torch.sqrt(self.moving_variance + 1e-3)


class Activated(Frozen):
    """With its activation in it: neither of the two normalisations."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values).tanh()


class Net(nn.Module):
    """A convolution, the layer, and a prediction."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = norm
        self.head = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def _calls(model: nn.Module, images: torch.Tensor = IMAGES) -> list[NormCall]:
    seen: list[NormCall] = []
    with torch.no_grad(), NormWatch(running_means(model), seen.append, model):
        model(images)
    return seen


@pytest.mark.parametrize(
    ("norm", "eps", "uses_batch_moments"),
    [
        (Frozen(6), 1e-3, False),
        (Frozen(6, eps=1e-4), 1e-4, False),
        (Own(6), 1e-5, False),
        (Own(6, always_batch=True), 1e-5, True),
        (Own(6, always_batch=True, unbiased=True), 1e-5, True),
    ],
    ids=["eps inside", "eps outside", "own", "own with the batch's", "own with the batch's unbiased"],
)
def test_what_it_computes_is_told_by_its_output(norm: nn.Module, eps: float, uses_batch_moments: bool) -> None:
    model = Net(norm).eval()
    (call,) = _calls(model)
    assert call.layer == "norm"
    assert call.unknown is None
    assert call.eps == eps
    assert call.uses_batch_moments is uses_batch_moments
    torch.testing.assert_close(call.input, model.conv(IMAGES).detach())


def test_half_precision_is_told_too() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        (call,) = _calls(Net(Frozen(6)).to(dtype).eval(), IMAGES.to(dtype))
        assert call.unknown is None
        assert not call.uses_batch_moments


def test_channels_may_come_last() -> None:
    values = torch.randn(8, 5, 7, generator=GENERATOR)
    (call,) = _calls(ChannelsLast(7), values)
    assert call.eps == 1e-3
    torch.testing.assert_close(call.input, values.movedim(-1, 1))


def test_training_mode_is_told_by_the_output() -> None:
    model = Net(Own(6)).train()
    with unchanged(model):
        (call,) = _calls(model)
    assert call.uses_batch_moments


def test_what_is_neither_is_not_guessed() -> None:
    (call,) = _calls(Net(Activated(6)).eval())
    assert call.unknown is not None
    assert "Activated" in call.unknown


def test_torchs_own_layers_and_subclasses_are_told_once() -> None:
    class Subclass(nn.BatchNorm2d):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return super().forward(values) * 2

    model = nn.Sequential(nn.BatchNorm2d(3), Subclass(3)).eval()
    calls = _calls(model)
    assert [call.layer for call in calls] == ["0", "1"]
    assert {call.operator for call in calls} == {"aten::native_batch_norm"}
    assert list(hookable(model)) == ["1"]


def test_an_instance_norm_runs_and_its_moments_are_not_compared() -> None:
    calls = _calls(nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)).eval())
    (call,) = (call for call in calls if call.layer is not None)
    assert call.layer == "0"
    assert call.per_sample
    assert call.unknown is not None


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class _Interrupted(Frozen):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize("enter", [NormWatch, BatchMoments], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("norm", [Frozen(6), _Interrupted(6), Activated(6)], ids=lambda norm: type(norm).__name__)
def test_hooks_are_gone_on_every_way_out(enter: type, norm: nn.Module) -> None:
    model = Net(norm).eval()
    mean = running_means(model)
    (call,) = _calls(Net(Frozen(6)))
    mode = (
        NormWatch(mean, lambda call: None, model)
        if enter is NormWatch
        else BatchMoments(mean.values(), [(model.norm, call.form)])
    )
    with unchanged(model):
        try:
            with torch.no_grad(), mode:
                assert _hooks(model) > 0
                model(IMAGES)
        except KeyboardInterrupt:
            pass
        assert _hooks(model) == 0


def test_a_model_that_catches_its_layers_error_is_watched_on() -> None:
    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.broken = Activated(6)
            self.sound = Frozen(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with suppress(RuntimeError):
                self.broken(images)
            return self.sound(images)

    sound, broken = _calls(Catches())
    assert (sound.layer, sound.unknown) == ("sound", None)
    assert broken.layer == "broken"
    assert broken.unknown is not None


# --- measured ----------------------------------------------------------------------------------------------


def _evaluated(model: nn.Module, frozen: frozenset[str] = frozenset()) -> Evaluation:
    data = batches([IMAGES[:12], IMAGES[12:]], DataOptions())
    with unchanged(model):
        return evaluate(model.eval(), data, forward, frozen=frozen)


def test_drift_is_measured_as_of_torchs_own() -> None:
    own = Net(Own(6))
    same = Net(nn.BatchNorm2d(6))
    same.load_state_dict(
        {name.replace("gamma", "weight").replace("beta", "bias"): value for name, value in own.state_dict().items()}
        | {"norm.num_batches_tracked": torch.tensor(7)}
    )
    left, right = _evaluated(own), _evaluated(same)
    one, other = left.layers["norm"], right.layers["norm"]
    assert (one.order, one.calls, one.eps) == (other.order, other.calls, other.eps)
    np.testing.assert_allclose(one.moments.mean, other.moments.mean, rtol=1e-12)
    np.testing.assert_allclose(one.moments.var_error, other.moments.var_error, rtol=1e-12)
    np.testing.assert_array_equal(one.stored_var, other.stored_var)
    assert left.gap is not None
    assert left.gap.output_change == pytest.approx(right.gap.output_change, rel=1e-4)
    assert left.gap.output_change > 0.05


def test_frozen_layers_have_no_part_in_the_gap() -> None:
    found = _evaluated(Net(Frozen(6)), frozenset({"norm"}))
    assert found.gap is None
    assert "but frozen ones" in found.why_no_gap
    assert found.layers["norm"].moments is not None


def test_a_layer_that_is_not_understood_is_reached_and_not_judged() -> None:
    found = _evaluated(Net(Activated(6)))
    assert found.layers["norm"].order == 0
    assert found.layers["norm"].moments is None
    assert "Activated" in found.layers["norm"].unknown
    assert found.gap is None
    assert found.why_no_gap.startswith("norm: Activated")


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, IMAGES)])
def test_in_a_graph_no_more_is_known_than_that_it_runs(make: Callable[[nn.Module], nn.Module]) -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__(nn.BatchNorm2d(6))
            self.frozen = _Scriptable(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.conv(self.frozen(images))).relu().mean((2, 3)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(Two().eval())
    found = _evaluated(model)
    assert found.layers["norm"].unknown is None
    assert found.layers["frozen"].order is not None
    assert "other operators" in found.layers["frozen"].unknown


class _Scriptable(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.linspace(-1, 1, channels))
        self.register_buffer("running_var", torch.linspace(0.5, 2, channels))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        scale = (self.running_var + 1e-5).rsqrt().reshape(1, -1, 1, 1)
        return (values - self.running_mean.reshape(1, -1, 1, 1)) * scale


def test_a_layer_that_never_runs_stays_unreached() -> None:
    class Idle(Net):
        def __init__(self) -> None:
            super().__init__(Frozen(6))
            self.idle = Frozen(6)

    assert _evaluated(Idle()).layers["idle"].order is None


def test_a_batch_that_fails_leaves_nothing_of_itself() -> None:
    """The second batch raises behind the layer: its input has been seen, and does not count."""
    model = Net(nn.BatchNorm2d(6))
    calls: list[int] = []

    def fails_later(model: nn.Module, batch: Batch) -> object:
        output = forward(model, batch)
        calls.append(batch.size)
        if len(calls) > 2:
            forward(model, Batch(("no images",), None, batch.size))
        return output

    data = batches([IMAGES[:12], IMAGES[12:]], DataOptions())
    found = evaluate(model.eval(), data, fails_later)
    assert found.stopped is not None
    assert found.samples == 12
    assert found.layers["norm"].moments.images == 12
