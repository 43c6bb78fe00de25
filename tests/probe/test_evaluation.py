"""The sweep over the data: moments and the gap to batch moments, against torch itself in training mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bncheck.probe.companions import companions
from bncheck.probe.evaluation import evaluate
from bncheck.runtime.batches import Batch, forward

SIZES = (32, 20, 8, 5)


def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 7), nn.BatchNorm1d(7)
    )
    for layer in made:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return made.eval()


def labelled(sizes: Sequence[int] = SIZES) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            (torch.randn(size, 1, 8, 8, generator=generator),), torch.randint(0, 7, (size,), generator=generator), size
        )
        for size in sizes
    ]


def inputs_of(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, tuple)
    (images,) = batch.inputs
    assert isinstance(images, Tensor)
    return images


def test_the_gap_is_that_of_torch_in_training_mode() -> None:
    model, given = network(), labelled()
    gap = evaluate(model, given, forward).gap
    assert gap is not None
    training = deepcopy(model).train()
    rises, hits, differing = [], [0, 0], 0
    with torch.no_grad():
        for batch in given[:3]:  # the last one is too small to say anything of its own moments
            assert batch.labels is not None
            stored, own = (each(inputs_of(batch)).double() for each in (model, training))
            losses = [cross_entropy(scores, batch.labels, reduction="none") for scores in (stored, own)]
            rises.append(losses[0] - losses[1])
            for way, scores in enumerate((stored, own)):
                hits[way] += int((scores.argmax(1) == batch.labels).sum())
            differing += int((stored.argmax(1) != own.argmax(1)).sum())
    rise = torch.cat(rises)
    assert (gap.samples, gap.classes) == (60, 7)
    assert gap.loss_rise == pytest.approx(float(rise.mean()), rel=1e-5)
    assert gap.loss_error == pytest.approx(float(rise.std(correction=0)) / math.sqrt(60), rel=1e-5)
    assert (gap.accuracy_stored, gap.accuracy_batch) == (hits[0] / 60, hits[1] / 60)
    assert gap.disagreement == differing / 60 > 0


@pytest.mark.parametrize("sizes", [SIZES, (64,) * 40, (2000,), (9, 1500, 3)])
def test_moments_are_those_of_all_batches_together(sizes: Sequence[int]) -> None:
    """Small layers' means are added up once there are enough of them: none is lost, and none counts twice."""
    model, given = network(), labelled(sizes)
    found = evaluate(model, given, forward).layers["1"].moments
    assert found is not None
    with torch.no_grad():
        seen = torch.cat([model.get_submodule("0")(inputs_of(batch)) for batch in given]).double()
    assert found.images == sum(sizes)
    np.testing.assert_allclose(found.mean, seen.mean((0, 2, 3)).numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.var, seen.var((0, 2, 3), correction=0).numpy(), rtol=1e-5)
    means = seen.mean((2, 3))
    np.testing.assert_allclose(found.mean_error, (means.std(0) / math.sqrt(len(means))).numpy(), rtol=1e-4)


class _Mixing(nn.Module):
    """Changes a sample's scores where the batch has the size it is made for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, scores: Tensor) -> Tensor:
        return -scores if len(scores) == self.size else scores


@pytest.mark.parametrize(("size", "flips"), [(1, 2), (2, 2), (0, 0)])
def test_samples_alone_and_duplicated_are_compared_with_themselves(size: int, flips: int) -> None:
    (batch,) = labelled((32,))
    found = companions(nn.Sequential(network(), _Mixing(size)).eval(), batch, forward)
    assert found.samples == 4
    assert found.flips == flips
    assert (found.change > 0.1) is (flips > 0)
    assert found.noise == 0
