"""Input moments beside a float64 brute force over all values, and their errors beside repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bncheck.core.moments import PopulationMoments, drift, population_moments
from bncheck.runtime.input_moments import InputMoments


def _moments(batches: list[torch.Tensor]) -> PopulationMoments:
    gathered = InputMoments()
    for batch in batches:
        gathered.add(batch)
    sums = gathered.sums()
    assert sums is not None
    return population_moments(sums)


def _values(batches: list[torch.Tensor]) -> np.ndarray:
    """All values of each channel, (channels, values), in float64."""
    flat = [batch.double().transpose(0, 1).reshape(batch.shape[1], -1) for batch in batches]
    return torch.cat(flat, dim=1).numpy()


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 7), (5, 3, 6, 4), (5, 3, 2, 3, 4)])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1000.0, 0.1), (-3e4, 1e-2)])
def test_agree_with_brute_force(shape: tuple[int, ...], mean: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        mean + spread * torch.randn((count, *shape[1:]), generator=generator, dtype=torch.float64)
        for count in (5, 1, 9)
    ]
    found, values = _moments(batches), _values(batches)
    np.testing.assert_allclose(found.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.var, values.var(1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_loses_no_more_than_its_own_rounding(dtype: torch.dtype) -> None:
    batches = [(100 + torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(1))).to(dtype)]
    found, values = _moments(batches), _values(batches)
    np.testing.assert_allclose(found.mean, values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.var, values.var(1), rtol=1e-5)


def test_images_of_different_sizes_weigh_by_their_positions() -> None:
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(4, 3, size, size, generator=generator) + size for size in (2, 5, 9)]
    found, values = _moments(batches), _values(batches)
    np.testing.assert_allclose(found.mean, values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.var, values.var(1), rtol=1e-6)
    images = [(image.double(), image[0].numel()) for batch in batches for image in batch]
    weights = np.array([count for _, count in images], dtype=float)[:, None]
    means = np.array([image.flatten(1).mean(1).numpy() for image, _ in images])
    scatter = (weights**2 * (means - found.mean) ** 2).sum(0) * len(images) / (len(images) - 1)
    np.testing.assert_allclose(found.mean_error, np.sqrt(scatter) / weights.sum(), rtol=1e-6)


def test_errors_are_those_of_repeated_sampling() -> None:
    """Correlated positions: the image is the sampling unit. 400 samples of 40 images each, as a network would see."""
    generator = torch.Generator().manual_seed(3)

    def sample() -> torch.Tensor:
        brightness = torch.randn(40, 2, 1, 1, generator=generator)
        contrast = 1 + 0.3 * torch.randn(40, 2, 1, 1, generator=generator).abs()
        return brightness + contrast * torch.randn(40, 2, 6, 6, generator=generator)

    found = [_moments([sample()]) for _ in range(400)]
    mean_ratio = np.mean([each.mean_error for each in found], 0) / np.std([each.mean for each in found], 0)
    var_ratio = np.mean([each.var_error for each in found], 0) / np.std([each.var for each in found], 0)
    assert (np.abs(mean_ratio - 1) < 0.12).all(), mean_ratio
    assert (np.abs(var_ratio - 1) < 0.15).all(), var_ratio


def test_one_image_has_moments_and_no_error() -> None:
    found = _moments([torch.randn(1, 3, 4, 4)])
    assert np.isfinite(found.var).all()
    assert np.isnan(found.mean_error).all()


def test_nothing_seen_is_none() -> None:
    gathered = InputMoments()
    gathered.add(torch.empty(0, 3, 4, 4))
    gathered.add(torch.randn(5))  # no channels
    assert gathered.sums() is None


def test_drift_is_zero_on_the_stored_moments_and_the_divergence_is_the_normal_ones() -> None:
    data = _moments([torch.randn(64, 5, 4, 4, generator=torch.Generator().manual_seed(4))])
    same = drift(data, data.mean, data.var, 1e-5)
    assert same.rms_delta == same.median_log_ratio == 0.0
    np.testing.assert_allclose(same.kl, 0.0, atol=1e-15)
    other = drift(data, data.mean - 1.0, data.var * 4.0, 0.0)
    first = torch.distributions.Normal(torch.tensor(data.mean), torch.tensor(data.var).sqrt())
    second = torch.distributions.Normal(torch.tensor(data.mean - 1.0), torch.tensor(data.var * 4).sqrt())
    np.testing.assert_allclose(other.kl, torch.distributions.kl_divergence(first, second).numpy(), rtol=1e-12)


def test_drift_refuses_what_it_cannot_compare() -> None:
    data = _moments([torch.randn(4, 3, 2, 2)])
    with pytest.raises(ValueError, match="cannot be compared"):
        drift(data, data.mean[:2], data.var[:2], 1e-5)
    with pytest.raises(ValueError, match="not positive"):
        drift(data, data.mean, -data.var - 1, 1e-5)
