"""Faults planted in healthy networks the way people plant them, each with the rules that are to see it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import bncheck
from bncheck.core.finding import Report
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.core.run_options import RunOptions
from tests.benchmarks.digit_networks import (
    Digits,
    Healthy,
    Recipe,
    accuracy,
    all_digits,
    batch_norms,
    held_out_digits,
    loader,
    train,
    training_digits,
)

NETWORKS = Path(__file__).with_name("digit_networks.py")
# Seed of whatever happens after the healthy training.
_LATER = 100


@dataclass(frozen=True, slots=True)
class Planted:
    """A faulty network and how it is audited.

    Attributes:
        audit: through the public function, as a user would.
        accuracy: on all digits, as it would be used; None where the fault is no matter of accuracy.
        righted: the same, once batch norm is right: with the healthy network's layers where nothing else was touched,
            and with moments re-estimated on the data it is used on where the weights or the data are others.
    """

    audit: Callable[[Limits], Report]
    accuracy: float | None
    righted: float | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to break a network.

    Attributes:
        name: as the table shows it.
        rules: any of them is to fire.
        plant: None where the network has no room for it, as a multilayer perceptron has none for batches of one.
        always: whether it counts whatever it costs; else by the accuracy that batch norm costs.
    """

    name: str
    rules: tuple[str, ...]
    plant: Callable[[Healthy, Path], Planted | None]
    always: bool = False


FAULTS: list[Fault] = []
_Plant = Callable[[Healthy, Path], "Planted | None"]


def _fault(name: str, *rules: str, always: bool = False) -> Callable[[_Plant], _Plant]:
    def declare(plant: _Plant) -> _Plant:
        FAULTS.append(Fault(name, rules, plant, always))
        return plant

    return declare


# --- ways to audit -----------------------------------------------------------------------------------------


def audit_file(path: Path, healthy: Healthy | None, limits: Limits = DEFAULT_LIMITS, **options: object) -> Report:
    """A file, run on held-out digits; ``healthy`` tells which network to build, where the file does not hold it."""
    model = None if healthy is None else f"{NETWORKS}:build"
    arguments: dict[str, object] = {} if healthy is None else {"name": healthy.architecture}
    given: dict[str, object] = {"data": f"{NETWORKS}:held_out", "model": model, "model_arguments": arguments, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bncheck.audit(path, run=RunOptions(**given), limits=limits)  # type: ignore[arg-type]


def audit_state(network: nn.Module, healthy: Healthy, folder: Path, limits: Limits, **options: object) -> Report:
    """A state dict, which is what most models are released as."""
    path = folder / "model.pt"
    torch.save(network.state_dict(), path)
    return audit_file(path, healthy, limits, **options)


def audit_module(network: nn.Module, limits: Limits, digits: Digits | None = None, **given: object) -> Report:
    """A module in memory, in eval mode."""
    data = loader(digits or held_out_digits())
    return bncheck.audit(network.eval(), data=data, limits=limits, **given)  # type: ignore[arg-type]


def righted_accuracy(network: nn.Module, digits: Digits | None = None) -> float:
    """What a network reaches with the moments of the population it is used on, which is these digits."""
    digits = digits or all_digits()
    copy = deepcopy(network).eval()
    bncheck.recalibrate(copy, digits.images.split(300), samples=len(digits.images))
    return accuracy(copy, digits)


def _released(network: nn.Module, healthy: Healthy, folder: Path) -> Planted:
    return Planted(
        lambda limits: audit_state(network, healthy, folder, limits), accuracy(network), righted_accuracy(network)
    )


def _of_sound_weights(network: nn.Module, healthy: Healthy, folder: Path) -> Planted:
    """Nothing differs from the healthy network but its batch norms."""
    return Planted(lambda limits: audit_state(network, healthy, folder, limits), accuracy(network), healthy.accuracy)


def _in_memory(network: nn.Module, healthy: Healthy) -> Planted:
    return Planted(lambda limits: audit_module(network, limits), accuracy(network), healthy.accuracy)


# --- the wrong mode ----------------------------------------------------------------------------------------


def _predict_without_eval(network: nn.Module, images: Tensor) -> object:
    return network.train()(images)


@_fault("forgotten eval in the predict function", "BN104", "BN105", always=True)
def _forgotten_eval(healthy: Healthy, folder: Path) -> Planted:
    network = healthy.network()
    return Planted(lambda limits: audit_module(network, limits, forward=_predict_without_eval), None)


@_fault("traced in training mode", "BN102", "BN104", "BN105", always=True)
def _traced(healthy: Healthy, folder: Path) -> Planted:
    path = folder / "traced.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(healthy.network(), training_digits().images[:64], check_trace=False)
    torch.jit.save(traced.eval(), path)
    return Planted(lambda limits: audit_file(path, None, limits), None)


@_fault("no running statistics kept", "BN103", "BN104", always=True)
def _untracked(healthy: Healthy, folder: Path) -> Planted:
    network = healthy.network()
    for layer in batch_norms(network):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return _in_memory(network, healthy)


# --- statistics that were not learned ----------------------------------------------------------------------


def _updated(network: nn.Module, batch: int, count: int, digits: Digits | None = None) -> nn.Module:
    """Forward passes in training mode: only the statistics move."""
    with torch.no_grad():
        train_batches = _batches(digits or training_digits(), batch, count)
        network.train()
        for images in train_batches:
            network(images)
    return network


def _batches(digits: Digits, batch: int, count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(_LATER)
    for _ in range(count):
        yield digits.images[torch.randperm(len(digits.images), generator=generator)[:batch]]


def _reset(network: nn.Module) -> nn.Module:
    for layer in batch_norms(network):
        layer.reset_running_stats()
    return network


def _with_momentum(network: nn.Module, momentum: float) -> nn.Module:
    for layer in batch_norms(network):
        layer.momentum = momentum
    return network


@_fault("statistics reset", "BN201", always=True)
def _statistics_reset(healthy: Healthy, folder: Path) -> Planted:
    return _of_sound_weights(_reset(healthy.network()), healthy, folder)


@_fault("momentum 0 all through training", "BN201", "BN501", always=True)
def _momentum_zero(healthy: Healthy, folder: Path) -> Planted:
    network = _with_momentum(_reset(healthy.network()), 0.0)
    return _in_memory(_updated(network, 64, 5), healthy)


for _momentum in (0.9, 0.99, 1.0):

    @_fault(f"momentum {_momentum:g}, as a module", "BN502", "BN503", always=True)
    def _fast_module(healthy: Healthy, folder: Path, momentum: float = _momentum) -> Planted:
        network = _updated(_with_momentum(healthy.network(), momentum), healthy.recipe.batch, 20)
        return _in_memory(network, healthy)

    @_fault(f"momentum {_momentum:g}, as a state dict", "BN106", "BN303", "BN406", "BN407")
    def _fast_state(healthy: Healthy, folder: Path, momentum: float = _momentum) -> Planted:
        network = _updated(_with_momentum(healthy.network(), momentum), healthy.recipe.batch, 20)
        return _of_sound_weights(network, healthy, folder)


for _updates in (3, 10, 20, 30):

    @_fault(f"statistics of {_updates} updates", "BN106", "BN405", "BN406", "BN407")
    def _few_updates(healthy: Healthy, folder: Path, updates: int = _updates) -> Planted:
        network = _with_momentum(_reset(healthy.network()), 0.1)
        return _of_sound_weights(_updated(network, healthy.recipe.batch, updates), healthy, folder)


@_fault("training stopped after 3 steps", "BN106", "BN405", "BN406", "BN407", always=True)
def _stopped(healthy: Healthy, folder: Path) -> Planted:
    torch.manual_seed(healthy.seed)
    network = _reinitialised(healthy)
    return _released(train(network, replace(healthy.recipe, updates=3), _LATER), healthy, folder)


def _reinitialised(healthy: Healthy) -> nn.Module:
    from tests.benchmarks.digit_networks import build

    return build(healthy.architecture).train()


# --- tiny batches ------------------------------------------------------------------------------------------

for _images in (1, 2):
    # What the issue of tiny batches is about: training went on with them; and statistics alone, of sound weights.
    @_fault(f"trained on in batches of {_images}", "BN106", "BN303", "BN406", "BN407")
    def _tiny_training(healthy: Healthy, folder: Path, images: int = _images) -> Planted | None:
        if images == 1 and _needs_two(healthy):
            return None
        recipe = replace(healthy.recipe, batch=images, updates=400, rate=healthy.recipe.rate / 5, schedule=True)
        return _released(train(healthy.network().train(), recipe, _LATER), healthy, folder)

    @_fault(f"statistics of batches of {_images}", "BN106", "BN303", "BN406", "BN407")
    def _tiny_statistics(healthy: Healthy, folder: Path, images: int = _images) -> Planted | None:
        if images == 1 and _needs_two(healthy):
            return None
        return _of_sound_weights(_updated(healthy.network(), images, 200), healthy, folder)


def _needs_two(healthy: Healthy) -> bool:
    """Whether some layer sees one value of a channel per image, so that torch refuses a batch of one."""
    try:
        _updated(healthy.network(), 1, 1)
    except ValueError:
        return True
    return False


# --- statistics that were left behind ----------------------------------------------------------------------


def _moving(healthy: Healthy, updates: int) -> Recipe:
    return replace(healthy.recipe, updates=updates, schedule=False)


for _further in (30, 100, 300):

    @_fault(f"frozen statistics, {_further} further updates", "BN106", "BN406", "BN407")
    def _frozen(healthy: Healthy, folder: Path, further: int = _further) -> Planted:
        """The weights are trained in training mode, and the statistics of before are put back: a momentum of 0."""
        network = _with_momentum(healthy.network(), 0.0)
        return _released(train(network, _moving(healthy, further), _LATER), healthy, folder)


@_fault("average of weights without statistics", "BN106", "BN406", "BN407")
def _averaged(healthy: Healthy, folder: Path) -> Planted:
    network = healthy.network()
    average = deepcopy(network)

    def update() -> None:
        with torch.no_grad():
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 0.05)

    train(network, _moving(healthy, 200), _LATER, after_step=update)
    return _released(average, healthy, folder)


@_fault("two networks averaged, statistics too", "BN106", "BN406", "BN407")
def _souped(healthy: Healthy, folder: Path) -> Planted:
    network, other = healthy.network(), healthy.network()
    train(other, _moving(healthy, 200), _LATER)
    with torch.no_grad():
        for kept, new in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 0.5)
    return _released(network, healthy, folder)


@_fault("statistics of another network", "BN106", "BN406", "BN407", always=True)
def _swapped(healthy: Healthy, folder: Path) -> Planted:
    torch.manual_seed(_LATER)
    other = train(_reinitialised(healthy), replace(healthy.recipe, updates=60), _LATER)
    network = healthy.network()
    network.load_state_dict({**network.state_dict(), **_statistics(other)})
    return _of_sound_weights(network, healthy, folder)


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if "running_" in name}


@_fault("tuned on fog with frozen statistics", "BN106", "BN406", "BN407")
def _tuned_frozen(healthy: Healthy, folder: Path) -> Planted:
    fog = training_digits().in_fog()
    network = _with_momentum(healthy.network(), 0.0)
    train(network, _moving(healthy, 200), _LATER, digits=fog)
    return Planted(
        lambda limits: audit_module(network, limits, held_out_digits().in_fog()),
        accuracy(network, all_digits().in_fog()),
        righted_accuracy(network, all_digits().in_fog()),
    )


# --- statistics that were converted wrongly ----------------------------------------------------------------


@_fault("standard deviation stored as variance", "BN106", "BN406", "BN407")
def _rooted(healthy: Healthy, folder: Path) -> Planted:
    network = healthy.network()
    for layer in batch_norms(network):
        _buffer(layer.running_var).sqrt_()
    return _of_sound_weights(network, healthy, folder)


@_fault("statistics of two layers exchanged", "BN106", "BN406", "BN407")
def _exchanged(healthy: Healthy, folder: Path) -> Planted | None:
    network = healthy.network()
    layers = batch_norms(network)
    alike = [
        (one, other)
        for index, one in enumerate(layers)
        for other in layers[index + 1 :]
        if one.num_features == other.num_features
    ]
    if not alike:
        return None
    one, other = alike[-1]
    first, second = deepcopy(one.state_dict()), deepcopy(other.state_dict())
    one.load_state_dict({**first, **{key: second[key] for key in ("running_mean", "running_var")}})
    other.load_state_dict({**second, **{key: first[key] for key in ("running_mean", "running_var")}})
    return _of_sound_weights(network, healthy, folder)


def _buffer(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer


def _rescaled(healthy: Healthy, scale: float) -> nn.Module:
    """The same network with every normalised input scaled, which batch norm takes out again."""
    network = healthy.network()
    before: nn.Module | None = None
    with torch.no_grad():
        for module in list(network.modules()):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                before = module
            if module in batch_norms(network) and before is not None:
                before.weight.mul_(scale)
                if before.bias is not None:
                    before.bias.mul_(scale)
                _buffer(module.running_mean).mul_(scale)
                _buffer(module.running_var).mul_(scale**2)
                before = None
    return network


for _eps in (1e-3, 1e-1):

    @_fault(f"eps {_eps:g} after conversion, small variances", "BN106", "BN406", "BN407")
    def _wrong_eps(healthy: Healthy, folder: Path, eps: float = _eps) -> Planted:
        network = _rescaled(healthy, 0.1)
        converted = deepcopy(network)
        for layer in batch_norms(converted):
            layer.eps = eps
        arguments = {"name": healthy.architecture, "eps": eps}
        return Planted(
            lambda limits: audit_state(network, healthy, folder, limits, model_arguments=arguments),
            accuracy(converted),
            healthy.accuracy,
        )


@_fault("half-precision overflow of the statistics", "BN401", always=True)
def _half_statistics(healthy: Healthy, folder: Path) -> Planted:
    network = _rescaled(healthy, 1e4).half()
    return Planted(lambda limits: audit_state(network, healthy, folder, limits), None)


@_fault("half-precision overflow of activations", "BN104", "BN106", "BN406", "BN407", always=True)
def _half_activations(healthy: Healthy, folder: Path) -> Planted:
    network = _rescaled(healthy, 1e6)
    return Planted(lambda limits: audit_state(network, healthy, folder, limits, precision="fp16"), None)


# --- data of another kind ----------------------------------------------------------------------------------


_SHIFTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "input times 255": lambda images: images * 255,
    "input times 2": lambda images: images * 2,
    "input times 1.3": lambda images: images * 1.3,
    "input times 0.5": lambda images: images * 0.5,
    "input over 255": lambda images: images / 255,
    "input plus 1": lambda images: images + 1,
    "input plus 0.25": lambda images: images + 0.25,
    "input plus 0.1": lambda images: images + 0.1,
    "input normalised": lambda images: (images - 0.3) / 0.38,
    "input inverted": lambda images: 1 - images,
    "contrast halved on grey": lambda images: 0.5 + 0.5 * images,
    "contrast times 0.75": lambda images: 0.125 + 0.75 * images,
    "noise of 0.1": lambda images: images + 0.1 * _noise(images),
    "noise of 0.3": lambda images: images + 0.3 * _noise(images),
    "blurred": lambda images: torch.nn.functional.avg_pool2d(images, 3, 1, 1),
}


def _noise(images: Tensor) -> Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(_LATER))


for _name, _shift in _SHIFTS.items():

    @_fault(_name, "BN106", "BN406", "BN407")
    def _shifted(healthy: Healthy, folder: Path, shift: Callable[[Tensor], Tensor] = _shift) -> Planted:
        network = healthy.network()
        seen, everything = held_out_digits(), all_digits()
        used_on = Digits(shift(everything.images), everything.labels)
        return Planted(
            lambda limits: audit_module(network, limits, Digits(shift(seen.images), seen.labels)),
            accuracy(network, used_on),
            righted_accuracy(network, used_on),
        )


# --- the training step and its data ------------------------------------------------------------------------


def _step(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    torch.autograd.backward(torch.nn.functional.cross_entropy(network(batch[0]), batch[1]))


def _checkpointed_step(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images = batch[0].clone().requires_grad_()
    scores = checkpoint(network, images, use_reentrant=False)
    torch.autograd.backward(torch.nn.functional.cross_entropy(scores, batch[1]))


@_fault("double updates through checkpointing", "BN208", always=True)
def _checkpointed(healthy: Healthy, folder: Path) -> Planted:
    network = healthy.network()
    given = {"train_data": loader(training_digits(), 32), "train_step": _checkpointed_step}
    return Planted(lambda limits: audit_module(network, limits, **given), None)


@_fault("last batch of one", "BN302", always=True)
def _last_batch(healthy: Healthy, folder: Path) -> Planted:
    network, digits = healthy.network(), training_digits()
    odd = TensorDataset(digits.images[:1025], digits.labels[:1025])
    given = {"train_data": DataLoader(odd, batch_size=64, shuffle=True), "train_step": _step}
    return Planted(lambda limits: audit_module(network, limits, **given), None)
