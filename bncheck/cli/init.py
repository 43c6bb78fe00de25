"""``bncheck init``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from bncheck.auditing import find_files
from bncheck.catalogue import RULES
from bncheck.cli.app import app
from bncheck.cli.options import Debug
from bncheck.cli.output import emit
from bncheck.core.errors import BadUsage
from bncheck.report.files import write_text
from bncheck.report.formats import ReportFormat
from bncheck.report.printable import counted, printable

_NAME = "bncheck.yaml"


@app.command()
def init(
    folder: Annotated[str, typer.Argument(help="Where the config is to lie; its models are looked for.")] = ".",
    schema: Annotated[
        bool, typer.Option("--schema", help="Write the JSON Schema beside it, which editors check and complete by.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what stands there.")] = False,
    debug: Debug = False,
) -> None:
    """Write a commented bncheck.yaml that names the models found here."""
    from bncheck.config.schema import schema_text  # noqa: PLC0415 - no other command writes a config
    from bncheck.config.template import Surroundings, config_text, model_paths, patterns  # noqa: PLC0415

    if not os.path.isdir(folder):
        raise BadUsage(f"{folder}: there is no such folder")
    schema_name = "bncheck.schema.json" if schema else None
    paths = [os.path.join(folder, name) for name in (_NAME, schema_name) if name is not None]
    for path in paths:
        if os.path.lexists(path) and not force:
            raise BadUsage(f"{path} is there already; --force replaces it")
    found = Surroundings(
        models=model_paths(find_files([folder]).files, folder),
        on_github=os.path.isdir(os.path.join(folder, ".github")),
        on_gitlab=os.path.exists(os.path.join(folder, ".gitlab-ci.yml")),
        schema=schema_name,
    )
    if schema_name is not None:
        write_text(paths[1], schema_text([rule.id for rule in RULES], list(ReportFormat)))
    write_text(paths[0], config_text(found))
    named = ", ".join(map(printable, patterns(found.models)))
    emit(f"{paths[0]}: names {counted(len(found.models), 'model file')}{f': {named}' if named else ''}")
    if not found.models:
        print("bncheck: no model file was found here: put the paths of yours into it", file=sys.stderr)
