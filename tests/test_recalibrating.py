"""``bncheck.recalibrate`` on modules in memory: in training loops, after averaging, and back again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

import bncheck
from bncheck.core.errors import BadData, BadModel, BncheckError, UserCodeFailed
from tests.recalibration.networks import Plain, Residual, UnusedHead, brute_force, built, errors, images


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_in_place_in_a_training_loop() -> None:
    """Modes, gradients, weights and the generator stay; some layers may be in eval mode while the rest trains."""
    model = built(Plain).train()
    model.bn2.eval()  # type: ignore[operator, union-attr]
    model(images([8])[0]).sum().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    weights = {name: value.clone() for name, value in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    batches = images((8, 16, 4))
    reference = brute_force(built(Plain), batches)
    generator = torch.get_rng_state()
    found = bncheck.recalibrate(model, batches)
    assert max(errors(model, reference)) < 1e-6
    assert found.report.samples == 28
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert all(torch.equal(dict(model.named_parameters())[name].grad, value) for name, value in gradients.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()


def test_undo_puts_everything_back() -> None:
    model = built(Residual)
    before = _snapshot(model)
    found = bncheck.recalibrate(model, images((8, 8)))
    assert not _same(model, before)
    found.undo()
    assert _same(model, before)


def test_after_averaging_of_weights() -> None:
    """Where update_bn is off by percents: unequal batches, and what lies between them."""
    averaged = AveragedModel(built(Residual))
    averaged.update_parameters(built(Residual, seed=1))
    batches = images((16, 16, 3))
    reference = {f"module.{name}": moments for name, moments in brute_force(_copy(averaged), batches).items()}
    theirs = AveragedModel(built(Residual))
    theirs.update_parameters(built(Residual, seed=1))
    update_bn(batches, theirs)
    bncheck.recalibrate(averaged, batches)
    assert max(errors(averaged, reference)) < 1e-6
    assert min(errors(theirs, reference)) > 0.03


def _copy(averaged: AveragedModel) -> nn.Module:
    copy = built(Residual)
    copy.load_state_dict(averaged.module.state_dict())
    return copy


def test_batches_of_any_form() -> None:
    class Named(Plain):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return super().forward(pixel_values)

    plain, named = built(Plain), built(Named)
    batches = images((8, 8))
    bncheck.recalibrate(plain, [(batch, torch.zeros(8)) for batch in batches])
    bncheck.recalibrate(
        named,
        [{"pixels": batch} for batch in batches],
        input_key="pixels",
        forward=lambda model, inputs: model(pixel_values=inputs),
    )
    assert _same(named, _snapshot(plain))


def test_metric_before_and_after() -> None:
    model = built(Plain)
    found = bncheck.recalibrate(model, images((8,)), evaluate=lambda network: float(network.bn1.running_mean[0]))
    assert found.metric is not None
    assert found.metric.before != found.metric.after
    assert found.metric.after == pytest.approx(float(model.bn1.running_mean[0]))  # type: ignore[index, union-attr, arg-type]


def test_a_momentum_that_averages_goes_on_from_the_estimate() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    bncheck.recalibrate(model, images((32, 32)))
    assert int(model[0].num_batches_tracked) == 4  # 64 samples are worth four batches of the size assumed


def _failing() -> Iterator[Tensor]:
    yield images([8])[0]
    raise OSError("gone")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_failing, UserCodeFailed),
        (lambda: [], BadData),
        (lambda: [torch.full((4, 3, 8, 8), float("inf"))], BadData),
        (lambda: [torch.zeros(4, 9, 8, 8)], UserCodeFailed),
        (lambda: 3, BncheckError),
    ],
)
def test_a_failure_leaves_the_module_as_it_was(data: object, expected: type[BncheckError]) -> None:
    model = built(UnusedHead).train()
    before = _snapshot(model)
    with pytest.raises(expected):
        bncheck.recalibrate(model, data())  # type: ignore[operator]
    assert _same(model, before)
    assert all(module.training for module in model.modules())


def test_nothing_to_recalibrate() -> None:
    with pytest.raises(BadModel, match="no layer with running moments"):
        bncheck.recalibrate(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), images((4,)))
    with pytest.raises(BadModel, match="no numbers"):
        bncheck.recalibrate(nn.ReLU(), images((4,)))


def test_frozen_layers_are_left_alone() -> None:
    from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

    frozen = DetrFrozenBatchNorm2d(3)
    frozen.running_mean.fill_(0.5)
    model = nn.Sequential(frozen, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    found = bncheck.recalibrate(model, images((16,)))
    assert list(found.report.layers) == ["2"]
    assert found.report.left_alone == ("0",)
    assert bool((frozen.running_mean == 0.5).all())
