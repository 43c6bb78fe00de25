"""What a config says, whatever it was written in."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from bncheck.core.choices import Choices, FailOn
from bncheck.core.path_globs import path_matches
from bncheck.core.suppression import Suppression


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """Settings of some models.

    Attributes:
        paths: patterns, relative to the config's folder.
        choices: what is said of them.
    """

    paths: tuple[str, ...]
    choices: Choices


@dataclass(frozen=True, slots=True)
class Config:
    """What a config says; a run without one has an empty one.

    Attributes:
        path: the file; None where there is none.
        folder: what its paths are relative to; itself relative to the working directory where that is shorter.
        choices: what is said of all models.
        models: what is said of some; where several name a model, later ones stand above earlier ones.
        suppressions: findings that do not count.
        fail_on, fail_if_not_checked, allow_nothing, baseline, output_format, outputs, jobs: of the run; None where
            nothing is said.
    """

    path: str | None = None
    folder: str = "."
    choices: Choices = field(default_factory=Choices)
    models: tuple[ModelEntry, ...] = ()
    suppressions: tuple[Suppression, ...] = ()
    fail_on: FailOn | None = None
    fail_if_not_checked: tuple[str, ...] | None = None
    allow_nothing: bool | None = None
    baseline: str | None = None
    output_format: str | None = None
    outputs: tuple[tuple[str, str], ...] = ()
    jobs: int | None = None

    @property
    def names_code(self) -> bool:
        """Whether it lets code run: the user's by SPEC, or a file's own."""
        return any(choices.names_code for choices in (self.choices, *(entry.choices for entry in self.models)))

    def model_paths(self) -> tuple[str, ...]:
        """Files, folders and patterns of all models it names, from the working directory."""
        return tuple(from_here(self.folder, path) for entry in self.models for path in entry.paths)

    def choices_for(self, path: str) -> Choices:
        """What it says of one model."""
        inside = relative_to(self.folder, path)
        choices = self.choices
        for entry in self.models:
            if any(path_matches(pattern, inside) for pattern in entry.paths):
                choices = entry.choices.over(choices)
        return choices


def relative_to(folder: str, path: str) -> str:
    """A path as configs and baselines spell it: relative to their folder, with forward slashes; URLs as they are."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        return path
    try:
        inside = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    except ValueError:  # another drive
        inside = os.path.abspath(path)
    return inside.replace(os.sep, "/")


def from_here(folder: str, path: str) -> str:
    """A path of a config or baseline in this folder, from the working directory."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) or folder in (".", ""):
        return path
    return os.path.normpath(os.path.join(folder, path))
