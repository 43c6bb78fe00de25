"""Rules named by the beginning of their codes, as users name them."""

from __future__ import annotations

from collections.abc import Iterable

ALL = "ALL"
"""Stands for every rule."""


def begins(code: str, prefixes: Iterable[str]) -> bool:
    """Whether one of the prefixes names the rule of this code."""
    return any(prefix == ALL or code.startswith(prefix) for prefix in prefixes)
