"""Lines of styled text, the common ground of everything written for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Text in one style, by rich's style names."""

    text: str
    style: str = ""


Line = tuple[Span, ...]
