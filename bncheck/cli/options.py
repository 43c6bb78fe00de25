"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

AllowCall = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE.NAME", help="A callable that whole-module pickles may name; it is not called here."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
