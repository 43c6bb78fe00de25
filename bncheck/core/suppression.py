"""Findings that the user has decided to live with, one by one and with a reason."""

from __future__ import annotations

import datetime
import fnmatch
from dataclasses import dataclass

from bncheck.core.path_globs import path_matches


@dataclass(frozen=True, slots=True)
class Suppression:
    """A decision not to count a rule's findings.

    Attributes:
        rule: code.
        reason: why, in the user's words.
        path: pattern of the models, relative to the config's folder.
        layer: pattern of the layers' full names; ``*`` is any part of a name, dots included, and alone it also covers
            verdicts on a whole model.
        until: the last day it holds; None: for good.
        place: where it is written, for messages.
    """

    rule: str
    reason: str
    path: str = "**"
    layer: str = "*"
    until: datetime.date | None = None
    place: str = ""

    def names_model(self, path: str) -> bool:
        """Whether it is about this model."""
        return path_matches(self.path, path)

    def covers(self, rule: str, path: str, layer: str | None) -> bool:
        """Whether it is about what a rule saw on a layer; None: on the whole model."""
        if rule != self.rule or not self.names_model(path):
            return False
        return self.layer == "*" if layer is None else fnmatch.fnmatchcase(layer, self.layer)

    def lapsed(self, today: datetime.date) -> bool:
        """Whether its last day is over."""
        return self.until is not None and today > self.until
