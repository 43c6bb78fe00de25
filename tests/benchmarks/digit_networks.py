"""Healthy networks for benchmarks: thirteen architectures trained on scikit-learn's digits, in nine ways.

Limits were chosen on ``CHOSEN_ON``; ``HELD_OUT`` shares neither an architecture nor a seed nor a recipe with it.

``build`` and ``held_out`` are named by SPEC; everything else is for the benchmark itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures"))

import networks
from training import Digits, held_out_digits, training_digits

AUDIT_BATCH = 60
_CHANNELS = 16


class DepthwiseNet(nn.Module):
    """Depthwise separable convolutions, as MobileNet has."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(1, _CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(_CHANNELS)]
        channels = _CHANNELS
        for outputs, stride in ((24, 2), (32, 1), (48, 2)):
            parts += [
                nn.ReLU6(),
                nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU6(),
                nn.Conv2d(channels, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            ]
            channels = outputs
        self.features = nn.Sequential(*parts, nn.ReLU6())
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images).mean((2, 3)))
        return scores


class PreactivationBlock(nn.Module):
    """Normalises, rectifies, and then convolves (He et al. 2016, "Identity Mappings in Deep Residual Networks")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = networks.conv3x3(channels, channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = networks.conv3x3(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.conv1(torch.relu(self.norm1(features)))
        return features + self.conv2(torch.relu(self.norm2(inner)))


class PreactivationNet(nn.Module):
    """Residual blocks whose identity is never normalised, and a last batch norm before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = networks.conv3x3(1, _CHANNELS)
        self.blocks = nn.Sequential(
            PreactivationBlock(_CHANNELS), nn.AvgPool2d(2), PreactivationBlock(_CHANNELS), PreactivationBlock(_CHANNELS)
        )
        self.norm = nn.BatchNorm2d(_CHANNELS)
        self.head = nn.Linear(_CHANNELS, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.blocks(self.stem(images))))
        scores: Tensor = self.head(features.mean((2, 3)))
        return scores


class DenseNet(nn.Module):
    """Each layer normalises anew whatever all layers before it made (Huang et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = networks.conv3x3(1, 12)
        channels = [12 + 8 * index for index in range(5)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels)
        self.convs = nn.ModuleList(networks.conv3x3(count, 8) for count in channels)
        self.norm = nn.BatchNorm2d(channels[-1] + 8)
        self.head = nn.Linear(channels[-1] + 8, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for depth, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            if depth == _POOLED_AFTER:
                features = nn.functional.max_pool2d(features, 2)
            features = torch.cat([features, conv(torch.relu(norm(features)))], 1)
        scores: Tensor = self.head(torch.relu(self.norm(features)).amax((2, 3)))
        return scores


_POOLED_AFTER = 2


class VggNet(nn.Module):
    """Convolutions with biases and pooling, then two wide layers with BatchNorm1d and dropout, as VGG-BN has."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, outputs in ((1, 12), (12, 24), (24, 48)):
            parts += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*parts)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images))
        return scores


class Enlarged(nn.Module):
    """An image classifier of transformers, given the digits in a size that its strides can take."""

    def __init__(self, classifier: nn.Module, size: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(pixel_values=interpolate(images, self.size)).logits
        return scores


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 24, 32],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=10,
    )
    return Enlarged(ResNetForImageClassification(config), 24)


def _bottleneck() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[32, 48, 64],
        depths=[1, 2, 1],
        layer_type="bottleneck",
        num_labels=10,
    )
    return Enlarged(ResNetForImageClassification(config), 28)


def _regnet() -> nn.Module:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 24, 32], depths=[1, 1, 1], groups_width=8, num_labels=10
    )
    return Enlarged(RegNetForImageClassification(config), 24)


def _mobilenet_v1() -> nn.Module:
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    config = MobileNetV1Config(
        num_channels=1, image_size=32, depth_multiplier=0.25, num_labels=10, classifier_dropout_prob=0.1
    )
    return Enlarged(MobileNetV1ForImageClassification(config), 32)


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(
        num_channels=1,
        image_size=32,
        depth_multiplier=0.25,
        output_stride=16,
        num_labels=10,
        classifier_dropout_prob=0.1,
    )
    return Enlarged(MobileNetV2ForImageClassification(config), 32)


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    "cnn": networks.DigitNet,
    "residual": networks.ResidualNet,
    "staged": lambda: networks.StagedNet(3),
    "depthwise": DepthwiseNet,
    "mlp": networks.Mlp,
    "resnet": _resnet,
    "regnet": _regnet,
    "mobilenet-v1": _mobilenet_v1,
    "mobilenet-v2": _mobilenet_v2,
    "preactivation": PreactivationNet,
    "dense": DenseNet,
    "vgg": VggNet,
    "bottleneck": _bottleneck,
}

CHOSEN_ON: Sequence[tuple[str, int]] = (
    *((name, seed) for name in ("cnn", "residual", "staged", "depthwise", "mlp") for seed in (0, 1, 2)),
    ("resnet", 0),
    ("regnet", 0),
)
"""Architectures and seeds that the default limits were chosen on."""

HELD_OUT: Sequence[tuple[str, int]] = (
    *((name, seed) for name in ("preactivation", "dense", "vgg") for seed in (3, 4, 5)),
    ("bottleneck", 3),
    ("bottleneck", 4),
    ("mobilenet-v1", 3),
    ("mobilenet-v2", 5),
)
"""Those that had no part in it."""

AUGMENTED: Sequence[tuple[str, int]] = tuple(
    (name, seed)
    for name in ("cnn", "residual", "depthwise", "mlp", "preactivation", "dense", "vgg", "bottleneck")
    for seed in (6, 7, 8)
)
"""Healthy, and trained on images that were changed at random, as the audit's are not."""


def build(name: str, eps: float | None = None) -> nn.Module:
    """An untrained network, for ``--model``."""
    network = ARCHITECTURES[name]()
    for layer in batch_norms(network):
        layer.eps = layer.eps if eps is None else eps
    return network


def loader(digits: Digits, batch: int = AUDIT_BATCH) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of images and labels."""
    return DataLoader(TensorDataset(digits.images, digits.labels), batch_size=batch)


def held_out() -> DataLoader[tuple[Tensor, ...]]:
    """360 digits that no network has seen, for ``--data``."""
    return loader(held_out_digits())


@cache
def all_digits() -> Digits:
    """Seen and unseen: accuracies differ by as little as 0.06 points."""
    seen, unseen = training_digits(), held_out_digits()
    return Digits(torch.cat([seen.images, unseen.images]), torch.cat([seen.labels, unseen.labels]))


# --- training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained.

    Attributes:
        batch: images.
        updates: how many.
        rate: learning rate.
        schedule: whether it falls to 0 as a cosine; else the weights move until the end.
        sgd: SGD with momentum; else Adam.
        momentum: of the batch norms.
        augmented: how training images are changed, key of ``AUGMENTATIONS``; None where they are not.
    """

    batch: int = 64
    updates: int = 400
    rate: float = 3e-3
    schedule: bool = True
    sgd: bool = False
    momentum: float = 0.1
    augmented: str | None = None


RECIPES: tuple[Recipe, ...] = (
    Recipe(),
    Recipe(batch=32, updates=600, rate=0.02, schedule=False, sgd=True),
    Recipe(batch=16, updates=900, rate=1e-3, schedule=False, momentum=0.03),
    Recipe(batch=128, updates=350, rate=5e-3),
    Recipe(batch=24, updates=700, rate=0.01, schedule=False, sgd=True, momentum=0.05),
    Recipe(batch=48, updates=600, rate=2e-3, schedule=False),
    Recipe(updates=600, augmented="shifted"),
    Recipe(updates=600, augmented="cropped"),
    Recipe(updates=600, augmented="noisy"),
)
"""One for each seed: falling and constant learning rates, usual and small batches and momenta, augmented images."""


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """By up to one pixel, of eight, in each direction."""
    across, down = torch.randint(-1, 2, (2, len(images)), generator=generator).tolist()
    padded = pad(images, (1, 1, 1, 1))
    size = images.shape[-1]
    return torch.stack(
        [image[:, 1 + y : 1 + y + size, 1 + x : 1 + x + size] for image, x, y in zip(padded, across, down, strict=True)]
    )


def _cropped(images: Tensor, generator: torch.Generator) -> Tensor:
    """A window of six to eight pixels somewhere, enlarged to eight."""
    size = images.shape[-1]
    found = []
    for image in images:
        side = size - int(torch.randint(0, 3, (), generator=generator))
        top, left = torch.randint(0, size - side + 1, (2,), generator=generator).tolist()
        window = image[None, :, top : top + side, left : left + side]
        found.append(interpolate(window, size, mode="bilinear", align_corners=False)[0])
    return torch.stack(found)


def _noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of 0.1."""
    return images + 0.1 * torch.randn(images.shape, generator=generator)


AUGMENTATIONS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "shifted": _shifted,
    "cropped": _cropped,
    "noisy": _noisy,
}


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """In the order of registration."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def shuffled(digits: Digits, batch: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many full batches, from epoch to epoch."""
    generator = torch.Generator().manual_seed(seed)
    given = 0
    while True:
        for chosen in torch.randperm(len(digits.images), generator=generator).split(batch):
            if given == count:
                return
            if len(chosen) == batch:
                yield digits.images[chosen], digits.labels[chosen]
                given += 1


def train(
    network: nn.Module,
    recipe: Recipe,
    seed: int,
    digits: Digits | None = None,
    after_step: Callable[[], object] = lambda: None,
) -> nn.Module:
    """Train in the modes the layers are in."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, recipe.rate, momentum=0.9)
        if recipe.sgd
        else torch.optim.Adam(parameters, recipe.rate)
    )
    batches = shuffled(digits or training_digits(), recipe.batch, recipe.updates, seed)
    generator = torch.Generator().manual_seed(seed)
    for step, (given, labels) in enumerate(batches):
        images = given if recipe.augmented is None else AUGMENTATIONS[recipe.augmented](given, generator)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (
                (1 + math.cos(math.pi * step / recipe.updates)) / 2 if recipe.schedule else 1.0
            )
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(network(images), labels))
        optimizer.step()
        after_step()
    return network


def accuracy(network: nn.Module, digits: Digits | None = None) -> float:
    """Share of digits recognised in eval mode."""
    digits = digits or all_digits()
    judge = deepcopy(network).eval()
    hits = 0
    with torch.no_grad():
        for images, labels in zip(digits.images.split(300), digits.labels.split(300), strict=True):
            hits += int((judge(images).argmax(1) == labels).sum())
    return hits / len(digits.labels)


@dataclass(frozen=True, slots=True)
class Healthy:
    """A network that works.

    Attributes:
        architecture: key of ``ARCHITECTURES``.
        seed: of its start and of its batches; chooses the recipe, too.
        recipe: how it was trained.
        state: its tensors.
        accuracy: in eval mode, on all digits.
    """

    architecture: str
    seed: int
    recipe: Recipe
    state: Mapping[str, Tensor]
    accuracy: float

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.seed}"

    def network(self) -> nn.Module:
        """A copy, in training mode as it was trained."""
        network = build(self.architecture)
        network.load_state_dict(dict(self.state))
        for layer in batch_norms(network):
            layer.momentum = self.recipe.momentum
        return network


LEAST_ACCURACY = 0.95
# The many small layers of MobileNets take a second for each update on a slow machine.
_SHORTENED = {"mobilenet-v1": 0.75, "mobilenet-v2": 0.6}


def healthy(architecture: str, seed: int, cache_folder: Path) -> Healthy:
    """Train a network, or take it from the cache.

    Raises:
        AssertionError: it does not work, so that nothing can be learned from it.
    """
    recipe = RECIPES[seed % len(RECIPES)]
    recipe = replace(recipe, updates=round(recipe.updates * _SHORTENED.get(architecture, 1)))
    file = cache_folder / f"{architecture}-{seed}.pt"
    if file.exists():
        state = torch.load(file)
    else:
        torch.manual_seed(seed)
        network = build(architecture)
        for layer in batch_norms(network):
            layer.momentum = recipe.momentum
        state = train(network.train(), recipe, seed).state_dict()
    found = Healthy(architecture, seed, recipe, state, 0.0)
    reached = accuracy(found.network())
    if reached < LEAST_ACCURACY:
        raise AssertionError(f"{found.name} is to be healthy and reaches {reached:.3f}")
    torch.save(dict(state), file)
    return replace(found, accuracy=reached)
