"""The exact estimate beside float64 brute force over the whole calibration set at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bncheck.core.errors import BadData, BadModel, UserCodeFailed
from bncheck.core.estimate import Estimate
from bncheck.core.estimation_method import Method
from bncheck.recalibration.schedule import Plan, estimate
from bncheck.runtime.batches import Batch, forward
from bncheck.runtime.norm_watch import running_means, running_variances
from tests.recalibration.networks import (
    Branching,
    Plain,
    Residual,
    Reused,
    UnusedHead,
    brute_force,
    built,
    errors,
    images,
)

SIZES = (4, 7, 1, 16, 5, 32, 8)
TOLERANCE = 1e-6


def recalibrated(model: nn.Module, batches: Sequence[Tensor], plan: Plan | None = None) -> Estimate:
    """Estimate all layers from all batches."""
    samples = sum(len(batch) for batch in batches)
    return estimate(
        model,
        [Batch((batch,), None, len(batch)) for batch in batches],
        forward,
        running_means(model),
        running_variances(model),
        plan or Plan(samples=samples),
    )


def eager(model: nn.Module) -> nn.Module:
    return model


def scripted(model: nn.Module) -> nn.Module:
    return torch.jit.script(model)  # type: ignore[no-any-return]


def traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model, images([2])[0])  # type: ignore[no-any-return, no-untyped-call]


def exported(model: nn.Module) -> nn.Module:
    samples = torch.export.Dim("samples")
    return torch.export.export(model, (images([4])[0],), dynamic_shapes={"x": {0: samples}}).module()


@pytest.mark.parametrize("packed", [eager, scripted, traced, exported])
@pytest.mark.parametrize("kind", [Plain, Residual])
def test_agrees_with_brute_force_in_one_pass(
    kind: Callable[[], nn.Module], packed: Callable[[nn.Module], nn.Module]
) -> None:
    batches = images(SIZES)
    reference = brute_force(built(kind), batches)
    model = packed(built(kind))
    found = recalibrated(model, batches)
    mean_error, var_error = errors(model, reference)
    assert mean_error < TOLERANCE
    assert var_error < TOLERANCE
    assert (found.sweeps, found.waves, found.residual, found.why_inexact) == (1, 1, 0.0, None)
    assert found.samples == sum(SIZES)
    assert found.layers.keys() == reference.keys()


def test_update_bn_is_off_by_percents_where_this_is_exact() -> None:
    """It averages batch variances: what lies between the batches is lost, and unequal batches weigh alike."""
    batches = images(SIZES)
    reference = brute_force(built(Residual), batches)
    theirs, ours = built(Residual), built(Residual)
    update_bn(batches, theirs)
    recalibrated(ours, batches)
    assert min(errors(theirs, reference)) > 0.03
    assert max(errors(ours, reference)) < TOLERANCE


def test_a_large_mean_costs_no_precision() -> None:
    """E[x²] − μ² in float32, the usual one-pass formula, gives negative variances here."""
    torch.manual_seed(0)
    batches = [1000 + 0.1 * torch.randn(16, 3, 8, 8) for _ in range(4)]
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    found = recalibrated(model, batches)
    values = torch.cat(batches).double().transpose(0, 1).flatten(1)
    naive = (values.float() ** 2).mean(1) - values.float().mean(1) ** 2
    truth = values.var(1, correction=0)
    assert float((naive / truth - 1).abs().max()) > 1
    layer = found.layers["0"]
    assert abs(layer.data.var / truth.numpy() - 1).max() < 1e-6
    assert (abs(layer.after_mean - values.mean(1).numpy()) / truth.sqrt().numpy()).max() < 1e-6


def test_several_waves_reach_the_same_fixed_point() -> None:
    batches = images(SIZES * 2)
    reference = brute_force(built(Residual), batches)
    model = built(Residual)
    found = recalibrated(model, batches, Plan(samples=2 * sum(SIZES), memory=200_000, pass_samples=8))
    assert found.waves > 3
    assert found.sweeps > 2
    assert found.residual is not None
    assert found.residual <= TOLERANCE
    assert max(errors(model, reference)) < 3 * TOLERANCE


def test_calls_of_a_reused_layer_are_pooled() -> None:
    batches = images((8, 8, 16))
    reference = brute_force(built(Reused), batches, sweeps=60)
    model = built(Reused)
    found = recalibrated(model, batches)
    assert max(errors(model, reference)) < 3 * TOLERANCE
    assert found.sweeps > 2
    assert found.layers["bn"].data.images == 3 * 32


def test_ways_through_the_network_may_differ_from_batch_to_batch() -> None:
    dark, bright = [batch - 3 for batch in images((8, 8))], [batch + 3 for batch in images((8, 16), seed=2)]
    model = built(Branching)
    found = recalibrated(model, [dark[0], bright[0], dark[1], bright[1]], Plan(samples=40, pass_samples=1))
    assert {name: layer.data.images for name, layer in found.layers.items()} == {"bn1": 24, "bn2": 16, "bn3": 40}
    alone = built(Branching)
    with torch.no_grad():
        first = torch.cat([alone.conv2(batch) for batch in dark]).double()
    torch.testing.assert_close(
        torch.from_numpy(found.layers["bn2"].data.mean), first.mean((0, 2, 3)), rtol=1e-6, atol=1e-6
    )
    assert found.residual is not None
    assert found.residual <= TOLERANCE


def test_images_of_different_sizes_weigh_by_their_positions() -> None:
    batches = [images([8], side=side)[0] for side in (6, 10, 14)]
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    found = recalibrated(model, batches)
    values = torch.cat([batch.double().transpose(0, 1).flatten(1) for batch in batches], dim=1)
    assert abs(found.layers["0"].data.mean - values.mean(1).numpy()).max() < 1e-6
    assert abs(found.layers["0"].data.var / values.var(1, correction=0).numpy() - 1).max() < 1e-6


def test_layers_without_samples_stay_and_are_told() -> None:
    model = built(UnusedHead)
    before = {name: value.clone() for name, value in model.named_buffers()}
    found = recalibrated(model, images((8, 8)))
    assert found.unreached == ("auxiliary",)
    after = dict(model.named_buffers())
    assert torch.equal(after["auxiliary.running_mean"], before["auxiliary.running_mean"])
    assert torch.equal(after["auxiliary.running_var"], before["auxiliary.running_var"])


def test_only_the_layers_named_are_estimated() -> None:
    model = built(Plain)
    before = {name: value.clone() for name, value in model.named_buffers()}
    batches = [Batch((batch,), None, len(batch)) for batch in images((8, 8))]
    means = {"bn2": running_means(model)["bn2"]}
    found = estimate(model, batches, forward, means, running_variances(model), Plan(samples=16))
    assert list(found.layers) == ["bn2"]
    changed = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {"bn2.running_mean", "bn2.running_var"}


@pytest.mark.parametrize("method", list(Method))
def test_nothing_but_the_moments_changes(method: Method) -> None:
    model = built(Plain)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    recalibrated(model, images((8, 8)), Plan(method, samples=16))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"bn{index}.running_{moment}" for index in (1, 2, 3) for moment in ("mean", "var")}
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_networks(dtype: torch.dtype) -> None:
    batches = images(SIZES)
    reference = brute_force(built(Plain), batches)
    model = built(Plain).to(dtype)
    found = recalibrated(model, [batch.to(dtype) for batch in batches])
    assert max(errors(model, reference)) < 0.05
    assert found.layers["bn1"].after_mean.dtype == "float64"


def test_autocast_holds_in_the_passes_too() -> None:
    seen: list[torch.dtype] = []
    model = built(Plain)
    model.bn3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        recalibrated(model, images((8,)))
    assert set(seen) == {torch.bfloat16}


def test_the_same_samples_give_the_same_bytes() -> None:
    first, second = built(Residual), built(Residual)
    for model in (first, second):
        recalibrated(model, images(SIZES))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_batch_moments_are_pooled_as_they_should_be() -> None:
    """With batches as in training; the variance between them is not lost."""
    batches = images((16, 16, 8))
    model = built(Plain)
    found = recalibrated(model, batches, Plan(Method.BATCH, samples=40))
    with torch.no_grad():
        first = torch.cat([built(Plain).conv1(batch) for batch in batches]).double()
    torch.testing.assert_close(
        torch.from_numpy(found.layers["bn1"].data.var), first.var((0, 2, 3), correction=0), rtol=1e-5, atol=0
    )
    assert found.residual is None


def test_online_tells_how_far_it_is_from_the_fixed_point() -> None:
    model = built(Residual)
    found = recalibrated(model, images(SIZES), Plan(Method.ONLINE, samples=sum(SIZES), memory=200_000, pass_samples=8))
    assert found.residual is not None
    assert found.residual > 1e-3
    assert found.residual_in_errors is not None
    assert 0 < found.residual_in_errors < 5
    exact = built(Residual)
    recalibrated(exact, images(SIZES))
    moved = [
        float((dict(exact.named_buffers())[name] - value).abs().max())
        for name, value in model.named_buffers()
        if name.endswith("running_mean")
    ]
    assert max(moved) > 1e-3


def _passes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bncheck-pass"]


class _Fails(Plain):
    """On the batch that holds a 7, behind the second layer."""

    stop: type[BaseException] = RuntimeError

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        if bool((x == 7).any()):
            raise self.stop("the seventh")
        try:
            out: Tensor = self.bn3(self.fc(self.bn2(self.conv2(y)).mean((2, 3))))
        except Exception:  # what users write around what they do not understand
            return y
        return out


@pytest.mark.parametrize(("stop", "expected"), [(RuntimeError, UserCodeFailed), (KeyboardInterrupt, KeyboardInterrupt)])
def test_no_thread_outlives_a_failure(stop: type[BaseException], expected: type[BaseException]) -> None:
    model = built(_Fails)
    model.stop = stop  # type: ignore[assignment]
    batches = images((4, 4, 4))
    batches[1][0] = 7
    with pytest.raises(expected):
        recalibrated(model, batches, Plan(samples=12, pass_samples=4))
    assert not _passes()


def test_values_that_are_not_finite_are_refused_at_the_first_layer_that_gets_them() -> None:
    model = built(Plain)
    with torch.no_grad():
        model.conv2.weight[3] = float("inf")  # type: ignore[index, union-attr]
    with pytest.raises(BadData, match="bn2 is given values that are not finite"):
        recalibrated(model, images((8, 8)))


def test_a_graph_that_uses_the_batch_is_refused() -> None:
    model = torch.jit.trace(built(Plain).train(), images([4])[0], check_trace=False)  # type: ignore[no-untyped-call]
    with pytest.raises(BadModel, match="bn1 normalises with the moments of its batch"):
        recalibrated(model.eval(), images((8, 8)))


def test_no_data() -> None:
    with pytest.raises(BadData, match="empty"):
        recalibrated(built(Plain), [], Plan(samples=8))
