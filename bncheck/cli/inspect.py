"""``bncheck inspect``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bncheck.cli.app import app
from bncheck.cli.options import AllowCall, Debug
from bncheck.cli.output import OutputFormat, emit, text_width
from bncheck.core.finding import ExitCode
from bncheck.readers import read_named
from bncheck.report.document import layer_document
from bncheck.report.json import to_json


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="FILE", help="A model file.")],
    output_format: Annotated[OutputFormat, typer.Option("--format", help="Table or JSON.")] = OutputFormat.TEXT,
    allow_call: AllowCall = None,
    debug: Debug = False,
) -> None:
    """Show every normalisation layer of a file with what the file says of it; ? where it does not say."""
    checkpoint = read_named(path, vouched=frozenset(allow_call or ()))
    match output_format:
        case OutputFormat.JSON:
            emit(
                to_json(
                    {
                        "path": checkpoint.path,
                        "format": checkpoint.format.value,
                        "packaging": checkpoint.packaging.value,
                        "stage": checkpoint.stage.value,
                        "layers": [layer_document(layer) for layer in checkpoint.layers],
                    }
                )
            )
        case OutputFormat.TEXT:
            from bncheck.report.terminal import show_layers  # noqa: PLC0415 - rich is wanted only for tables

            show_layers(checkpoint, sys.stdout, text_width())
    raise typer.Exit(ExitCode.CLEAN if checkpoint.layers else ExitCode.NOTHING_TO_AUDIT)
