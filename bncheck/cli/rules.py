"""``bncheck rules``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bncheck.catalogue import RULES
from bncheck.cli.app import app
from bncheck.cli.output import OutputFormat, emit, text_width
from bncheck.report.document import rule_document
from bncheck.report.json import to_json


@app.command()
def rules(
    output_format: Annotated[OutputFormat, typer.Option("--format", help="Table or JSON.")] = OutputFormat.TEXT,
) -> None:
    """List the rules."""
    match output_format:
        case OutputFormat.JSON:
            emit(to_json([rule_document(rule) for rule in RULES]))
        case OutputFormat.TEXT:
            from bncheck.report.terminal import show_rules  # noqa: PLC0415 - rich is wanted only for tables

            show_rules(RULES, sys.stdout, text_width())
