"""The valid name that a wrong one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

_ALIKE = 0.5
"""Share of characters in common, as ``difflib`` counts it, from which it is worth a guess."""


def closest(name: str, valid: Sequence[str]) -> str | None:
    """None where no valid name comes near."""
    return next(iter(difflib.get_close_matches(name, valid, n=1, cutoff=_ALIKE)), None)
