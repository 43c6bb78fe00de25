"""Blending with the stored moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.recalibration.prior import ByEvidence, PseudoSamples
from bncheck.recalibration.schedule import Plan
from tests.recalibration.networks import Plain, built, images
from tests.recalibration.test_exact import recalibrated


def _layer(mean: float, var: float, channels: int = 32) -> nn.Module:
    model = nn.Sequential(nn.BatchNorm2d(channels)).eval()
    model[0].running_mean.fill_(mean)
    model[0].running_var.fill_(var)
    return model


def _values(samples: int, mean: float = 0.0, channels: int = 32) -> list[torch.Tensor]:
    return [mean + torch.randn(samples, channels, 4, 4, generator=torch.Generator().manual_seed(5))]


def test_pseudo_samples_are_those_of_a_mixture() -> None:
    """N samples of the stored distribution beside n of the data: the moments of all of them together."""
    found = recalibrated(_layer(3.0, 4.0), _values(60), Plan(samples=60, prior=PseudoSamples(20))).layers["0"]
    mean, var = found.data.mean, found.data.var + found.data.mean_error**2
    expected = (60 * mean + 20 * 3.0) / 80
    power = (60 * (var + mean**2) + 20 * (4.0 + 9.0)) / 80
    np.testing.assert_allclose(found.after_mean, expected, rtol=1e-9)
    np.testing.assert_allclose(found.after_var, power - expected**2, rtol=1e-9)
    assert found.prior_share == pytest.approx(0.25)


def test_no_prior_forgets_what_was_stored() -> None:
    found = recalibrated(_layer(3.0, 4.0), _values(60)).layers["0"]
    np.testing.assert_array_equal(found.after_mean, found.data.mean)
    assert found.prior_share == 0.0


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.6, 1.0), (0.05, 0.3, 0.9), (1.0, 0.0, 0.03)])
def test_by_evidence_what_chance_explains_is_kept(shift: float, low: float, high: float) -> None:
    found = recalibrated(_layer(shift, 1.0), _values(30), Plan(samples=30, prior=ByEvidence())).layers["0"]
    assert low <= found.prior_share <= high


def test_evidence_grows_with_the_samples() -> None:
    shares = [
        recalibrated(_layer(0.1, 1.0), _values(samples), Plan(samples=samples, prior=ByEvidence()))
        .layers["0"]
        .prior_share
        for samples in (10, 100, 1000)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.4
    assert shares[-1] < 0.05


def test_by_evidence_comes_closer_than_either_extreme() -> None:
    """Half the layers shifted, half not, ten samples: nearest to the truth on average."""
    generator = torch.Generator().manual_seed(11)
    worse = {"data": 0.0, "stored": 0.0, "blend": 0.0}
    for _ in range(40):
        shift = float(torch.randn((), generator=generator)) * 0.3
        values = shift + torch.randn(10, 64, 1, 1, generator=generator)
        layer = recalibrated(_layer(0.0, 1.0, 64), [values], Plan(samples=10, prior=ByEvidence())).layers["0"]
        worse["data"] += float(np.mean((layer.data.mean - shift) ** 2))
        worse["stored"] += shift**2
        worse["blend"] += float(np.mean((layer.after_mean - shift) ** 2))
    assert worse["blend"] < 0.8 * min(worse["data"], worse["stored"])


def test_a_single_sample_keeps_what_was_stored() -> None:
    found = recalibrated(_layer(3.0, 4.0), _values(1), Plan(samples=1, prior=ByEvidence())).layers["0"]
    np.testing.assert_allclose(found.after_mean, 3.0)
    np.testing.assert_allclose(found.after_var, 4.0)


def test_later_layers_see_the_blended_moments() -> None:
    """The fixed point with a prior: what each layer's input is depends on what the layers before it store."""
    batches = images([32, 32])
    model = built(Plain)
    found = recalibrated(model, batches, Plan(samples=64, prior=PseudoSamples(64)))
    with torch.no_grad():
        inner = torch.relu(model.bn1(model.conv1(torch.cat(batches))))  # type: ignore[operator]
        expected = model.conv2(inner).double().mean((0, 2, 3))  # type: ignore[operator]
    np.testing.assert_allclose(found.layers["bn2"].data.mean, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("prior", [PseudoSamples(0), PseudoSamples(50), ByEvidence()])
def test_stored_moments_that_are_none_have_no_weight(prior: PseudoSamples | ByEvidence) -> None:
    model = _layer(0.5, 1.0)
    model[0].running_mean[3] = float("nan")  # type: ignore[index, union-attr]
    model[0].running_var[5] = -1.0  # type: ignore[index, union-attr]
    found = recalibrated(model, _values(60), Plan(samples=60, prior=prior)).layers["0"]
    assert np.isfinite(found.after_mean).all()
    assert (found.after_var > 0).all()
    assert found.after_mean[3] == found.data.mean[3]
    assert found.after_mean[5] == found.data.mean[5]
