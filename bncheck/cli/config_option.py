"""The config a command goes by: the one it is given, or the nearest from the working directory upward."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from bncheck.catalogue import RULES
from bncheck.config.contents import Config
from bncheck.config.discovery import find_config
from bncheck.core.errors import BadUsage
from bncheck.report.formats import ReportFormat

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="Config; default: bncheck.yaml or pyproject.toml here or in a folder above."
    ),
]
NoConfig = Annotated[bool, typer.Option("--no-config", help="Go by the command line alone.")]


def the_config(path: str | None, no_config: bool, audited: Sequence[str] = ()) -> Config:
    """What it says; nothing where there is none.

    One that was found and not named is told on stderr. Where it lies with what is audited, it may have come with it:
    then it runs nothing.

    Args:
        path: the one that is named.
        no_config: whether there is to be none.
        audited: files, folders and patterns on the command line.

    Raises:
        BadConfig: it cannot be read, or says something bncheck does not know.
        BadUsage: one is named and none is wanted; or one that was found lies beside a model, or in a folder, that is
            audited, and names code to run.
    """
    if no_config:
        if path is not None:
            raise BadUsage("--config and --no-config do not go together")
        return Config()
    found = find_config() if path is None else path
    if found is None:
        return Config()
    if path is None:
        print(f"bncheck: going by {found}", file=sys.stderr)
    from bncheck.config.reading import read_config  # noqa: PLC0415 - a run without a config needs no parser

    config = read_config(found, tuple(rule.id for rule in RULES), tuple(ReportFormat))
    if path is None and config.names_code and any(_lies_with(found, one) for one in audited):
        raise BadUsage(
            f"{found} names code to run, and lies with what is audited, so that it may have come with it; say "
            f"--config {found} if it is yours, or --no-config"
        )
    return config


def _lies_with(config: str, audited: str) -> bool:
    """Whether a config lies beside a file, or somewhere inside a folder."""
    home = os.path.dirname(os.path.realpath(config))
    place = os.path.realpath(audited)
    if os.path.isdir(place):
        return home == place or home.startswith(os.path.join(place, ""))
    return home == os.path.dirname(place)
