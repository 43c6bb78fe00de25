"""The batch size told from stored variances, against moving averages computed batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from bncheck.core.layers import Float64Array
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.core.moments import PopulationMoments
from bncheck.core.training_batch_size import StoredMoments, TrainingBatchSize, training_batch_size

CHANNELS, UPDATES, MOMENTUM = 48, 150, 0.1


@dataclass(frozen=True)
class Layer:
    """Inputs whose positions share a value of their image: (N, C, P) with a variance of ``between`` in the mean."""

    between: float = 0.6
    positions: int = 9
    seed: int = 0

    def images(self, count: int, generator: np.random.Generator) -> Float64Array:
        spread = np.random.default_rng(self.seed).uniform(0.5, 2.0, (1, CHANNELS, 1))
        own = generator.normal(size=(count, CHANNELS, 1)) * math.sqrt(self.between)
        inside = generator.normal(size=(count, CHANNELS, self.positions)) * math.sqrt(1 - self.between)
        values: Float64Array = 0.7 + spread * (own + inside)
        return values

    def trained_at(self, size: int, seed: int = 1, momentum: float = MOMENTUM) -> StoredMoments:
        """What torch's moving averages hold after so many batches, beside the moments of other images."""
        generator = np.random.default_rng(seed)
        mean, var = np.zeros(CHANNELS), np.ones(CHANNELS)
        for _ in range(round(UPDATES * MOMENTUM / momentum)):
            batch = self.images(size, generator)
            mean += momentum * (batch.mean((0, 2)) - mean)
            var += momentum * (batch.var((0, 2), ddof=1) - var)
        return StoredMoments(moments(self.images(1000, generator)), mean, var, momentum)


def moments(images: Float64Array) -> PopulationMoments:
    """By the textbook, image by image."""
    mean, root = images.mean((0, 2)), math.sqrt(len(images))
    squares = ((images - mean[:, None]) ** 2).mean(2)
    return PopulationMoments(
        images=len(images),
        positions=float(len(images) * images.shape[2]),
        mean=mean,
        var=squares.mean(0),
        mean_error=images.mean(2).std(0, ddof=1) / root,
        var_error=squares.std(0, ddof=1) / root,
    )


def estimate(*layers: StoredMoments) -> TrainingBatchSize:
    """There must be one."""
    found = training_batch_size(layers, DEFAULT_LIMITS)
    assert found is not None
    return found


def network(size: int, seed: int) -> Iterator[StoredMoments]:
    """Four layers, in the earlier of which positions differ more."""
    for index, between in enumerate((0.2, 0.4, 0.6, 0.8)):
        yield Layer(between, positions=16, seed=index).trained_at(size, seed=10 * seed + index)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 16, 64])
def test_interval_holds_the_size_it_was_trained_at(size: int, seed: int) -> None:
    found = estimate(*network(size, seed))
    assert found.fewest <= size * 1.001
    assert found.most >= size * 0.999
    assert abs(found.reciprocal - 1 / size) < 0.1


@pytest.mark.parametrize("size", [8, 16, 64])
def test_normal_batches_are_never_taken_for_tiny(size: int) -> None:
    limit = DEFAULT_LIMITS.tiny_batch_warning
    assert all(estimate(*network(size, seed)).most > limit for seed in range(5))


@pytest.mark.parametrize("size", [1, 2])
def test_tiny_batches_are_told(size: int) -> None:
    assert all(estimate(*network(size, seed)).most < DEFAULT_LIMITS.tiny_batch_warning for seed in range(5))


def test_where_positions_are_unlike_the_sign_turns_and_the_size_is_found() -> None:
    """Means of images vary less than those of independent positions would: small batches store too much."""

    class Balanced(Layer):
        def images(self, count: int, generator: np.random.Generator) -> Float64Array:
            values = super().images(count, generator)
            balanced: Float64Array = 0.7 + values - values.mean(2, keepdims=True)
            return balanced

    layer = Balanced(between=0.2, positions=4)
    stored = layer.trained_at(1)
    assert (stored.var > stored.data.var).mean() > 0.9
    assert estimate(stored).images == pytest.approx(1.0, abs=0.2)


def test_vectors_and_single_images_tell_nothing() -> None:
    vectors = Layer(positions=1).trained_at(2)
    assert training_batch_size([vectors], DEFAULT_LIMITS) is None
    few = replace(vectors, data=replace(Layer().trained_at(2).data, images=1))
    assert training_batch_size([few], DEFAULT_LIMITS) is None
    assert training_batch_size([], DEFAULT_LIMITS) is None


def test_independent_positions_leave_it_open() -> None:
    """There B = T / P, and a batch of any size has the same variance on average."""
    found = estimate(Layer(between=0.0).trained_at(2))
    assert found.fewest < 1.5
    assert found.most == math.inf


@pytest.mark.parametrize("shift", [0.3, 1.0])
def test_means_left_behind_widen_the_interval(shift: float) -> None:
    """Data whose contrast fell and whose mean moved stores too little variance, as a tiny batch does."""
    normal = Layer().trained_at(64)
    darker = replace(normal, var=0.6 * normal.var, mean=normal.mean - shift * np.sqrt(normal.var))
    found = estimate(darker)
    assert found.images < 4
    assert found.most == math.inf


@pytest.mark.parametrize("contrast", [1.2, 1.3, 1.5, 2.0])
def test_data_of_another_contrast_is_no_tiny_batch(contrast: float) -> None:
    """Every variance is short, also where the batch hardly matters; the means, near 0, do not show it."""
    layers = [
        Layer(between, positions=16, seed=index).trained_at(64) for index, between in enumerate((0.07, 0.08, 0.6))
    ]
    scaled = [replace(layer, var=layer.var / contrast**2) for layer in layers]
    assert estimate(*scaled).most > DEFAULT_LIMITS.tiny_batch_warning


@pytest.mark.parametrize("factor", [3.0, 50.0])
def test_variances_that_no_batch_has_are_no_tiny_batch(factor: float) -> None:
    """As after a few updates, when most of what is stored is still the initial 1."""
    layer = Layer(between=0.03, positions=16).trained_at(64)
    assert estimate(replace(layer, var=factor * layer.var)).most == math.inf


def test_dead_channels_have_no_say() -> None:
    layer = Layer().trained_at(2)
    dead = np.arange(CHANNELS) < CHANNELS // 3
    data = replace(layer.data, var=np.where(dead, 1e-30, layer.data.var))
    broken = replace(layer, data=data, var=np.where(dead, 1e-9, layer.var))
    assert estimate(broken).images == pytest.approx(estimate(layer).images, rel=0.2)
    all_dead = replace(layer, data=replace(layer.data, var=np.zeros(CHANNELS)))
    assert training_batch_size([all_dead], DEFAULT_LIMITS) is None


def test_a_slower_average_is_more_certain() -> None:
    slow, fast = estimate(Layer().trained_at(2, momentum=0.02)), estimate(Layer().trained_at(2))
    assert slow.error < 0.8 * fast.error
    assert slow.fewest < 2 < slow.most


def test_ends_are_in_order_and_never_below_one_image() -> None:
    for reciprocal, error in ((1.6, 0.1), (0.5, 0.1), (0.1, 0.3), (-0.4, 0.1)):
        found = TrainingBatchSize(reciprocal, error, 1, 2.0)
        assert 1.0 <= found.fewest <= found.images <= found.most
    assert TrainingBatchSize(-0.4, 0.1, 1, 2.0).fewest == math.inf
