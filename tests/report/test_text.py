"""Small parts of the text view."""

from __future__ import annotations

import pytest

from bncheck.report.printable import number, printable, shortened
from bncheck.report.text import code_ranges


@pytest.mark.parametrize(
    ("codes", "shown"),
    [
        ([], ""),
        (["BN201"], "BN201"),
        (["BN501", "BN502"], "BN501, BN502"),
        (["BN503", "BN501", "BN502", "BN101"], "BN101, BN501–BN503"),
        (["BN405", "BN405"], "BN405"),
    ],
)
def test_code_ranges(codes: list[str], shown: str) -> None:
    assert code_ranges(codes) == shown


def test_layer_names_are_shortened() -> None:
    assert shortened(("a", "b", "c")) == "a, b, c"
    assert shortened(tuple(f"layer{i}.bn" for i in range(53))) == "layer0.bn … layer52.bn (53)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer1.0.bn1", "layer1.0.bn1"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb", "a\\nb"),
        ("\u202e", "\\u202e"),
        ("::error::x", "\\x3a\\x3aerror\\x3a\\x3ax"),
        ("größe", "größe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "not in the file"), (0.014781, "0.01478"), (3, "3"), (float("nan"), "nan"), ("x", "x")]
)
def test_number(value: float | int | str | None, shown: str) -> None:
    assert number(value) == shown
