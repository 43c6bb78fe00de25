"""Progress bars on stderr, for runs over many files and over many samples; none where nobody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bncheck.auditing import Progress, SampleProgress

_FEW = 20


@dataclass(frozen=True, slots=True)
class Watcher:
    """What to tell; None where nobody watches.

    Attributes:
        files: about each file.
        samples: about the samples a model has been run on.
    """

    files: Progress | None = None
    samples: SampleProgress | None = None


@contextlib.contextmanager
def progress_bar() -> Iterator[Watcher]:
    """Yields what to tell."""
    if not sys.stderr.isatty():
        yield Watcher()
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        files = bar.add_task("auditing", total=None, visible=False)
        samples = bar.add_task("samples", total=None, visible=False)

        def tell_files(done: int, total: int, path: str) -> None:
            bar.update(files, completed=done, total=total, visible=total > _FEW)
            bar.update(samples, visible=False)

        def tell_samples(done: int, total: int) -> None:
            bar.update(samples, completed=done, total=total, visible=True)

        yield Watcher(tell_files, tell_samples)
