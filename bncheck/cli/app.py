"""The typer application that commands register with."""

from __future__ import annotations

import sys

import typer

from bncheck.version import __version__

app = typer.Typer(
    name="bncheck",
    help="Audits batch normalisation in trained models, without running them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"bncheck {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Audits batch normalisation in trained models, without running them."""
