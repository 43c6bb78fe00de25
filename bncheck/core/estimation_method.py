"""The ways to estimate population statistics, known before anything that estimates them is imported."""

from __future__ import annotations

import enum


class Method(enum.StrEnum):
    """How the population is estimated."""

    EXACT = "exact"
    """The fixed point in eval mode: each layer stores the moments of its own input."""
    ONLINE = "online"
    """One sweep: a layer's moments are those of what was seen up to then."""
    BATCH = "batch"
    """Each layer normalises with the moments of its batch, as in training; what is stored is pooled over all."""
