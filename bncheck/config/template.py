"""A first config for a project, from what lies in it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import yaml

_MOST_PATTERNS = 20


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found.

    Attributes:
        models: paths of model files, relative to where the config will lie.
        on_github, on_gitlab: whether these run the project's continuous integration.
        schema: file name of the JSON Schema beside the config; None where there is none.
    """

    models: tuple[str, ...] = ()
    on_github: bool = False
    on_gitlab: bool = False
    schema: str | None = None


def patterns(models: Iterable[str]) -> tuple[str, ...]:
    """Few patterns that name these files: one for each folder and extension, or for each extension alone.

    What is special in a pattern stands in brackets; files without an extension are named one by one.

    Args:
        models: relative paths.
    """
    found = {_pattern(path.replace(os.sep, "/")) for path in models}
    if len(found) > _MOST_PATTERNS:
        found = {f"**/{pattern.rpartition('/')[2]}" for pattern in found}
    return tuple(sorted(found))


def _pattern(path: str) -> str:
    stem, extension = os.path.splitext(path)
    folder, slash, _ = stem.rpartition("/")
    return f"{glob.escape(folder)}{slash}*{glob.escape(extension)}" if extension else glob.escape(path)


def config_text(found: Surroundings) -> str:
    """A config that says what was found, and in comments what else can be said."""
    wanted = patterns(found.models)
    paths = [f"      - {_quoted(pattern)}" for pattern in wanted] or ['      - "models/*.pt"']
    outputs = [
        (found.on_github, "sarif: bncheck.sarif        # GitHub's code scanning"),
        (found.on_gitlab, "gitlab: gl-code-quality.json  # GitLab's merge requests"),
        (False, "junit: bncheck.xml          # what most servers show as tests"),
        (False, "html: bncheck.html          # for people, with pictures"),
    ]
    active = [f"  {line}" for wanted_here, line in outputs if wanted_here]
    idle = [f"#   {line}" for wanted_here, line in outputs if not wanted_here]
    lines = [
        *([f"# yaml-language-server: $schema={found.schema}", ""] if found.schema else []),
        "# What `bncheck audit` goes by when it is run here or in a folder below. Every path is relative to this file.",
        "",
        "models:",
        "  - paths:",
        *paths,
        "    # stage: release               # training: mode flags and optimizer state are no findings",
        "    # What builds the model and the data to run it on; without them the file alone is read.",
        "    # model: nets.py:build           # your callable that returns the module",
        "    # model-arg: {width: 64}",
        "    # data: nets.py:val_loader       # your callable that returns batches",
        "    # samples: 2048",
        "",
        "# Rules by the beginning of their codes; `bncheck rules` lists them, `bncheck explain BN405` says why.",
        "# ignore: [BN503]",
        "# severity: {BN303: error}",
        "# limits: {drift-delta-warning: 0.2}",
        "",
        "fail-on: error                    # warning, notice, never",
        "# fail-if-not-checked: [BN2, BN4]  # these may not go unchecked",
        "",
        *(["output:"] if active else ["# output:"]),
        *active,
        *idle,
        "",
        "# Findings that were there before: `bncheck audit --write-baseline bncheck-baseline.yaml` writes them down.",
        "# baseline: bncheck-baseline.yaml",
        "",
        "# suppress:",
        "#   - rule: BN405",
        '#     path: "models/legacy/*.pt"',
        '#     layer: "head.*"',
        "#     reason: never used in production",
        "#     until: 2030-12-31",
    ]
    return "\n".join(lines) + "\n"


def _quoted(pattern: str) -> str:
    text: str = yaml.safe_dump(pattern, default_style='"', width=10_000)
    return text.strip()


def model_paths(files: Sequence[str], folder: str) -> tuple[str, ...]:
    """Files as a config in this folder names them; those of other places are left out."""
    inside = (os.path.relpath(path, folder) for path in files)
    return tuple(path for path in inside if path.split(os.sep)[0] != os.pardir)
