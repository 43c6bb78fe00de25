"""Recalibration on shifted digits: classification error before and after, by shift, samples and prior.

Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020
(https://arxiv.org/abs/2006.16971), on ImageNet-C: from a single sample up to some 32, statistics of the new samples
alone do harm, and a prior of 16 or so turns that into a gain; from 512 samples on, no prior is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bncheck.recalibrating import recalibrate
from tests.benchmarks.digit_networks import Digits, Recipe, accuracy, build, held_out_digits, train, training_digits


def _noisy(images: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return images + 0.35 * torch.randn(images.shape, generator=generator)


def _blurred(images: Tensor) -> Tensor:
    return 0.3 * images + 0.7 * nn.functional.avg_pool2d(images, 3, stride=1, padding=1)


SHIFTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "contrast": lambda images: 0.3 + 0.5 * images,
    "noise": _noisy,
    "blur": _blurred,
    "scale": lambda images: 2.5 * images,
}
"""Of intensities in 0 … 1: half the contrast on grey, noise of 0.35, mostly a mean over 3 × 3, 2.5 times as bright."""

PRIORS: Mapping[str, float | None] = {"0": 0.0, "16": 16.0, "auto": None}
SAMPLES = (8, 32, 128, 512)


@dataclass(frozen=True, slots=True)
class Shifted:
    """Shares of digits misread, averaged over networks and draws.

    Attributes:
        shift: key of ``SHIFTS``.
        before: with the moments that training left.
        after: (samples, prior) → after recalibration on so many shifted images.
    """

    shift: str
    before: float
    after: Mapping[tuple[int, str], float]


def measure(seeds: Sequence[int], draws: int, samples: Sequence[int] = SAMPLES, updates: int = 400) -> list[Shifted]:
    """Train networks on clean digits; recalibrate on shifted training images, count errors on shifted unseen ones.

    Args:
        seeds: one network each.
        draws: of the samples, for each network.
        samples: how many to recalibrate on.
        updates: training steps.
    """
    networks = [_trained(seed, updates) for seed in seeds]
    return [_shifted(name, networks, draws, samples) for name in SHIFTS]


def _trained(seed: int, updates: int) -> nn.Module:
    torch.manual_seed(seed)
    return train(build("cnn").train(), Recipe(updates=updates), seed).eval()


def _shifted(name: str, networks: Sequence[nn.Module], draws: int, samples: Sequence[int]) -> Shifted:
    seen, unseen = (
        Digits(SHIFTS[name](digits.images), digits.labels) for digits in (training_digits(), held_out_digits())
    )
    after: dict[tuple[int, str], float] = {}
    for count in samples:
        for prior in PRIORS:
            found = [
                _error(_recalibrated(network, seen.images[chosen], PRIORS[prior]), unseen)
                for network in networks
                for chosen in _draws(len(seen.images), count, draws)
            ]
            after[count, prior] = sum(found) / len(found)
    before = [_error(network, unseen) for network in networks]
    return Shifted(name, sum(before) / len(before), after)


def _draws(population: int, count: int, draws: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        yield torch.randperm(population, generator=generator)[:count]


def _error(network: nn.Module, digits: Digits) -> float:
    return 1 - accuracy(network, digits)


def _recalibrated(network: nn.Module, images: Tensor, prior: float | None) -> nn.Module:
    network = deepcopy(network)
    recalibrate(network, images.split(32), samples=len(images), prior=prior)
    return network


def table(found: Sequence[Shifted]) -> Iterator[str]:
    """Errors in per cent."""
    columns = list(found[0].after)
    counts = list(dict.fromkeys(count for count, _ in columns))
    width = 7 * len(PRIORS)
    yield f"{'':<10}{'before':>8}" + "".join(f"{f'{count} samples':>{width + 2}}" for count in counts)
    yield f"{'prior':<10}{'':>8}" + ("  " + "".join(f"{prior:>7}" for prior in PRIORS)) * len(counts)
    for row in found:
        cells = "".join(
            "  " + "".join(f"{100 * row.after[count, prior]:>7.1f}" for prior in PRIORS) for count in counts
        )
        yield f"{row.shift:<10}{100 * row.before:>8.1f}{cells}"
