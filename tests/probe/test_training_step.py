"""What one training step does to each layer: real optimizers, real checkpointing, and all of it undone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import batch_norm, cross_entropy
from torch.utils.checkpoint import checkpoint

from bncheck.core.errors import BadModel
from bncheck.core.measurement import LayerStep, TrainingStep
from bncheck.probe.training_step import training_step

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(16, 1, 8, 8, generator=GENERATOR)
LABELS = torch.randint(0, 3, (16,), generator=GENERATOR)
Norm = Callable[[int], nn.Module]


class Net(nn.Module):
    """A stem, a body and a head; ``bn1`` and ``bn2``."""

    def __init__(self, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn1 = norm(4)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.bn2 = norm(4)
        self.head = nn.Linear(4, 3)

    def stem(self, images: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.conv1(images)))

    def body(self, features: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(features)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images)).mean((2, 3)))


class Checkpointed(Net):
    """Its body is computed again on the way back."""

    reentrant = False

    def body(self, features: Tensor) -> Tensor:
        return checkpoint(super().body, features, use_reentrant=self.reentrant)


class Reused(Net):
    """One norm for two places."""

    def body(self, features: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.conv2(features)))


class FrozenBackbone(Net):
    """Its stem stays in eval mode whatever it is told, as detection models do."""

    def train(self, mode: bool = True) -> FrozenBackbone:
        super().train(mode)
        self.bn1.eval()
        return self


class ByHand(nn.Module):
    """Batch norm without a batch-norm operator; it may forget to keep what it measured."""

    def __init__(self, features: int, keeps: bool = True) -> None:
        super().__init__()
        self.keeps = keeps
        self.weight = nn.Parameter(torch.ones(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, values: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            var, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
            if self.keeps:
                with torch.no_grad():
                    self.running_mean.mul_(0.9).add_(0.1 * mean)
                    self.running_var.mul_(0.9).add_(0.1 * var)
        scale = self.weight * (var + 1e-5).rsqrt()
        return (values - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)


class FrozenByHand(ByHand):
    """Stored moments in every mode, and a scale that is a buffer."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        del self.weight
        self.register_buffer("weight", torch.ones(features))

    def forward(self, values: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return (values - self.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)


class FrozenAndActivated(FrozenByHand):
    """With its activation inside, so that its output shows less of what it did."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(super().forward(values))


class Global(nn.BatchNorm2d):
    """Asked to train, it normalises with its stored moments all the same."""

    def forward(self, values: Tensor) -> Tensor:
        return batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, training=False)


def _learn(model: nn.Module, scores: Tensor, labels: Tensor = LABELS) -> None:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    cross_entropy(scores, labels).backward()
    optimizer.step()


def step(model: nn.Module) -> None:
    """The plainest training step."""
    _learn(model, model(IMAGES))


def _measured(model: nn.Module, take: Callable[[nn.Module], object] = step, by_user: bool = True) -> TrainingStep:
    """The step, once it has been seen that nothing is left of it."""
    model.eval()
    before = _state(model)
    found = training_step(model, take, by_user, len(IMAGES))
    assert _state(model) == before
    return found


def _state(model: nn.Module) -> object:
    return (
        {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        torch.get_rng_state().numpy().tobytes(),
    )


def _layer(found: TrainingStep, name: str = "bn2") -> LayerStep:
    return found.layers[name]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, ByHand, partial(nn.BatchNorm2d, affine=False)])
def test_a_plain_step_updates_each_layer_once(norm: Norm) -> None:
    found = _measured(Net(norm))
    assert found.parameters_changed
    assert (found.passes, found.by_user, found.stayed_in_training, found.samples) == (1, True, True, 16)
    assert list(found.layers) == ["bn1", "bn2"]
    for layer, values in zip(found.layers.values(), (16 * 36, 16 * 16), strict=True):
        assert (layer.calls, layer.recomputed, layer.updates, layer.repeated_updates) == (1, 0, 1, 0)
        assert layer.changed
        assert layer.uses_batch_moments is True
        assert layer.training is True
        assert not layer.frozen
        assert layer.values == values


def test_a_forward_pass_in_training_mode_updates_too() -> None:
    found = _measured(Net(), lambda model: model(IMAGES), by_user=False)
    assert found.parameters_changed is None
    assert all(layer.changed and layer.updates == 1 for layer in found.layers.values())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_checkpointing_updates_during_the_backward_pass(reentrant: bool) -> None:
    model = Checkpointed()
    model.reentrant = reentrant
    found = _measured(model)
    again = _layer(found)
    assert (again.calls, again.recomputed, again.updates, again.recomputed_updates) == (1, 1, 2, 1)
    once = _layer(found, "bn1")
    assert (once.calls, once.recomputed, once.updates) == (1, 0, 1)


def test_the_whole_model_checkpointed() -> None:
    found = _measured(Net(), lambda model: _learn(model, checkpoint(model, IMAGES, use_reentrant=False)))
    assert found.passes == 1
    assert all((layer.updates, layer.recomputed_updates) == (2, 1) for layer in found.layers.values())


def test_a_checkpointed_layer_by_hand() -> None:
    layer = _layer(_measured(Checkpointed(ByHand)))
    assert (layer.recomputed, layer.updates, layer.recomputed_updates) == (1, 2, 1)


def test_a_reused_layer_runs_twice_in_one_pass() -> None:
    layer = _layer(_measured(Reused()), "bn1")
    assert (layer.calls, layer.most_in_a_pass, layer.updates, layer.repeated_updates) == (2, 2, 2, 0)


def _looking_first(model: nn.Module) -> None:
    with torch.no_grad():
        model(IMAGES)
    step(model)


def _scoring_after(model: nn.Module) -> None:
    step(model)
    model(IMAGES).argmax(1)


def _with_a_dummy(model: nn.Module) -> None:
    with torch.no_grad():
        model(torch.zeros(2, 1, 8, 8))
    step(model)


@pytest.mark.parametrize("take", [_looking_first, _scoring_after, _with_a_dummy])
def test_a_further_pass_is_a_repetition(take: Callable[[nn.Module], None]) -> None:
    found = _measured(Net(), take)
    assert found.passes == 2
    layer = _layer(found)
    assert (layer.most_in_a_pass, layer.updates, layer.repeated_updates) == (1, 2, 1)


def _accumulating(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in zip(IMAGES.split(4), LABELS.split(4), strict=True):
        (cross_entropy(model(images), labels) / 4).backward()
    optimizer.step()


def _two_views(model: nn.Module) -> None:
    _learn(model, model(IMAGES) + model(IMAGES.flip(3)))


@pytest.mark.parametrize(("take", "passes", "values"), [(_accumulating, 4, 4 * 16), (_two_views, 2, 16 * 16)])
def test_passes_over_other_data_are_no_repetition(take: Callable[[nn.Module], None], passes: int, values: int) -> None:
    found = _measured(Net(), take)
    assert found.passes == passes
    layer = _layer(found)
    assert (layer.updates, layer.repeated_updates, layer.values) == (passes, 0, values)


def test_a_pass_in_eval_mode_updates_nothing() -> None:
    def look_properly(model: nn.Module) -> None:
        step(model)
        model.eval()
        model(IMAGES)
        model.train()

    layer = _layer(_measured(Net(), look_properly))
    assert (layer.calls, layer.updates, layer.repeated_updates) == (2, 1, 0)
    assert not layer.frozen


def test_momentum_zero_runs_the_update_and_changes_nothing() -> None:
    layer = _layer(_measured(Net(partial(nn.BatchNorm2d, momentum=0.0))))
    assert (layer.updates, layer.changed, layer.momentum, layer.uses_batch_moments) == (1, False, 0.0, True)
    assert not layer.frozen


def test_cumulative_averaging_has_no_momentum() -> None:
    layer = _layer(_measured(Net(partial(nn.BatchNorm2d, momentum=None))))
    assert (layer.updates, layer.changed, layer.momentum) == (1, True, None)


def test_layers_without_running_moments_are_not_spoken_of() -> None:
    assert _measured(Net(partial(nn.BatchNorm2d, track_running_stats=False))).layers == {}


def test_a_step_that_ends_in_eval_mode() -> None:
    def forgetting(model: nn.Module) -> None:
        model.eval()
        step(model)

    found = _measured(Net(), forgetting)
    assert not found.stayed_in_training
    layer = _layer(found)
    assert (layer.changed, layer.training, layer.uses_batch_moments, layer.frozen) == (False, False, False, False)


def _freezing(model: nn.Module) -> None:
    model.bn1.eval()
    step(model)


def _with_fixed_scale(model: nn.Module) -> None:
    """All of the model in eval mode, its backbone fixed: a linear probe."""
    model.eval()
    for part in (model.conv1, model.bn1, model.conv2, model.bn2):
        part.requires_grad_(False)
    step(model)


@pytest.mark.parametrize(
    ("model", "take"),
    [
        (FrozenBackbone(), step),
        (Net(), _freezing),
        (Net(), _with_fixed_scale),
        (Net(FrozenByHand), step),
        (Net(FrozenAndActivated), step),
        (Net(Global), step),
    ],
    ids=[
        "overridden train",
        "alone in eval",
        "linear probe",
        "frozen class",
        "with activation",
        "stored moments always",
    ],
)
def test_layers_that_are_meant_to_stay_are_frozen(model: nn.Module, take: Callable[[nn.Module], None]) -> None:
    layer = _layer(_measured(model, take), "bn1")
    assert layer.ran
    assert layer.frozen
    assert not layer.changed
    assert layer.updates == 0


def test_the_other_layers_of_a_frozen_backbone_are_not_frozen() -> None:
    layer = _layer(_measured(FrozenBackbone()))
    assert (layer.frozen, layer.changed) == (False, True)


def test_a_layer_by_hand_that_forgets() -> None:
    layer = _layer(_measured(Net(partial(ByHand, keeps=False))))
    assert (layer.ran, layer.frozen, layer.changed, layer.updates) == (True, False, False, 0)
    assert layer.uses_batch_moments is True


def test_moments_written_to_copies() -> None:
    """As with ``torch.func``, where the buffers that come back are thrown away."""

    def functional(model: nn.Module) -> None:
        state = {name: buffer.clone() for name, buffer in model.named_buffers()}
        _learn(model, functional_call(model, {**dict(model.named_parameters()), **state}, (IMAGES,)))

    found = _measured(Net(), functional)
    assert found.parameters_changed
    layer = _layer(found)
    assert (layer.ran, layer.frozen, layer.changed, layer.uses_batch_moments) == (True, False, False, True)


def test_a_layer_that_the_step_does_not_reach() -> None:
    model = Net()
    model.aux = nn.BatchNorm2d(4)
    layer = _layer(_measured(model), "aux")
    assert not layer.ran
    assert layer == LayerStep(momentum=0.1)


def test_a_step_without_learning_rate_changes_no_weight() -> None:
    def warming_up(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()

    assert _measured(Net(), warming_up).parameters_changed == 0


def test_parts_called_one_by_one() -> None:
    """A step need not call the model itself."""
    found = _measured(Net(), lambda model: _learn(model, model.head(model.body(model.stem(IMAGES)).mean((2, 3)))))
    assert found.passes == 0
    assert all((layer.updates, layer.repeated_updates) == (1, 0) for layer in found.layers.values())


def test_a_scripted_model() -> None:
    found = _measured(torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())))
    assert _layer(found, "1").updates == 1
    assert found.parameters_changed


def test_an_exported_program_has_no_training_mode() -> None:
    program = torch.export.export(Net().eval(), (IMAGES,)).module()
    with pytest.raises(BadModel, match="no training mode"):
        training_step(program, step, True, None)


@pytest.mark.parametrize("error", [RuntimeError("theirs"), KeyboardInterrupt()], ids=repr)
def test_a_step_that_fails_half_way_leaves_no_trace(error: BaseException) -> None:
    model = Net().eval()
    before = _state(model)

    def failing(model: nn.Module) -> None:
        step(model)
        raise error

    with pytest.raises(type(error)):
        training_step(model, failing, True, None)
    assert _state(model) == before
