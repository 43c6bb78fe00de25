"""The config a command goes by: the one it is given, or the nearest from the working directory upward."""

from __future__ import annotations

import sys
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


def the_config(path: str | None, no_config: bool) -> Config:
    """What it says; nothing where there is none.

    One that was found and not named is told on stderr: it may name code to run.

    Raises:
        BadConfig: it cannot be read, or says something bncheck does not know.
        BadUsage: one is named and none is wanted.
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

    return read_config(found, tuple(rule.id for rule in RULES), tuple(ReportFormat))
