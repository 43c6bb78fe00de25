"""Looking at every n-th row and column: the moments are those of these positions, and what it costs is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bncheck
from bncheck.core.estimate import Estimate

IMAGES = 48


def _estimate(images: Tensor, stride: int) -> tuple[nn.BatchNorm2d, Estimate]:
    layer = nn.BatchNorm2d(images.shape[1])
    model = nn.Sequential(layer).eval()
    done = bncheck.recalibrate(model, images.split(16), samples=IMAGES, spatial_stride=stride)
    return layer, done.report


def _noise() -> Tensor:
    return torch.randn(IMAGES, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 + 5


def test_the_moments_are_those_of_every_third_position() -> None:
    images = _noise()
    layer, estimate = _estimate(images, 3)
    seen = images[:, :, ::3, ::3].double().numpy()
    mean = seen.mean((0, 2, 3))
    error = seen.mean((2, 3)).std(0, ddof=1) / np.sqrt(IMAGES)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), seen.var((0, 2, 3)) + error**2, rtol=1e-5)
    np.testing.assert_allclose(estimate.layers["0"].data.mean_error, error, rtol=1e-6)


@pytest.mark.parametrize("stride", [2, 3])
def test_what_it_costs_is_the_ratio_of_the_standard_errors(stride: int) -> None:
    images = _noise()
    _, estimate = _estimate(images, stride)

    def errors(values: Tensor) -> np.ndarray:
        return values.double().numpy().mean((2, 3)).std(0, ddof=1)

    expected = np.sort(errors(images[:, :, ::stride, ::stride]) / errors(images))[1]
    assert estimate.stride_cost == pytest.approx(expected, rel=1e-6)
    # Noise without any correlation is where it costs most: as much as there are fewer positions.
    assert stride * 0.6 < estimate.stride_cost < stride * 1.5


def test_positions_that_are_alike_cost_nothing() -> None:
    images = _noise()[:, :, :1, :1].expand(-1, -1, 12, 12).contiguous()
    _, estimate = _estimate(images, 2)
    assert estimate.stride_cost == pytest.approx(1.0, abs=1e-6)


def test_nothing_is_said_where_all_positions_are_looked_at() -> None:
    assert _estimate(_noise(), 1)[1].stride_cost is None


def test_layers_without_positions_have_no_part_in_it() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(432)).eval()
    assert bncheck.recalibrate(model, _noise().split(16), samples=IMAGES, spatial_stride=2).report.stride_cost is None
