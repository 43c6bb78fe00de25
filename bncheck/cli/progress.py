"""A progress bar on stderr for runs over many files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from bncheck.auditing import Progress

_FEW = 20


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Yields what to tell about each file, or None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("auditing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("auditing", total=None, visible=False)

        def tell(done: int, total: int, path: str) -> None:
            bar.update(task, completed=done, total=total, visible=total > _FEW)

        yield tell
