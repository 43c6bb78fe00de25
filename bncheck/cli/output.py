"""Where a command's result goes: stdout, in colour when a terminal shows it."""

from __future__ import annotations

import enum
import os
import shutil
import sys
from collections.abc import Sequence

from bncheck.core.finding import ExitCode
from bncheck.report.styled import Line
from bncheck.report.text import plain

PIPED_WIDTH = 100


class OutputFormat(enum.StrEnum):
    """Formats of a report on stdout."""

    TEXT = "text"
    JSON = "json"


def wants_colour() -> bool:
    """A terminal does, unless https://no-color.org is set; a pipe does where FORCE_COLOR asks for it."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def text_width() -> int:
    """Columns to write for."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return PIPED_WIDTH


def emit(text: str) -> None:
    """Print text on stdout, to the last byte.

    Raises:
        SystemExit: with 2 where the reader (``| head``) has gone: click would say 1, which means findings.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit
        sys.exit(ExitCode.NOT_AUDITED)


def show(lines: Sequence[Line]) -> None:
    """Print styled lines on stdout."""
    if wants_colour():
        from bncheck.report.terminal import show_lines  # noqa: PLC0415 - rich costs more than the audit

        show_lines(lines, sys.stdout)
    else:
        emit(plain(lines))
