"""When enough samples were seen, on moments made by hand and on sampled ones."""

from __future__ import annotations

import numpy as np
import torch

from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.core.moments import PopulationMoments, population_moments
from bncheck.recalibration.schedule import Plan
from bncheck.recalibration.stop_rule import settling
from bncheck.runtime.input_moments import InputMoments
from tests.recalibration.networks import Plain, built, images
from tests.recalibration.test_exact import recalibrated


def _moments(mean_errors: list[float], var_errors: list[float], images: int = 100) -> PopulationMoments:
    """Of variance 1, so that errors are what they are held against."""
    channels = len(mean_errors)
    return PopulationMoments(
        images, images, np.zeros(channels), np.ones(channels), np.array(mean_errors), np.array(var_errors)
    )


def test_settled_channels_are_within_both_limits() -> None:
    found = settling({"bn": (_moments([0.05, 0.051, 0.01], [0.05, 0.01, 0.06]), 0.0)}, DEFAULT_LIMITS)
    assert found.share == 1 / 3
    assert found.unsettled == {"bn": 2}


def test_samples_wanted_follow_the_square_of_the_error() -> None:
    found = settling({"bn": (_moments([0.1] * 20, [0.01] * 20), 0.0)}, DEFAULT_LIMITS)
    assert found.samples_wanted == 400


def test_a_few_channels_that_never_settle_do_not_hold_it_up() -> None:
    found = settling({"bn": (_moments([0.01] * 99 + [9.0], [0.01] * 100), 0.0)}, DEFAULT_LIMITS)
    assert found.share >= DEFAULT_LIMITS.settled_share
    assert found.samples_wanted <= 100


def test_channels_that_are_constant_have_settled_and_single_images_have_not() -> None:
    dead = PopulationMoments(10, 10, np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2))
    assert settling({"bn": (dead, 1e-5)}, DEFAULT_LIMITS).share == 1.0
    single = PopulationMoments(1, 10, np.zeros(2), np.ones(2), np.full(2, np.nan), np.full(2, np.nan))
    alone = settling({"bn": (single, 1e-5)}, DEFAULT_LIMITS)
    assert alone.share == 0.0
    assert alone.samples_wanted > 1


def test_the_estimate_of_samples_holds() -> None:
    """Twice as many as asked for from a quarter of them: then nearly all channels have settled."""
    generator = torch.Generator().manual_seed(0)

    def seen(samples: int) -> PopulationMoments:
        gathered = InputMoments()
        values = torch.randn(samples, 64, 1, 1, generator=generator) + torch.randn(
            samples, 64, 4, 4, generator=generator
        )
        gathered.add(values)
        sums = gathered.sums()
        assert sums is not None
        return population_moments(sums)

    few = settling({"bn": (seen(100), 1e-5)}, DEFAULT_LIMITS)
    assert few.share < 0.5
    enough = settling({"bn": (seen(int(1.3 * few.samples_wanted)), 1e-5)}, DEFAULT_LIMITS)
    assert enough.share > 0.9


def test_samples_are_taken_until_they_suffice() -> None:
    model = built(Plain)
    batches = images([16] * 200)
    found = recalibrated(model, batches, Plan(most_samples=3200))
    assert found.settling.share >= DEFAULT_LIMITS.settled_share
    assert 256 < found.samples < 3200
    assert found.residual == 0.0


def test_the_cap_holds_and_what_did_not_settle_is_told() -> None:
    found = recalibrated(built(Plain), images([16] * 40), Plan(most_samples=300))
    assert found.samples == 300
    assert found.settling.share < DEFAULT_LIMITS.settled_share
    assert set(found.settling.unsettled) <= {"bn1", "bn2", "bn3"}
    assert found.settling.samples_wanted > 300


def test_data_that_ends_early_is_all_that_is_taken() -> None:
    assert recalibrated(built(Plain), images([16] * 5), Plan()).samples == 80
    assert recalibrated(built(Plain), images([16] * 5), Plan(samples=1000)).samples == 80


def test_sorted_data_is_told_from_shuffled() -> None:
    batches = images([16] * 12)
    shuffled = recalibrated(built(Plain), batches, Plan(samples=192, pass_samples=16)).batch_scatter
    everything = torch.cat(batches)
    ordered = everything[everything.mean((1, 2, 3)).argsort()]
    by_brightness = recalibrated(
        built(Plain), list(ordered.split(16)), Plan(samples=192, pass_samples=16)
    ).batch_scatter
    assert shuffled is not None
    assert by_brightness is not None
    assert shuffled < DEFAULT_LIMITS.batch_scatter < by_brightness
