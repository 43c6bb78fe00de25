"""What a suppression is about, and how long."""

from __future__ import annotations

import datetime

import pytest

from bncheck.core.suppression import Suppression

DAY = datetime.date(2030, 12, 31)


@pytest.mark.parametrize(
    ("pattern", "layer", "covers"),
    [
        ("*", "layer1.0.bn1", True),
        ("*", None, True),
        ("layer1.*", "layer1.0.bn1", True),
        ("layer1.*", "layer10.bn1", False),
        ("layer1.*", None, False),
        ("*.bn1", "layer1.0.bn1", True),
        ("bn1", "bn1", True),
        ("bn1", "BN1", False),
        ("bn?", "bn1", True),
        ("bn[12]", "bn3", False),
        ("ema:*", "ema:bn1", True),
        ("**", None, False),
    ],
)
def test_layers(pattern: str, layer: str | None, covers: bool) -> None:
    assert Suppression("BN405", "why", layer=pattern).covers("BN405", "a.pt", layer) is covers


def test_rule_and_model_both_must_fit() -> None:
    one = Suppression("BN405", "why", path="m/*.pt")
    assert one.covers("BN405", "m/a.pt", "bn")
    assert not one.covers("BN406", "m/a.pt", "bn")
    assert not one.covers("BN4", "m/a.pt", "bn")
    assert not one.covers("BN405", "n/a.pt", "bn")
    assert Suppression("BN405", "why").names_model("../elsewhere/a.pt")
    assert Suppression("BN405", "why").names_model("https://host/a.pt")


def test_it_lapses_on_the_day_after_its_last() -> None:
    one = Suppression("BN405", "why", until=DAY)
    assert not one.lapsed(DAY)
    assert one.lapsed(DAY + datetime.timedelta(days=1))
    assert not Suppression("BN405", "why").lapsed(datetime.date.max)
