"""BN303 on measurements made by hand; tests/core/test_training_batch_size.py tests the estimate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bncheck.core.finding import Severity, Subject
from bncheck.core.layers import Averaging, NormLayer
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.core.measurement import LayerMeasurement, Measurements
from bncheck.core.moments import PopulationMoments
from bncheck.engine import examine
from bncheck.rules.trained_on_tiny_batches import RULE
from tests.rules.layers import checkpoint, layer

CHANNELS, POSITIONS, IMAGES = 32, 16, 1000
BETWEEN = 0.6  # share of the variance that lies between the means of images


def seen(size: float, error: float = 1.0) -> LayerMeasurement:
    """A layer that stored exactly what batches of ``size`` images have on average."""
    total = np.linspace(0.5, 2, CHANNELS)
    var = total * (1 - BETWEEN / size) * size * POSITIONS / (size * POSITIONS - 1)
    data = PopulationMoments(
        images=IMAGES,
        positions=float(IMAGES * POSITIONS),
        mean=np.zeros(CHANNELS),
        var=total,
        mean_error=np.sqrt(BETWEEN * total / IMAGES),
        var_error=error * total / np.sqrt(IMAGES),
    )
    return LayerMeasurement(0, 1, False, data, np.zeros(CHANNELS), var, 1e-5)


def judged(measured: LayerMeasurement, described: NormLayer | None = None) -> Subject:
    """The rule on one layer ``bn``."""
    measurements = Measurements("cpu", "fp32", IMAGES, layers={"bn": measured})
    return examine(checkpoint([described or layer("bn")]), [RULE], DEFAULT_LIMITS, measurements)


def reason(subject: Subject) -> str:
    """Why nothing could be said."""
    (entry,) = subject.not_checked
    assert not entry.crashed, entry.reason
    return entry.reason


@pytest.mark.parametrize(
    ("size", "severity"), [(1, Severity.ERROR), (2, Severity.WARNING), (8, None), (64, None), (1000, None)]
)
def test_tiny_batches_are_told(size: float, severity: Severity | None) -> None:
    subject = judged(seen(size, error=0.3))
    assert [finding.severity for finding in subject.findings] == ([] if severity is None else [severity])
    if severity is None:
        assert subject.passed == ("BN303",) or "to" in reason(subject) or "or more" in reason(subject)
    else:
        (finding,) = subject.findings
        assert finding.layers == ()
        assert finding.evidence["images in a batch, inferred"] == pytest.approx(size, rel=0.01)


def test_a_normal_batch_passes() -> None:
    assert judged(seen(64, error=0.3)).passed == ("BN303",)


@pytest.mark.parametrize("size", [4, 5, 6])
def test_what_lies_near_the_limit_is_not_checked(size: float) -> None:
    assert "tiny or not" in reason(judged(seen(size)))


def test_an_interval_without_end_says_so() -> None:
    wide = seen(3, error=20.0)
    assert "1.0 or more images" in reason(judged(wide))


@pytest.mark.parametrize(
    "fields",
    [
        {"order": None},
        {"calls": 2},
        {"moments": None},
        {"stored_var": None},
        {"stored_var": np.full(CHANNELS, np.nan)},
        {"stored_mean": np.full(CHANNELS, np.inf)},
        {"stored_mean": np.zeros(CHANNELS + 1)},
    ],
)
def test_layers_that_say_nothing_are_left_out(fields: dict[str, object]) -> None:
    assert "no layer" in reason(judged(replace(seen(1), **fields)))  # type: ignore[arg-type]


def test_moments_that_were_never_learned_are_left_out() -> None:
    untrained = layer("bn", running_mean=[0.0] * 4, running_var=[1.0] * 4)
    assert "no layer" in reason(judged(seen(1), untrained))


def test_vectors_are_not_checked() -> None:
    measured = seen(1)
    assert measured.moments is not None
    vectors = replace(measured, moments=replace(measured.moments, positions=float(IMAGES)))
    assert "several values" in reason(judged(vectors))


@pytest.mark.parametrize("momentum", [None, Averaging.CUMULATIVE, 0.1])
def test_an_unknown_momentum_is_taken_for_the_usual_one(momentum: object) -> None:
    plain = judged(seen(2, error=0.3)).findings[0]
    assert judged(seen(2, error=0.3), layer("bn", momentum=momentum)).findings[0].evidence == plain.evidence


def test_a_slow_average_is_trusted_more() -> None:
    assert judged(seen(2, error=2.5)).not_checked
    assert judged(seen(2, error=2.5), layer("bn", momentum=0.01)).findings
